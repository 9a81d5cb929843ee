"""A feature store changes what a batch costs, never what it is."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch import Tensor, nn

from runners.features import shards as feature_shards
from runners.features.settings import StoreSettings
from runners.features.shards import HEADER_BYTES, Shards
from runners.features.store import FeatureStore, depends_on_batch, fingerprint, open_store, waveforms_kept, weighted_sum
from upstreams.config import preset
from upstreams.formats import checkpoint

LENGTHS = [16000, 8123, 16000, 24001, 800, 15999]
GIGABYTE = 1 << 30


@pytest.fixture(scope="module")
def upstreams(tmp_path_factory: pytest.TempPathFactory) -> dict[str, nn.Module]:
    """s3prl's baselines and one of this project's."""
    from upstreams import register
    from upstreams.s3prl.expert import UpstreamExpert

    register()
    from s3prl import hub

    path = tmp_path_factory.mktemp("checkpoint") / "mini.safetensors"
    torch.manual_seed(0)
    checkpoint.save(path, checkpoint.build(preset("sparseformer_dn_mini")), None, {})
    baselines = {name: getattr(hub, name)().eval() for name in ("fbank", "fbank_no_cmvn")}
    return baselines | {"sparseformer_dn_mini": UpstreamExpert(path).eval()}


def waveforms(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
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


def store_in(folder: Path, upstream: nn.Module, max_bytes: int = GIGABYTE, dtype: str = "fp32") -> FeatureStore:
    store = FeatureStore(upstream, StoreSettings(folder, max_bytes, dtype), "space")
    store.eval()
    return store


def assert_same(store: FeatureStore, upstream: nn.Module, wavs: list[Tensor]) -> None:
    """The store gives the upstream's features of the batch, to the bit (the store keeps fp32)."""
    kept, direct = store(wavs)["hidden_states"], upstream(wavs)["hidden_states"]
    for got, expected in zip(kept, direct, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


# ---- what it returns ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 2e-5), ("fp16", 1e-3), ("int8", 2e-2)])
@pytest.mark.parametrize("name", ["fbank", "fbank_no_cmvn", "sparseformer_dn_mini"])
def test_the_featurizer_gets_what_it_gets_without_the_store(
    upstreams: dict[str, nn.Module], tmp_path: Path, name: str, dtype: str, tolerance: float
) -> None:
    from s3prl.upstream.interfaces import Featurizer

    upstream, wavs = upstreams[name], waveforms()
    store = store_in(tmp_path, upstream, dtype=dtype)
    featurizer = Featurizer(store, upstream_device="cpu")
    assert featurizer.downsample_rate == upstream.get_downsample_rates("hidden_states")  # type: ignore[operator]
    # In other company each time: the longest first alone, then everyone, then without the longest; then from the disk.
    for kept_by in (store, store_in(tmp_path, upstream, dtype=dtype)):
        for order in ([3], [0, 1, 2, 3, 4, 5], [5, 4, 1], [0, 2]):
            batch = [wavs[i] for i in order]
            with torch.no_grad():
                direct, kept = upstream(batch), kept_by(batch)
            assert [state.shape for state in kept["hidden_states"]] == [s.shape for s in direct["hidden_states"]]
            scale = float(torch.stack(list(direct["hidden_states"])).abs().max())
            for expected, got in zip(featurizer(batch, direct), featurizer(batch, kept), strict=True):
                torch.testing.assert_close(got, expected, rtol=0, atol=tolerance * scale)


def test_a_run_gets_the_same_numbers_from_an_empty_store_a_full_one_and_the_disk(
    upstreams: dict[str, nn.Module], tmp_path: Path
) -> None:
    upstream, wavs = upstreams["sparseformer_dn_mini"], waveforms()
    computed = store_in(tmp_path / "a", upstream, dtype="fp16")(wavs)["hidden_states"]
    read = store_in(tmp_path / "a", upstream, dtype="fp16")(wavs)["hidden_states"]
    full = store_in(tmp_path / "b", upstream, max_bytes=100, dtype="fp16")(wavs)["hidden_states"]
    for first, second, third in zip(computed, read, full, strict=True):
        torch.testing.assert_close(second, first, rtol=0, atol=0)
        torch.testing.assert_close(third, first, rtol=0, atol=0)


def test_what_fp16_cannot_hold_is_kept_in_fp32(tmp_path: Path) -> None:
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


def test_what_a_caller_does_to_a_batch_does_not_reach_the_store(tmp_path: Path) -> None:
    store, wav = store_in(tmp_path, Counting()), waveforms()[0]
    first = store([wav])["hidden_states"][0]
    expected = first.clone()
    first.zero_()
    torch.testing.assert_close(store([wav])["hidden_states"][0], expected, rtol=0, atol=0)


def test_an_upstream_in_train_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="fine-tuning"):
        store_in(tmp_path, Counting()).train()(waveforms())


def test_an_upstream_whose_features_depend_on_the_batch_is_not_stood_in_for(
    upstreams: dict[str, nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Normalising(Counting):
        def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor]]:
            states = super().forward(wavs)["hidden_states"]
            return {"hidden_states": [state / state.std() for state in states]}

    assert not any(depends_on_batch(upstream, "cpu") for upstream in upstreams.values())
    upstream = Normalising()
    assert open_store(upstream, StoreSettings(tmp_path, GIGABYTE), "normalising", [], "cpu", None) is upstream
    assert "depend on what else is in a batch" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_features_are_found_again_only_for_the_same_upstream(
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
    monkeypatch.setattr("runners.features.store.code_version", lambda: "another")
    assert fingerprint("mini", [file, None], upstream, "cpu") != other_file


# ---- what it computes --------------------------------------------------------------------------------------------


def test_each_waveform_is_computed_once_by_all_processes_together(tmp_path: Path) -> None:
    upstream, wavs = Counting(), waveforms()
    store = store_in(tmp_path, upstream)
    for _ in range(3):
        store([*wavs, wavs[0]])
    assert upstream.utterances == len(wavs)
    assert (store.misses, store.hits) == (len(wavs), 2 * (len(wavs) + 1))

    later = Counting()
    assert_same(store_in(tmp_path, later), Counting(), [*wavs, wavs[0]])
    assert later.utterances == 0

    # Both open: each learns what the other has appended since.
    more = waveforms(1)
    second = Counting()
    beside = store_in(tmp_path, second)
    store(more)
    assert_same(beside, Counting(), more)
    assert second.utterances == 0


def test_crops_of_longer_waveforms_are_not_kept(tmp_path: Path) -> None:
    upstream, wavs = Counting(), waveforms()
    store = FeatureStore(upstream, StoreSettings(tmp_path, GIGABYTE, "fp32"), "space", crop_samples=16000).eval()
    for _ in range(2):
        assert isinstance(store, FeatureStore)
        assert_same(store, Counting(), wavs)
    assert upstream.utterances == 4 + 2 * 2


class Slow(Counting):
    """Appends a line to a file for each utterance that it computes, and takes its time."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file

    def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor]]:
        with self.file.open("a") as file:
            file.writelines(f"{len(wav)} {float(wav[0])}\n" for wav in wavs)
        time.sleep(0.02 * len(wavs))
        return super().forward(wavs)


def _fill(folder: Path, seed: int) -> None:
    store = store_in(folder / "store", Slow(folder / "computed"))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed)).tolist()
    wavs = [0.1 * torch.randn(1000 + n, generator=torch.Generator().manual_seed(n)) for n in range(40)]
    for start in range(0, 40, 5):
        assert_same(store, Counting(), [wavs[n] for n in order[start : start + 5]])


def test_processes_that_fill_one_store_share_the_work(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fill, args=(tmp_path, seed)) for seed in (0, 0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    computed = (tmp_path / "computed").read_text().splitlines()
    assert len(computed) == len(set(computed)) == 40, "an utterance was computed twice"


def test_a_writer_that_is_killed_leaves_nothing_wrong_and_loses_little(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    random = np.random.default_rng(0)
    for kill in range(20):
        process = context.Process(target=_fill, args=(tmp_path, kill))
        process.start()
        process.join(float(random.uniform(0.0, 0.15)))
        if process.exitcode is None:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
    _fill(tmp_path, 99)  # compares every feature
    computed = (tmp_path / "computed").read_text().splitlines()
    # A kill costs at most the batch that was being computed.
    assert len(set(computed)) == 40
    assert len(computed) <= 40 + 20 * 5
    before = len(computed)
    _fill(tmp_path, 100)
    assert len((tmp_path / "computed").read_text().splitlines()) == before


# ---- the files ---------------------------------------------------------------------------------------------------


def only_shard(folder: Path) -> Path:
    (path,) = folder.glob("*/*.shard")
    return path


@pytest.mark.parametrize("damage", ["payload", "header", "cut", "cut in a header", "empty", "another file"])
def test_a_damaged_shard_costs_a_computation_and_never_a_wrong_number(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wavs = waveforms()
    store_in(tmp_path, Counting())(wavs)
    path = only_shard(tmp_path)
    content = bytearray(path.read_bytes())
    second = HEADER_BYTES + 2 * 160 * 100 * 4  # the first is of 160 frames; its size is a multiple of the alignment
    assert bytes(content[second : second + 8]) == feature_shards.MAGIC
    if damage == "payload":
        content[second + HEADER_BYTES + 500] ^= 1
    elif damage == "header":
        content[second + 50] ^= 1
    elif damage == "cut":
        del content[-1000:]
    elif damage == "cut in a header":
        del content[second + 20 :]
    elif damage == "empty":
        content.clear()
    else:
        content[:] = b"something else entirely" * 1000
    path.write_bytes(content)

    upstream = Counting()
    assert_same(store_in(tmp_path, upstream), Counting(), wavs)
    lost = {"payload": 1, "header": 5, "cut": 1, "cut in a header": 5, "empty": 6, "another file": 6}[damage]
    assert upstream.utterances == lost
    said = capsys.readouterr().out
    assert ("is damaged at byte" in said) is (damage in ("payload", "header", "another file"))
    # What was computed anew is kept beside the damaged shard.
    later = Counting()
    assert_same(store_in(tmp_path, later), Counting(), wavs)
    assert later.utterances == 0


def test_a_shard_that_shrinks_or_goes_while_it_is_read(tmp_path: Path) -> None:
    wavs = waveforms()
    store_in(tmp_path, Counting())(wavs)
    upstream = Counting()
    store = store_in(tmp_path, upstream)
    assert_same(store, Counting(), wavs[:1])  # mapped
    os.truncate(only_shard(tmp_path), 1000)
    assert_same(store, Counting(), wavs)
    assert upstream.utterances == 6
    shutil.rmtree(tmp_path / "space-fp32")
    assert_same(store, Counting(), wavs)


def test_disk_is_bounded_the_longest_unused_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two stores of other upstreams: three shards that nobody uses any more.
    size = 2 * 160 * 100 * 4 + HEADER_BYTES
    wav = [0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(n)) for n in range(12)]
    for index, space in enumerate(("a", "b", "c")):
        old = FeatureStore(Counting(), StoreSettings(tmp_path, GIGABYTE, "fp32"), space).eval()
        old([wav[index]])
        path = next((tmp_path / f"{space}-fp32").glob("*.shard"))
        when = time.time() - 1000 + 100 * index
        os.utime(path, (when, when))
    upstream = Counting()
    store = store_in(tmp_path, upstream, max_bytes=5 * size)

    def spaces() -> list[str]:
        return sorted({path.parent.name for path in tmp_path.glob("*/*.shard")})

    store([wav[3]])
    store([wav[4]])
    assert spaces() == ["a-fp32", "b-fp32", "c-fp32", "space-fp32"]
    store([wav[5]])
    assert spaces() == ["b-fp32", "c-fp32", "space-fp32"], "the oldest goes first"
    for n in range(6, 12):
        assert_same(store, Counting(), [wav[n]])
        assert sum(path.stat().st_size for path in tmp_path.glob("*/*.shard")) <= 5 * size
    assert spaces() == ["space-fp32"]
    # Its own are never removed: five are kept, the rest is computed each time.
    for n in range(3, 12):
        assert_same(store, Counting(), [wav[n]])
    assert upstream.utterances == 9 + 4
    # What another process has used lately stays as well.
    other = FeatureStore(Counting(), StoreSettings(tmp_path, 5 * size, "fp32"), "d").eval()
    other([wav[0]])
    assert spaces() == ["space-fp32"]
    # A writer whose shard was removed under it starts another.
    only_shard(tmp_path).unlink()
    monkeypatch.setattr(feature_shards, "IN_USE_SECONDS", 0.0)
    store([wav[11]])
    assert spaces() == ["space-fp32"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_ends_the_keeping_and_not_the_run(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    upstream, wavs = Counting(), [*waveforms(), *waveforms(1), *waveforms(2)]
    store = store_in(small_disk, upstream)
    for _ in range(2):
        for wav in wavs:
            assert_same(store, Counting(), [wav])
    assert os.strerror(errno.ENOSPC) in capsys.readouterr().out
    assert len(wavs) < upstream.utterances < 2 * len(wavs), "what is kept is still read"
    # Nothing half-written: a later store finds whole records only.
    later = Counting()
    again = store_in(small_disk, later)
    for wav in wavs:
        assert_same(again, Counting(), [wav])
    assert later.utterances == upstream.utterances - len(wavs)
    assert "damaged" not in capsys.readouterr().out


def test_a_limit_on_file_size_is_as_a_full_disk(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from tests.runners.features.test_store import Counting, assert_same, store_in, waveforms\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "store = store_in(Path(sys.argv[1]), Counting())\n"
        "for wav in 2 * waveforms(): assert_same(store, Counting(), [wav])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nothing more is kept" in done.stdout
    assert Shards(tmp_path, "space-fp32", GIGABYTE).read(b"\0" * 32) is None


# ---- decoded audio -----------------------------------------------------------------------------------------------


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
