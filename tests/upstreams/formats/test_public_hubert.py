"""Imported HuBERT checkpoints compute what transformers and s3prl compute with them."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from upstreams import cost
from upstreams.config import EncoderConfig, FrontEndConfig, ModelConfig, preset
from upstreams.errors import UserError
from upstreams.formats import checkpoint
from upstreams.formats.public_hubert import load_public
from upstreams.s3prl import compat  # noqa: F401  (makes torchaudio importable, which transformers and s3prl import)

LENGTHS = (8_000, 16_007, 1_000, 400)

# Two small shapes, whose number of heads is no default.
POST = ModelConfig(
    "small_post",
    FrontEndConfig("waveform", "none", width=24, feature_norm="group"),
    EncoderConfig("transformer", 3, 48, 3, 96, "gelu", "post", "conv", position_kernel=16, position_groups=4),
    output_map=False,
)
PRE = dataclasses.replace(
    POST,
    name="small_pre",
    front_end=FrontEndConfig("waveform", "utterance", width=24, feature_norm="layer"),
    encoder=dataclasses.replace(POST.encoder, norm="pre"),
)


def transformers_model(config: ModelConfig) -> nn.Module:
    """Return transformers' HubertModel of that shape with random weights, norms and biases included."""
    from transformers import HubertConfig, HubertModel

    pre = config.encoder.norm == "pre"
    torch.manual_seed(0)
    model = HubertModel(
        HubertConfig(
            hidden_size=config.encoder.dim,
            num_hidden_layers=config.encoder.layers,
            num_attention_heads=config.encoder.heads,
            intermediate_size=config.encoder.feed_forward_dim,
            conv_dim=(config.front_end.width,) * 7,
            num_conv_pos_embeddings=config.encoder.position_kernel,
            num_conv_pos_embedding_groups=config.encoder.position_groups,
            feat_extract_norm="layer" if pre else "group",
            conv_bias=pre,
            do_stable_layer_norm=pre,
        )
    ).eval()
    randomise_vectors(model)
    return model


@torch.no_grad()
def randomise_vectors(model: nn.Module) -> None:
    """Add noise to the initial zeros and ones of norms and biases: exchanged norms would otherwise go unnoticed."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) * 0.1)


def waveforms() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length, generator=generator) * 0.1 for length in LENGTHS]


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

    batch = waveforms()
    padded = nn.utils.rnn.pad_sequence(batch, batch_first=True)
    # The padding must not change the features.
    for row, wave in enumerate(batch):
        padded[row, len(wave) :] = 7.0
    states = ours(padded, torch.tensor(LENGTHS))
    for row, wave in enumerate(batch):
        given = nn.functional.layer_norm(wave, wave.shape) if config.front_end.normalisation == "utterance" else wave
        output = theirs(given[None], output_hidden_states=True)
        # transformers 5 lists the last block's output before the final norm; s3prl and transformers 4, after it.
        wanted = (*output.hidden_states[:-1], output.last_hidden_state)
        assert len(wanted) == len(states) == config.encoder.layers + 1
        for state, reference in zip(states, wanted, strict=True):
            frames = reference.shape[1]
            torch.testing.assert_close(state[row, :frames], reference[0], atol=1e-4, rtol=0)
            assert not state[row, frames:].any()


def s3prl_file(path: Path, config: ModelConfig = POST) -> nn.Module:
    """Write a checkpoint in s3prl's layout with random weights, and return s3prl's own upstream of it."""
    hubert = pytest.importorskip("s3prl.upstream.hubert.hubert_model")
    from s3prl.upstream.hubert.expert import UpstreamExpert

    encoder, width, pre = config.encoder, config.front_end.width, config.encoder.norm == "pre"
    model_config = hubert.HubertConfig(
        label_rate=50.0,
        extractor_mode="layer_norm" if pre else "default",
        conv_bias=pre,
        layer_norm_first=pre,
        encoder_layers=encoder.layers,
        encoder_embed_dim=encoder.dim,
        encoder_ffn_embed_dim=encoder.feed_forward_dim,
        encoder_attention_heads=encoder.heads,
        conv_feature_layers=f"[({width},10,5)] + [({width},3,2)] * 4 + [({width},2,2)] * 2",
        conv_pos=encoder.position_kernel,
        conv_pos_groups=encoder.position_groups,
        final_dim=16,
    )
    task_config = hubert.HubertPretrainingConfig(label_rate=50.0, normalize=pre)
    symbols = [str(n) for n in range(20)]
    torch.manual_seed(0)
    model = hubert.HubertModel(model_config, task_config, [symbols])
    randomise_vectors(model)
    content = {
        "task_cfg": dataclasses.asdict(task_config),
        "model_cfg": dataclasses.asdict(model_config),
        "model_weight": model.state_dict(),
        "dictionaries_symbols": [symbols],
    }
    torch.save(content, path)
    return UpstreamExpert(str(path)).eval()


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


class Dictionary:
    """Like fairseq's class, which is pickled by name beside the weights."""

    def __init__(self) -> None:
        self.symbols = ["<s>", "0"]


def test_fairseqs_own_files_load_without_fairseq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocabulary objects in the file are skipped; no code of theirs runs."""
    s3prl_file(tmp_path / "hubert.pt")
    weights = torch.load(tmp_path / "hubert.pt", weights_only=True)["model_weight"]
    fairseq = type(sys)("fairseq.data.dictionary")
    fairseq.Dictionary = Dictionary  # type: ignore[attr-defined]
    monkeypatch.setattr(Dictionary, "__module__", "fairseq.data.dictionary")
    for name in ("fairseq", "fairseq.data", "fairseq.data.dictionary"):
        monkeypatch.setitem(sys.modules, name, fairseq)
    content = {"args": None, "model": weights, "task_state": {"dictionaries": [Dictionary()]}}
    torch.save(content, tmp_path / "fairseq.pt")
    for name in ("fairseq", "fairseq.data", "fairseq.data.dictionary"):
        monkeypatch.delitem(sys.modules, name)
    ours, _ = load_public(tmp_path / "fairseq.pt", POST)
    reference, _ = load_public(tmp_path / "hubert.pt", POST)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), reference.parameters(), strict=True))


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
    done = subprocess.run(
        [*command[:-1], str(tmp_path / "hubert.pt"), "--out", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0 and "(with its pre-training head)" in done.stdout, done.stderr
    weights = torch.load(tmp_path / "hubert.pt", weights_only=True)["model_weight"]
    teacher = load_with_head(path)
    assert torch.equal(teacher.head.codewords, weights["label_embs_concat"])
    assert torch.equal(teacher.head.projection.weight, weights["final_proj.weight"])
    done = subprocess.run([*command[:-1], str(path), "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2 and "not a HuBERT in the layout of transformers or fairseq" in done.stderr
