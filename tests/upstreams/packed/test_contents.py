"""The listed contents of packed files against the packed models themselves."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.upstreams.packed.every_part import COVERING, EVERY, KINDS, Part
from upstreams.config import ModelConfig, QuantizationConfig, preset, preset_names
from upstreams.packed import convert
from upstreams.packed.contents import Entry, Values, contents
from upstreams.packed.model import layer_table, stored_tensors

QUANTIZATIONS = [
    ("w1a1", QuantizationConfig()),
    ("w1a8", QuantizationConfig(dict.fromkeys(("front_end", "depthwise"), "w1a1"), "channel", "relu", "relu")),
    ("w1a32", QuantizationConfig({"front_end": "w1a32"})),
    ("w2a4", QuantizationConfig({"attention": "w32a32", "*.query": "w8a1"}, "channel", "signed", "auto")),
    ("w32a32", QuantizationConfig({"feed_forward": "w1a1", "positions": "w1a1"}, "tensor", "auto", "relu")),
]


def listed(config: ModelConfig) -> tuple[dict[str, tuple[tuple[int, ...], torch.dtype]], dict[str, object]]:
    items = list(contents(config))
    entries = [item for item in items if isinstance(item, Entry)]
    tensors = {e.name: (e.shape, torch.uint8 if e.values is Values.CODES else torch.float32) for e in entries}
    assert len(tensors) == len(entries)
    return tensors, dict(item for item in items if not isinstance(item, Entry))


def check(config: ModelConfig) -> None:
    model = convert.build(config)
    tensors, layers = listed(config)
    assert tensors == {name: (tuple(t.shape), t.dtype) for name, t in stored_tensors(model).items()}
    assert layers == layer_table(model)


def has(kind: str, part: Part) -> bool:
    return dataclasses.replace(part, kind=kind) in EVERY


def test_the_contents_of_every_encoder_with_every_front_end_are_listed() -> None:
    for number, part in enumerate(COVERING):
        bits, quantization = QUANTIZATIONS[number % len(QUANTIZATIONS)]
        overrides = {k: v for k, v in quantization.overrides.items() if k not in KINDS or has(k, part)}
        overrides[part.kind] = overrides.get(part.kind, "w8a8")
        changed = dataclasses.replace(quantization, overrides=overrides)
        check(dataclasses.replace(part.config, bits=bits, quantization=changed, output_map=number % 2 == 0))


@pytest.mark.parametrize("name", ["conformer_mini", "distilhubert"])
def test_the_contents_of_presets_are_listed(name: str) -> None:
    assert name in preset_names()
    check(dataclasses.replace(preset(name), bits="w1a1"))
