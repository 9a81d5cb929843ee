"""A feature store makes a batch cheaper and does not change it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from runners.features.fingerprint import fingerprint
from runners.features.settings import StoreSettings
from runners.features.store import FeatureStore, depends_on_batch, open_store, weighted_sum
from tests.runners.features.toy import GIGABYTE, Counting, assert_same, store_in, waveforms
from upstreams.config import preset
from upstreams.formats import checkpoint


@pytest.fixture(scope="module")
def upstreams(tmp_path_factory: pytest.TempPathFactory) -> dict[str, nn.Module]:
    """Two baselines of s3prl, and one upstream of this project."""
    from upstreams import register
    from upstreams.s3prl.expert import UpstreamExpert

    register()
    from s3prl import hub

    path = tmp_path_factory.mktemp("checkpoint") / "mini.safetensors"
    torch.manual_seed(0)
    checkpoint.save(path, checkpoint.build(preset("sparseformer_dn_mini")), None, {})
    baselines = {name: getattr(hub, name)().eval() for name in ("fbank", "fbank_no_cmvn")}
    return baselines | {"sparseformer_dn_mini": UpstreamExpert(path).eval()}


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 2e-5), ("fp16", 1e-3), ("int8", 2e-2)])
@pytest.mark.parametrize("name", ["fbank", "fbank_no_cmvn", "sparseformer_dn_mini"])
def test_the_featurizer_gets_the_same_as_without_the_store(
    upstreams: dict[str, nn.Module], tmp_path: Path, name: str, dtype: str, tolerance: float
) -> None:
    from s3prl.upstream.interfaces import Featurizer

    upstream, wavs = upstreams[name], waveforms()
    store = store_in(tmp_path, upstream, dtype=dtype)
    featurizer = Featurizer(store, upstream_device="cpu")
    assert featurizer.downsample_rate == upstream.get_downsample_rates("hidden_states")  # type: ignore[operator]
    # In a different batch each time: the longest alone, all, without the longest; then again from disk.
    for used in (store, store_in(tmp_path, upstream, dtype=dtype)):
        for order in ([3], [0, 1, 2, 3, 4, 5], [5, 4, 1], [0, 2]):
            batch = [wavs[i] for i in order]
            with torch.no_grad():
                direct, stored = upstream(batch), used(batch)
            assert [state.shape for state in stored["hidden_states"]] == [s.shape for s in direct["hidden_states"]]
            scale = float(torch.stack(list(direct["hidden_states"])).abs().max())
            for expected, got in zip(featurizer(batch, direct), featurizer(batch, stored), strict=True):
                torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * scale)


def test_an_empty_store_a_full_one_and_the_disk_give_the_same_numbers(
    upstreams: dict[str, nn.Module], tmp_path: Path
) -> None:
    upstream, wavs = upstreams["sparseformer_dn_mini"], waveforms()
    computed = store_in(tmp_path / "a", upstream, dtype="fp16")(wavs)["hidden_states"]
    read = store_in(tmp_path / "a", upstream, dtype="fp16")(wavs)["hidden_states"]
    full = store_in(tmp_path / "b", upstream, max_bytes=100, dtype="fp16")(wavs)["hidden_states"]
    for first, second, third in zip(computed, read, full, strict=True):
        torch.testing.assert_close(second, first, rtol=0, atol=0)
        torch.testing.assert_close(third, first, rtol=0, atol=0)


def test_values_too_large_for_fp16_are_stored_as_fp32(tmp_path: Path) -> None:
    class Large(Counting):
        def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor]]:
            return {"hidden_states": [1e7 * state for state in super().forward(wavs)["hidden_states"]]}

    for _ in range(2):
        assert_same(store_in(tmp_path, Large(), dtype="fp16"), Large(), waveforms())


def test_the_weighted_sum_and_its_gradient_are_s3prls(tmp_path: Path) -> None:
    from s3prl.upstream.interfaces import Featurizer

    store = store_in(tmp_path, Counting())
    featurizer = Featurizer(store, upstream_device="cpu")
    featurizer.weights.data = torch.tensor([0.3, -0.7])
    states = store(waveforms())["hidden_states"]
    for given in (states, [state.clone() for state in states]):
        results = []
        for total in (featurizer._weighted_sum(given), weighted_sum(featurizer.weights, given)):
            featurizer.zero_grad()
            total.square().sum().backward()
            assert featurizer.weights.grad is not None
            results.append((total.detach(), featurizer.weights.grad.clone()))
        for ours, theirs in zip(results[1], results[0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_changing_a_returned_batch_does_not_change_the_store(tmp_path: Path) -> None:
    store, wav = store_in(tmp_path, Counting()), waveforms()[0]
    first = store([wav])["hidden_states"][0]
    expected = first.clone()
    first.zero_()
    torch.testing.assert_close(store([wav])["hidden_states"][0], expected, rtol=0, atol=0)


def test_an_upstream_in_train_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="cannot be fine-tuned"):
        store_in(tmp_path, Counting()).train()(waveforms())


def test_an_upstream_whose_features_depend_on_the_batch_is_not_replaced(
    upstreams: dict[str, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Normalising(Counting):
        def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor]]:
            states = super().forward(wavs)["hidden_states"]
            return {"hidden_states": [state / state.std() for state in states]}

    assert not any(depends_on_batch(upstream, "cpu") for upstream in upstreams.values())
    upstream, settings = Normalising(), StoreSettings(tmp_path, GIGABYTE)
    kept = open_store(upstream, settings, name="normalising", files=[], device="cpu", crop_samples=None, means=False)
    assert kept is upstream
    assert "the features of an utterance depend on the rest of its batch in normalising" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_features_are_reused_only_for_the_same_upstream(
    upstreams: dict[str, nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = upstreams["sparseformer_dn_mini"]
    file = tmp_path / "a.safetensors"
    file.write_bytes(b"one")
    one = fingerprint("mini", [file, None], upstream, "cpu")
    assert fingerprint("mini", [file, None], upstream, "cpu") == one
    file.write_bytes(b"two")
    other_file = fingerprint("mini", [file, None], upstream, "cpu")
    torch.manual_seed(1)
    weights = fingerprint("mini", [], nn.Linear(2, 2), "cpu")
    assert len({one, other_file, weights, fingerprint("mini", [], nn.Linear(2, 2), "cpu")}) == 4
    monkeypatch.setattr("runners.features.fingerprint.code_version", lambda: "another")
    assert fingerprint("mini", [file, None], upstream, "cpu") != other_file


def test_each_waveform_is_computed_once(tmp_path: Path) -> None:
    upstream, wavs = Counting(), waveforms()
    store = store_in(tmp_path, upstream)
    for _ in range(3):
        store([*wavs, wavs[0]])
    assert upstream.utterances == len(wavs)
    assert (store.misses, store.hits) == (len(wavs), 2 * (len(wavs) + 1))

    later = Counting()
    assert_same(store_in(tmp_path, later), Counting(), [*wavs, wavs[0]])
    assert later.utterances == 0

    # With both stores open, each finds what the other has appended since.
    more = waveforms(1)
    second = Counting()
    beside = store_in(tmp_path, second)
    store(more)
    assert_same(beside, Counting(), more)
    assert second.utterances == 0


def test_crops_of_longer_waveforms_are_not_stored(tmp_path: Path) -> None:
    upstream, wavs = Counting(), waveforms()
    store = FeatureStore(upstream, StoreSettings(tmp_path, GIGABYTE, "fp32"), "space", crop_samples=16000).eval()
    for _ in range(2):
        assert isinstance(store, FeatureStore)
        assert_same(store, Counting(), wavs)
    assert upstream.utterances == 4 + 2 * 2
