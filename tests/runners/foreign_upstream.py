"""A package of another project whose module puts two upstreams into s3prl's hub."""

from __future__ import annotations

MODULE = '''
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
import s3prl.hub


class UpstreamExpert(nn.Module):
    """Two layers of 40 ms frames; the scale is read from the checkpoint, if there is one."""

    def __init__(self, ckpt=None, **kwargs):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(640, 16)
        if ckpt is not None:
            self.linear.weight.data *= float(open(ckpt).read())

    def get_downsample_rates(self, key):
        return 640

    def forward(self, wavs):
        count = max(round(len(wav) / 640) for wav in wavs)
        padded = torch.zeros(len(wavs), count * 640)
        for row, wav in zip(padded, wavs):
            row[: len(wav)] = wav[: count * 640]
        first = self.linear(padded.view(len(wavs), count, 640))
        return {"hidden_states": [first, first.tanh()]}


class Recurrent(UpstreamExpert):
    def __init__(self, **kwargs):
        super().__init__()
        self.recurrent = nn.LSTM(16, 16, batch_first=True)

    def forward(self, wavs):
        states = super().forward(wavs)["hidden_states"]
        return {"hidden_states": [*states, self.recurrent(states[-1])[0]]}


s3prl.hub.an_upstream_of_mine = UpstreamExpert
s3prl.hub.a_recurrent_one = Recurrent
'''
