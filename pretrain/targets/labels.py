"""Targets of masked prediction: k-means clusters of features, in fairseq's .km files.

Features are computed twice: for a fraction of the utterances to fit k-means on, and for all utterances to assign.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from pretrain.audio.manifest import Manifest
from pretrain.targets.alignment import stacking_frame
from pretrain.targets.feature_memory import check_features
from pretrain.targets.features import BATCH_SECONDS, Features, layer_features, mfcc_features
from pretrain.targets.kmeans import Assignment, Reservoir, fit
from upstreams.config import HOP
from upstreams.errors import UserError
from upstreams.files import atomic_write, read_record, write_json
from upstreams.formats import checkpoint
from upstreams.model import AudioEncoder

CENTROIDS = "kmeans.safetensors"
FIT_STARTS = 20  # initialisations of k-means in HuBERT's recipe


def cluster(features: Features, utterances: int, clusters: int, seed: int, fraction: float, n_init: int) -> Assignment:
    """Fit k-means to the frames of a random `fraction` of the utterances, with the settings of HuBERT's recipe.

    utterances: their number; n_init: number of initialisations.
    """
    is_chosen = np.random.default_rng(seed).random(utterances) < fraction
    chosen = np.flatnonzero(is_chosen).tolist() or list(range(utterances))
    reservoir = Reservoir(seed)
    for frames in tqdm(features(chosen), total=len(chosen), desc="labels: fit", unit="utt", mininterval=2.0):
        reservoir.add(frames)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Assignment(fit(reservoir.frames(), clusters, seed, n_init, device))


def cluster_usage(counts: NDArray[np.int64]) -> dict[str, Any]:
    """Return measures of how evenly the clusters are used, from the number of frames (clusters,) of each.

    The entropy is in nats.
    """
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
    *,
    clusters: int,
    seed: int,
    fraction: float,
    subsampling: int,
    first: int | None = None,
    window: float = 0.0,
    model: AudioEncoder | None = None,
    layer: int = 0,
    n_init: int = FIT_STARTS,
    workers: int = 0,
    batch_seconds: float = BATCH_SECONDS,
) -> Path:
    """Cluster MFCC, or hidden state `layer` of `model`, and write OUT/train.km unless it exists; return its path.

    Also writes dict.km.txt, kmeans.safetensors (centroids), summary.json (use of the clusters) and TensorBoard's events
    to the same folder. Labels have the encoder's frame rate, one every 10 * `subsampling` ms. first: MFCC frame
    of the first label (`alignment.first_mfcc_frame`); None: of a front-end that stacks frames. window: seconds
    of `features.windowed_cepstra`; 0: one MFCC frame with differences. fraction: of the utterances, to fit k-means on.
    n_init: initialisations of k-means. workers: processes that read audio. batch_seconds: of audio that the model
    computes at once.

    Raises UserError if there is too little audio, and if existing labels have another rate, first frame or window.
    """
    path, summary_file = out / "train.km", out / "summary.json"
    timing = _timing(subsampling, first, window, is_mfcc=model is None)
    if path.is_file():
        _check_timing(path, read_record(summary_file, f"move {out} away, or give another folder"), timing)
        return path
    features, title = _features(manifest, subsampling, first, window, model, layer, workers, batch_seconds)
    assign = cluster(features, len(manifest), clusters, seed, fraction, n_init)
    with atomic_write(out / CENTROIDS) as temporary:
        save_file({"centroids": assign.centroids.cpu()}, temporary)
    # train.km gets its name last: if it exists, the other files are complete.
    with atomic_write(path) as temporary:
        counts, errors = _assign(temporary, manifest, features, assign, f"labels: {title}")
        with atomic_write(out / "dict.km.txt") as dictionary:
            dictionary.write_text("".join(f"{k} {count}\n" for k, count in enumerate(counts)), encoding="utf-8")
        summary = {**timing, **cluster_usage(counts), "error_per_frame": errors / int(counts.sum())}
        write_json(summary_file, summary)
    _to_tensorboard(out, summary, counts)
    return path


def write_hidden_state_labels(
    manifest: Manifest,
    out: Path,
    checkpoint_path: Path,
    layer: int,
    *,
    clusters: int,
    seed: int,
    fraction: float,
    n_init: int = FIT_STARTS,
    workers: int = 0,
) -> Path:
    """Cluster hidden state `layer` of a checkpoint's model, on the GPU if there is one; return the path of the labels.

    The other arguments and files are those of `write_labels`. Raises UserError if the model has no such layer.
    """
    model = checkpoint.load(checkpoint_path)
    if layer > model.config.encoder.layers:
        raise UserError(f"layer is {layer}, but {checkpoint_path} has layers 0 to {model.config.encoder.layers}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    check_features(model.config, manifest, BATCH_SECONDS, device)
    return write_labels(
        manifest,
        out,
        clusters=clusters,
        seed=seed,
        fraction=fraction,
        subsampling=model.config.downsample_rate // HOP,
        model=model.to(device),
        layer=layer,
        n_init=n_init,
        workers=workers,
    )


def write_valid_labels(
    manifest: Manifest,
    out: Path,
    subsampling: int,
    *,
    first: int | None = None,
    window: float = 0.0,
    model: AudioEncoder | None = None,
    layer: int = 0,
    workers: int = 0,
    batch_seconds: float = BATCH_SECONDS,
) -> Path:
    """Label other audio with the clusters in the folder `out`: write OUT/valid.km unless it exists; return its path.

    The other arguments are those of `write_labels`. Raises UserError if the folder has no centroids, as in label sets
    of other programs.
    """
    path, file = out / "valid.km", out / CENTROIDS
    if path.is_file():
        return path
    if not file.is_file():
        raise UserError(f"{out} has neither valid.km nor {CENTROIDS}, which it is made with: add one, or omit --valid")
    assign = Assignment(read_centroids(file))
    features, _ = _features(manifest, subsampling, first, window, model, layer, workers, batch_seconds)
    with atomic_write(path) as temporary:
        _assign(temporary, manifest, features, assign, "labels: valid")
    return path


def _timing(subsampling: int, first: int | None, window: float, *, is_mfcc: bool) -> dict[str, int]:
    """Return the frame length of labels in ms and, of MFCC labels, the MFCC frame of the first one and the window."""
    if not is_mfcc:
        return {"frame_ms": 10 * subsampling}
    first = stacking_frame(subsampling) if first is None else first
    return {"frame_ms": 10 * subsampling, "first_mfcc_frame": first, "window_ms": round(1000 * window)}


def _check_timing(path: Path, summary: dict[str, Any], timing: dict[str, int]) -> None:
    """Raise UserError if the summary of existing labels states another timing. path: the labels."""
    if wrong := [key for key in timing if not isinstance(summary.get(key, 0), int)]:
        raise UserError(f"summary.json beside {path} is damaged: {wrong[0]} is no whole number; give another folder")
    # A summary without the first frame is of a version that took the later of the two middle ones.
    made_before = {"first_mfcc_frame": summary["frame_ms"] // 20} if "frame_ms" in summary else {}
    known = {key: {**timing, "window_ms": 0, **made_before, **summary}[key] for key in timing}
    if known["frame_ms"] != timing["frame_ms"]:
        raise UserError(
            f"{path} has a label every {known['frame_ms']} ms, but one every {timing['frame_ms']} ms is needed: "
            "give another folder"
        )
    if known.get("window_ms") != timing.get("window_ms"):
        raise UserError(
            f"{path} describes windows of {known['window_ms']} ms, but {timing['window_ms']} ms are needed: "
            "give another folder"
        )
    if known != timing:
        raise UserError(
            f"{path} begins at MFCC frame {known['first_mfcc_frame']}, but frame {timing['first_mfcc_frame']} is "
            "needed: give another folder"
        )


def read_centroids(path: Path) -> torch.Tensor:
    """Return the centroids (clusters, dim) of a label set. Raises UserError if the file holds something else."""
    try:
        centroids = load_file(path).get("centroids")
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}): make the labels again") from error
    if centroids is None or centroids.ndim != 2 or centroids.dtype != torch.float32 or not centroids.isfinite().all():
        raise UserError(f"{path} holds no centroids of k-means: make the labels again")
    return centroids


def _features(
    manifest: Manifest,
    subsampling: int,
    first: int | None,
    window: float,
    model: AudioEncoder | None,
    layer: int,
    workers: int,
    batch_seconds: float,
) -> tuple[Features, str]:
    """Return the features to cluster, and their name."""
    if model is None:
        begin = stacking_frame(subsampling) if first is None else first
        return mfcc_features(manifest, subsampling, begin, workers, window), "MFCC"
    return layer_features(manifest, model, layer, workers, batch_seconds), f"layer {layer}"


def _assign(
    path: Path, manifest: Manifest, features: Features, assign: Assignment, title: str
) -> tuple[NDArray[np.int64], float]:
    """Write the labels of all utterances; return the number of frames of each cluster and the sum of squared errors."""
    counts, errors = np.zeros(len(assign.centroids), np.int64), 0.0
    bar = tqdm(features(range(len(manifest))), total=len(manifest), desc=title, unit="utt", mininterval=2.0)
    with path.open("w", encoding="utf-8") as file:
        for frames in bar:
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
        for rank, share in enumerate(shares):  # a curve that shows how evenly the clusters are used
            writer.add_scalar("labels/share_by_rank", share, rank)
