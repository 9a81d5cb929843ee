"""s3prl's interface of a frozen upstream: a list of waveforms in, hidden states of equal shape out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from upstreams.errors import UserError
from upstreams.packed import convert


class UpstreamExpert(nn.Module):
    """A packed or unpacked checkpoint with the interface that s3prl's featurizer, runner and S3PRLUpstream expect.

    Raises UserError if the checkpoint cannot be read.
    """

    def __init__(self, ckpt: Path) -> None:
        super().__init__()
        self.model = convert.load(ckpt)

    def get_downsample_rates(self, key: str) -> int:
        """Return the number of samples per frame, which is the same for every feature `key`."""
        return self.model.config.downsample_rate

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Tensor | tuple[Tensor, ...]]:
        """Return `hidden_states`, layers + 1 of (batch, frames, dim), zero-padded, and `last_hidden_state`.

        `wavs` holds 1-D waveforms at 16 kHz in [-1, 1]. Raises UserError (a ValueError) for an empty list and for a
        waveform that is not 1-D, that is empty or that holds a value that is not finite.
        """
        if not wavs:
            raise UserError("the list of waveforms is empty: at least one is needed")
        for number, wav in enumerate(wavs):
            if wav.ndim != 1:
                raise UserError(f"waveform {number} has shape {tuple(wav.shape)}, but must be 1-D: samples at 16 kHz")
        lengths = torch.tensor([len(wav) for wav in wavs], device=wavs[0].device)
        states = self.model(pad_sequence(list(wavs), batch_first=True).float(), lengths)
        return {"hidden_states": states, "last_hidden_state": states[-1]}
