"""Features that are clustered: MFCC, or a hidden state of a model.

They are computed again in every pass and never stored, so that memory does not grow with the corpus.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pretrain.audio.manifest import Manifest, load_audio
from upstreams.config import HOP, SAMPLE_RATE, WINDOW
from upstreams.errors import UserError
from upstreams.model import AudioEncoder

BATCH_SECONDS = 60.0  # of padded audio that are computed together
WINDOW_STEP = 6  # frames of 10 ms between the cepstra of a window
WINDOW_BATCHES = 16  # batches whose utterances are sorted by length, and whose features are held

Features = Callable[[Sequence[int]], Iterator[NDArray[np.float32]]]  # numbers of utterances -> (frames, dim) of each


def cepstra(audio: Tensor) -> Tensor:
    """Return Kaldi's 13 MFCC: (samples,) -> (frames at 100 Hz, 13)."""
    from upstreams.s3prl import compat as s3prl_compat  # noqa: F401  (makes torchaudio importable)

    import torchaudio  # isort: skip

    # The same number of frames as the front-end's: one for every 10 ms begun.
    audio = torch.nn.functional.pad(audio, (0, -len(audio) % HOP + WINDOW - HOP))
    # Kaldi expects the scale of 16-bit integers. Without dither the labels are reproducible.
    found: Tensor = torchaudio.compliance.kaldi.mfcc(audio[None] * 32768, use_energy=False, dither=0.0)
    return found


def mfcc(audio: Tensor) -> Tensor:
    """Return Kaldi's 13 MFCC with first and second differences (HuBERT, section 4.2).

    audio: (samples,) -> (frames at 100 Hz, 39).
    """
    static = cepstra(audio).T
    import torchaudio  # importable after `cepstra`

    first = torchaudio.functional.compute_deltas(static)
    return torch.cat([static, first, torchaudio.functional.compute_deltas(first)]).T


def window_positions(window: float) -> int:
    """Return how many cepstra describe a window of that many seconds: an odd number, 60 ms apart."""
    return 2 * round(window * SAMPLE_RATE / HOP / (2 * WINDOW_STEP)) + 1


def mfcc_dim(window: float) -> int:
    """Return the size of the features that `mfcc_features` makes with that window."""
    return 13 * window_positions(window) if window else 39


def windowed_cepstra(audio: Tensor, window: float) -> Tensor:
    """Return normalised cepstra around each frame: (samples,) -> (frames at 100 Hz, 13 positions).

    window: in seconds. Each cepstrum is normalised by its mean and deviation over the utterance, which depend on voice
    and channel, averaged over 3 frames, and taken every 60 ms of the window. Beyond the utterance's ends the first and
    the last frame are repeated.
    """
    static = cepstra(audio)
    static = ((static - static.mean(0)) / (static.std(0, correction=0) + 1e-3)).T[None]
    positions = window_positions(window)
    reach = positions // 2 * WINDOW_STEP
    padded = nn.functional.pad(static, (reach + 1, reach + 1), mode="replicate")
    smooth = nn.functional.avg_pool1d(padded, 3, 1)[0]  # (13, frames + 2 reach)
    return smooth.unfold(1, static.shape[2], WINDOW_STEP).transpose(0, 1).flatten(0, 1).T


class Utterances(Dataset[NDArray[np.float32]]):
    """Features of each utterance: `transform` of its audio.

    An unreadable file is reported, and its features are an array of shape `empty`.
    """

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
        """Yield the features of the utterances `indices`, computed by `workers` processes (0: by this one)."""
        options: dict[str, Any] = {"num_workers": min(workers, len(indices)), "batch_size": None, "sampler": indices}
        yield from DataLoader(self, collate_fn=_unchanged, **options)


def _unchanged(item: Any) -> Any:
    return item


def mfcc_features(manifest: Manifest, subsampling: int, first: int, workers: int, window: float = 0.0) -> Features:
    """Return features (frames, dim) of utterances: MFCC frames `first`, `first` + `subsampling` ...

    first: `alignment.first_mfcc_frame` of the front-end. window: seconds of `windowed_cepstra`, or 0 for the 39 numbers
    of `mfcc`.
    """
    transform = functools.partial(strided_mfcc, subsampling, first, window)
    utterances = Utterances(manifest, transform, (0, mfcc_dim(window)))
    return lambda indices: utterances.read(indices, workers)


def strided_mfcc(subsampling: int, first: int, window: float, audio: Tensor) -> Tensor:
    """Return every `subsampling`-th frame of MFCC from `first` on: (samples,) -> (encoder frames, dim).

    An encoder frame whose MFCC frame would lie beyond the utterance's end takes the last one.
    """
    features = windowed_cepstra(audio, window) if window else mfcc(audio)
    chosen = torch.arange(0, len(features), subsampling) + first
    return features[chosen.clamp_max(len(features) - 1)]


def by_seconds(indices: Sequence[int], samples: Sequence[int], seconds: float) -> Iterator[list[int]]:
    """Yield groups of consecutive utterances, each of at most `seconds` of audio padded to its longest utterance.

    A longer utterance is alone. samples: length of every utterance of the manifest.
    """
    group: list[int] = []
    longest = 0
    for index in indices:
        longest = max(longest, samples[index])
        if group and longest * (len(group) + 1) > seconds * SAMPLE_RATE:
            yield group
            group, longest = [], samples[index]
        group.append(index)
    if group:
        yield group


def layer_features(
    manifest: Manifest, model: AudioEncoder, layer: int, workers: int, seconds: float = BATCH_SECONDS
) -> Features:
    """Return features (frames, dim) of utterances: hidden state `layer` of `model`, computed on the model's device.

    The utterances of a window of the manifest are sorted by length, so that batches have little padding. seconds: of
    padded audio in a batch; a longer utterance is computed alone.
    """
    utterances = Utterances(manifest, torch.Tensor.contiguous, (0,))
    device = next(model.parameters()).device

    @torch.no_grad()
    def features(indices: Sequence[int]) -> Iterator[NDArray[np.float32]]:
        model.eval()
        windows = list(by_seconds(indices, manifest.samples, WINDOW_BATCHES * seconds))
        ordered = [sorted(window, key=lambda index: manifest.samples[index]) for window in windows]
        audio = utterances.read([index for window in ordered for index in window], workers)
        for window, by_length in zip(windows, ordered, strict=True):
            found = dict.fromkeys(window, np.zeros((0, model.config.encoder.dim), np.float32))
            for together in by_seconds(by_length, manifest.samples, seconds):
                batch = {index: torch.from_numpy(next(audio)) for index in together}
                batch = {index: waveform for index, waveform in batch.items() if len(waveform)}
                if not batch:
                    continue
                lengths = torch.tensor([len(waveform) for waveform in batch.values()], device=device)
                waveforms = pad_sequence(list(batch.values()), True).to(device)
                # As in HuBERT: the encoder's states, without the output map that forward applies for heads.
                states = model.encoder(*model.embed(waveforms, lengths), layer)[layer].cpu()
                for index, state, frames in zip(batch, states, model.frame_count(lengths).tolist(), strict=True):
                    found[index] = state[:frames].numpy()
            yield from (found[index] for index in window)

    return features
