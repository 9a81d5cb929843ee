"""Stored features are as precise as their format says, and only serve runs of the same precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from runners.features.settings import StoreSettings
from runners.features.store import depends_on_batch, open_store, weighted_sum
from tests.runners.features.toy import GIGABYTE, Counting, assert_same, store_in, waveforms


class Linear(Counting):
    """Features that autocast computes in its own precision."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(100, 100)

    def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor]]:
        return {"hidden_states": [self.linear(state) for state in super().forward(wavs)["hidden_states"]]}


class Scaled(Counting):
    """One layer of usual size, and one multiplied by `factor`."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor]]:
        first, second = super().forward(wavs)["hidden_states"]
        return {"hidden_states": [first, self.factor * second]}


def test_features_computed_under_autocast_do_not_serve_an_fp32_run(tmp_path: Path) -> None:
    wavs = waveforms()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = store_in(tmp_path, Linear())(wavs)["hidden_states"]
    upstream = Linear()
    store = store_in(tmp_path, upstream)
    exact = store(wavs)["hidden_states"]
    assert upstream.utterances == len(wavs)
    assert_same(store, Linear(), wavs[:1])
    assert (exact[0] - rounded[0]).abs().max() > 1e-4
    # Each precision finds its own features again.
    with torch.autocast("cpu", torch.bfloat16):
        again = store(wavs)["hidden_states"]
    torch.testing.assert_close(again[0], rounded[0], rtol=0, atol=0)
    assert upstream.utterances == len(wavs)


@pytest.mark.parametrize("change", [torch.bfloat16, "medium"])
def test_each_precision_of_torch_has_its_own_features(tmp_path: Path, change: torch.dtype | str) -> None:
    wavs, upstream = waveforms()[:2], Linear()
    store = store_in(tmp_path, upstream)
    store(wavs)
    try:
        if isinstance(change, str):
            torch.set_float32_matmul_precision(change)
            store(wavs)
        else:
            with torch.autocast("cpu", change):
                store(wavs)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert upstream.utterances == 4


def test_the_weighted_sum_under_autocast_is_s3prls(tmp_path: Path) -> None:
    from s3prl.upstream.interfaces import Featurizer

    store = store_in(tmp_path, Counting())
    featurizer = Featurizer(store, upstream_device="cpu")
    featurizer.weights.data = torch.tensor([0.3, -0.7])
    with torch.autocast("cpu", torch.bfloat16):
        states = store(waveforms())["hidden_states"]
        ours, theirs = weighted_sum(featurizer.weights, states), featurizer._weighted_sum(states)
    assert ours.dtype == theirs.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("factor", [1e-7, 1e-12, 1e-30, 1e-3, 0.0, 3e4])
def test_features_of_any_size_keep_the_precision_of_fp16(tmp_path: Path, factor: float) -> None:
    direct = Scaled(factor)(waveforms())["hidden_states"]
    for _ in range(2):  # computed, then read
        stored = store_in(tmp_path, Scaled(factor), dtype="fp16")(waveforms())["hidden_states"]
        for got, expected in zip(stored, direct, strict=True):
            torch.testing.assert_close(got, expected, rtol=2**-10, atol=1e-6 * float(expected.abs().max()))


def test_features_of_usual_size_are_rounded_to_fp16_and_nothing_else(tmp_path: Path) -> None:
    direct = Scaled(1.0)(waveforms())["hidden_states"]
    stored = store_in(tmp_path, Scaled(1.0), dtype="fp16")(waveforms())["hidden_states"]
    for got, expected in zip(stored, direct, strict=True):
        torch.testing.assert_close(got, expected.half().float(), rtol=0, atol=0)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_small_layer_that_depends_on_the_batch_is_noticed_beside_a_large_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], layer: int
) -> None:
    class Normalising(Counting):
        def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor]]:
            states = super().forward(wavs)["hidden_states"]
            states[layer] = 1e-5 * states[layer] / states[layer].std()
            states[1 - layer] = 1e3 * states[1 - layer]
            return {"hidden_states": states}

    upstream = Normalising()
    settings = StoreSettings(tmp_path, GIGABYTE)
    kept = open_store(upstream, settings, name="normalising", files=[], device="cpu", crop_samples=None, means=False)
    assert kept is upstream
    assert "depend on the rest of its batch in normalising" in capsys.readouterr().out
    assert not depends_on_batch(Scaled(1e-5), "cpu")
