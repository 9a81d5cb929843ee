"""Shard files: damage is found, disk use is limited, a full disk does not stop a run."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from runners.features import records, shards
from runners.features.settings import StoreSettings
from runners.features.store import FeatureStore
from tests.runners.features.toy import GIGABYTE, Counting, assert_same, store_in, waveforms


def only_shard(folder: Path) -> Path:
    (path,) = folder.glob("*/*.shard")
    return path


@pytest.mark.parametrize("damage", ["payload", "header", "cut", "cut in a header", "empty", "another file"])
def test_damaged_records_are_computed_again(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    wavs = waveforms()
    store_in(tmp_path, Counting())(wavs)
    path = only_shard(tmp_path)
    content = bytearray(path.read_bytes())
    second = records.HEADER_BYTES + 2 * 160 * 100 * 4  # the first has 160 frames, which need no alignment
    assert bytes(content[second : second + 8]) == records.MAGIC
    if damage == "payload":
        content[second + records.HEADER_BYTES + 500] ^= 1
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
    printed = capsys.readouterr().out
    assert ("is damaged at byte" in printed) is (damage in ("payload", "header", "another file"))
    # What was computed again is stored beside the damaged shard.
    later = Counting()
    assert_same(store_in(tmp_path, later), Counting(), wavs)
    assert later.utterances == 0


def test_a_shard_may_shrink_or_disappear_while_it_is_read(tmp_path: Path) -> None:
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


def test_the_least_recently_used_shards_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Stores of other upstreams: three shards that are not in use any more.
    size = 2 * 160 * 100 * 4 + records.HEADER_BYTES
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
    # Its own records are never removed: five are stored, the rest is computed each time.
    for n in range(3, 12):
        assert_same(store, Counting(), [wav[n]])
    assert upstream.utterances == 9 + 4
    # Shards that another process has used recently stay as well.
    other = FeatureStore(Counting(), StoreSettings(tmp_path, 5 * size, "fp32"), "d").eval()
    other([wav[0]])
    assert spaces() == ["space-fp32"]
    # A writer whose shard was removed starts another.
    only_shard(tmp_path).unlink()
    monkeypatch.setattr(shards, "IN_USE_SECONDS", 0.0)
    store([wav[11]])
    assert spaces() == ["space-fp32"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_the_storing_and_not_the_run(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    upstream, wavs = Counting(), [*waveforms(), *waveforms(1), *waveforms(2)]
    store = store_in(small_disk, upstream)
    for _ in range(2):
        for wav in wavs:
            assert_same(store, Counting(), [wav])
    assert os.strerror(errno.ENOSPC) in capsys.readouterr().out
    assert len(wavs) < upstream.utterances < 2 * len(wavs), "stored features are still read"
    # Nothing is half-written: a later store finds only whole records.
    later = Counting()
    again = store_in(small_disk, later)
    for wav in wavs:
        assert_same(again, Counting(), [wav])
    assert later.utterances == upstream.utterances - len(wavs)
    assert "damaged" not in capsys.readouterr().out


def test_a_limit_on_file_size_is_treated_as_a_full_disk(tmp_path: Path) -> None:
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from tests.runners.features.toy import Counting, assert_same, store_in, waveforms\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "store = store_in(Path(sys.argv[1]), Counting())\n"
        "for wav in 2 * waveforms(): assert_same(store, Counting(), [wav])\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "nothing more is stored" in done.stdout
    assert shards.Shards(tmp_path, "space-fp32", GIGABYTE).read(b"\0" * 32) is None
