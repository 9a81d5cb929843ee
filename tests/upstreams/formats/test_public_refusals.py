"""What `superbit import` refuses, in one sentence that says what the file is or lacks; and what it never overwrites."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.upstreams.formats.public_models import POST, run_import, s3prl_file, transformers_model
from upstreams.errors import UserError

POSITIONS = "encoder.pos_conv_embed.conv.parametrizations.weight.original"
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return transformers_model(POST).state_dict()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("lfs.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a git-lfs pointer"),
        ("lfs.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
        ("page.bin", b"\n<!DOCTYPE html><html>404</html>", "is an HTML page"),
        ("page.safetensors", b"<html>", "is an HTML page"),
        ("empty.pt", b"", "is empty"),
        ("blank.pt", b" \n" * 9, "is empty"),
        ("error.pt", b'{"error": "Access denied"}', "is JSON text"),
        ("packed.pt", gzip.compress(b"weights", mtime=0), "is a gzip archive: unpack it"),
        ("noise.ckpt", bytes(range(7, 250)), "is neither a safetensors nor a PyTorch file"),
    ],
)
def test_what_is_no_checkpoint_is_said_as_what_it_is(
    name: str, content: bytes, message: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        run_import(monkeypatch, POST, tmp_path / name, tmp_path / "out")
    assert "could run code" not in str(error.value)


def test_a_file_under_the_suffix_of_another_format(state: dict, tmp_path: Path, monkeypatch: Patch) -> None:
    save_file(state, tmp_path / "hubert.pt")
    torch.save(state, tmp_path / "hubert.safetensors")
    for name, message in (
        ("hubert.pt", r"is a safetensors file: rename it to hubert\.safetensors"),
        ("hubert.safetensors", r"is a PyTorch file: rename it to hubert\.pt"),
    ):
        with pytest.raises(UserError, match=message):
            run_import(monkeypatch, POST, tmp_path / name, tmp_path / "out")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["encoder.layers.1.feed_forward.output_dense.weight", f"{POSITIONS}1"])
def test_weights_that_are_not_finite(value: float, name: str, state: dict, tmp_path: Path, monkeypatch: Patch) -> None:
    wrong = state[name].clone()
    wrong.view(-1)[5] = value
    save_file({**state, name: wrong}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="holds NaN or infinite values"):
        run_import(monkeypatch, POST, tmp_path / "model.safetensors", tmp_path / "out")


@pytest.mark.parametrize(
    ("remove", "add", "message"),
    [
        ([f"{POSITIONS}0"], {}, "has direction of the weight of the convolutional positions"),
        ([f"{POSITIONS}1"], {}, "has magnitude of the weight of the convolutional positions"),
        ([f"{POSITIONS}0", f"{POSITIONS}1"], {}, "has no part of the weight"),
        ([], {"encoder.pos_conv_embed.conv.weight": (48, 12, 16)}, "folded and magnitude and direction"),
        ([f"{POSITIONS}0"], {f"{POSITIONS}0": (16, 1, 1)}, "magnitude has shape 16x1x1 instead of 1x1x16"),
        ([], {"final_proj.weight": (16, 48)}, r"the pre-training head .* lacks codewords"),
        (["encoder.layers.0.layer_norm.bias"], {}, r"blocks\.0\.attention_norm\.bias is missing"),
        ([], {"encoder.layers.3.layer_norm.bias": (48,)}, r"blocks\.3\.attention_norm\.bias does not belong to it"),
        ([], {"encoder.layer_norm.bias": (7, 7)}, "has shape 7x7 instead of 48"),
        ([], {"other.feature_extractor.conv_layers.0.conv.weight": (1,)}, "holds several models, '', 'other.'"),
        ([], {"encoder.adapter.weight": (3,)}, "which is not a tensor of HuBERT"),
    ],
)
def test_incomplete_models(
    remove: list[str], add: dict, message: str, state: dict, tmp_path: Path, monkeypatch: Patch
) -> None:
    kept = {name: tensor for name, tensor in state.items() if name not in remove}
    save_file({**kept, **{name: torch.ones(shape) for name, shape in add.items()}}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message):
        run_import(monkeypatch, POST, tmp_path / "model.safetensors", tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"final_proj.weight": None, "final_proj.bias": None}, "lacks projection"),
        ({"label_embs_concat": None, "final_proj.bias": None}, "lacks codewords"),
        ({"final_proj.bias": None}, r"lacks projection\.bias"),
        ({"final_proj.weight": (32, 48), "final_proj.bias": (32,)}, "untie_final_proj"),
        ({"label_embs_concat": (20,)}, "cannot be used"),
        ({"label_embs_concat": ()}, "cannot be used"),
    ],
)
def test_incomplete_and_untied_heads(change: dict, message: str, tmp_path: Path, monkeypatch: Patch) -> None:
    s3prl_file(tmp_path / "hubert.pt")
    content = torch.load(tmp_path / "hubert.pt", weights_only=True)
    weights = content["model_weight"]
    for name, shape in change.items():
        if shape is None:
            del weights[name]
        else:
            weights[name] = torch.zeros(shape)
    torch.save(content, tmp_path / "hubert.pt")
    with pytest.raises(UserError, match=message):
        run_import(monkeypatch, POST, tmp_path / "hubert.pt", tmp_path / "out")


@pytest.mark.parametrize("other", ["wav2vec2", "wavlm"])
def test_other_models_with_huberts_names(other: str, state: dict, tmp_path: Path, monkeypatch: Patch) -> None:
    save_file({f"{other}.{name}": tensor for name, tensor in state.items()}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=f"is a {other}, not a HuBERT"):
        run_import(monkeypatch, POST, tmp_path / "model.safetensors", tmp_path / "out")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(48, dtype=torch.int64),
        torch.zeros(48, dtype=torch.complex64),
        torch.zeros(48).to_sparse(),
        torch.zeros(48, device="meta"),
        torch.zeros(1).expand(1 << 40),
    ],
    ids=["whole numbers", "complex", "sparse", "without values", "4 TB in 4 bytes"],
)
def test_tensors_of_other_kinds(tensor: Tensor, state: dict, tmp_path: Path, monkeypatch: Patch) -> None:
    torch.save({**state, "encoder.layer_norm.bias": tensor}, tmp_path / "hubert.bin")
    with pytest.raises(UserError, match=r"encoder\.input_norm\.bias (has type|is not a plain tensor|has shape)"):
        run_import(monkeypatch, POST, tmp_path / "hubert.bin", tmp_path / "out")


def test_a_flipped_bit_in_a_pytorch_file(state: dict, tmp_path: Path, monkeypatch: Patch) -> None:
    """torch.load would return a wrong weight."""
    torch.save(state, tmp_path / "hubert.bin")
    data = bytearray((tmp_path / "hubert.bin").read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "hubert.bin").write_bytes(data)
    with pytest.raises(UserError, match=r"the checksum of .* is wrong"):
        run_import(monkeypatch, POST, tmp_path / "hubert.bin", tmp_path / "out")


def test_folders_without_one_checkpoint(state: dict, tmp_path: Path, monkeypatch: Patch) -> None:
    (tmp_path / "theirs").mkdir()
    with pytest.raises(UserError, match="has 0 checkpoint files; give the file itself"):
        run_import(monkeypatch, POST, tmp_path / "theirs", tmp_path / "out")
    torch.save(state, tmp_path / "theirs/a.pt")
    run_import(monkeypatch, POST, tmp_path / "theirs", tmp_path / "out")
    torch.save(state, tmp_path / "theirs/b.pt")
    with pytest.raises(UserError, match=r"has 2 checkpoint files: a\.pt, b\.pt; give the file itself"):
        run_import(monkeypatch, POST, tmp_path / "theirs", tmp_path / "out")


def test_import_never_overwrites_a_checkpoint(state: dict, tmp_path: Path, monkeypatch: Patch) -> None:
    save_file(state, tmp_path / "a.safetensors")
    save_file({**state, "encoder.layer_norm.bias": torch.ones(48)}, tmp_path / "b.safetensors")
    first = run_import(monkeypatch, POST, tmp_path / "a.safetensors", tmp_path)
    before = first.read_bytes(), first.stat().st_mtime_ns
    with pytest.raises(UserError, match=r"exists and is another checkpoint: give another --name or --out"):
        run_import(monkeypatch, POST, tmp_path / "b.safetensors", tmp_path)
    # The same checkpoint again is finished already.
    assert run_import(monkeypatch, POST, tmp_path / "a.safetensors", tmp_path) == first
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    second = run_import(monkeypatch, POST, tmp_path / "b.safetensors", tmp_path, "--name", "hubert.b-2")
    assert second == tmp_path / "checkpoints/hubert.b-2.safetensors" and first.read_bytes() == before[0]


@pytest.mark.parametrize("name", ["../out", "a/b", ".hidden", "", "a b", "ä", "x" * 101, "a\n"])
def test_import_refuses_a_name_that_is_no_file_name(name: str, state: dict, tmp_path: Path, monkeypatch: Patch) -> None:
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"name .* is not valid: it becomes a file name"):
        run_import(monkeypatch, POST, tmp_path / "a.safetensors", tmp_path / "out", "--name", name)
    assert not (tmp_path / "out").exists()


def test_a_damaged_index(tmp_path: Path, monkeypatch: Patch) -> None:
    index = tmp_path / "model.safetensors.index.json"
    for content in ("{", "[1]", "{}", json.dumps({"weight_map": []}), "[" * 100_000):
        index.write_text(content)
        with pytest.raises(UserError, match=r"model\.safetensors\.index\.json"):
            run_import(monkeypatch, POST, tmp_path, tmp_path / "out")
