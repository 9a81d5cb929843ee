"""The stack of blocks that all encoders share; it returns the hidden state after each block."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from upstreams.encoders.positions import ConvPositions
from upstreams.frontend import padding_mask


class Encoder(nn.Module):
    """Positions, a norm of the input, blocks, and a norm of the last block's output.

    blocks: modules that map x (batch, frames, dim) and lengths (batch,) in frames to a tensor like x. positions: None
    if the blocks' attention has its own positions, or none. layerdrop: probability of skipping a block in training.
    With `checkpointing` set, only the blocks' inputs are kept for the backward pass, which computes the rest again.
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
        """Return layers + 1 hidden states (batch, frames, dim), zero where padded; the first is the input of block 0.

        x: (batch, frames, dim). lengths: (batch,) frames. layers: number of blocks to run; None: all.
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
        """Return the first block's input: x with positions, normalised."""
        x = x.masked_fill(padded, 0.0)  # the positions' convolution reaches past the end of an utterance
        if self.positions is not None:
            x = x + self.positions(x)
        return self.input_norm(x)

    def run(self, number: int, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the output of block `number` for x, or x itself if layerdrop skips the block."""
        if self.training and self.layerdrop and float(torch.rand(())) < self.layerdrop:
            return x
        if self.checkpointing and torch.is_grad_enabled():
            block = self.blocks[number]
            first_and_repeated = functools.partial(_contexts, block)
            return checkpoint(block, x, lengths, use_reentrant=False, context_fn=first_and_repeated)
        return self.blocks[number](x, lengths)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), unchanged_buffers(block)


@contextmanager
def unchanged_buffers(module: nn.Module) -> Iterator[None]:
    """Restore the buffers on exit: a forward pass that is repeated must not count twice in running statistics."""
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                buffer.copy_(before[name])
