"""Configuration of a model: dataclasses, read from presets/*.yaml or from a checkpoint. Unknown keys are errors."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from upstreams.errors import UserError, nearest, shown

SAMPLE_RATE = 16_000  # Hz

# The log-mel spectrogram, in samples at 16 kHz.
WINDOW = 400  # 25 ms
HOP = 160  # 10 ms
FFT = 512


@dataclass(frozen=True)
class FrontEndConfig:
    """The front-end, which maps a waveform to frames (upstreams/frontend.py)."""

    kind: str = "log_mel"  # log_mel; waveform: HuBERT's convolutions with 20 ms frames
    normalisation: str = "dataset"  # log_mel: dataset or utterance; waveform: none or utterance
    normalisation_eps: float = 1e-5  # waveform, utterance only: added to the variance; 1e-7 in transformers' processor
    mels: int = 80
    subsampling: int = 4  # log_mel only: 10 ms frames per encoder frame; 2 gives 20 ms, 4 gives 40 ms
    stem: str = "stack"  # log_mel only: stack (concatenated frames) or convolution (two strided convolutions)
    width: int = 32  # channels of the convolutions, independent of the encoder's width
    feature_norm: str = "group"  # waveform only: group (HuBERT Base) or layer (HuBERT Large)
    projection_norm: bool = True  # waveform only: a norm before the projection, which DistilHuBERT does not have

    @property
    def downsample_rate(self) -> int:
        """Samples per frame at 16 kHz."""
        return 320 if self.kind == "waveform" else HOP * self.subsampling


@dataclass(frozen=True)
class EncoderConfig:
    """A stack of blocks (upstreams/encoders)."""

    kind: str = "sparseformer"
    layers: int = 8
    dim: int = 128
    heads: int = 4
    feed_forward_dim: int = 512
    activation: str = "relu"  # of the feed-forward: relu, gelu or swish
    norm: str = "pre"  # transformer and sparseformer only: pre (before each module) or post (after it)
    positions: str = "conv"  # conv, relative, rotary or none
    position_kernel: int = 15  # conv positions only: frames
    position_groups: int = 128  # conv positions only
    radius: int = 16  # sparseformer only: frames to either side that local attention sees
    kernel: int = 31  # conformer and squeezeformer only: frames of the depthwise convolution
    reduce: int = 0  # squeezeformer only: index of the block before which the frame rate is halved
    recover: int = 0  # squeezeformer only: index of the block before which the frame rate is restored
    dropout: float = 0.0
    layerdrop: float = 0.0

    def blocks_to_run(self, layers: int | None) -> int:
        """Return `layers`, or the number of all blocks if it is None. Raises UserError if there are fewer blocks."""
        if layers is None:
            return self.layers
        if type(layers) is not int or not 0 <= layers <= self.layers:
            raise UserError(f"layers is {layers!r}, but must be None or 0 to {self.layers}, the number of blocks")
        return layers


@dataclass(frozen=True)
class QuantizationConfig:
    """Bit widths of single modules, and options of the quantizers (upstreams/quantization). Unused at w32a32."""

    overrides: dict[str, str] = field(default_factory=dict)  # kind, or pattern of module names -> bits; the last wins
    weight_scale: str = "tensor"  # one scale per tensor, or per output channel ("channel"); depthwise: always channel
    # How to quantize the output of an activation other than ReLU. relu: put a ReLU there and use levels from 0 up.
    # signed: keep the activation and use signed levels. auto: relu if weights or activations have 1 bit, as in BiT,
    # otherwise signed.
    feed_forward_input: str = "auto"  # after GELU or Swish in the feed-forward
    convolution_input: str = "signed"  # after GLU and Swish in the convolution module


# A name becomes a file name: no folder, no leading dot.
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")

# Largest values of whole numbers. A file must not make a model that takes hours to build, or a table of terabytes.
LARGEST = {"layers": 256, "mels": FFT // 2 + 1}
LARGEST_OTHER = 2**20

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
    """An upstream: front-end, encoder and bit widths. Raises UserError on invalid values."""

    name: str
    front_end: FrontEndConfig = field(default_factory=FrontEndConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    bits: str = "w32a32"
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    output_map: bool = True  # standardise and decorrelate the hidden states; off for public checkpoints
    source: str = ""  # paper or project that defines this shape

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UserError(
                f"the model's name {shown(self.name)} is not valid: it becomes a file name, so use up to 100 of "
                "A-Z a-z 0-9 _ . - without a leading dot"
            )
        for part in ("front_end", "encoder", "quantization"):
            owner = getattr(self, part)
            for key, choices in CHOICES[type(owner)].items():
                value = getattr(owner, key)
                if value not in choices:
                    raise UserError(
                        f"{part}.{key} {shown(value)} in {self.name} is unknown: "
                        f"{nearest(str(value), map(str, choices))}"
                    )
            for f in dataclasses.fields(owner):
                value = getattr(owner, f.name)
                if type(value) is int and value < 1 and f.name not in ("reduce", "recover"):
                    raise UserError(f"{part}.{f.name} is {shown(value)} in {self.name}, but must be at least 1")
                largest = LARGEST.get(f.name, LARGEST_OTHER)
                if type(value) is int and value > largest:
                    raise UserError(f"{part}.{f.name} is {shown(value)} in {self.name}, but must be at most {largest}")
        self._check_front_end()
        self._check_encoder()

    def _check_front_end(self) -> None:
        front_end = self.front_end
        if not 0 < front_end.normalisation_eps < 1:
            raise UserError(
                f"front_end.normalisation_eps is {front_end.normalisation_eps} in {self.name}, but must be between 0 "
                "and 1"
            )
        unsupported, supported = ("none", "dataset") if front_end.kind == "log_mel" else ("dataset", "none")
        if front_end.normalisation == unsupported:
            raise UserError(
                f"front_end.normalisation {unsupported!r} in {self.name} does not exist for a {front_end.kind} "
                f"front-end: valid values: {supported}, utterance"
            )

    def _check_encoder(self) -> None:
        encoder = self.encoder
        if encoder.dim % encoder.heads:
            raise UserError(f"encoder.heads {encoder.heads} in {self.name} does not divide dim {encoder.dim}")
        if encoder.positions == "conv" and encoder.dim % encoder.position_groups:
            raise UserError(
                f"encoder.position_groups {encoder.position_groups} in {self.name} does not divide dim {encoder.dim}"
            )
        if encoder.positions == "rotary" and encoder.dim // encoder.heads % 2:
            raise UserError(
                f"encoder.positions rotary in {self.name} needs heads of an even width, "
                f"not {encoder.dim // encoder.heads}"
            )
        if encoder.kernel % 2 == 0:
            raise UserError(f"encoder.kernel {encoder.kernel} in {self.name} must be odd, so that filters are centred")
        for key in ("dropout", "layerdrop"):
            if not 0 <= getattr(encoder, key) < 1:
                raise UserError(f"encoder.{key} {getattr(encoder, key)} in {self.name} must be at least 0 and below 1")
        if encoder.kind == "squeezeformer" and not 0 <= encoder.reduce < encoder.recover < encoder.layers:
            raise UserError(
                f"encoder.reduce {encoder.reduce} and encoder.recover {encoder.recover} in {self.name} must be "
                f"indices of the {encoder.layers} blocks, reduce before recover"
            )

    @property
    def downsample_rate(self) -> int:
        """Samples per encoder frame at 16 kHz."""
        return self.front_end.downsample_rate


T = TypeVar("T")


def from_dict(cls: type[T], values: Any, where: str) -> T:
    """Return the dataclass `cls`, nested dataclasses included, with the values of a mapping.

    where: name of the mapping, for messages. Raises UserError on an unknown key, with the closest valid key, on a
    missing key, and on a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where} must be a mapping of keys to values, not {type(values).__name__}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise UserError(f"unknown key {shown(key)} in {where}: {nearest(str(key), fields)}")
        kind = hints[key]
        if dataclasses.is_dataclass(kind):
            arguments[key] = from_dict(kind, value, f"{where}.{key}")  # type: ignore[arg-type]
        elif (item := _item(kind)) is not None:
            if not isinstance(value, (list, tuple)):
                raise UserError(f"{where}.{key} is {shown(value)}, but must be a list")
            arguments[key] = tuple(from_dict(item, v, f"{where}.{key}[{n}]") for n, v in enumerate(value))
        elif kind == dict[str, str]:
            if not isinstance(value, dict) or not all(isinstance(item, str) for pair in value.items() for item in pair):
                raise UserError(f"{where}.{key} is {shown(value)}, but must be a mapping of names to names")
            arguments[key] = value
        else:
            arguments[key] = _value(kind, value, f"{where}.{key}")
    missing = [
        name
        for name, f in fields.items()
        if name not in arguments and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{where} lacks the key {missing[0]!r}")
    return cls(**arguments)


def _value(kind: Any, value: Any, where: str) -> Any:
    """Return a value as `kind`, a plain type or a tuple of one, has it. Raises UserError if it is of another type."""
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where} is {shown(value)}, but must be a list of {item.__name__}")
        return tuple(_value(item, v, f"{where}[{n}]") for n, v in enumerate(value))
    if kind is float and type(value) is int and abs(value) < 1e300:
        value = float(value)
    if kind in (int, float, str, bool) and type(value) is not kind:
        raise UserError(f"{where} is {shown(value)}, but must be of type {kind.__name__}")
    if kind is int and abs(value) >= 2**63:  # neither an array's size nor, with thousands of digits, a message
        raise UserError(f"{where} is {shown(value)}, but must have at most 63 bits")
    if isinstance(value, float) and math.isnan(value):
        raise UserError(f"{where} is not a number (NaN)")
    if get_origin(kind) is dict and not isinstance(value, dict):
        raise UserError(f"{where} is {shown(value)}, but must be a mapping of keys to values")
    return value


def _item(kind: Any) -> type | None:
    """Return the dataclass that a type `tuple[dataclass, ...]` holds, or None for any other type."""
    inside = get_args(kind)
    is_tuple = get_origin(kind) is tuple and len(inside) == 2 and inside[1] is Ellipsis
    return inside[0] if is_tuple and dataclasses.is_dataclass(inside[0]) else None  # type: ignore[return-value]


def preset_names() -> list[str]:
    """Return the names of the presets in upstreams/presets."""
    from importlib import resources  # takes a megabyte, which the runtime without torch does not need

    folder = resources.files("upstreams") / "presets"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def preset(name: str) -> ModelConfig:
    """Return the model configuration of presets/<name>.yaml. Raises UserError on an unknown name."""
    from importlib import resources

    import yaml

    if name not in preset_names():
        raise UserError(f"there is no preset {name!r}: {nearest(name, preset_names())}")
    text = (resources.files("upstreams") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
    return from_dict(ModelConfig, {"name": name, **yaml.safe_load(text)}, f"presets/{name}.yaml")
