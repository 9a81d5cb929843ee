"""Labels: k-means of streamed features compared with scikit-learn's, label files, and measures of agreement."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.cluster import MiniBatchKMeans

from pretrain.audio.manifest import Manifest
from pretrain.targets.features import cepstra, layer_features, mfcc_features, windowed_cepstra
from pretrain.targets.kmeans import Assignment, Reservoir, fit, fit_in_torch
from pretrain.targets.label_files import read_labels
from pretrain.targets.labels import cluster, write_labels
from tests.pretrain.command import superbit
from tests.pretrain.tiny_audio import write_corpus
from upstreams.config import FrontEndConfig, preset
from upstreams.errors import UserError
from upstreams.formats.checkpoint import build

HOP = 640
FRONT_END = FrontEndConfig()  # 40 ms


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return Manifest.read(write_corpus(tmp_path_factory.mktemp("corpus"), corrupt=(4,)))


def test_streamed_labels_equal_scikit_learns_on_all_frames_at_once(manifest: Manifest, tmp_path: Path) -> None:
    done = superbit(
        "labels",
        "mfcc",
        "--manifest",
        manifest.root / "train.tsv",
        "--out",
        tmp_path,
        "--clusters",
        "7",
        "--fraction",
        "1",
        "--n-init",
        "3",
        "--seed",
        "5",
        "--workers",
        "2",
    )
    assert done.returncode == 0, done.stderr
    everything = [f.copy() for f in mfcc_features(manifest, 4, 1, 0)(range(len(manifest)))]
    kmeans = MiniBatchKMeans(
        7,
        init="k-means++",
        max_iter=100,
        batch_size=10_000,
        tol=0.0,
        max_no_improvement=100,
        n_init=3,
        reassignment_ratio=0.0,
        random_state=5,
    ).fit(np.concatenate(everything))
    labels = read_labels(tmp_path / "train.km", manifest, FRONT_END)
    for ids, features in zip(labels, everything, strict=True):
        assert len(ids) == len(features) and (not len(ids) or (ids == kmeans.predict(features)).all())
    assert len(labels[4]) == 0 and "4.wav" in done.stdout + done.stderr
    counts = np.bincount(np.concatenate(labels), minlength=7)
    summary = json.loads((tmp_path / "summary.json").read_text())
    share = counts / counts.sum()
    assert summary["entropy"] == pytest.approx(-(share[share > 0] * np.log(share[share > 0])).sum())
    assert summary["error_per_frame"] == pytest.approx(kmeans.inertia_ / counts.sum(), rel=1e-4)
    assert (tmp_path / "dict.km.txt").read_text() == "".join(f"{k} {n}\n" for k, n in enumerate(counts))
    assert list(tmp_path.glob("events.out.tfevents*"))


def test_windowed_cepstra_equal_plain_loops() -> None:
    """Mean over 3 frames, every 60 ms of 0.4 s, the ends repeated, normalised over the utterance."""
    audio = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, 5000).astype(np.float32))
    plain = cepstra(audio).numpy()
    plain = (plain - plain.mean(0)) / (plain.std(0) + 1e-3)
    last = len(plain) - 1
    found = windowed_cepstra(audio, 0.4).numpy()
    assert found.shape == (len(plain), 7 * 13)
    for frame in range(len(plain)):
        around = [
            np.mean([plain[min(max(frame + offset + k, 0), last)] for k in (-1, 0, 1)], axis=0)
            for offset in (-18, -12, -6, 0, 6, 12, 18)
        ]
        np.testing.assert_allclose(found[frame], np.concatenate(around), atol=1e-3)


def test_windowed_cepstra_do_not_depend_on_the_level() -> None:
    audio = torch.from_numpy(np.random.default_rng(0).normal(0, 0.1, 5000).astype(np.float32))
    torch.testing.assert_close(windowed_cepstra(audio, 0.4), windowed_cepstra(audio * 0.3, 0.4), atol=1e-2, rtol=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_layer_features_do_not_depend_on_workers_and_batch(manifest: Manifest, workers: int) -> None:
    torch.manual_seed(0)
    model = build(preset("sparseformer_dn_mini")).eval()
    together = list(layer_features(manifest, model, 3, workers)(range(len(manifest))))
    assert [len(f) for f in together] == [0 if k == 4 else -(-n // HOP) for k, n in enumerate(manifest.samples)]
    (alone,) = layer_features(manifest, model, 3, 0)([7])
    np.testing.assert_allclose(together[7], alone, atol=1e-4)


def test_a_reservoir_keeps_all_frames_while_they_fit_and_then_a_uniform_sample() -> None:
    frames = np.arange(3000, dtype=np.float32).reshape(-1, 3)
    whole = Reservoir(0, 4 * 3 * 1000)
    for part in np.array_split(frames, 7):
        whole.add(part)
    np.testing.assert_array_equal(whole.frames(), frames)
    hits = np.zeros(1000)
    for seed in range(400):
        some = Reservoir(seed, 4 * 3 * 100)
        for part in np.array_split(frames, 7):
            some.add(part)
        kept = some.frames()
        assert kept.shape == (100, 3) and len(np.unique(kept[:, 0])) == 100
        hits[(kept[:, 0] / 3).astype(int)] += 1
    # Each frame is kept with probability 0.1. The tolerance of each third of the stream is 3 standard errors.
    for third in np.array_split(hits / 400, 3):
        assert third.mean() == pytest.approx(0.1, abs=0.003)


def blobs(seed: int, count: int = 12_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 3, (20, 16))
    truth = rng.integers(0, 20, count)
    return (centres[truth] + rng.normal(0, 1, (count, 16))).astype(np.float32), truth


def test_k_means_in_torch_is_as_good_as_scikit_learns() -> None:
    """The algorithm for GPUs, run on CPU: errors over three seeds, and assignment to scikit-learn's centroids."""
    sample, _ = blobs(0)

    def error(centroids: torch.Tensor) -> float:
        assign = Assignment(centroids)
        return assign.squared_error(sample, assign(sample)) / len(sample)

    cpu = torch.device("cpu")
    ours = [error(fit_in_torch(torch.from_numpy(sample), 20, 3, torch.Generator().manual_seed(s))) for s in range(3)]
    theirs = [error(fit(sample, 20, s, 3, cpu)) for s in range(3)]
    assert np.mean(ours) <= 1.03 * np.mean(theirs)
    kmeans = MiniBatchKMeans(20, random_state=0, n_init=1).fit(sample)
    ids = Assignment(torch.from_numpy(kmeans.cluster_centers_))(sample)
    assert (ids != kmeans.predict(sample)).mean() < 1e-3


def test_k_means_finds_separated_clusters() -> None:
    random = np.random.default_rng(0)
    truth = [random.integers(0, 4, 300) for _ in range(6)]
    centres = random.normal(0, 10, (4, 5))
    made = [(centres[t] + random.normal(0, 0.1, (300, 5))).astype(np.float32) for t in truth]

    def features(indices: Sequence[int]) -> Iterator[np.ndarray]:
        return (made[index] for index in indices)

    assign = cluster(features, 6, 4, 0, 0.5, 3)
    pairs = {(int(a), int(b)) for t, f in zip(truth, made, strict=True) for a, b in zip(t, assign(f), strict=True)}
    assert len(pairs) == 4
    with pytest.raises(UserError, match="too few for 4000 clusters"):
        cluster(features, 6, 4000, 0, 1.0, 3)


def test_labels_of_a_killed_run_are_made_again(manifest: Manifest, tmp_path: Path) -> None:
    """Killed while it writes: train.km does not exist until it is complete, and the next run makes it."""
    arguments = ["labels", "mfcc", "--manifest", str(manifest.root / "train.tsv"), "--clusters", "5", "--out"]
    whole = superbit(*arguments, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    slow = (
        "import time, pretrain.targets.labels as labels\n"
        "assign = labels.Assignment.__call__\n"
        "labels.Assignment.__call__ = lambda self, frames: (time.sleep(0.3), assign(self, frames))[1]\n"
        f"import runners.cli, sys; sys.argv = ['superbit', *{[*arguments, str(tmp_path / 'killed')]!r}]\n"
        "runners.cli.main()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", slow], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "killed").glob(".train.km*")):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed/train.km").exists()
    assert superbit(*arguments, tmp_path / "killed").returncode == 0
    assert (tmp_path / "killed/train.km").read_text() == (tmp_path / "whole/train.km").read_text()


def test_finished_labels_of_another_frame_rate_are_refused(manifest: Manifest, tmp_path: Path) -> None:
    arguments = ["labels", "mfcc", "--manifest", manifest.root / "train.tsv", "--clusters", "5", "--out", tmp_path]
    assert superbit(*arguments).returncode == 0
    made = (tmp_path / "train.km").read_bytes()
    done = superbit(*arguments, "--subsampling", "2")
    assert done.returncode == 2 and "has a label every 40 ms, but one every 20 ms is needed" in done.stderr
    done = superbit(*arguments, "--window", "0.4")
    assert done.returncode == 2 and "describes windows of 0 ms, but 400 ms are needed" in done.stderr
    assert superbit(*arguments).returncode == 0 and (tmp_path / "train.km").read_bytes() == made


@pytest.mark.parametrize("content", ["", "{", "[]", '{"frame_ms": "40"}', '{"frame_ms": null}', "\udcff", "[" * 99_999])
def test_a_damaged_summary_of_finished_labels_is_named(content: str, manifest: Manifest, tmp_path: Path) -> None:
    km(tmp_path / "train.km", [[0]])
    (tmp_path / "summary.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"summary\.json"):
        write_labels(manifest, tmp_path, clusters=5, seed=0, fraction=1.0, subsampling=4)


def test_labels_have_the_length_that_the_manifest_states(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "audio")
    lines = path.read_text().splitlines()
    lines[3] = lines[3].split("\t")[0] + "\t999"
    path.write_text("\n".join(lines) + "\n")
    made = write_labels(Manifest.read(path), tmp_path / "labels", clusters=5, seed=0, fraction=1.0, subsampling=4)
    assert len(made.read_text().splitlines()[2].split()) == 2  # 999 samples begin two frames of 640


def test_too_little_audio_for_the_clusters_is_refused(tmp_path: Path) -> None:
    broken = Manifest.read(write_corpus(tmp_path / "none", 3, corrupt=(0, 1, 2)))
    with pytest.raises(UserError, match="too few"):
        write_labels(broken, tmp_path / "no labels", clusters=5, seed=0, fraction=1.0, subsampling=4)
    assert not (tmp_path / "no labels/train.km").exists()


def km(path: Path, lines: Sequence[Sequence[int] | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((line if isinstance(line, str) else " ".join(map(str, line))) + "\n" for line in lines))
    return path


def test_labels_at_fairseqs_rate_are_read(manifest: Manifest, tmp_path: Path) -> None:
    """50 Hz labels have the number of frames of HuBERT's convolutions: samples / 320, minus one."""
    count = [n // 320 - 1 for n in manifest.samples]
    path = km(tmp_path / "train.km", [range(n) for n in count])
    convolutional, waveform = FrontEndConfig(stem="convolution"), FrontEndConfig(kind="waveform")
    for front_end, first in ((convolutional, 0), (FRONT_END, 1)):  # a stacking stem is centred 15 ms later
        labels = read_labels(path, manifest, front_end, label_rate=50)
        for ids, n, samples in zip(labels, count, manifest.samples, strict=True):
            assert ids.tolist() == [min(first + 2 * k, n - 1) for k in range(-(-samples // HOP))]
    assert [ids.tolist() for ids in read_labels(path, manifest, waveform)] == [list(range(n)) for n in count]


def test_labels_that_do_not_match_the_audio_are_refused(manifest: Manifest, tmp_path: Path) -> None:
    good = [[0] * -(-n // HOP) for n in manifest.samples]
    (tmp_path / "dict.km.txt").write_text("0 1\n1 1\n")

    def refused(lines: Sequence[Sequence[int] | str]) -> str:
        with pytest.raises(UserError) as caught:
            read_labels(km(tmp_path / "train.km", lines), manifest, FRONT_END)
        return str(caught.value)

    assert "has 11 lines, but the manifest has 12 utterances" in refused(good[:-1])
    assert "has 13 lines, but the manifest has 12 utterances" in refused([*good, [0]])
    message = refused([*good[:5], good[5][:10], *good[6:]])
    assert "line 6 of" in message and "has 10 labels" in message and f"{manifest.samples[5]} samples" in message
    assert "line 3 of" in (message := refused([*good[:2], [2, *good[2][1:]], *good[3:]])) and "label 2" in message
    assert "whole numbers, not '0 a'" in refused([*good[:2], "0 a", *good[3:]])
    with pytest.raises(UserError, match=r"the label file .* is missing"):
        read_labels(tmp_path / "missing.km", manifest, FRONT_END)
    assert len(read_labels(km(tmp_path / "train.km", [*good[:2], [], *good[3:]]), manifest, FRONT_END)[2]) == 0


def test_purity_of_a_small_table(tmp_path: Path) -> None:
    """Phones at twice the labels' rate. Frames: 3 of (0, a), 1 of (0, b), 2 of (1, b), 2 of (2, b)."""
    labels = km(tmp_path / "train.km", [[0, 0, 0, 0], [1, 1, 2, 2], [9], []])
    reference = km(tmp_path / "train.phn", ["a a a a a a b b", "b b b b b b b b", "", "c"])
    done = superbit("labels", "purity", "--labels", labels, "--reference", reference)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["frames"], found["labels"], found["phones"]) == (8, 3, 2)
    assert found["phone_purity"] == pytest.approx((3 + 2 + 2) / 8)
    assert found["cluster_purity"] == pytest.approx((3 + 2) / 8)
    entropy = -(3 / 8 * np.log(3 / 8) + 5 / 8 * np.log(5 / 8))
    left = 4 / 8 * -(3 / 4 * np.log(3 / 4) + 1 / 4 * np.log(1 / 4))
    assert found["pnmi"] == pytest.approx((entropy - left) / entropy)
    done = superbit("labels", "purity", "--labels", labels, "--reference", km(tmp_path / "short.phn", ["a"]))
    assert done.returncode == 2 and "has 4 lines" in done.stderr


def test_labels_of_a_checkpoints_layer(work: Path, tmp_path: Path) -> None:
    checkpoint, tsv = work / "run/checkpoints/sparseformer_dn_mini.safetensors", work / "audio/train.tsv"
    arguments = ["labels", "features", "--manifest", tsv, "--checkpoint", checkpoint, "--clusters", "6"]
    done = superbit(*arguments, "--out", tmp_path, "--layer", "4", "--fraction", "1", "--n-init", "2")
    assert done.returncode == 0, done.stderr
    labels = read_labels(tmp_path / "train.km", Manifest.read(tsv), FRONT_END)
    assert len(np.unique(np.concatenate(labels))) == 6
    done = superbit(*arguments, "--out", tmp_path / "none", "--layer", "9")
    assert done.returncode == 2 and "layers 0 to 8" in done.stderr
