"""s3prl's interface of a frozen upstream: a list of waveforms in, hidden states of equal shape out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from upstreams.errors import UserError
from upstreams.model import AudioEncoder
from upstreams.packed import convert
from upstreams.packed.model import PackedAudioEncoder
from upstreams.quantization.modules import QuantConv1d, QuantLinear
from upstreams.quantization.quantizers import Quantizer, WeightQuantizer


class UpstreamExpert(nn.Module):
    """A packed or unpacked checkpoint with the interface that s3prl's featurizer, runner and S3PRLUpstream expect.

    A frozen upstream computes as in eval mode whatever `train` is called with: S3PRLUpstream leaves its upstream in
    train mode, where dropout would make features random. Raises UserError if the checkpoint cannot be read.
    """

    def __init__(self, ckpt: Path, frozen: bool = True) -> None:
        super().__init__()
        self.frozen = frozen
        self.model: AudioEncoder = convert.load(ckpt)

    def train(self, mode: bool = True) -> UpstreamExpert:
        """Set train or eval mode; the model of a frozen upstream stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def fine_tune(self) -> None:
        """Let train mode reach the model. Raises UserError for a packed model, which has nothing to train."""
        if isinstance(self.model, PackedAudioEncoder):
            raise UserError("a packed model cannot be fine-tuned (-f): give the checkpoint that it was packed from")
        self.frozen = False

    @torch.no_grad()
    def randomize(self) -> None:
        """Draw new weights as s3prl's `randomize=True` does, and fit the scales of quantized weights to them.

        The scales of quantized activations stay. Raises UserError for a packed model, whose weights are bits.
        """
        if isinstance(self.model, PackedAudioEncoder):
            raise UserError("a packed model cannot be randomized: give the checkpoint that it was packed from")
        for module in self.model.modules():
            if isinstance(module, Quantizer):
                continue
            for parameter in module.parameters(recurse=False):
                if parameter.dim() < 2:
                    parameter.normal_(float(parameter.mean()), float(parameter.std(correction=0)))
                else:
                    nn.init.xavier_normal_(parameter)
        for module in self.model.modules():
            if isinstance(module, QuantLinear | QuantConv1d) and isinstance(module.weight_quantizer, WeightQuantizer):
                module.weight_quantizer.calibrate(module.weight)

    def get_downsample_rates(self, key: str) -> int:
        """Return the number of samples per frame, which is the same for every feature `key`."""
        return self.model.config.downsample_rate

    def forward(self, wavs: Sequence[Tensor] | Tensor) -> dict[str, Tensor | tuple[Tensor, ...]]:
        """Return `hidden_states`, layers + 1 of (batch, frames, dim), zero-padded, and `last_hidden_state`.

        `wavs` holds 1-D waveforms at 16 kHz in [-1, 1], or is a tensor (batch, samples). Raises UserError (a
        ValueError) for an empty list and for a waveform that is not 1-D or not floating point, that is empty or that
        holds a value that is not finite.
        """
        if isinstance(wavs, Tensor) and wavs.ndim != 2:
            raise UserError(f"a tensor of waveforms must be (batch, samples), not of shape {tuple(wavs.shape)}")
        wavs = list(wavs)
        if not wavs:
            raise UserError("the list of waveforms is empty: at least one is needed")
        for number, wav in enumerate(wavs):
            if wav.ndim != 1:
                raise UserError(f"waveform {number} has shape {tuple(wav.shape)}, but must be 1-D: samples at 16 kHz")
            if not wav.is_floating_point():
                raise UserError(f"waveform {number} is {wav.dtype}, but must be floating point in [-1, 1]")
        lengths = torch.tensor([len(wav) for wav in wavs], device=wavs[0].device)
        states = self.model(pad_sequence(wavs, batch_first=True).float(), lengths)
        return {"hidden_states": states, "last_hidden_state": states[-1]}
