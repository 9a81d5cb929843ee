"""Features of a probe's items: each hidden state of a model, pooled over an utterance or taken at a moment."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from pretrain.targets.features import by_seconds
from runners.analysis.probe.items import Items
from upstreams.config import HOP, WINDOW
from upstreams.frontend import LogMel, padding_mask, receptive_field_centre
from upstreams.model import AudioEncoder

BATCH_SECONDS = 40.0  # of padded audio that are computed together
POOLINGS = ("mean", "max")  # over time
MEAN = "mean"  # name of the mean over the hidden states, from which SUPERB's weighted sum starts
_CONTEXT = torch.arange(-1, 3)  # log-mel frames around a moment, as many as the minis stack


class Source:
    """What features are computed with: a model's hidden states, or log-mel for comparison."""

    def __init__(self, name: str, model: AudioEncoder | None) -> None:
        self.name = name
        self.model = model
        self.log_mel = LogMel()
        layers = model.config.encoder.layers if model else 0
        self.layers = [*map(str, range(layers + 1)), MEAN] if model else ["log-mel"]

    def states(self, waveforms: Tensor, lengths: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return a state (batch, frames, dim) for each of `layers`, and the frame counts (batch,)."""
        if self.model is None:
            return [self.log_mel.raw(waveforms)], LogMel.frame_count(lengths)
        states = self.model(waveforms, lengths)
        return [*states, torch.stack(states).mean(0)], self.model.frame_count(lengths)

    def at(self, state: Tensor, frames: int, moments: NDArray) -> Tensor:
        """Return the frames at some moments of an utterance: (frames, dim), moments in 10 ms -> (moments, features).

        A frame of a model belongs to a moment if the centre of its receptive field is nearest to the moment's window.
        """
        times = torch.from_numpy(moments)
        if self.model is None:
            return state[(times[:, None] + _CONTEXT).clamp(0, frames - 1)].flatten(1)
        front_end = self.model.config.front_end
        centre, hop = receptive_field_centre(front_end), front_end.downsample_rate
        return state[((times * HOP + WINDOW / 2 - centre) / hop).round().long().clamp(0, frames - 1)]


@torch.no_grad()
def features(source: Source, items: Items, waveforms: Sequence[Tensor], pooling: str) -> list[Tensor]:
    """Return the features of all items, (items, dim), for each of the source's layers.

    waveforms: (samples,) of each file of `items`. pooling: "mean" or "max" over an utterance's frames; frames that are
    items themselves are not pooled. Utterances of similar length are computed together.
    """
    device = next(source.model.parameters()).device if source.model else torch.device("cpu")
    samples = [len(waveform) for waveform in waveforms]
    order = sorted(range(len(waveforms)), key=samples.__getitem__)
    found: dict[int, list[Tensor]] = {}
    with tqdm(total=len(order), desc=f"{items.task} {source.name}", unit="utt", leave=False) as bar:
        for batch in by_seconds(order, samples, BATCH_SECONDS):
            lengths = torch.tensor([samples[index] for index in batch], device=device)
            padded = pad_sequence([waveforms[index] for index in batch], batch_first=True).to(device)
            states, counts = source.states(padded, lengths)
            if items.moments is None:
                pooled = torch.stack([_pooled(state, counts, pooling) for state in states], 1).cpu()
                found |= {index: list(row[:, None]) for index, row in zip(batch, pooled, strict=True)}
            else:
                for row, index in enumerate(batch):
                    moments, frames = items.moments[index], int(counts[row])
                    found[index] = [source.at(state[row].cpu(), frames, moments) for state in states]
            bar.update(len(batch))
    by_file = [found[index] for index in range(len(waveforms))]
    return [torch.cat([layers[k] for layers in by_file]) for k in range(len(source.layers))]


def _pooled(state: Tensor, frames: Tensor, pooling: str) -> Tensor:
    """(batch, frames, dim), frame counts -> (batch, dim)."""
    padded = padding_mask(frames, state.shape[1])[..., None]
    if pooling == "max":
        return state.masked_fill(padded, -torch.inf).amax(1)
    return state.masked_fill(padded, 0.0).sum(1) / frames[:, None]
