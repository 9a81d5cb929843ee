"""A feature store changes what a batch costs, never what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from runners.feature_store import FeatureStore, waveforms_kept

LENGTHS = [16000, 8123, 16000, 24001, 800, 15999]


@pytest.fixture(scope="module")
def baselines() -> dict[str, nn.Module]:
    from upstreams import register

    register()
    from s3prl import hub

    return {name: getattr(hub, name)().eval() for name in ("fbank", "fbank_no_cmvn")}


def waveforms() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.1 * torch.randn(length, generator=generator) for length in LENGTHS]


class Counting(nn.Module):
    """Two layers of 100-sample frames, counting what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.utterances = 0

    def get_downsample_rates(self, key: str) -> int:
        return 100

    def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor]]:
        self.utterances += len(wavs)
        frames = nn.utils.rnn.pad_sequence([wav[: len(wav) // 100 * 100].view(-1, 100) for wav in wavs], True)
        return {"hidden_states": [frames, 2 * frames]}


@pytest.mark.parametrize("name", ["fbank", "fbank_no_cmvn"])
def test_the_featurizer_gets_what_it_gets_without_the_store(baselines: dict[str, nn.Module], name: str) -> None:
    from s3prl.upstream.interfaces import Featurizer

    upstream, wavs = baselines[name], waveforms()
    store = FeatureStore(upstream, max_bytes=1 << 30).eval()
    featurizer = Featurizer(store, upstream_device="cpu")
    assert featurizer.downsample_rate == 160
    assert featurizer.output_dim == 240
    # In other company each time: the longest first alone, then everyone, then without the longest.
    for order in ([3], [0, 1, 2, 3, 4, 5], [5, 4, 1], [0, 2]):
        batch = [wavs[i] for i in order]
        direct, kept = upstream(batch), store(batch)
        assert [state.shape for state in kept["hidden_states"]] == [s.shape for s in direct["hidden_states"]]
        for expected, got in zip(featurizer(batch, direct), featurizer(batch, kept), strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_each_waveform_is_computed_once() -> None:
    upstream = Counting()
    store, wavs = FeatureStore(upstream, max_bytes=1 << 30).eval(), waveforms()
    for _ in range(3):
        kept = store([*wavs, wavs[0]])
    assert upstream.utterances == len(wavs)
    assert (store.misses, store.hits) == (len(wavs), 2 * (len(wavs) + 1))
    direct = upstream([*wavs, wavs[0]])
    for got, expected in zip(kept["hidden_states"], direct["hidden_states"], strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_memory_is_bounded_and_what_does_not_fit_is_still_right() -> None:
    upstream, wavs = Counting(), waveforms()
    # Room for the first two of 16000 samples: 2 layers x 160 frames x 100 values x 4 bytes each.
    store = FeatureStore(upstream, max_bytes=2 * 128_000 + 100).eval()
    for _ in range(2):
        for wav in wavs:
            kept = store([wav])["hidden_states"]
            torch.testing.assert_close(kept[1], upstream([wav])["hidden_states"][1], rtol=0, atol=0)
    assert store.bytes <= store.max_bytes
    assert store.hits > 0


def test_what_a_caller_does_to_a_batch_does_not_reach_the_store() -> None:
    store, wav = FeatureStore(Counting(), max_bytes=1 << 30).eval(), waveforms()[0]
    first = store([wav])["hidden_states"][0]
    expected = first.clone()
    first.zero_()
    torch.testing.assert_close(store([wav])["hidden_states"][0], expected, rtol=0, atol=0)


def test_an_upstream_in_train_mode_is_refused() -> None:
    store = FeatureStore(Counting(), max_bytes=1 << 30)
    with pytest.raises(RuntimeError, match="fine-tuning"):
        store.train()(waveforms())


def test_files_are_decoded_once_while_there_is_room(tmp_path: Path) -> None:
    paths = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for value, path in enumerate(paths):
        soundfile.write(path, np.full(100, 0.25 * (1 + value)), 16000)
    with waveforms_kept(max_bytes=600):  # one file's float32 samples
        first, rate = soundfile.read(str(paths[0]), dtype="float32")
        first[:] = 0  # the caller's own
        assert soundfile.read(str(paths[1]), dtype="float32")[0][0] == 0.5
        for path in paths:
            path.unlink()
        kept, _ = soundfile.read(str(paths[0]), dtype="float32")
        assert (kept[0], kept.dtype, rate) == (0.25, np.float32, 16000)
        with pytest.raises(soundfile.LibsndfileError):
            soundfile.read(str(paths[1]), dtype="float32")  # no room was left for it
        with pytest.raises(soundfile.LibsndfileError):
            soundfile.read(str(paths[0]), 10, dtype="float32")  # a part is not the whole
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.read(str(paths[0]), dtype="float32")
