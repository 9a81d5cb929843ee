"""What a model is: dataclasses read from presets/*.yaml or from a checkpoint's metadata; unknown keys are errors."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, TypeVar

from upstreams.errors import UserError, nearest

SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class FrontEndConfig:
    """Log-mel spectrogram and strided convolution (upstreams/frontend.py)."""

    mels: int = 80
    subsampling: int = 4  # 10 ms frames in one encoder frame: 2 -> 20 ms, 4 -> 40 ms


@dataclass(frozen=True)
class EncoderConfig:
    """A stack of attention and feed-forward blocks (upstreams/encoders)."""

    kind: str = "sparseformer"
    layers: int = 8
    dim: int = 128
    heads: int = 4
    feed_forward_dim: int = 512
    activation: str = "relu"
    radius: int = 16  # frames of local attention to either side; sparseformer only
    position_kernel: int = 15
    position_groups: int = 128
    dropout: float = 0.0


@dataclass(frozen=True)
class ModelConfig:
    """A whole upstream: front-end, encoder, and the bits it computes with."""

    name: str
    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    bits: str = "w32a32"
    source: str = ""  # where the shape comes from

    def __post_init__(self) -> None:
        encoder = self.encoder
        if encoder.kind not in ENCODERS:
            raise UserError(f"encoder.kind {encoder.kind!r} is unknown: {nearest(encoder.kind, ENCODERS)}")
        for owner in (self.front_end, encoder):
            for f in dataclasses.fields(owner):
                value = getattr(owner, f.name)
                if isinstance(value, int) and value < 1:
                    raise UserError(f"{f.name} is {value} in {self.name}, but must be at least 1")
        if encoder.dim % encoder.heads:
            raise UserError(f"heads {encoder.heads} does not divide dim {encoder.dim} in {self.name}")
        if encoder.dim % encoder.position_groups:
            raise UserError(
                f"position_groups {encoder.position_groups} does not divide dim {encoder.dim} in {self.name}"
            )
        if encoder.activation not in ("relu", "gelu"):
            raise UserError(f"activation {encoder.activation!r} in {self.name} must be relu or gelu")
        if not 0 <= encoder.dropout < 1:
            raise UserError(f"dropout {encoder.dropout} in {self.name} must be in [0, 1)")

    @property
    def downsample_rate(self) -> int:
        """Samples at 16 kHz that one frame of the encoder stands for."""
        return 160 * self.front_end.subsampling


ENCODERS = ("sparseformer", "transformer")

T = TypeVar("T")


def from_dict(cls: type[T], values: Any, where: str) -> T:
    """Build the dataclass `cls` (nested ones included) from a mapping.

    Raises UserError on a key that `cls` does not have (naming the nearest) and on a value of another type.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where} must be a mapping of keys to values, not {type(values).__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = _type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise UserError(f"unknown key {key!r} in {where}: {nearest(str(key), fields)}")
        kind = hints[key]
        if dataclasses.is_dataclass(kind):
            arguments[key] = from_dict(kind, value, f"{where}.{key}")  # type: ignore[arg-type]
        elif kind is float and isinstance(value, int) and not isinstance(value, bool):
            arguments[key] = float(value)
        elif kind in (int, float, str, bool) and type(value) is not kind:
            raise UserError(f"{where}.{key} is {value!r}, but must be of type {kind.__name__}")
        else:
            arguments[key] = tuple(value) if isinstance(value, list) else value
    missing = [
        name
        for name, f in fields.items()
        if name not in arguments and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{where} lacks the key {missing[0]!r}")
    return cls(**arguments)


def _type_hints(cls: type) -> dict[str, Any]:
    import typing

    return typing.get_type_hints(cls)


def preset_names() -> list[str]:
    """The names of the presets in upstreams/presets."""
    folder = resources.files("upstreams") / "presets"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def preset(name: str) -> ModelConfig:
    """The model that presets/<name>.yaml describes. Raises UserError on an unknown name."""
    import yaml

    if name not in preset_names():
        raise UserError(f"no preset is called {name!r}: {nearest(name, preset_names())}")
    text = (resources.files("upstreams") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    return from_dict(ModelConfig, {"name": name, **yaml.safe_load(text)}, f"presets/{name}.yaml")
