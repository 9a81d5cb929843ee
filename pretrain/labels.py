"""Targets of masked prediction: k-means clusters of MFCC, then of a pre-trained layer, in fairseq's .km files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from pretrain.manifest import Manifest, load_audio
from upstreams.errors import UserError
from upstreams.files import atomic_write
from upstreams.frontend import HOP, WINDOW, LogMel
from upstreams.model import AudioEncoder

LABEL_WINDOW, LABEL_BATCH = 1024, 32  # utterances


def mfcc(audio: Tensor) -> Tensor:
    """(samples,) -> (frames at 100 Hz, 39): Kaldi's 13 MFCC with first and second differences (HuBERT, section 4.2)."""
    from upstreams import s3prl_compat  # noqa: F401  (makes torchaudio importable)

    import torchaudio  # isort: skip

    # As many frames as the front-end gives: one for every 10 ms begun.
    audio = torch.nn.functional.pad(audio, (0, -len(audio) % HOP + WINDOW - HOP))
    # Kaldi's scale is that of 16-bit integers; without dither, so that labels are reproducible.
    cepstra = torchaudio.compliance.kaldi.mfcc(audio[None] * 32768, use_energy=False, dither=0.0).T
    first = torchaudio.functional.compute_deltas(cepstra)
    return torch.cat([cepstra, first, torchaudio.functional.compute_deltas(first)]).T


def mfcc_features(manifest: Manifest, subsampling: int) -> Iterator[np.ndarray]:
    """One (frames, 39) array an utterance, the middle 10 ms of each encoder frame; empty when unreadable."""
    for path, samples in zip(manifest.paths, manifest.samples, strict=True):
        try:
            features = mfcc(torch.from_numpy(load_audio(manifest.root / path, samples=samples)))
        except UserError as error:
            tqdm.write(f"skipped: {error}")
            yield np.zeros((0, 39), dtype=np.float32)
            continue
        middle = torch.arange(0, len(features), subsampling) + subsampling // 2
        yield features[middle.clamp_max(len(features) - 1)].numpy()


@torch.no_grad()
def layer_features(manifest: Manifest, model: AudioEncoder, layer: int) -> Iterator[np.ndarray]:
    """One (frames, dim) array an utterance: hidden state `layer` of `model`; empty when unreadable.

    Utterances are taken in windows of the manifest, and in a window in order of length, so that little is padding.
    """
    model.eval()
    empty = np.zeros((0, model.config.encoder.dim), dtype=np.float32)
    for start in range(0, len(manifest), LABEL_WINDOW):
        window = range(start, min(start + LABEL_WINDOW, len(manifest)))
        features = dict.fromkeys(window, empty)
        ordered = sorted(window, key=lambda index: manifest.samples[index])
        for first in range(0, len(ordered), LABEL_BATCH):
            audio: dict[int, Tensor] = {}
            for index in ordered[first : first + LABEL_BATCH]:
                try:
                    path = manifest.root / manifest.paths[index]
                    audio[index] = torch.from_numpy(load_audio(path, samples=manifest.samples[index]))
                except UserError as error:
                    tqdm.write(f"skipped: {error}")
            if not audio:
                continue
            lengths = torch.tensor([len(a) for a in audio.values()])
            # As in HuBERT, of the encoder itself, without the map that forward adds for heads.
            states = model.encoder(*model.embed(pad_sequence(list(audio.values()), True), lengths), layer)[layer]
            for index, state, frames in zip(audio, states, model.frame_count(lengths).tolist(), strict=True):
                features[index] = state[:frames].numpy()
        yield from (features[index] for index in window)


def cluster(features: list[np.ndarray], clusters: int, seed: int, fraction: float) -> tuple[list[np.ndarray], dict]:
    """k-means as the reference recipe configures it; returns the ids of each utterance and a summary.

    features: one (frames, dim) array an utterance; fitted on `fraction` of the utterances, assigned to all.
    """
    from sklearn.cluster import MiniBatchKMeans

    random = np.random.default_rng(seed)
    chosen = random.random(len(features)) < fraction
    sample = np.concatenate([f for f, c in zip(features, chosen, strict=True) if c] or features)
    if len(sample) < clusters:
        raise UserError(f"{len(sample)} frames are too few for {clusters} clusters: give more audio or fewer clusters")
    kmeans = MiniBatchKMeans(
        n_clusters=clusters,
        init="k-means++",
        max_iter=100,
        batch_size=10_000,
        tol=0.0,
        max_no_improvement=100,
        n_init=5,
        reassignment_ratio=0.0,
        random_state=seed,
    ).fit(sample)
    ids = [kmeans.predict(f) if len(f) else np.zeros(0, dtype=np.int32) for f in features]
    counts = np.bincount(np.concatenate(ids), minlength=clusters)
    share = counts[counts > 0] / counts.sum()
    summary = {
        "clusters": clusters,
        "used": int((counts > 0).sum()),
        "perplexity": float(np.exp(-(share * np.log(share)).sum())),
        "inertia_per_frame": float(kmeans.inertia_ / len(sample)),
        "frames": int(counts.sum()),
    }
    return ids, summary


def write_labels(
    manifest: Manifest,
    out: Path,
    clusters: int,
    seed: int,
    fraction: float,
    subsampling: int,
    model: AudioEncoder | None = None,
    layer: int = 0,
) -> Path:
    """Cluster MFCC (or `model`'s hidden state `layer`) of the manifest into OUT/train.km; a finished one is kept.

    Writes dict.km.txt and summary.json (cluster use, perplexity) beside it. Labels are at the encoder's frame rate:
    one every `subsampling` * 10 ms.
    """
    path = out / "train.km"
    if path.is_file():
        return path
    source = mfcc_features(manifest, subsampling) if model is None else layer_features(manifest, model, layer)
    title = "MFCC" if model is None else f"layer {layer}"
    features = list(tqdm(source, total=len(manifest), desc=f"labels: {title}", unit="utt", mininterval=2.0))
    ids, summary = cluster(features, clusters, seed, fraction)
    for number, (one, samples) in enumerate(zip(ids, manifest.samples, strict=True)):
        expected = -(-int(LogMel.frame_count(torch.tensor(samples))) // subsampling)
        if len(one) not in (0, expected):
            raise UserError(
                f"utterance {number + 1} of the manifest has {len(one)} labels for {expected} frames: "
                f"is its length ({samples} samples) still that of the file?"
            )
    with atomic_write(out / "dict.km.txt") as temporary:
        temporary.write_text("".join(f"{k} 1\n" for k in range(clusters)), encoding="utf-8")
    with atomic_write(out / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    with atomic_write(path) as temporary:
        temporary.write_text("".join(" ".join(map(str, one)) + "\n" for one in ids), encoding="utf-8")
    return path
