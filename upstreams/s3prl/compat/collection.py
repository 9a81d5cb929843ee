"""s3prl's upstream collection, `s3prl.nn.S3PRLUpstream`: random weights of quantized models."""

from __future__ import annotations

import types
from typing import Any

from upstreams.s3prl.compat.patching import Fix, needs


@needs("randomize_upstream")
def randomize_quantized_models(upstream: types.ModuleType) -> None:
    """Let an upstream with a method `randomize` draw its own weights for `randomize=True`.

    s3prl draws each vector from a normal distribution with the standard deviation of its values, which a quantizer's
    single scale does not have.
    """
    randomize = upstream.randomize_upstream

    def randomize_upstream(model: Any) -> None:
        getattr(model, "randomize", lambda: randomize(model))()

    upstream.randomize_upstream = randomize_upstream  # type: ignore[attr-defined]


FIXES: dict[str, tuple[Fix, ...]] = {"s3prl.nn.upstream": (randomize_quantized_models,)}
