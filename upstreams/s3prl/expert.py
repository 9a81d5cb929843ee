"""The s3prl contract of a frozen upstream: a list of waveforms in, hidden states of one shape out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from upstreams.errors import UserError
from upstreams.packed import convert


class UpstreamExpert(nn.Module):
    """A checkpoint, packed or not, as s3prl's featurizer, runner and S3PRLUpstream expect an upstream.

    Raises UserError when the checkpoint cannot be read.
    """

    def __init__(self, ckpt: Path) -> None:
        super().__init__()
        self.model = convert.load(ckpt)

    def get_downsample_rates(self, key: str) -> int:
        """Samples a frame, the same for every feature `key`."""
        return self.model.config.downsample_rate

    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Tensor | tuple[Tensor, ...]]:
        """1-D waveforms at 16 kHz in [-1, 1] -> `hidden_states`: layers + 1 of (batch, frames, dim), zero-padded.

        Raises UserError (a ValueError) on an empty list and on a waveform that is not 1-D, empty or not finite.
        """
        if not wavs:
            raise UserError("the list of waveforms is empty: at least one is needed")
        for number, wav in enumerate(wavs):
            if wav.ndim != 1:
                raise UserError(f"waveform {number} has shape {tuple(wav.shape)}, but must be 1-D: samples at 16 kHz")
        lengths = torch.tensor([len(wav) for wav in wavs], device=wavs[0].device)
        states = self.model(pad_sequence(list(wavs), batch_first=True).float(), lengths)
        return {"hidden_states": states, "last_hidden_state": states[-1]}
