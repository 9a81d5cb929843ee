"""What a public checkpoint's own configuration says: transformers' config.json, fairseq's and s3prl's cfg.

Shapes do not show the number of heads, the activation, the position of the norms and the normalisation of the waveform:
these are read. What no model here can do, such as other strides, is refused.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from upstreams.config import ModelConfig
from upstreams.errors import UserError, shown
from upstreams.formats.public_files import PublicFile, plain, read_json
from upstreams.frontend import WaveformFrontEnd

ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "swish": "swish", "silu": "swish"}
PROCESSOR_EPS = 1e-7  # of transformers' Wav2Vec2FeatureExtractor; fairseq, s3prl and torchaudio use torch's 1e-5
TEMPERATURE = 0.1  # of the cosine head


def configured(config: ModelConfig, file: PublicFile, layout: str, has_head: bool) -> tuple[ModelConfig, str]:
    """Return `config` with what the checkpoint's own configuration says, and where it says so ("" if nowhere).

    layout: transformers, torchaudio, fairseq or distiller. Raises UserError if the configuration is of another model
    or of one that cannot be built here.
    """
    if layout == "transformers":
        return _transformers(config, file.files[0].parent)
    if layout == "torchaudio":
        return config, ""
    if layout == "distiller":
        config = _changed(config, "front_end", projection_norm=False)
        values = _entry(file.beside, "Config", "distiller")
        return (_fairseq(config, values, {}, file.path, has_head), f"Config in {file.path}") if values else (config, "")
    for model, task in (("model_cfg", "task_cfg"), ("cfg", "cfg"), ("args", "args")):
        values, task_values = _entry(file.beside, model), _entry(file.beside, task)
        if model == "cfg":
            values, task_values = _entry(values, "model"), _entry(values, "task")
        if values:
            if "w2v_args" in values:  # fine-tuned: the pre-trained model's arguments
                inner = _entry(values, "w2v_args")
                task_values = {**_entry(inner, "task"), **values}
                values = _entry(inner, "model") or inner
            return _fairseq(config, values, task_values, file.path, has_head), f"{model} in {file.path}"
    return config, ""


def _entry(values: Any, *keys: str) -> Mapping[str, Any]:
    """Return the mapping at a path of keys, with plain values; empty if there is none."""
    for key in keys:
        values = plain(values.get(key)) if isinstance(values, Mapping) else None
    return {str(k): plain(v) for k, v in values.items()} if isinstance(values, Mapping) else {}


def _transformers(config: ModelConfig, folder: Path) -> tuple[ModelConfig, str]:
    """Read config.json and preprocessor_config.json in the folder; missing keys have the defaults of HubertConfig."""
    processor, file = folder / "preprocessor_config.json", folder / "config.json"
    if config.front_end.normalisation == "utterance":
        config = _changed(config, "front_end", normalisation_eps=PROCESSOR_EPS)
    if processor.is_file():
        normalised = _flag(read_json(processor), "do_normalize", True, str(processor))
        config = _normalised(config, normalised, PROCESSOR_EPS)
    if not file.is_file():
        return config, ""
    values, where = read_json(file), str(file)
    if values.get("model_type") != "hubert":
        raise UserError(
            f"{where} describes a {shown(values.get('model_type'))} (model_type), but only HuBERTs are imported"
        )
    width, count = config.front_end.width, len(WaveformFrontEnd.KERNELS)
    _same(
        where,
        values,
        config.name,
        hidden_size=config.encoder.dim,
        num_hidden_layers=config.encoder.layers,
        intermediate_size=config.encoder.feed_forward_dim,
        num_conv_pos_embeddings=config.encoder.position_kernel,
        num_conv_pos_embedding_groups=config.encoder.position_groups,
        conv_dim=[width] * count,
        conv_kernel=list(WaveformFrontEnd.KERNELS),
        conv_stride=list(WaveformFrontEnd.STRIDES),
        feat_extract_activation="gelu",
        layer_norm_eps=1e-5,
        conv_pos_batch_norm=False,
    )
    norm = _choice(values, "feat_extract_norm", "group", {"group": "group", "layer": "layer"}, where)
    config = _changed(
        config,
        "front_end",
        feature_norm=norm,
        projection_norm=_flag(values, "feat_proj_layer_norm", True, where),
    )
    pre = _flag(values, "do_stable_layer_norm", False, where)
    heads, activation = values.get("num_attention_heads", 12), values.get("hidden_act", "gelu")
    return _encoder(config, heads, activation, pre, ("num_attention_heads", "hidden_act"), where), where


def _fairseq(
    config: ModelConfig, values: Mapping[str, Any], task: Mapping[str, Any], path: Path, has_head: bool
) -> ModelConfig:
    """Read the arguments of fairseq's HubertModel, or of s3prl's Distiller; missing keys have fairseq's defaults."""
    where = str(path)
    convolutions = next(
        (key for key in ("conv_feature_layers", "extractor_conv_feature_layers") if key in values), None
    )
    kernels, width = zip(WaveformFrontEnd.KERNELS, WaveformFrontEnd.STRIDES, strict=True), config.front_end.width
    if convolutions and _convolutions(values[convolutions]) != [(width, *sizes) for sizes in kernels]:
        raise UserError(
            f"{convolutions} is {shown(values[convolutions])} in {where}, but {config.name} has other channels, "
            "kernels or strides"
        )
    fixed: dict[str, Any] = {
        "encoder_embed_dim": config.encoder.dim,
        "encoder_layers": config.encoder.layers,
        "encoder_ffn_embed_dim": config.encoder.feed_forward_dim,
        "conv_pos": config.encoder.position_kernel,
        "conv_pos_groups": config.encoder.position_groups,
        "layer_type": "transformer",
        "attention_type": "original",
        "pos_conv_depth": 1,
        "conv_pos_batch_norm": False,
    }
    if has_head:
        fixed["logit_temp"] = TEMPERATURE
    _same(where, values, config.name, **fixed)
    norm = _choice(values, "extractor_mode", "default", {"default": "group", "layer_norm": "layer"}, where)
    config = _changed(config, "front_end", feature_norm=norm)
    if "normalize" in task:
        config = _normalised(config, _flag(task, "normalize", False, where), 1e-5)
    pre = _flag(values, "layer_norm_first", False, where)
    heads, activation = values.get("encoder_attention_heads", 12), values.get("activation_fn", "gelu")
    return _encoder(config, heads, activation, pre, ("encoder_attention_heads", "activation_fn"), where)


def _convolutions(text: Any) -> list[tuple[int, ...]]:
    """Return (channels, kernel, stride) of each convolution in fairseq's text "[(512,10,5)] + [(512,3,2)] * 4"."""
    found: list[tuple[int, ...]] = []
    for term in str(text)[:1000].replace(" ", "").split("+"):
        match = re.fullmatch(r"\[((?:\(\d{1,6},\d{1,6},\d{1,6}\),?)+)\](?:\*(\d))?", term)
        if match is None:
            return []
        triples = [tuple(map(int, t)) for t in re.findall(r"(\d+),(\d+),(\d+)", match[1])]
        found += triples * int(match[2] or 1)
    return found


def _same(where: str, values: Mapping[str, Any], name: str, **expected: Any) -> None:
    """Raise UserError at the first value that is not as expected; keys may be missing."""
    for key, value in expected.items():
        found = values.get(key, value)
        found = list(found) if isinstance(found, tuple) else found
        if found != value or isinstance(found, bool) != isinstance(value, bool):
            raise UserError(f"{key} is {shown(found)} in {where}, but {name} has {value}")


def _flag(values: Mapping[str, Any], key: str, default: bool, where: str) -> bool:
    value = values.get(key, default)
    if not isinstance(value, bool):
        raise UserError(f"{key} is {shown(value)} in {where}, but must be true or false")
    return value


def _choice(values: Mapping[str, Any], key: str, default: str, choices: dict[str, str], where: str) -> str:
    value = values.get(key, default)
    if not isinstance(value, str) or value not in choices:
        raise UserError(f"{key} is {shown(value)} in {where}, but must be {' or '.join(choices)}")
    return choices[value]


def _encoder(
    config: ModelConfig, heads: Any, activation: Any, pre: bool, keys: tuple[str, str], where: str
) -> ModelConfig:
    """Return `config` with the heads, the activation and the position of the norms."""
    if type(heads) is not int or not 0 < heads <= config.encoder.dim or config.encoder.dim % heads:
        raise UserError(
            f"{keys[0]} is {shown(heads)} in {where}, but must be a whole number that divides {config.encoder.dim}"
        )
    named = _choice({keys[1]: activation}, keys[1], "gelu", ACTIVATIONS, where)
    return _changed(config, "encoder", heads=heads, activation=named, norm="pre" if pre else "post")


def _normalised(config: ModelConfig, normalised: bool, eps: float) -> ModelConfig:
    if not normalised:
        return _changed(config, "front_end", normalisation="none")
    return _changed(config, "front_end", normalisation="utterance", normalisation_eps=eps)


def _changed(config: ModelConfig, part: str, **changes: Any) -> ModelConfig:
    changed: Any = dataclasses.replace(getattr(config, part), **changes)
    return dataclasses.replace(config, **{part: changed})
