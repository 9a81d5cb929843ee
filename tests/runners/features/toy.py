"""Waveforms, a toy upstream that counts what it computes, and stores of its features."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from runners.features.settings import StoreSettings
from runners.features.store import FeatureStore

LENGTHS = [16000, 8123, 16000, 24001, 800, 15999]
GIGABYTE = 1 << 30


def waveforms(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [0.1 * torch.randn(length, generator=generator) for length in LENGTHS]


class Counting(nn.Module):
    """An upstream with two layers of 100-sample frames. Counts the utterances that it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.utterances = 0

    def get_downsample_rates(self, key: str) -> int:
        return 100

    def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor]]:
        self.utterances += len(wavs)
        frames = nn.utils.rnn.pad_sequence([wav[: len(wav) // 100 * 100].view(-1, 100) for wav in wavs], True)
        return {"hidden_states": [frames, 2 * frames]}


def store_in(folder: Path, upstream: nn.Module, max_bytes: int = GIGABYTE, dtype: str = "fp32") -> FeatureStore:
    store = FeatureStore(upstream, StoreSettings(folder, max_bytes, dtype), "space")
    store.eval()
    return store


def assert_same(store: FeatureStore, upstream: nn.Module, wavs: list[Tensor]) -> None:
    """Assert that an fp32 store returns the upstream's features of the batch, bit by bit."""
    stored, direct = store(wavs)["hidden_states"], upstream(wavs)["hidden_states"]
    for got, expected in zip(stored, direct, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
