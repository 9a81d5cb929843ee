"""Local attention against masked full attention, and its memory; no convolution module."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from upstreams.config import preset
from upstreams.encoders import build_encoder
from upstreams.encoders.attention import ScaledDotProduct
from upstreams.encoders.sparseformer import local_attention


@pytest.mark.parametrize(("frames", "radius"), [(1, 16), (7, 16), (16, 16), (17, 16), (50, 3), (33, 1), (64, 8)])
def test_local_attention_equals_masked_full_attention(frames: int, radius: int) -> None:
    torch.manual_seed(frames)
    query, key, value = torch.randn(3, 2, frames, 4, 8, dtype=torch.float64)
    lengths = torch.tensor([frames, max(1, frames - 5)])
    output = local_attention(ScaledDotProduct(), query, key, value, lengths, radius)
    distance = (torch.arange(frames) - torch.arange(frames)[:, None]).abs()
    for row, length in enumerate(lengths.tolist()):
        visible = (distance <= radius) & (torch.arange(frames) < length)
        scores = torch.einsum("qhd,khd->hqk", query[row], key[row]) / 8**0.5
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
        oracle = torch.einsum("hqk,khd->qhd", weights, value[row])
        torch.testing.assert_close(output[row, :length], oracle[:length])


def test_a_sparseformer_has_no_convolution_module() -> None:
    encoder = build_encoder(preset("sparseformer_dn_mini").encoder)
    assert not any(isinstance(m, (nn.Conv1d, nn.Conv2d)) for m in encoder.blocks.modules())


PEAK = """
import sys, torch
from upstreams.config import EncoderConfig, FrontEndConfig, ModelConfig
from upstreams.model import AudioEncoder
from runners.analysis.costs import peak_memory

waveform = {"kind": "waveform", "normalisation": "none", "width": 32}
front_end = FrontEndConfig(**(waveform if sys.argv[1] == "waveform" else {"stem": "convolution", "width": 32}))
encoder = EncoderConfig("sparseformer", 4, 128, 8, 256, positions=sys.argv[2], radius=32)
model = AudioEncoder(ModelConfig("m", front_end, encoder, output_map=False)).eval()
with torch.inference_mode():
    model(torch.randn(1, 16_000))
    before = peak_memory()
    model(torch.randn(1, int(sys.argv[3]) * 16_000))
print(peak_memory() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not report peak memory")
@pytest.mark.parametrize("positions", ["conv", "relative"])
@pytest.mark.parametrize("front_end", ["log_mel", "waveform"])
def test_local_attentions_memory_is_linear_in_length(front_end: str, positions: str) -> None:
    """The third minute adds as much memory as the second. A matrix of frames by frames would add 5/3 of that."""

    def peak(seconds: int) -> int:
        command = [sys.executable, "-c", PEAK, front_end, positions, str(seconds)]
        # Freed memory goes back to the system at once, so that the peak counts live tensors only.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
        return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)

    one, two, three = peak(60), peak(120), peak(180)
    assert 1e6 < three - two < 1.1 * (two - one)
