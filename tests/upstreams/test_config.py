"""Invalid configurations are refused."""

from __future__ import annotations

import dataclasses

import pytest

from upstreams.config import ModelConfig, from_dict, preset
from upstreams.errors import UserError


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 5}, "heads 5 in sparseformer_dn_mini does not divide dim 128"),
        ({"radius": 0}, "radius is 0"),
        ({"kind": "sparsformer"}, "did you mean 'sparseformer'"),
        ({"activation": "silu"}, "encoder.activation 'silu' .* is unknown"),
        ({"position_groups": 3}, "position_groups 3 in sparseformer_dn_mini does not divide dim 128"),
        ({"kind": "squeezeformer"}, "reduce 0 and encoder.recover 0 .* reduce before recover"),
        ({"kind": "conformer", "kernel": 30}, "kernel 30 .* must be odd"),
        ({"positions": "rotary", "heads": 128}, "rotary .* needs heads of an even width, not 1"),
    ],
)
def test_invalid_configurations_are_refused(change: dict, message: str) -> None:
    config = preset("sparseformer_dn_mini")
    with pytest.raises(UserError, match=message):
        dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, **change))


def test_unknown_keys_name_the_closest_valid_key() -> None:
    with pytest.raises(UserError, match=r"unknown key 'layer' in x\.encoder: did you mean 'layers'"):
        from_dict(ModelConfig, {"name": "m", "encoder": {"layer": 3}}, "x")
    with pytest.raises(UserError, match="must be of type int"):
        from_dict(ModelConfig, {"name": "m", "encoder": {"layers": "3"}}, "x")
