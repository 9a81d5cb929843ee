"""Parts of packed models that use the native kernel: feed-forward, attention, positions and the whole model.

Without a native kernel each computes as the module that it replaces.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from upstreams.encoders.attention import Attention
from upstreams.encoders.feed_forward import FeedForward
from upstreams.encoders.positions import ConvPositions, RelativePositions, Rotary
from upstreams.encoders.sparseformer import LocalAttention
from upstreams.model import AudioEncoder, checked
from upstreams.packed.contents import Layer
from upstreams.packed.derived import Derived
from upstreams.packed.encoder import visible_reach
from upstreams.packed.file import MemoryTensors, PackedFile
from upstreams.packed.layout import Floats
from upstreams.packed.linear import ONE_BIT, BinaryBits, BinaryFeedForward, FloatConvolution, FloatLinear
from upstreams.packed.modules import (
    PackedLayer,
    PackedLinear,
    PackedMatmul,
    native_kernel,
    rows_of,
)
from upstreams.packed.native import Native
from upstreams.packed.runtime import Runtime, is_supported
from upstreams.quantization.levels import whole_numbers
from upstreams.quantization.spec import Bits


class PackedFeedForward(FeedForward):
    """A feed-forward module of packed layers. With ReLU and 1 bit throughout, the hidden layer exists only as bits."""

    def __init__(self, module: FeedForward) -> None:
        nn.Module.__init__(self)
        self.expand, self.activation, self.contract = module.expand, module.activation, module.contract
        self._native: Derived[BinaryFeedForward] = Derived()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        kernel = native_kernel(x)
        expand, contract = self.expand, self.contract
        if (
            kernel is None
            or not (isinstance(expand, PackedLinear) and isinstance(contract, PackedLinear))
            or (expand.bits, contract.bits, contract.signed) != (ONE_BIT, ONE_BIT, False)
        ):
            return super().forward(x)
        native = self._native.of(self, lambda: BinaryFeedForward(expand.tensors(), contract.tensors()))
        return torch.from_numpy(native(rows_of(x), kernel)).view_as(x)


class PackedAttention(Attention):
    """Self-attention of packed layers. With 1 bit throughout, queries, keys and values exist only as bits.

    Relative and rotary positions need queries and keys in floating point before they become bits.
    """

    def __init__(self, module: Attention) -> None:
        nn.Module.__init__(self)
        self.heads, self.positions = module.heads, module.positions
        self.query, self.key, self.value = module.query, module.key, module.value
        self.product, self.output = module.product, module.output
        self._native: dict[str, Derived[BinaryBits]] = {name: Derived() for name in ("query", "key", "value")}

    @torch.no_grad()
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, dim), (batch,) frames -> (batch, frames, dim)."""
        kernel = native_kernel(x)
        if kernel is None:
            return super().forward(x, lengths)
        dim = x.shape[-1] // self.heads
        query, relative = self._operand("query", x, kernel)
        key, value = (self._operand(name, x, kernel)[0] for name in ("key", "value"))
        counts = lengths.to(torch.int64).contiguous().numpy()
        window: dict[str, Any] = {"lengths": counts, "first": 0, "radius": self.radius, "relative": relative}
        if not isinstance(self.product, PackedMatmul):
            scales = (1 / math.sqrt(dim), 1.0, 0, 1.0)
            context = kernel.float_attention(query, key, value, scales=scales, **window)
        else:
            score_scale, probability_scale, context_scale = self.product.scales(dim)
            if self.product.bits == 1:
                limits = (score_scale, probability_scale / 2, context_scale)
                context = kernel.binary_attention(query, key, value, dim=dim, scales=limits, **window)
            else:
                scales = (score_scale, probability_scale, 2**self.product.bits - 1, context_scale)
                context = kernel.float_attention(query, key, value, scales=scales, **window)
        return self.output(torch.from_numpy(context).flatten(2))

    def _operand(self, name: str, x: Tensor, kernel: Native) -> tuple[Any, Floats | None]:
        """Return queries, keys or values as the kernel takes them, (batch, frames, heads, ...), and relative scores."""
        layer, product = getattr(self, name), self.product
        shape = (*x.shape[:2], self.heads, -1)
        is_binary = isinstance(product, PackedMatmul) and product.bits == 1
        is_direct = self.positions is None or name == "value"
        if is_binary and is_direct and isinstance(layer, PackedLinear) and layer.bits == ONE_BIT:
            native = self._native[name].of(layer, lambda: BinaryBits(layer.tensors(), 0.0, False, self.heads))
            return native(rows_of(x), kernel).reshape(shape), None
        y = layer(x).view(shape)
        relative = None
        if isinstance(self.positions, Rotary) and name != "value":
            y = self.positions(y)
        elif isinstance(self.positions, RelativePositions) and name == "query":
            reach = visible_reach(x.shape[1], self.radius)
            relative = self.positions(y, reach).contiguous().numpy()
            y = self.positions.content(y)
        if is_binary:
            return kernel.binarize(rows_of(y), None).reshape(shape), relative
        if isinstance(product, PackedMatmul):
            y = whole_numbers(y, product.bits, True, getattr(product, name), torch)
        return y.contiguous().numpy(), relative


class PackedLocalAttention(PackedAttention, LocalAttention):
    """Local attention of packed layers."""

    def __init__(self, module: LocalAttention) -> None:
        super().__init__(module)
        self.radius = module.radius


class PackedPositions(ConvPositions):
    """Convolutional positions in floating point."""

    def __init__(self, module: ConvPositions) -> None:
        nn.Module.__init__(self)
        self.convolution = module.convolution
        self._native: Derived[FloatConvolution] = Derived()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """(batch, frames, dim), zero where padded -> (batch, frames, dim)."""
        kernel, convolution = native_kernel(x), self.convolution
        if kernel is None or not isinstance(convolution, nn.Conv2d):
            return super().forward(x)
        native = self._native.of(convolution, lambda: float_convolution(convolution))
        before, taps = convolution.kernel_size[0] // 2, convolution.kernel_size[0]
        padding = before, taps - 1 - before
        padded = nn.functional.pad(x, (0, 0, *padding))
        y = torch.stack([torch.from_numpy(native(rows_of(utterance), kernel, padding)) for utterance in padded])
        return nn.functional.gelu(y)


class PackedAudioEncoder(AudioEncoder):
    """A packed model. If the runtime supports the model, it computes the utterances one after the other."""

    def __init__(self, model: AudioEncoder) -> None:
        nn.Module.__init__(self)
        self.config, self.front_end, self.encoder = model.config, model.front_end, model.encoder
        for name, buffer in model.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self._runtime: Derived[Runtime] = Derived()
        self._rotation: Derived[FloatLinear] = Derived()

    @torch.no_grad()
    def forward(
        self, waveforms: Tensor, lengths: Tensor | None = None, layers: int | None = None
    ) -> tuple[Tensor, ...]:
        """Return hidden states as `AudioEncoder.forward` does."""
        kernel = native_kernel(waveforms)
        if kernel is None or not is_supported(self.config):
            return super().forward(waveforms, lengths, layers)
        runtime = self._runtime.of(self, self._as_runtime)
        runtime.kernel = kernel  # whose level and number of threads its weights do not depend on
        waveforms, lengths = checked(waveforms, lengths)
        utterances = [
            [torch.from_numpy(state) for state in runtime(waveform[:length].numpy(), layers)]
            for waveform, length in zip(waveforms, lengths.tolist(), strict=True)
        ]
        frames = int(self.frame_count(torch.tensor(waveforms.shape[1])))
        return tuple(padded_to(frames, list(states)) for states in zip(*utterances, strict=True))

    def _as_runtime(self) -> Runtime:
        tensors = MemoryTensors({name: t.detach().numpy() for name, t in stored_tensors(self).items()})
        return Runtime(PackedFile(Path("the model"), self.config, layer_table(self), tensors, {}))

    @torch.no_grad()
    def mapped(self, layer: int, state: Tensor) -> Tensor:
        """Return hidden state `layer` (batch, frames, dim) as the model exports it, padded frames included."""
        kernel = native_kernel(state)
        if kernel is None:
            return super().mapped(layer, state)
        x = (state - self.output_mean[layer]) / self.output_std[layer]
        return torch.from_numpy(self._rotation.of(self, self._as_linear)(rows_of(x), kernel)).view_as(x)

    def _as_linear(self) -> FloatLinear:
        rotation = self.output_rotation.numpy()
        return FloatLinear(rotation.T, rotation[0] * 0)


def float_convolution(convolution: nn.Conv2d) -> FloatConvolution:
    """Return the kernel's form of a convolution along frames with a bias."""
    assert convolution.bias is not None
    weight = convolution.weight.detach().squeeze(-1).numpy()
    return FloatConvolution(weight, convolution.bias.detach().numpy(), convolution.groups)


def padded_to(frames: int, states: list[Tensor]) -> Tensor:
    """Return states (own frames, dim) as (batch, frames, dim), zero where padded. A single full state is not copied."""
    if len(states) == 1 and len(states[0]) == frames:
        return states[0][None]
    batch = states[0].new_zeros(len(states), frames, states[0].shape[1])
    for row, state in zip(batch, states, strict=True):
        row[: len(state)] = state
    return batch


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a packed file: parameters and buffers, without the batch counters of BatchNorm.

    This includes constants that the front-end computes, because other libraries would round them differently.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}


def layer_table(model: nn.Module) -> dict[str, Layer]:
    """Return how to read each packed module of a model."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, PackedLayer):
            found[name] = Layer(module.bits, module.signed)
        elif isinstance(module, PackedMatmul):
            found[name] = Layer(Bits(module.bits, module.bits), True)
    return found
