"""HuBERT's masked prediction (arXiv 2106.07447) over any AudioEncoder, and what keeps the speaker in its features."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pretrain.audio.data import Batch
from upstreams.errors import UserError
from upstreams.frontend import WaveformFrontEnd, padding_mask
from upstreams.model import AudioEncoder, checked


class CodewordHead(nn.Module):
    """Cosine of the projected frame with each codeword's embedding, over a temperature of 0.1 (HuBERT, equation 3)."""

    def __init__(self, dim: int, codewords: int, code_dim: int = 64) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, code_dim)
        self.codewords = nn.Parameter(torch.randn(codewords, code_dim))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., codewords) logits."""
        code = nn.functional.normalize(self.projection(x), dim=-1)
        return code @ nn.functional.normalize(self.codewords, dim=-1).T / 0.1


class LinearHead(nn.Linear):
    """Plain logits of the codewords (MelHuBERT, arXiv 2211.09944; Fast-HuBERT, arXiv 2309.13860)."""


@dataclass(frozen=True)
class Objective:
    """Parts of the loss and their weights; the masked frames' prediction has weight 1."""

    mask_prob: float = 0.65
    mask_length: int = 5
    head: str = "cosine"  # codewords of `code_dim` dimensions, or linear
    code_dim: int = 64
    layers: tuple[int, ...] = ()  # inner layers that predict as well, by heads of their own (Fast-HuBERT)
    unmasked_weight: float = 0.5  # of the frames that are not masked; 0: they take no part
    utterance_weight: float = 0.3
    utterance_layer: int = 3
    feature_penalty: float = 10.0  # times the mean square of what the waveform's convolutions give; none for log-mel
    feature_gradient: float = 0.1  # what the gradient into the waveform's convolutions is multiplied by

    def check(self, layers: int, where: str) -> None:
        """Raise UserError on a value that is out of range for a model of so many layers."""
        if self.head not in ("cosine", "linear"):
            raise UserError(f"objective.head is {self.head!r} in {where}, but must be cosine or linear")
        for layer in self.layers:
            if not isinstance(layer, int) or not 1 <= layer < layers:
                raise UserError(f"objective.layers holds {layer} in {where}, but inner layers are 1 to {layers - 1}")
        if not 1 <= self.utterance_layer <= layers:
            raise UserError(
                f"objective.utterance_layer is {self.utterance_layer} in {where}, but there are layers 1 to {layers}"
            )
        if not 0 < self.mask_prob < 1 or self.mask_length < 1:
            raise UserError(
                f"mask_prob {self.mask_prob} and mask_length {self.mask_length} in {where} must be a probability and "
                "at least one frame"
            )


def build_head(kind: str, dim: int, codewords: int, code_dim: int = 64) -> CodewordHead | LinearHead:
    """The head that maps frames to logits of the codewords."""
    return LinearHead(dim, codewords) if kind == "linear" else CodewordHead(dim, codewords, code_dim)


class UtteranceHead(nn.Module):
    """Tells which two crops are of one utterance, from the mean over frames of a layer (NT-Xent, arXiv 2002.05709).

    Two crops without overlap share the speaker and the channel, not the words: what masked prediction forgets.
    """

    def __init__(self, dim: int, embedding_dim: int = 64, temperature: float = 0.1) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, embedding_dim)
        self.temperature = temperature

    def forward(self, states: Tensor, frames: Tensor) -> Tensor:
        """states (2 * n, frames, dim) with crops 2 i and 2 i + 1 of one utterance, frames (2 * n,) -> scalar loss."""
        mean = states.sum(1) / frames[:, None]  # padded frames are zero
        embedding = nn.functional.normalize(self.projection(mean), dim=-1)
        similarity = embedding @ embedding.T / self.temperature
        itself = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
        partner = torch.arange(len(similarity), device=similarity.device) ^ 1
        return nn.functional.cross_entropy(similarity.masked_fill(itself, float("-inf")), partner)


class Counts(NamedTuple):
    """How many items the means of a loss are over."""

    masked: float  # frames with a label
    unmasked: float
    crops: float  # that have a partner
    frames: float


class Targets(NamedTuple):
    """Frames of a batch, as places in (batch * frames), and their labels."""

    place: Tensor
    label: Tensor


@dataclass(frozen=True)
class MaskedBatch:
    """A batch with its mask (batch, frames), True where masked, and what is to be predicted."""

    waveforms: Tensor
    lengths: Tensor
    mask: Tensor
    masked: Targets
    unmasked: Targets
    paired: bool  # crops 2 i and 2 i + 1 are of one utterance
    counts: Counts

    def to(self, device: torch.device) -> MaskedBatch:
        """The same batch on another device."""

        def targets(one: Targets) -> Targets:
            return Targets(*(t.to(device, non_blocking=True) for t in one))

        tensors = {key: getattr(self, key).to(device, non_blocking=True) for key in ("waveforms", "lengths", "mask")}
        return replace(self, **tensors, masked=targets(self.masked), unmasked=targets(self.unmasked))


def with_mask(batch: Batch, mask: Tensor, frames: Tensor, paired: bool) -> MaskedBatch:
    """Choose the frames to predict. mask (batch, frames) bool, frames (batch,); labels behind are ignored."""
    labels = nn.functional.pad(batch.labels, (0, max(0, mask.shape[1] - batch.labels.shape[1])), value=-1)
    labels = labels[:, : mask.shape[1]].masked_fill(padding_mask(frames, mask.shape[1]), -1)

    def targets(chosen: Tensor) -> Targets:
        place = (chosen & (labels >= 0)).flatten().nonzero().squeeze(1)
        return Targets(place, labels.flatten()[place])

    masked, unmasked = targets(mask), targets(~mask)
    counts = Counts(len(masked.place), len(unmasked.place), len(frames) * paired, int(frames.sum()))
    return MaskedBatch(batch.waveforms, batch.lengths, mask, masked, unmasked, paired, counts)


class ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a constant."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.scale, None


class HubertPretraining(nn.Module):
    """An AudioEncoder with the mask vector and the heads that pre-training needs."""

    def __init__(self, model: AudioEncoder, codewords: int, objective: Objective) -> None:
        super().__init__()
        dim = model.config.encoder.dim
        self.model = model
        self.objective = objective
        self.mask_vector = nn.Parameter(torch.empty(dim).uniform_())
        self.head = build_head(objective.head, dim, codewords, objective.code_dim)
        self.utterance_head = UtteranceHead(dim)
        self.inner_heads = nn.ModuleList(
            build_head(objective.head, dim, codewords, objective.code_dim) for _ in objective.layers
        )
        self.dropout = nn.Dropout(model.config.encoder.dropout)

    def forward(
        self, batch: MaskedBatch, totals: Counts | None = None, detailed: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """This batch's part of a loss whose means are over `totals` (its own items when None), and of what is logged.

        detailed: also accuracies and use of the codewords. Means of several batches with their common totals add up.
        """
        totals = totals or batch.counts
        embedded, frames, penalty = self.embed(batch)
        masked = torch.where(batch.mask[..., None], self.mask_vector.to(embedded.dtype), self.dropout(embedded))
        states = self.model.encoder(masked, frames)
        objective = self.objective
        loss = single(embedded.new_zeros(()))
        sums = {}
        for name, targets, weight, total in (
            ("masked", batch.masked, 1.0, totals.masked),
            ("unmasked", batch.unmasked, objective.unmasked_weight, totals.unmasked),
        ):
            if not (weight or detailed) or not total:
                continue
            with torch.set_grad_enabled(bool(weight) and torch.is_grad_enabled()):
                logits = single(self.head(chosen(states[-1], targets.place)))
                part = nn.functional.cross_entropy(logits, targets.label, reduction="sum") / total
                inner = [
                    nn.functional.cross_entropy(
                        single(head(chosen(states[layer], targets.place))), targets.label, reduction="sum"
                    )
                    / total
                    for layer, head in zip(objective.layers if weight else (), self.inner_heads, strict=False)
                ]
            loss = loss + weight * (part + sum(inner))
            sums[f"loss_{name}"] = part.detach()
            if inner:
                sums |= {f"loss_{name}/layer{n}": p.detach() for n, p in zip(objective.layers, inner, strict=True)}
            if detailed:
                guess = logits.detach().argmax(-1)
                sums[f"accuracy_{name}"] = (guess == targets.label).sum() / total
                if name == "masked":
                    sums["codewords"] = torch.bincount(guess, minlength=logits.shape[-1]) / total
        if batch.paired and objective.utterance_weight and totals.crops:
            utterance = self.utterance_head(states[objective.utterance_layer], frames)
            utterance = utterance * (batch.counts.crops / totals.crops)
            loss = loss + objective.utterance_weight * utterance
            sums["loss_utterance"] = utterance.detach()
        if penalty is not None:
            penalty = penalty / totals.frames
            loss = loss + objective.feature_penalty * penalty
            sums["feature_penalty"] = penalty.detach()
        return loss, sums

    def embed(self, batch: MaskedBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """What is masked (batch, frames, dim), frames (batch,), and the convolutions' mean squares summed over frames.

        As in the reference the penalty lies behind the scaling of the gradient.
        """
        front_end = self.model.front_end
        if not isinstance(front_end, WaveformFrontEnd):
            return *self.model.embed(batch.waveforms, batch.lengths), None
        waveforms, lengths = checked(batch.waveforms, batch.lengths)
        waveforms = waveforms.masked_fill(padding_mask(lengths, waveforms.shape[1]), 0.0)
        convolved, frames = front_end.convolve(waveforms, lengths)
        convolved = ScaleGradient.apply(convolved, self.objective.feature_gradient)
        squares = single(convolved).square().mean(-1)
        penalty = squares.masked_fill(padding_mask(frames, squares.shape[1]), 0.0).sum()
        return front_end.project(convolved), frames, penalty


def single(x: Tensor) -> Tensor:
    """x in single precision where it is in half."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def chosen(states: Tensor, place: Tensor) -> Tensor:
    """(batch, frames, dim), places in (batch * frames) -> (places, dim): heads see what they predict alone."""
    return states.flatten(0, 1)[place]
