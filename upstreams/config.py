"""What a model is: dataclasses read from presets/*.yaml or from a checkpoint's metadata; unknown keys are errors."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, TypeVar

from upstreams.errors import UserError, nearest

SAMPLE_RATE = 16_000  # Hz

# The log-mel spectrogram, in samples at 16 kHz.
WINDOW = 400  # 25 ms
HOP = 160  # 10 ms
FFT = 512


@dataclass(frozen=True)
class FrontEndConfig:
    """Waveform -> frames (upstreams/frontend.py)."""

    kind: str = "log_mel"  # log_mel, or waveform: HuBERT's convolutions (20 ms frames)
    normalisation: str = "dataset"  # of log-mel: dataset or utterance; of a waveform: none or utterance
    mels: int = 80
    subsampling: int = 4  # 10 ms frames in one encoder frame: 2 -> 20 ms, 4 -> 40 ms; log_mel only
    stem: str = "stack"  # stack frames, or convolution: two strided ones; log_mel only
    width: int = 32  # channels of the convolutions, whatever the encoder's width
    feature_norm: str = "group"  # waveform only: group (HuBERT Base) or layer (HuBERT Large)


@dataclass(frozen=True)
class EncoderConfig:
    """A stack of blocks (upstreams/encoders)."""

    kind: str = "sparseformer"
    layers: int = 8
    dim: int = 128
    heads: int = 4
    feed_forward_dim: int = 512
    activation: str = "relu"  # of the feed-forward: relu, gelu or swish
    norm: str = "pre"  # before or after each module ("post"); transformer and sparseformer only
    positions: str = "conv"  # conv, relative, rotary or none
    position_kernel: int = 15  # conv positions only
    position_groups: int = 128
    radius: int = 16  # frames of local attention to either side; sparseformer only
    kernel: int = 31  # frames of the depthwise convolution; conformer and squeezeformer only
    reduce: int = 0  # squeezeformer only: the block before which the frame rate is halved
    recover: int = 0  # ... and the one before which it is restored
    dropout: float = 0.0
    layerdrop: float = 0.0


@dataclass(frozen=True)
class QuantizationConfig:
    """How a model's bits are laid out over its modules (upstreams/quantization); nothing of it matters to w32a32."""

    overrides: dict[str, str] = field(default_factory=dict)  # kind or pattern of module names -> bits; the last wins
    weight_scale: str = (
        "tensor"  # scales of weights: one a tensor or one an output channel; depthwise always the latter
    )
    # Where a quantized layer's input is no ReLU's: "relu" puts one there, "signed" takes the values as they are. "auto"
    # is relu where weights or input have 1 bit, as BiT, and signed otherwise.
    feed_forward_input: str = "auto"  # GELU or Swish in the feed-forward
    convolution_input: str = "signed"  # GLU and Swish in the convolution module


CHOICES: dict[type, dict[str, tuple[str | int, ...]]] = {
    FrontEndConfig: {
        "kind": ("log_mel", "waveform"),
        "normalisation": ("dataset", "utterance", "none"),
        "subsampling": (2, 4),
        "stem": ("stack", "convolution"),
        "feature_norm": ("group", "layer"),
    },
    EncoderConfig: {
        "kind": ("sparseformer", "transformer", "conformer", "squeezeformer"),
        "activation": ("relu", "gelu", "swish"),
        "norm": ("pre", "post"),
        "positions": ("conv", "relative", "rotary", "none"),
    },
    QuantizationConfig: {
        "weight_scale": ("tensor", "channel"),
        "feed_forward_input": ("auto", "relu", "signed"),
        "convolution_input": ("auto", "relu", "signed"),
    },
}


@dataclass(frozen=True)
class ModelConfig:
    """A whole upstream: front-end, encoder, and the bits it computes with. Raises UserError on impossible values."""

    name: str
    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    bits: str = "w32a32"
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    output_map: bool = True  # standardise and decorrelate hidden states; not those of published checkpoints
    source: str = ""  # where the shape comes from, its parameters and MACs, what it is for

    def __post_init__(self) -> None:
        for part in ("front_end", "encoder", "quantization"):
            owner = getattr(self, part)
            for key, choices in CHOICES[type(owner)].items():
                value = getattr(owner, key)
                if value not in choices:
                    raise UserError(
                        f"{part}.{key} {value!r} in {self.name} is unknown: {nearest(str(value), map(str, choices))}"
                    )
            for f in dataclasses.fields(owner):
                value = getattr(owner, f.name)
                if isinstance(value, int) and value < 1 and f.name not in ("reduce", "recover"):
                    raise UserError(f"{f.name} is {value} in {self.name}, but must be at least 1")
        self._check_front_end()
        self._check_encoder()

    def _check_front_end(self) -> None:
        front_end = self.front_end
        foreign = "none" if front_end.kind == "log_mel" else "dataset"
        if front_end.normalisation == foreign:
            raise UserError(f"a {front_end.kind} front-end has no normalisation {foreign!r}, as {self.name} asks for")

    def _check_encoder(self) -> None:
        encoder = self.encoder
        if encoder.dim % encoder.heads:
            raise UserError(f"heads {encoder.heads} does not divide dim {encoder.dim} in {self.name}")
        if encoder.positions == "conv" and encoder.dim % encoder.position_groups:
            raise UserError(
                f"position_groups {encoder.position_groups} does not divide dim {encoder.dim} in {self.name}"
            )
        if encoder.positions == "rotary" and encoder.dim // encoder.heads % 2:
            raise UserError(
                f"rotary positions need an even width of each head, not {encoder.dim // encoder.heads}, in {self.name}"
            )
        if encoder.kernel % 2 == 0:
            raise UserError(f"kernel {encoder.kernel} in {self.name} must be odd, to look as far back as ahead")
        for key in ("dropout", "layerdrop"):
            if not 0 <= getattr(encoder, key) < 1:
                raise UserError(f"{key} {getattr(encoder, key)} in {self.name} must be in [0, 1)")
        if encoder.kind == "squeezeformer" and not 0 <= encoder.reduce < encoder.recover < encoder.layers:
            raise UserError(
                f"reduce {encoder.reduce} and recover {encoder.recover} in {self.name} must be two of the "
                f"{encoder.layers} blocks, reduce before recover"
            )

    @property
    def downsample_rate(self) -> int:
        """Samples at 16 kHz that one frame of the encoder stands for."""
        return 320 if self.front_end.kind == "waveform" else HOP * self.front_end.subsampling


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
        elif (item := _item(kind)) is not None:
            if not isinstance(value, (list, tuple)):
                raise UserError(f"{where}.{key} is {value!r}, but must be a list")
            arguments[key] = tuple(from_dict(item, v, f"{where}.{key}[{n}]") for n, v in enumerate(value))
        elif kind is float and isinstance(value, int) and not isinstance(value, bool):
            arguments[key] = float(value)
        elif kind == dict[str, str]:
            if not isinstance(value, dict) or not all(isinstance(item, str) for pair in value.items() for item in pair):
                raise UserError(f"{where}.{key} is {value!r}, but must be a mapping of names to names")
            arguments[key] = value
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


def _item(kind: Any) -> type | None:
    """The dataclass that a tuple of any length holds; None of any other type."""
    import typing

    inside = typing.get_args(kind)
    is_tuple = typing.get_origin(kind) is tuple and len(inside) == 2 and inside[1] is Ellipsis
    return inside[0] if is_tuple and dataclasses.is_dataclass(inside[0]) else None  # type: ignore[return-value]


def _type_hints(cls: type) -> dict[str, Any]:
    import typing

    return typing.get_type_hints(cls)


def preset_names() -> list[str]:
    """The names of the presets in upstreams/presets."""
    from importlib import resources  # a megabyte that the runtime without torch does not need

    folder = resources.files("upstreams") / "presets"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def preset(name: str) -> ModelConfig:
    """The model that presets/<name>.yaml describes. Raises UserError on an unknown name."""
    from importlib import resources

    import yaml

    if name not in preset_names():
        raise UserError(f"no preset is called {name!r}: {nearest(name, preset_names())}")
    text = (resources.files("upstreams") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    return from_dict(ModelConfig, {"name": name, **yaml.safe_load(text)}, f"presets/{name}.yaml")
