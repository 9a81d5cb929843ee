"""Targets of masked prediction: k-means clusters of MFCC, then of a pre-trained layer, in fairseq's .km files.

Features are computed twice, for a part of the utterances to fit k-means on and for all to assign, and never kept: what
is in memory does not grow with the corpus.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pretrain.audio.manifest import Manifest, load_audio
from pretrain.targets.kmeans import Assignment, Reservoir, fit
from upstreams.config import HOP, WINDOW
from upstreams.errors import UserError
from upstreams.files import atomic_write
from upstreams.frontend import LogMel
from upstreams.model import AudioEncoder

LABEL_WINDOW, LABEL_BATCH = 1024, 32  # utterances
CENTROIDS = "kmeans.safetensors"
FIT_STARTS = 20  # initialisations of k-means that the reference tries

Features = Callable[[Sequence[int]], Iterator[NDArray[np.float32]]]  # utterances' numbers -> (frames, dim) of each


def mfcc(audio: Tensor) -> Tensor:
    """(samples,) -> (frames at 100 Hz, 39): Kaldi's 13 MFCC with first and second differences (HuBERT, section 4.2)."""
    from upstreams.s3prl import compat as s3prl_compat  # noqa: F401  (makes torchaudio importable)

    import torchaudio  # isort: skip

    # As many frames as the front-end gives: one for every 10 ms begun.
    audio = torch.nn.functional.pad(audio, (0, -len(audio) % HOP + WINDOW - HOP))
    # Kaldi's scale is that of 16-bit integers; without dither, so that labels are reproducible.
    cepstra = torchaudio.compliance.kaldi.mfcc(audio[None] * 32768, use_energy=False, dither=0.0).T
    first = torchaudio.functional.compute_deltas(cepstra)
    return torch.cat([cepstra, first, torchaudio.functional.compute_deltas(first)]).T


class Utterances(Dataset[NDArray[np.float32]]):
    """What `transform` makes of each utterance's audio; of an unreadable one, which is named, an empty array."""

    def __init__(self, manifest: Manifest, transform: Callable[[Tensor], Tensor], empty: tuple[int, ...]) -> None:
        self.manifest, self.transform, self.empty = manifest, transform, empty

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        path, samples = self.manifest.root / self.manifest.paths[index], self.manifest.samples[index]
        try:
            return self.transform(torch.from_numpy(load_audio(path, samples=samples))).numpy()
        except UserError as error:
            tqdm.write(f"skipped: {error}")
            return np.zeros(self.empty, np.float32)

    def read(self, indices: Sequence[int], workers: int) -> Iterator[NDArray[np.float32]]:
        """Those utterances one after the other, made by that many processes beside this one."""
        options: dict[str, Any] = {"num_workers": min(workers, len(indices)), "batch_size": None, "sampler": indices}
        yield from DataLoader(self, collate_fn=_as_is, **options)


def _as_is(item: Any) -> Any:
    return item


def mfcc_features(manifest: Manifest, subsampling: int, workers: int) -> Features:
    """Of an utterance (frames, 39): the middle 10 ms of each encoder frame."""
    utterances = Utterances(manifest, functools.partial(middle_mfcc, subsampling), (0, 39))
    return lambda indices: utterances.read(indices, workers)


def middle_mfcc(subsampling: int, audio: Tensor) -> Tensor:
    """(samples,) -> (encoder frames, 39)."""
    features = mfcc(audio)
    middle = torch.arange(0, len(features), subsampling) + subsampling // 2
    return features[middle.clamp_max(len(features) - 1)]


def layer_features(manifest: Manifest, model: AudioEncoder, layer: int, workers: int) -> Features:
    """Of an utterance (frames, dim): hidden state `layer` of `model`, on the model's device.

    Utterances are taken in windows of the manifest, and in a window in order of length, so that little is padding.
    """
    utterances = Utterances(manifest, torch.Tensor.contiguous, (0,))
    device = next(model.parameters()).device

    @torch.no_grad()
    def features(indices: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        model.eval()
        windows = [indices[start : start + LABEL_WINDOW] for start in range(0, len(indices), LABEL_WINDOW)]
        ordered = [sorted(window, key=lambda index: manifest.samples[index]) for window in windows]
        audio = utterances.read([index for window in ordered for index in window], workers)
        for window, by_length in zip(windows, ordered, strict=True):
            found = dict.fromkeys(window, np.zeros((0, model.config.encoder.dim), np.float32))
            for first in range(0, len(by_length), LABEL_BATCH):
                batch = {index: torch.from_numpy(next(audio)) for index in by_length[first : first + LABEL_BATCH]}
                batch = {index: waveform for index, waveform in batch.items() if len(waveform)}
                if not batch:
                    continue
                lengths = torch.tensor([len(waveform) for waveform in batch.values()], device=device)
                waveforms = pad_sequence(list(batch.values()), True).to(device)
                # As in HuBERT, of the encoder itself, without the map that forward adds for heads.
                states = model.encoder(*model.embed(waveforms, lengths), layer)[layer].cpu()
                for index, state, frames in zip(batch, states, model.frame_count(lengths).tolist(), strict=True):
                    found[index] = state[:frames].numpy()
            yield from (found[index] for index in window)

    return features


def cluster(features: Features, utterances: int, clusters: int, seed: int, fraction: float, n_init: int) -> Assignment:
    """k-means of the frames of `fraction` of the utterances, as HuBERT's recipe configures it."""
    is_chosen = np.random.default_rng(seed).random(utterances) < fraction
    chosen = np.flatnonzero(is_chosen).tolist() or list(range(utterances))
    reservoir = Reservoir(seed)
    for frames in tqdm(features(chosen), total=len(chosen), desc="labels: fit", unit="utt", mininterval=2.0):
        reservoir.add(frames)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Assignment(fit(reservoir.frames(), clusters, seed, n_init, device))


def use_of(counts: NDArray[np.int64]) -> dict[str, Any]:
    """How evenly clusters are used: counts (clusters,) of frames -> those used, entropy in nats, perplexity."""
    share = counts[counts > 0] / counts.sum()
    entropy = float(-(share * np.log(share)).sum())
    return {
        "clusters": len(counts),
        "used": int((counts > 0).sum()),
        "entropy": entropy,
        "perplexity": float(np.exp(entropy)),
        "largest_share": float(share.max()),
        "frames": int(counts.sum()),
    }


def write_labels(
    manifest: Manifest,
    out: Path,
    clusters: int,
    seed: int,
    fraction: float,
    subsampling: int,
    model: AudioEncoder | None = None,
    layer: int = 0,
    n_init: int = FIT_STARTS,
    workers: int = 0,
) -> Path:
    """Cluster MFCC (or `model`'s hidden state `layer`) of the manifest into OUT/train.km; a finished one is kept.

    Writes dict.km.txt, kmeans.safetensors (the centroids), summary.json (how the clusters are used) and TensorBoard's
    events beside it. Labels are at the encoder's frame rate: one every `subsampling` * 10 ms. fraction: of the
    utterances, to fit k-means on; n_init: initialisations that it tries; workers: processes that read audio.
    Raises UserError on too little audio, where a file's length is not the manifest's, and on finished labels of another
    frame rate.
    """
    path, told = out / "train.km", out / "summary.json"
    frame = 10 * subsampling  # milliseconds
    if path.is_file():
        kept = json.loads(told.read_text(encoding="utf-8")).get("frame_ms", frame) if told.is_file() else frame
        if kept != frame:
            raise UserError(
                f"{path} has a label every {kept} ms, but one every {frame} ms is wanted: give another folder"
            )
        return path
    if model is None:
        features, title = mfcc_features(manifest, subsampling, workers), "MFCC"
    else:
        features, title = layer_features(manifest, model, layer, workers), f"layer {layer}"
    assign = cluster(features, len(manifest), clusters, seed, fraction, n_init)
    with atomic_write(out / CENTROIDS) as temporary:
        save_file({"centroids": assign.centroids.cpu()}, temporary)
    # The last file is the one that says that the others are whole.
    with atomic_write(path) as temporary:
        checked = subsampling if model is None else None
        counts, errors = _assign(temporary, manifest, features, assign, f"labels: {title}", checked)
        with atomic_write(out / "dict.km.txt") as dictionary:
            dictionary.write_text("".join(f"{k} {count}\n" for k, count in enumerate(counts)), encoding="utf-8")
        summary = {"frame_ms": frame, **use_of(counts), "error_per_frame": errors / int(counts.sum())}
        with atomic_write(told) as temporary_summary:
            temporary_summary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    _to_tensorboard(out, summary, counts)
    return path


def write_valid_labels(
    manifest: Manifest,
    out: Path,
    subsampling: int,
    model: AudioEncoder | None = None,
    layer: int = 0,
    workers: int = 0,
) -> Path:
    """Labels of other audio by the clusters of the set in `out`: OUT/valid.km; one that is there is kept.

    Raises UserError where the set does not say its centroids, as one that was not made here.
    """
    path, file = out / "valid.km", out / CENTROIDS
    if path.is_file():
        return path
    if not file.is_file():
        raise UserError(f"{out} has neither valid.km nor {CENTROIDS} to make it with: give one, or no validation")
    assign = Assignment(load_file(file)["centroids"])
    if model is None:
        features = mfcc_features(manifest, subsampling, workers)
    else:
        features = layer_features(manifest, model, layer, workers)
    with atomic_write(path) as temporary:
        _assign(temporary, manifest, features, assign, "labels: valid", subsampling if model is None else None)
    return path


def _assign(
    path: Path, manifest: Manifest, features: Features, assign: Assignment, title: str, subsampling: int | None
) -> tuple[NDArray[np.int64], float]:
    """Write the labels of all utterances; frames of each cluster and the sum of squared errors.

    subsampling: of MFCC, whose frames are compared with the manifest's length; None of other features.
    """
    counts, errors = np.zeros(len(assign.centroids), np.int64), 0.0
    bar = tqdm(features(range(len(manifest))), total=len(manifest), desc=title, unit="utt", mininterval=2.0)
    with path.open("w", encoding="utf-8") as file:
        for number, (frames, samples) in enumerate(zip(bar, manifest.samples, strict=True)):
            expected = -(-int(LogMel.frame_count(torch.tensor(samples))) // (subsampling or 1))
            if subsampling and len(frames) not in (0, expected):
                raise UserError(
                    f"utterance {number + 1} of the manifest has {len(frames)} labels for {expected} frames: "
                    f"is its length ({samples} samples) still that of the file?"
                )
            ids = assign(frames) if len(frames) else np.zeros(0, np.int32)
            counts += np.bincount(ids, minlength=len(counts))
            errors += assign.squared_error(frames, ids)
            file.write(" ".join(map(str, ids)) + "\n")
    if not counts.any():
        raise UserError(f"none of the {len(manifest)} files of the manifest could be read")
    return counts, errors


def _to_tensorboard(out: Path, summary: dict[str, Any], counts: NDArray[np.int64]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(out)) as writer:
        for name, value in summary.items():
            writer.add_scalar(f"labels/{name}", value, 0)
        shares = np.sort(counts / counts.sum())[::-1]
        for rank, share in enumerate(shares):  # a curve of how unevenly clusters are used
            writer.add_scalar("labels/share_by_rank", share, rank)
