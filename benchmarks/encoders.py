"""Speed of the encoders' parts against plain implementations of the same shape: `python -m benchmarks.encoders`.

All variants run alternately in one process. Figures are medians.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.timing import interleaved
from upstreams.config import preset
from upstreams.encoders.attention import ScaledDotProduct
from upstreams.encoders.convolution import DepthwiseConvolution, FrameConvolution
from upstreams.encoders.sparseformer import local_attention
from upstreams.files import json_text
from upstreams.formats import checkpoint
from upstreams.machine import processor
from upstreams.s3prl import compat as s3prl_compat  # noqa: F401  (lets transformers import)

Comparison = tuple[str, dict[str, Callable[[], object]]]  # a title, and the variants; the last is the reference


def attention(frames: int) -> Comparison:
    """Return local attention (radius 64, 12 heads x 64) against full attention without a mask."""
    query, key, value = torch.randn(3, 1, frames, 12, 64)
    lengths, product = torch.tensor([frames]), ScaledDotProduct()

    def full() -> torch.Tensor:
        heads = (x.transpose(1, 2) for x in (query, key, value))
        return nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2)

    return f"attention, {frames} frames", {
        "local, radius 64": lambda: local_attention(product, query, key, value, lengths, 64),
        "full SDPA": full,
    }


def depthwise() -> Comparison:
    """Return a depthwise convolution (768 filters of 31 frames) of (1, 500, 768) against nn.Conv1d."""
    ours = DepthwiseConvolution(768, 31)
    plain = nn.Conv1d(768, 768, 31, padding=15, groups=768)
    plain.load_state_dict({"weight": ours.convolution.weight.squeeze(-1), "bias": ours.convolution.bias})
    x = torch.randn(1, 500, 768)
    return "depthwise convolution, d = 768, kernel 31, 500 frames", {
        "channels_last conv2d": lambda: ours(x),
        "conv1d": lambda: plain(x.transpose(1, 2)).transpose(1, 2),
    }


def grouped() -> Comparison:
    """Return HuBERT's positional convolution (16 groups of 48 channels, kernel 128) in 1-D against 2-D."""
    ours = FrameConvolution(768, 768, (128, 1), padding=(64, 0), groups=16)
    x = torch.randn(1, 500, 768).transpose(1, 2).unsqueeze(-1)
    return "convolution of 16 groups, d = 768, kernel 128, 500 frames", {
        "conv1d": lambda: ours(x),
        "channels_last conv2d": lambda: nn.Conv2d.forward(ours, x),
    }


def whole_models(seconds: float) -> Comparison:
    """Return transformer_base and hubert_base against transformers' HubertModel with the same encoder and SDPA."""
    from transformers import HubertConfig, HubertModel  # after compat, which makes torchaudio importable

    theirs = HubertModel(HubertConfig(attn_implementation="sdpa")).eval()  # type: ignore[call-arg]
    log_mel, waveform = (checkpoint.build(preset(name)).eval() for name in ("transformer_base", "hubert_base"))
    x = torch.randn(1, int(seconds * 16_000)) * 0.1
    return f"whole model, {seconds:g} s of audio", {
        "transformer_base": lambda: log_mel(x),
        "hubert_base": lambda: waveform(x),
        "transformers' HubertModel": lambda: theirs(x, output_hidden_states=True),
    }


def main() -> None:
    """Time all comparisons and print a table; --json also writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--repeats", type=int, default=21, help="timed rounds (default 21)")
    parser.add_argument("--json", type=Path, help="write {title: {name: seconds}}")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    figures = {}
    print(f"{processor()}, {arguments.threads} thread(s), torch {torch.__version__}, medians of {arguments.repeats}\n")
    print("| variant | ms | times faster than the reference |\n|---|---|---|")
    with torch.inference_mode():
        for title, functions in (attention(500), attention(1500), depthwise(), grouped(), whole_models(10)):
            figures[title] = seconds = interleaved(functions, arguments.repeats)
            reference = list(seconds.values())[-1]
            for name, value in seconds.items():
                print(f"| {title}: {name} | {1000 * value:.2f} | {reference / value:.2f} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json_text(figures) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
