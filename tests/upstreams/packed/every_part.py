"""Tiny models of every encoder, kind of positions, front-end and kind of override, for tests of packing and export."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from upstreams.config import EncoderConfig, FrontEndConfig, ModelConfig

FRONT_ENDS = {
    "stack": FrontEndConfig(mels=8),
    "convolution": FrontEndConfig(mels=8, stem="convolution", width=4, subsampling=2),
    "three mel bands": FrontEndConfig(mels=3, stem="convolution", width=5),
    "waveform": FrontEndConfig("waveform", "none", width=8),
    "waveform, layer norms": FrontEndConfig("waveform", "utterance", width=8, feature_norm="layer"),
}
ENCODERS = ("transformer", "sparseformer", "conformer", "squeezeformer")
POSITIONS = ("conv", "relative", "rotary", "none")
KINDS = ("attention", "feed_forward", "convolution", "depthwise", "positions", "resampling", "front_end")


@dataclass(frozen=True)
class Part:
    """A model, and the kind of its modules that an override gives other bits."""

    encoder: str
    positions: str
    front_end: str
    kind: str

    def __str__(self) -> str:
        return f"{self.encoder}, {self.positions}, {self.front_end}: {self.kind}"

    @property
    def config(self) -> ModelConfig:
        """The configuration, without its bits."""
        encoder = EncoderConfig(
            self.encoder,
            layers=2,
            dim=24,
            heads=2,
            feed_forward_dim=20,
            activation="gelu",
            norm="post" if self.front_end == "waveform" else "pre",
            positions=self.positions,
            position_groups=4,
            radius=5,
            kernel=5,
            reduce=0,
            recover=1,
        )
        # The output map of a model this small multiplies rounding errors by up to 30.
        return ModelConfig("part", FRONT_ENDS[self.front_end], encoder, output_map=False)


def exists(part: Part) -> bool:
    """True if the model has modules of the kind."""
    if part.kind in ("convolution", "depthwise"):
        return part.encoder in ("conformer", "squeezeformer")
    if part.kind == "positions":
        return part.positions in ("conv", "relative")
    return part.kind != "resampling" or part.encoder == "squeezeformer"


def pairs(part: Part) -> set[tuple[str, str]]:
    """Return the pairs of a kind or an encoder with what else the model has."""
    with_kind = {(part.kind, other) for other in (part.encoder, part.positions, part.front_end)}
    return with_kind | {(part.encoder, part.positions), (part.encoder, part.front_end)}


def covering(parts: list[Part]) -> list[Part]:
    """Return few of the parts that have all of their pairs."""
    chosen: list[Part] = []
    left = set().union(*map(pairs, parts))
    while left:
        chosen.append(max(parts, key=lambda part: len(left & pairs(part))))
        left -= pairs(chosen[-1])
    return chosen


EVERY = [part for names in product(ENCODERS, POSITIONS, FRONT_ENDS, KINDS) if exists(part := Part(*names))]
COVERING = covering(EVERY)
