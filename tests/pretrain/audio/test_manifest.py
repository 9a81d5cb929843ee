"""Manifests and shards of a folder of audio, through the command line."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pretrain.audio.data import BatchOrder, Crops, loader
from pretrain.audio.manifest import Manifest, load_audio
from tests.pretrain.command import superbit

RATE = 16_000


def noise(samples: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six speakers in LibriSpeech's layout, in all formats, and many unusable files."""
    root = tmp_path_factory.mktemp("some audio")
    for speaker in range(6):
        for utterance, suffix in enumerate(("flac", "wav", "ogg", "mp3")):
            path = root / f"set/{speaker}/7/{speaker}-7-{utterance:04d}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, noise(RATE * (2 + speaker % 3) + utterance, speaker), RATE)
    soundfile.write(root / "set/0/7/0-7-0009.opus", noise(2 * RATE, 9), RATE, format="OGG", subtype="OPUS")
    soundfile.write(root / "ünï cödé & co.wav", noise(2 * RATE, 7), RATE)
    soundfile.write(root / "short.wav", noise(RATE, 1), RATE)
    soundfile.write(root / "slow.wav", noise(RATE, 1), 8000)
    soundfile.write(root / "stereo.wav", noise(4 * RATE, 1).reshape(-1, 2), RATE)
    soundfile.write(root / "empty.wav", noise(0, 1), RATE)
    for name in ("a\ttab", "a\rreturn", "a [bracket] *?", "a\u2028separator\x85\x0b"):
        soundfile.write(root / f"{name}.wav", noise(2 * RATE, 1), RATE)
    soundfile.write(root / "a\nbreak.wav", noise(2 * RATE, 1), RATE)
    soundfile.write(os.fsencode(root / "latin") + b"\xe9.flac", noise(2 * RATE, 1), RATE)
    (root / "__MACOSX").mkdir()
    soundfile.write(root / "__MACOSX/left over.wav", noise(2 * RATE, 1), RATE)
    (root / ".hidden").mkdir()
    soundfile.write(root / ".hidden/0.wav", noise(2 * RATE, 1), RATE)
    (root / "set/0/loop").symlink_to(root / "set")
    (root / "broken.flac").write_bytes(b"fLaC and nothing else")
    (root / "._hidden.wav").write_bytes(b"made by macOS")
    (root / "notes.txt").write_text("no audio")
    whole = (root / "set/1/7/1-7-0000.flac").read_bytes()
    (root / "cut off.flac").write_bytes(whole[: len(whole) // 2])
    (root / "cut off.wav").write_bytes((root / "set/1/7/1-7-0001.wav").read_bytes()[:-2000])
    return root


def test_a_folder_becomes_manifests(folder: Path, tmp_path: Path) -> None:
    done = superbit("manifest", folder, "--out", tmp_path, "--valid", "0.2")
    assert done.returncode == 0, done.stderr
    train, valid = Manifest.read(tmp_path / "train.tsv"), Manifest.read(tmp_path / "valid.tsv")
    assert len(train) + len(valid) == 30 and not set(train.paths) & set(valid.paths)
    assert 0.1 < valid.hours / (train.hours + valid.hours) < 0.35
    for manifest in (train, valid):
        assert list(manifest.paths) == sorted(manifest.paths)
        for path, samples in zip(manifest.paths, manifest.samples, strict=True):
            assert len(load_audio(manifest.root / path)) == samples
    left_out = dict(line.split("\t") for line in (tmp_path / "left_out.tsv").read_text().splitlines())
    reasons = {
        "broken.flac": "cannot be read",
        "cut off.flac": "",
        "cut off.wav": "its header states 48001 samples, but the file holds 47001",
        "empty.wav": "it holds no samples",
        "short.wav": "1.00 s long",
        "slow.wav": "8000 Hz",
        "stereo.wav": "2 channels",
        "a\\nbreak.wav": "line break",
        "latin\\udce9.flac": "not UTF-8",
    }
    assert set(left_out) == set(reasons)
    for name, reason in reasons.items():
        assert reason in left_out[name]
        assert name in done.stdout
    again = superbit("manifest", folder, "--out", tmp_path / "again", "--valid", "0.2", "--workers", "1")
    assert again.returncode == 0
    assert (tmp_path / "again/valid.tsv").read_text() == (tmp_path / "valid.tsv").read_text()


def test_a_split_by_speakers_has_no_speaker_twice(folder: Path, tmp_path: Path) -> None:
    pattern = r"(\d+)-\d+-\d+\."
    done = superbit("manifest", folder / "set", "--out", tmp_path, "--valid", "0.3", "--speaker", pattern)
    assert done.returncode == 0, done.stderr
    of = [{path.split("/")[0] for path in Manifest.read(tmp_path / f"{name}.tsv").paths} for name in ("train", "valid")]
    assert of[0] | of[1] == {str(k) for k in range(6)} and not of[0] & of[1] and of[1]
    assert f"of {len(of[1])} speakers" in done.stdout


def test_bad_input_gets_one_sentence(folder: Path, tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    for arguments, words in (
        ((tmp_path / "missing",), "is missing: name the folder"),
        ((nothing,), "holds no usable audio file"),
        ((folder, "--min-seconds", "100"), "holds no usable audio file"),
        ((folder, "--valid", "1"), "--valid is 1.0"),
        ((folder, "--speaker", r"(\d+)-\d+"), "finds no speaker in the path"),
        ((folder, "--speaker", r"\d+"), "has no group"),
        ((folder, "--speaker", "("), "is not a valid regular expression"),
    ):
        done = superbit("manifest", *arguments, "--out", tmp_path / "out")
        assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()


def test_shards_have_the_same_audio(folder: Path, tmp_path: Path) -> None:
    assert superbit("manifest", folder, "--out", tmp_path, "--valid", "0").returncode == 0
    done = superbit(
        "shards", "--manifest", tmp_path / "train.tsv", "--out", tmp_path / "shards", "--gigabytes", "0.0003"
    )
    assert done.returncode == 0, done.stderr
    single, sharded = Manifest.read(tmp_path / "train.tsv"), Manifest.read(tmp_path / "shards/train.tsv")
    assert sharded.samples == single.samples
    archives = sorted((tmp_path / "shards").glob("*.tar"))
    assert len(archives) > 3
    count = 0
    for archive in archives:
        with tarfile.open(archive) as opened:
            count += len(opened.getnames())
    assert count == len(single)
    for one, other, samples in zip(single.paths, sharded.paths, single.samples, strict=True):
        whole = load_audio(single.root / one)
        np.testing.assert_array_equal(load_audio(sharded.root / other), whole)
        part = load_audio(sharded.root / other, 1000, samples - 1500)
        np.testing.assert_allclose(part, whole[1000 : samples - 500], atol=1e-3)  # lossy formats seek inexactly
    # Training reads the same batches from shards as from files.
    orders = [BatchOrder(manifest, 640, 20.0, 1.0, seed=0) for manifest in (single, sharded)]
    for a, b in zip(
        loader(Crops(single, None, 640), orders[0], 0, 4),
        loader(Crops(sharded, None, 640), orders[1], 0, 4),
        strict=True,
    ):
        assert a.skipped == b.skipped == 0 and a.waveforms.equal(b.waveforms)
    archives[0].unlink()
    done = superbit("labels", "mfcc", "--manifest", tmp_path / "shards/train.tsv", "--out", tmp_path / "labels")
    assert done.returncode == 2 and "has the root folder moved" in done.stderr
