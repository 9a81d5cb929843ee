"""k-means of more frames than memory holds: fit on a bounded uniform sample, then assign frame by frame."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from upstreams.errors import UserError

SAMPLE_BYTES = 2**30  # size of the sample that k-means is fitted on
BATCH, MAX_EPOCHS, MAX_NO_IMPROVEMENT = 10_000, 100, 100  # HuBERT's MiniBatchKMeans (arXiv 2106.07447, section 4.2)


class Reservoir:
    """A uniform sample of bounded size of the frames that are added (Vitter, 1985, algorithm R).

    It is all frames in their order as long as these fit.
    """

    def __init__(self, seed: int, max_bytes: int = SAMPLE_BYTES) -> None:
        self.random = np.random.default_rng(seed)
        self.max_bytes = max_bytes
        self.seen = 0
        self._sample: NDArray[np.float32] | None = None

    def add(self, frames: NDArray[np.float32]) -> None:
        """Add frames (frames, dim)."""
        if not len(frames):
            return
        if self._sample is None:
            # Pages of the array that are not written take no memory.
            self._sample = np.empty((max(1, self.max_bytes // frames[0].nbytes), frames.shape[1]), np.float32)
        room = min(len(frames), max(0, len(self._sample) - self.seen))
        self._sample[self.seen : self.seen + room] = frames[:room]
        later = np.arange(self.seen + room, self.seen + len(frames))
        places = self.random.integers(0, later + 1)
        replaced = places < len(self._sample)
        self._sample[places[replaced]] = frames[room:][replaced]
        self.seen += len(frames)

    def frames(self) -> NDArray[np.float32]:
        """Return the sample (frames, dim); (0, 0) if no frame was added."""
        return np.zeros((0, 0), np.float32) if self._sample is None else self._sample[: self.seen]


class Assignment:
    """Assignment of frames to the nearest of the centroids (clusters, dim)."""

    def __init__(self, centroids: Tensor) -> None:
        self.centroids = centroids
        self._half_norms = centroids.square().sum(1) / 2

    def __call__(self, frames: NDArray[np.float32]) -> NDArray[np.int32]:
        """Return the cluster ids (frames,) of frames (frames, dim)."""
        x = torch.from_numpy(frames).to(self.centroids.device)
        ids = torch.addmm(self._half_norms, x, self.centroids.T, beta=1, alpha=-1).argmin(1)
        return ids.cpu().numpy().astype(np.int32)

    def squared_error(self, frames: NDArray[np.float32], ids: NDArray[np.int32]) -> float:
        """Return the sum of squared distances between frames (frames, dim) and the centroids of their ids (frames,)."""
        centroids = self.centroids[torch.from_numpy(ids).long().to(self.centroids.device)]
        return float((torch.from_numpy(frames).to(centroids) - centroids).square().sum())


def fit(sample: NDArray[np.float32], clusters: int, seed: int, n_init: int, device: torch.device) -> Tensor:
    """Return the centroids (clusters, dim) of mini-batch k-means: scikit-learn's on CPU, the same in torch on a GPU.

    sample: (frames, dim). n_init: initialisations by k-means++, of which the best on a part of the sample is used.
    Raises UserError if the sample has fewer frames than clusters.
    """
    if len(sample) < clusters:
        raise UserError(f"{len(sample)} frames are too few for {clusters} clusters: give more audio or fewer clusters")
    if device.type != "cpu":
        generator = torch.Generator(device).manual_seed(seed)
        return fit_in_torch(torch.from_numpy(sample).to(device), clusters, n_init, generator)
    from sklearn.cluster import MiniBatchKMeans

    kmeans = MiniBatchKMeans(
        n_clusters=clusters,
        init="k-means++",
        max_iter=MAX_EPOCHS,
        batch_size=BATCH,
        tol=0.0,
        max_no_improvement=MAX_NO_IMPROVEMENT,
        n_init=n_init,
        reassignment_ratio=0.0,
        compute_labels=False,
        random_state=seed,
    ).fit(sample)
    return torch.from_numpy(kmeans.cluster_centers_.astype(np.float32))


def fit_in_torch(sample: Tensor, clusters: int, n_init: int, generator: torch.Generator) -> Tensor:
    """Return the centroids (clusters, dim) of mini-batch k-means (Sculley, 2010) of a sample (frames, dim).

    Computes on the sample's device, from a start by k-means++ (Arthur and Vassilvitskii, 2007). Stops like
    scikit-learn: after MAX_EPOCHS passes, or when the smoothed error of the batches has not improved for
    MAX_NO_IMPROVEMENT batches.
    """

    def draw(count: int) -> Tensor:
        return sample[torch.randint(len(sample), (count,), generator=generator, device=sample.device)]

    trial = draw(min(len(sample), 3 * BATCH))
    starts = [plus_plus(trial, clusters, generator) for _ in range(n_init)]
    centroids = min(starts, key=lambda start: float(torch.cdist(trial, start).amin(1).square().mean()))
    counts = torch.zeros(clusters, device=sample.device)
    smoothed = best = float("inf")
    weight = min(1.0, 2.0 * BATCH / (len(sample) + 1))
    waited = 0
    for _ in range(MAX_EPOCHS * -(-len(sample) // BATCH)):
        batch = draw(min(len(sample), BATCH))
        distances, ids = torch.cdist(batch, centroids).min(1)
        own = torch.bincount(ids, minlength=clusters).to(counts)
        counts += own
        sums = torch.zeros_like(centroids).index_add_(0, ids, batch)
        # Each centroid is the mean of all frames that were assigned to it so far.
        centroids = centroids + (sums - own[:, None] * centroids) / counts.clamp_min(1)[:, None]
        error = float(distances.square().mean())
        smoothed = error if smoothed == float("inf") else smoothed * (1 - weight) + error * weight
        waited = 0 if smoothed < best else waited + 1
        best = min(best, smoothed)
        if waited >= MAX_NO_IMPROVEMENT:
            break
    return centroids


def plus_plus(sample: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """Return initial centroids (clusters, dim): frames of the sample (frames, dim) that are far apart.

    Each is the best of a few draws whose probability is proportional to the squared distance from the centroids chosen
    before, as in scikit-learn.
    """
    draws = 2 + int(np.log(clusters))
    first = torch.randint(len(sample), (1,), generator=generator, device=sample.device)
    chosen = [sample[first]]
    distances = torch.cdist(sample, chosen[0]).square()[:, 0]
    for _ in range(clusters - 1):
        weights = distances if bool(distances.sum() > 0) else torch.ones_like(distances)
        candidates = torch.multinomial(weights, draws, replacement=True, generator=generator)
        nearer = torch.minimum(torch.cdist(sample[candidates], sample).square(), distances)
        best = nearer.sum(1).argmin()
        chosen.append(sample[candidates[best]][None])
        distances = nearer[best]
    return torch.cat(chosen)
