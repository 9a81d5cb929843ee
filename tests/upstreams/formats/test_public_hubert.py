"""Imported HuBERT checkpoints compute what transformers and s3prl compute with them."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.upstreams.formats.public_models import (
    POST,
    PRE,
    assert_equal_to_transformers,
    s3prl_file,
    transformers_model,
    waveforms,
)
from upstreams import cost
from upstreams.config import ModelConfig, preset
from upstreams.errors import UserError
from upstreams.formats import checkpoint
from upstreams.formats.public_hubert import load_public


@pytest.mark.parametrize(
    ("config", "form"),
    [
        *itertools.product((POST, PRE), ("safetensors", "pytorch", "with a head on top")),
        (preset("hubert_base"), "safetensors"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
@torch.no_grad()
def test_hidden_states_equal_transformers(config: ModelConfig, form: str, tmp_path: Path) -> None:
    """Compare all hidden states of a padded batch with those of transformers on each utterance alone."""
    theirs = transformers_model(config)
    state = theirs.state_dict()
    path = tmp_path / ("model.safetensors" if form == "safetensors" else "pytorch_model.bin")
    if form == "safetensors":
        save_file(state, path)
    elif form == "pytorch":
        torch.save(state, path)
    else:
        torch.save({**{f"hubert.{k}": v for k, v in state.items()}, "lm_head.weight": torch.zeros(3, 48)}, path)
    ours, head = load_public(path, config)
    assert not head

    assert_equal_to_transformers(ours, theirs, waveforms(), config.front_end.normalisation == "utterance")


@pytest.mark.parametrize("config", [POST, PRE], ids=lambda c: c.name)
@torch.no_grad()
def test_hidden_states_equal_s3prls_hubert(config: ModelConfig, tmp_path: Path) -> None:
    theirs = s3prl_file(tmp_path / "hubert.pt", config)
    ours, head = load_public(tmp_path / "hubert.pt", config)
    assert {name: tuple(t.shape) for name, t in head.items()} == {
        "projection.weight": (16, 48),
        "projection.bias": (16,),
        "codewords": (20, 16),
    }
    for wave in waveforms():
        wanted = theirs([wave])["hidden_states"]
        for state, reference in zip(ours(wave), wanted, strict=True):
            torch.testing.assert_close(state, reference, atol=1e-4, rtol=0)


def test_parameters_are_the_published_ones() -> None:
    """94.70 M as SUPERB counts HuBERT Base: with its pre-training head of 504 codewords (arXiv 2106.07447)."""
    with torch.device("meta"):
        model = checkpoint.build(preset("hubert_base"))
    head = 768 * 256 + 256 + 504 * 256
    assert cost.parameters(model) + head == pytest.approx(94.70e6, rel=1e-4)


class Explosive:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("ran"),)


def test_other_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = transformers_model(POST).state_dict()
    save_file(state, tmp_path / "good.safetensors")
    data = (tmp_path / "good.safetensors").read_bytes()
    (tmp_path / "short.safetensors").write_bytes(data[: len(data) // 2])
    (tmp_path / "short.pt").write_bytes(b"PK\x03\x04 nothing")
    torch.save({"model": state, "extra": Explosive()}, tmp_path / "code.pt")
    torch.save({"model": {}}, tmp_path / "empty.pt")
    torch.save({"wav2vec.weight": torch.zeros(3)}, tmp_path / "other.pt")
    torch.save({**state, "adapter.weight": torch.zeros(3)}, tmp_path / "adapter.pt")
    for name, config, message in (
        ("none.pt", POST, "there is no file none.pt"),
        ("short.safetensors", POST, "is damaged"),
        ("short.pt", POST, "is damaged"),
        ("code.pt", POST, "could run code"),
        ("empty.pt", POST, "holds no state dict"),
        ("other.pt", POST, "is not a HuBERT in the layout of transformers or fairseq"),
        ("adapter.pt", POST, "holds adapter.weight, which is not a tensor of HuBERT"),
        ("good.safetensors", preset("hubert_base"), "does not fit hubert_base"),
        ("good.safetensors", preset("transformer_mini"), "transformer_mini is not a HuBERT"),
    ):
        with pytest.raises(UserError, match=message):
            load_public(Path(name), config)
    assert not (tmp_path / "ran").exists()


@torch.no_grad()
def test_the_command_makes_an_upstream_and_a_teacher(tmp_path: Path) -> None:
    """`superbit import` of a file in HuBERT Base's shape, which s3prl and distillation then load."""
    from pretrain.objectives.distillation import load_with_head
    from upstreams.s3prl.expert import UpstreamExpert

    state = {f"hubert.{k}": v.half() for k, v in transformers_model(preset("hubert_base")).state_dict().items()}
    torch.save(state, tmp_path / "hubert.bin")
    command = [sys.executable, "-m", "superbit", "import", "hubert_base", str(tmp_path / "hubert.bin")]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True)
    path = tmp_path / "checkpoints/hubert_base.safetensors"
    assert done.returncode == 0 and f"checkpoint: {path} (without its pre-training head)" in done.stdout, done.stderr
    assert len(UpstreamExpert(path)([torch.randn(4_000)])["hidden_states"]) == 13
    with pytest.raises(UserError, match="has no pre-training head"):
        load_with_head(path)
    # s3prl's file has the pre-training head, so that the checkpoint can be a teacher.
    s3prl_file(tmp_path / "hubert.pt", preset("hubert_base"))
    again = [*command[:-1], str(tmp_path / "hubert.pt"), "--out", str(tmp_path)]
    done = subprocess.run([*again, "--name", "teacher"], capture_output=True, text=True)
    path = path.with_name("teacher.safetensors")
    assert done.returncode == 0 and "(with its pre-training head)" in done.stdout, done.stderr
    weights = torch.load(tmp_path / "hubert.pt", weights_only=True)["model_weight"]
    teacher = load_with_head(path)
    assert torch.equal(teacher.head.codewords, weights["label_embs_concat"])
    assert torch.equal(teacher.head.projection.weight, weights["final_proj.weight"])
    done = subprocess.run([*command[:-1], str(path), "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2 and "not a HuBERT in the layout of transformers or fairseq" in done.stderr
