"""What a model costs: parameters, multiply-accumulates, bytes. Computed from its modules and the input's length."""

from __future__ import annotations

import torch
from torch import nn

from upstreams.encoders.attention import Attention
from upstreams.encoders.positions import ConvPositions
from upstreams.frontend import FFT, LogMel
from upstreams.model import AudioEncoder
from upstreams.quantization.modules import QuantLinear

# Samples of the 32 LibriSpeech test-clean utterances over which the SUPERB leaderboard sums MACs.
# fmt: off
SUPERB_SAMPLES = (
    20560, 34560, 38480, 42560, 45600, 48720, 52000, 55120, 59120, 62720, 66400, 71200, 75200, 78640, 82800, 87520,
    92720, 98560, 104400, 111120, 118480, 125040, 132720, 142640, 154000, 166720, 180880, 197920, 217920, 239280,
    268160, 326000,
)
# fmt: on


def parameters(model: nn.Module) -> int:
    """Number of parameters (the learned scales and shifts of quantizers included)."""
    return sum(p.numel() for p in model.parameters())


def log_mel_macs(frames: int, mels: int) -> int:
    """The mel filters' product; the FFT's butterflies, which no profiler counts, are left out."""
    return frames * (FFT // 2 + 1) * mels


def macs(model: AudioEncoder, samples: int) -> int:
    """Multiply-accumulates of one utterance of that many samples, of any bit-width.

    Linear layers, convolutions, attention products, mel filters and the output's map; what is computed, masked keys
    included.
    """
    frames = int(model.frame_count(torch.tensor(samples)))
    total = 0
    for module in model.modules():
        if isinstance(module, nn.Linear):
            total += module.weight.numel() * frames
        elif isinstance(module, ConvPositions):
            total += module.convolution.weight.numel() * frames
        elif isinstance(module, Attention):
            total += module.product_macs(frames)
        elif isinstance(module, AudioEncoder):
            total += module.output_rotation.numel() * len(module.output_mean) * frames
        elif isinstance(module, LogMel):
            total += log_mel_macs(int(LogMel.frame_count(torch.tensor(samples))), module.mels)
    return total


def superb_macs(model: AudioEncoder) -> int:
    """MACs summed over the SUPERB leaderboard's 32 utterances, batch 1."""
    return sum(macs(model, samples) for samples in SUPERB_SAMPLES)


def superb_fbank_macs() -> int:
    """The same for s3prl's fbank upstreams: 80 mel filters, no weights."""
    return sum(log_mel_macs(int(LogMel.frame_count(torch.tensor(s))), 80) for s in SUPERB_SAMPLES)


def storage_bytes(model: nn.Module) -> int:
    """Bytes of the weights: one bit for each of a binarized linear's and 4 bytes for its scale, 4 for every other.

    Buffers that a checkpoint carries, such as the output's map, count as weights do.
    """
    total = 0
    binary = set()
    for module in model.modules():
        if isinstance(module, QuantLinear) and module.bits.weight == 1:
            binary.add(id(module.weight))
            total += -(-module.weight.numel() // 8) + 4
    return total + sum(4 * t.numel() for t in model.state_dict(keep_vars=True).values() if id(t) not in binary)
