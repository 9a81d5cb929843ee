"""Cost of a model: parameters, multiply-accumulates (MACs), bit operations, bytes.

The cost is computed from the modules and the input's length. A forward pass on the meta device gives the shapes, and
each kind of module has a formula for its MACs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from upstreams.config import FFT
from upstreams.encoders.attention import ScaledDotProduct
from upstreams.encoders.positions import RelativePositions
from upstreams.frontend import LogMel
from upstreams.model import AudioEncoder
from upstreams.quantization.modules import QuantConv1d, QuantLinear, QuantMatmul
from upstreams.quantization.quantizers import WeightBinarizer

# Lengths, in samples, of the 32 LibriSpeech test-clean utterances over which the SUPERB leaderboard sums MACs.
# fmt: off
SUPERB_SAMPLES = (
    20560, 34560, 38480, 42560, 45600, 48720, 52000, 55120, 59120, 62720, 66400, 71200, 75200, 78640, 82800, 87520,
    92720, 98560, 104400, 111120, 118480, 125040, 132720, 142640, 154000, 166720, 180880, 197920, 217920, 239280,
    268160, 326000,
)
# fmt: on

FLOAT_BITS = 32


@dataclass
class ModuleCost:
    """Cost of one module, without its children."""

    name: str  # of the module, inside the model
    kind: str  # linear, convolution, attention, mel, map (the output map), or other: norms, scales and shifts
    parameters: int = 0
    storage_bytes: int = 0
    macs: int = 0
    weight_bits: int = FLOAT_BITS  # of a weight, or of the first operand of an attention product
    activation_bits: int = FLOAT_BITS

    @property
    def bops(self) -> int:
        """Bit operations: MACs times the bits of both operands."""
        return self.macs * self.weight_bits * self.activation_bits


def profile(model: AudioEncoder, samples: Sequence[int]) -> list[ModuleCost]:
    """Return the costs of all modules that compute or store something, in the model's order.

    samples: length of each utterance; MACs are summed over the utterances, each run without padding. Masked attention
    scores are computed, and count. FFT butterflies, norms and activations do not count, as in other profilers.
    """
    costs = {name: cost for name, module in model.named_modules() if (cost := _static(name, module)) is not None}
    training = model.training
    # In training, layerdrop would skip blocks.
    model.eval()
    meta = {name: tensor.to("meta") for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    with _counting(model, costs), torch.no_grad():
        for count in samples:
            waveform = torch.empty(1, count, device="meta")
            lengths = torch.empty(1, dtype=torch.long, device="meta")
            torch.func.functional_call(model, meta, (waveform, lengths))
    model.train(training)
    return list(costs.values())


def _static(name: str, module: nn.Module) -> ModuleCost | None:
    """Return the part of a module's cost that does not depend on the input; None if it neither computes nor stores."""
    kind = next((kind for kinds, kind in _KINDS if isinstance(module, kinds)), "other")
    weights = dict(module.named_parameters(recurse=False))
    # Flags and counters are not needed for inference, and what is not saved takes no storage.
    saved = module.state_dict()
    buffers = [b for key, b in module.named_buffers(recurse=False) if key in saved and b.is_floating_point()]
    if kind == "other" and not weights and not buffers:
        return None
    cost = ModuleCost(name, kind, parameters=sum(p.numel() for p in weights.values()))
    if isinstance(module, (QuantLinear, QuantConv1d, QuantMatmul)):
        cost.weight_bits, cost.activation_bits = module.bits.weight, module.bits.activation
    floats = cost.parameters + sum(b.numel() for b in buffers)
    if cost.weight_bits < FLOAT_BITS and "weight" in weights:
        quantized = weights["weight"]
        cost.storage_bytes = -(-quantized.numel() * cost.weight_bits // 8)
        floats -= quantized.numel()
        if isinstance(module.weight_quantizer, WeightBinarizer):  # its scale is computed from the weights
            floats += len(quantized) if module.weight_quantizer.per_channel else 1
    cost.storage_bytes += floats * FLOAT_BITS // 8
    return cost


@contextmanager
def _counting(model: AudioEncoder, costs: dict[str, ModuleCost]) -> Iterator[None]:
    """Inside this context, every forward pass adds the MACs of its modules to `costs`."""

    def hook(name: str) -> Any:
        def count(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            costs[name].macs += _macs(module, inputs, output)

        return count

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if name in costs and costs[name].kind != "other"
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


_KINDS: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((nn.Linear,), "linear"),
    ((nn.Conv1d, nn.Conv2d, QuantConv1d), "convolution"),
    ((ScaledDotProduct, QuantMatmul, RelativePositions), "attention"),
    ((LogMel,), "mel"),
    ((AudioEncoder,), "map"),
)


def _macs(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int:
    """Return the MACs of one call of a module of one of `_KINDS`."""
    match module:
        case nn.Linear() | nn.Conv1d() | nn.Conv2d() | QuantConv1d():
            return output.numel() * module.weight[0].numel()
        case RelativePositions():
            return module.macs(*inputs)
        case LogMel():
            return log_mel_macs(output[0].shape[1], module.mels)
        case AudioEncoder():
            return sum(state.numel() for state in output) * module.config.encoder.dim * module.config.output_map
    query, key = inputs[:2]
    return 2 * query.numel() * key.shape[-2]


def parameters(model: nn.Module) -> int:
    """Return the number of parameters, learned scales and shifts of quantizers included."""
    return sum(p.numel() for p in model.parameters())


def log_mel_macs(frames: int, mels: int) -> int:
    """Return the MACs of the mel filters."""
    return frames * (FFT // 2 + 1) * mels


def macs(model: AudioEncoder, samples: int) -> int:
    """Return the MACs of one utterance of `samples` samples, of any bit width."""
    return sum(cost.macs for cost in profile(model, [samples]))


def superb_fbank_macs() -> int:
    """Return the MACs of s3prl's fbank upstreams (80 mel filters) on the SUPERB leaderboard's 32 utterances."""
    return sum(log_mel_macs(int(LogMel.frame_count(torch.tensor(s))), 80) for s in SUPERB_SAMPLES)


def estimated_runtime(costs: list[ModuleCost]) -> float:
    """Return the estimated runtime, relative to the float model, by arXiv 2301.00652: f + (1 - f) b / 32.

    f is the share of the linear and convolutional MACs whose weights are not quantized; b is the bit width of the other
    weights. Attention products do not count.
    """
    counted = [cost for cost in costs if cost.kind in ("linear", "convolution")]
    return sum(c.macs * c.weight_bits / FLOAT_BITS for c in counted) / sum(c.macs for c in counted)
