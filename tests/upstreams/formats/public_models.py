"""Small public HuBERTs with random weights, built by the classes of transformers, torchaudio and s3prl."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from runners.cli import app
from upstreams.config import EncoderConfig, FrontEndConfig, ModelConfig
from upstreams.formats import checkpoint
from upstreams.model import AudioEncoder
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


def transformers_model(config: ModelConfig, **changes: object) -> nn.Module:
    """Return transformers' HubertModel of that shape with random weights, norms and biases included."""
    from transformers import HubertConfig, HubertModel

    pre = config.encoder.norm == "pre"
    torch.manual_seed(0)
    values = {
        "hidden_size": config.encoder.dim,
        "num_hidden_layers": config.encoder.layers,
        "num_attention_heads": config.encoder.heads,
        "intermediate_size": config.encoder.feed_forward_dim,
        "hidden_act": config.encoder.activation,
        "conv_dim": (config.front_end.width,) * 7,
        "num_conv_pos_embeddings": config.encoder.position_kernel,
        "num_conv_pos_embedding_groups": config.encoder.position_groups,
        "feat_extract_norm": "layer" if pre else "group",
        "conv_bias": pre,
        "do_stable_layer_norm": pre,
    }
    model = HubertModel(HubertConfig(**{**values, **changes})).eval()
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


def s3prl_file(path: Path, config: ModelConfig = POST, normalise: bool | None = None) -> nn.Module:
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
        activation_fn=encoder.activation,
        conv_feature_layers=f"[({width},10,5)] + [({width},3,2)] * 4 + [({width},2,2)] * 2",
        conv_pos=encoder.position_kernel,
        conv_pos_groups=encoder.position_groups,
        final_dim=16,
    )
    task_config = hubert.HubertPretrainingConfig(label_rate=50.0, normalize=pre if normalise is None else normalise)
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


def torchaudio_model(config: ModelConfig) -> nn.Module:
    """Return torchaudio's HuBERTPretrainModel of that shape, which holds a Wav2Vec2Model."""
    import torchaudio.models as models

    encoder, width, pre = config.encoder, config.front_end.width, config.encoder.norm == "pre"
    torch.manual_seed(0)
    wav2vec2 = models.wav2vec2_model(
        extractor_mode="layer_norm" if pre else "group_norm",
        extractor_conv_layer_config=[(width, 10, 5), *[(width, 3, 2)] * 4, *[(width, 2, 2)] * 2],
        extractor_conv_bias=pre,
        encoder_embed_dim=encoder.dim,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=encoder.position_kernel,
        encoder_pos_conv_groups=encoder.position_groups,
        encoder_num_layers=encoder.layers,
        encoder_num_heads=encoder.heads,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=encoder.feed_forward_dim,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=pre,
        encoder_layer_drop=0.0,
        aux_num_out=None,
    )
    mask, logits = nn.Module(), nn.Module()
    mask.mask_embedding = nn.Parameter(torch.randn(encoder.dim))
    logits.label_embeddings = nn.Parameter(torch.randn(20, 16))
    logits.final_proj = nn.Linear(encoder.dim, 16)
    heads = models.HuBERTPretrainModel(wav2vec2, mask, logits, None).eval()
    randomise_vectors(wav2vec2)
    return heads


def distiller_file(path: Path, config: ModelConfig = POST) -> nn.Module:
    """Write a checkpoint as s3prl's DistilHuBERT is published; return s3prl's model."""
    distiller = pytest.importorskip("s3prl.upstream.distiller.model")
    encoder, width = config.encoder, config.front_end.width
    values = {
        "extractor_conv_feature_layers": f"[({width},10,5)] + [({width},3,2)] * 4 + [({width},2,2)] * 2",
        "encoder_layers": encoder.layers,
        "encoder_embed_dim": encoder.dim,
        "encoder_ffn_embed_dim": encoder.feed_forward_dim,
        "encoder_attention_heads": encoder.heads,
        "conv_pos": encoder.position_kernel,
        "conv_pos_groups": encoder.position_groups,
        "final_dim": 16,
        "n_tasks": 2,
    }
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its configuration
        model = distiller.DistillerModel(distiller.DistillerConfig(values)).eval()
    randomise_vectors(model)
    beside = {"Optimizer": {"state": {}, "lr": np.float64(0.1)}, "Step": 3, "Args": argparse.Namespace(mode="train")}
    torch.save({**beside, "Config": {"distiller": values}, "Distiller": model.state_dict()}, path)
    return model


def assert_equal_to_transformers(ours: AudioEncoder, theirs: nn.Module, waves: list[Tensor], normalised: bool) -> None:
    """Compare every hidden state of every utterance in one padded batch with transformers' of each alone."""
    from transformers import Wav2Vec2FeatureExtractor

    processor = Wav2Vec2FeatureExtractor(do_normalize=normalised)
    padded = nn.utils.rnn.pad_sequence(waves, batch_first=True)
    # The padding must not change the features.
    for row, wave in enumerate(waves):
        padded[row, len(wave) :] = 7.0
    states = ours(padded, torch.tensor([len(wave) for wave in waves]))
    for row, wave in enumerate(waves):
        given = processor(wave.numpy(), sampling_rate=16_000, return_tensors="pt").input_values
        output = theirs(given, output_hidden_states=True)
        # transformers 5 lists the last block's output before the final norm; s3prl and transformers 4, after it.
        wanted = (*output.hidden_states[:-1], output.last_hidden_state)
        assert len(wanted) == len(states) == ours.config.encoder.layers + 1
        for state, reference in zip(states, wanted, strict=True):
            frames = reference.shape[1]
            torch.testing.assert_close(state[row, :frames], reference[0], atol=1e-4, rtol=0)
            assert not state[row, frames:].any()


def run_import(monkeypatch: pytest.MonkeyPatch, config: ModelConfig, source: Path, out: Path, *options: str) -> Path:
    """Run `superbit import` with `config` in the place of a preset; return the path of the checkpoint."""
    monkeypatch.setattr("pretrain.public.read_preset", lambda name: config)
    result = CliRunner().invoke(app, ["import", config.name, str(source), "--out", str(out), *options])
    if result.exception is not None:
        raise result.exception
    assert "checkpoint: " in result.output
    return Path(result.output.partition("checkpoint: ")[2].partition(" (")[0])


def imported(monkeypatch: pytest.MonkeyPatch, config: ModelConfig, source: Path, out: Path) -> AudioEncoder:
    """Return the model of the checkpoint that `superbit import` writes."""
    return checkpoint.load(run_import(monkeypatch, config, source, out))
