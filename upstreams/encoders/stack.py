"""What every encoder is: a stack of blocks over frames that returns the state after each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from upstreams.encoders.positions import ConvPositions
from upstreams.frontend import padding_mask


class Encoder(nn.Module):
    """Positions, a norm of the input, blocks, and a norm of the last block's output.

    blocks: modules (x (batch, frames, dim), lengths (batch,) frames) -> like x. positions None: the blocks' attention
    has its own, or none. layerdrop: in training, the probability of leaving out a block. Setting `checkpointing` keeps
    only the blocks' inputs for the backward pass and computes the rest again.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        positions: ConvPositions | None = None,
        input_norm: nn.Module | None = None,
        norm: nn.Module | None = None,
        layerdrop: float = 0.0,
    ) -> None:
        super().__init__()
        self.positions = positions
        self.input_norm = input_norm or nn.Identity()
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm or nn.Identity()
        self.layerdrop = layerdrop
        self.checkpointing = False

    def forward(self, x: Tensor, lengths: Tensor, layers: int | None = None) -> tuple[Tensor, ...]:
        """(batch, frames, dim), (batch,) frames -> layers + 1 hidden states (batch, frames, dim), input first.

        layers: how many blocks to run, all when None. States are zero where padded.
        """
        padded = padding_mask(lengths, x.shape[1])[..., None]
        x = self.enter(x, padded)
        states = [x]
        for number in range(len(self.blocks) if layers is None else layers):
            x = self.run(number, x, lengths)
            states.append(x)
        if len(states) == len(self.blocks) + 1:
            states[-1] = self.norm(x)
        return tuple(state.masked_fill(padded, 0.0) for state in states)

    def enter(self, x: Tensor, padded: Tensor) -> Tensor:
        """What the first block is given: x with positions, normalised."""
        x = x.masked_fill(padded, 0.0)  # the positions' convolution looks across an utterance's end
        if self.positions is not None:
            x = x + self.positions(x)
        return self.input_norm(x)

    def run(self, number: int, x: Tensor, lengths: Tensor) -> Tensor:
        """Block `number` of x, unless layerdrop leaves it out."""
        if self.training and self.layerdrop and float(torch.rand(())) < self.layerdrop:
            return x
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self.blocks[number], x, lengths, use_reentrant=False)
        return self.blocks[number](x, lengths)
