"""`superbit import` of every public layout: the hidden states are those of the library that wrote the file."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.upstreams.formats.public_models import (
    POST,
    PRE,
    assert_equal_to_transformers,
    distiller_file,
    imported,
    s3prl_file,
    torchaudio_model,
    transformers_model,
    waveforms,
)
from upstreams.config import ModelConfig
from upstreams.errors import UserError
from upstreams.model import AudioEncoder

Patch = pytest.MonkeyPatch


def changed(config: ModelConfig, part: str, **changes: Any) -> ModelConfig:
    return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **changes)})


def assert_same_states(ours: AudioEncoder, theirs: Callable[[Tensor], Any], first: int = 0) -> None:
    for wave in waveforms():
        for state, reference in zip(ours(wave)[first:], theirs(wave), strict=True):
            torch.testing.assert_close(state, reference, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 6},
        {"hidden_act": "relu"},
        {"hidden_act": "silu"},
        {"do_stable_layer_norm": True},
        {"feat_proj_layer_norm": False},
    ],
    ids=str,
)
@torch.no_grad()
def test_config_json_replaces_what_shapes_do_not_show(changes: dict, tmp_path: Path, monkeypatch: Patch) -> None:
    """A folder of transformers whose model has another number of heads, activation or place of the norms."""
    theirs = transformers_model(POST, **changes)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = imported(monkeypatch, POST, tmp_path / "theirs", tmp_path)
    assert_equal_to_transformers(ours, theirs, waveforms(), normalised=False)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("layer_norm_eps", 1e-3),
        ("conv_stride", [5, 2, 2, 2, 2, 2, 1]),
        ("feat_extract_activation", "relu"),
        ("hidden_act", "gelu_new"),
        ("hidden_size", 768),
        ("num_attention_heads", "3"),
        ("num_attention_heads", 10**30),
        ("do_stable_layer_norm", 1),
        ("model_type", "wav2vec2"),
        ("model_type", ["hubert"]),
    ],
)
def test_a_config_json_of_another_model_is_refused(key: str, value: Any, tmp_path: Path, monkeypatch: Patch) -> None:
    folder = tmp_path / "theirs"
    transformers_model(POST).save_pretrained(folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, key: value}))
    with pytest.raises(UserError, match=key):
        imported(monkeypatch, POST, folder, tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{" * 100_000, '{"model_type": ' + "9" * 5000 + "}", "\x00\xff"])
def test_a_damaged_config_json_is_refused(text: str, tmp_path: Path, monkeypatch: Patch) -> None:
    save_file(transformers_model(POST).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"config\.json"):
        imported(monkeypatch, POST, tmp_path, tmp_path / "out")


@pytest.mark.parametrize("loudness", [1.0, 1e-3, 1e-5])
@torch.no_grad()
def test_quiet_audio_is_normalised_as_by_transformers_processor(
    loudness: float, tmp_path: Path, monkeypatch: Patch
) -> None:
    theirs = transformers_model(PRE)
    theirs.save_pretrained(tmp_path / "theirs")
    waves = [wave * loudness for wave in waveforms()]
    ours = imported(monkeypatch, PRE, tmp_path / "theirs", tmp_path)
    assert_equal_to_transformers(ours, theirs, waves, normalised=True)
    # The processor beside the model has the last word.
    (tmp_path / "theirs/preprocessor_config.json").write_text('{"do_normalize": false}')
    ours = imported(monkeypatch, PRE, tmp_path / "theirs", tmp_path / "raw")
    assert_equal_to_transformers(ours, theirs, waves, normalised=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"heads": 6},
        {"activation": "relu"},
        {"norm": "pre", "norms": "layer"},
        {"normalise": True},
    ],
    ids=str,
)
@torch.no_grad()
def test_s3prls_file_replaces_what_shapes_do_not_show(changes: dict, tmp_path: Path, monkeypatch: Patch) -> None:
    """The preset has 3 heads, GELU and norms after the modules; the file says otherwise."""
    normalise, norms = changes.pop("normalise", False), changes.pop("norms", None)
    config = changed(POST, "encoder", **changes)
    theirs = s3prl_file(tmp_path / "hubert.pt", config, normalise)
    preset = changed(POST, "front_end", feature_norm=norms) if norms else POST
    ours = imported(monkeypatch, preset, tmp_path / "hubert.pt", tmp_path)
    for quiet in (1.0, 1e-3):
        for wave in waveforms():
            for state, reference in zip(ours(wave * quiet), theirs([wave * quiet])["hidden_states"], strict=True):
                torch.testing.assert_close(state, reference, atol=1e-4, rtol=0)


def as_fairseq(content: dict, form: str) -> dict:
    """Return the content of s3prl's file as fairseq writes it."""
    model, task = content["model_cfg"], content["task_cfg"]
    if form == "namespace":
        return {"args": argparse.Namespace(**model), "model": content["model_weight"]}
    cfg: Any = {"model": model, "task": task}
    prefix = ""
    if form == "fine-tuned":
        cfg = {"model": {"w2v_args": cfg, "normalize": task["normalize"]}, "task": {}}
        prefix = "w2v_encoder.w2v_model."
    elif form == "omegaconf":
        from omegaconf import OmegaConf

        cfg = OmegaConf.create(cfg)
    weights = {f"{prefix}{name}": tensor for name, tensor in content["model_weight"].items()}
    return {"args": None, "cfg": cfg, "model": weights}


@pytest.mark.parametrize("form", ["dictionary", "namespace", "omegaconf", "fine-tuned"])
@torch.no_grad()
def test_fairseqs_cfg_is_read_in_all_its_forms(form: str, tmp_path: Path, monkeypatch: Patch) -> None:
    theirs = s3prl_file(tmp_path / "hubert.pt", changed(POST, "encoder", heads=6))
    torch.save(as_fairseq(torch.load(tmp_path / "hubert.pt", weights_only=True), form), tmp_path / "fairseq.pt")
    ours = imported(monkeypatch, POST, tmp_path / "fairseq.pt", tmp_path)
    assert ours.config.encoder.heads == 6
    assert_same_states(ours, lambda wave: theirs([wave])["hidden_states"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("conv_feature_layers", "[(24,10,5)] + [(24,3,2)] * 4 + [(24,2,1)] * 2"),
        ("conv_feature_layers", "__import__('os').getcwd()"),
        ("layer_type", "conformer"),
        ("activation_fn", "gelu_accurate"),
        ("logit_temp", 0.2),
        ("encoder_attention_heads", 5),
        ("extractor_mode", 3),
    ],
)
def test_a_cfg_of_another_model_is_refused(key: str, value: Any, tmp_path: Path, monkeypatch: Patch) -> None:
    s3prl_file(tmp_path / "hubert.pt")
    content = torch.load(tmp_path / "hubert.pt", weights_only=True)
    content["model_cfg"][key] = value
    torch.save(content, tmp_path / "hubert.pt")
    with pytest.raises(UserError, match=key):
        imported(monkeypatch, POST, tmp_path / "hubert.pt", tmp_path)


@pytest.mark.parametrize("config", [POST, PRE], ids=lambda c: c.name)
@pytest.mark.parametrize("form", ["wav2vec2 alone", "with pre-training heads", "Lightning"])
@torch.no_grad()
def test_torchaudios_layout(config: ModelConfig, form: str, tmp_path: Path, monkeypatch: Patch) -> None:
    heads = torchaudio_model(config)
    model = heads.wav2vec2
    state = model.state_dict() if form == "wav2vec2 alone" else heads.state_dict()
    if form == "Lightning":
        state = {"state_dict": {f"model.{name}": tensor for name, tensor in state.items()}, "epoch": 3}
    torch.save(state, tmp_path / "hubert.pth")
    ours = imported(monkeypatch, config, tmp_path / "hubert.pth", tmp_path)

    def theirs(wave: Tensor) -> list[Tensor]:
        given = nn.functional.layer_norm(wave, wave.shape) if config is PRE else wave  # as torchaudio's pipelines
        features, _ = model.extract_features(given[None])
        return [*features[:-1], model(given[None])[0]]

    assert_same_states(ours, theirs, first=1)


@torch.no_grad()
def test_s3prls_distilhubert_has_no_norm_before_its_projection(tmp_path: Path, monkeypatch: Patch) -> None:
    from upstreams.config import preset

    theirs = distiller_file(tmp_path / "distil.ckpt")
    ours = imported(monkeypatch, POST, tmp_path / "distil.ckpt", tmp_path)
    mask = torch.ones(1, 16_007)
    assert_same_states(ours, lambda wave: theirs(wave[None], mask[:, : len(wave)], get_hidden=True, no_pred=True)[4], 1)
    assert not preset("distilhubert").front_end.projection_norm


def folded(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the state with the positions' weight instead of its magnitude and direction."""
    parts = {key: tensor for key, tensor in state.items() if key.startswith(f"{name}.") and not key.endswith("bias")}
    magnitude, direction = sorted(parts.values(), key=Tensor.numel)
    weight = magnitude * direction / direction.norm(dim=(0, 1), keepdim=True)
    return {**{k: v for k, v in state.items() if k not in parts}, f"{name}.weight": weight}


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.hubert.", "upstream.student."])
@torch.no_grad()
def test_prefixes_and_a_folded_weight_of_the_positions(prefix: str, tmp_path: Path, monkeypatch: Patch) -> None:
    theirs = transformers_model(POST)
    state = folded(theirs.state_dict(), "encoder.pos_conv_embed.conv")
    outside = {"classifier.weight": torch.zeros(3)} if prefix else {}
    torch.save({**{f"{prefix}{name}": tensor for name, tensor in state.items()}, **outside}, tmp_path / "hubert.bin")
    ours = imported(monkeypatch, POST, tmp_path / "hubert.bin", tmp_path)
    assert_equal_to_transformers(ours, theirs, waveforms(), normalised=False)


@torch.no_grad()
def test_contentvecs_final_proj_without_codewords(tmp_path: Path, monkeypatch: Patch) -> None:
    """It projects the output and predicts nothing: the model is imported without a head."""
    theirs = transformers_model(POST)
    extra = {"final_proj.weight": torch.zeros(16, 48), "final_proj.bias": torch.zeros(16)}
    save_file({**theirs.state_dict(), **extra}, tmp_path / "model.safetensors")
    ours = imported(monkeypatch, POST, tmp_path / "model.safetensors", tmp_path)
    assert_equal_to_transformers(ours, theirs, waveforms(), normalised=False)


@pytest.mark.parametrize("given", ["folder", "index"])
@torch.no_grad()
def test_a_sharded_checkpoint(given: str, tmp_path: Path, monkeypatch: Patch) -> None:
    theirs = transformers_model(POST)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="50KB")
    shards = sorted((tmp_path / "theirs").glob("model-*.safetensors"))
    assert len(shards) > 1
    index = tmp_path / "theirs/model.safetensors.index.json"
    source = index.parent if given == "folder" else index
    ours = imported(monkeypatch, POST, source, tmp_path)
    assert_equal_to_transformers(ours, theirs, waveforms(), normalised=False)
    with pytest.raises(UserError, match="one shard of several: give the folder"):
        imported(monkeypatch, POST, shards[0], tmp_path)
    content = json.loads(index.read_text())
    for wrong in ("../secret.safetensors", 3, "model-9-of-9.safetensors"):
        index.write_text(json.dumps({"weight_map": {**content["weight_map"], "x": wrong}}))
        with pytest.raises(UserError, match="which is no file beside it"):
            imported(monkeypatch, POST, source, tmp_path)


class Dictionary:
    """Like fairseq's class, which is pickled by name beside the weights."""

    def __init__(self) -> None:
        self.symbols = ["<s>", "0"]


@pytest.mark.parametrize("new_format", [True, False])
def test_objects_of_fairseq_are_skipped(new_format: bool, tmp_path: Path, monkeypatch: Patch) -> None:
    """None of their code runs: fairseq is not installed."""
    s3prl_file(tmp_path / "hubert.pt")
    weights = torch.load(tmp_path / "hubert.pt", weights_only=True)["model_weight"]
    fairseq = types.ModuleType("fairseq.data.dictionary")
    fairseq.Dictionary = Dictionary  # type: ignore[attr-defined]
    monkeypatch.setattr(Dictionary, "__module__", "fairseq.data.dictionary")
    for name in ("fairseq", "fairseq.data", "fairseq.data.dictionary"):
        monkeypatch.setitem(sys.modules, name, fairseq)
    content = {"args": None, "model": weights, "task_state": {"dictionaries": [Dictionary()]}}
    torch.save(content, tmp_path / "fairseq.pt", _use_new_zipfile_serialization=new_format)
    for name in ("fairseq", "fairseq.data", "fairseq.data.dictionary"):
        monkeypatch.delitem(sys.modules, name)
    ours = imported(monkeypatch, POST, tmp_path / "fairseq.pt", tmp_path / "fairseq")
    reference = imported(monkeypatch, POST, tmp_path / "hubert.pt", tmp_path / "s3prl")
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), reference.parameters(), strict=True))
