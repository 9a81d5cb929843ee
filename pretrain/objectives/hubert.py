"""HuBERT's masked prediction (arXiv 2106.07447) over any AudioEncoder, with a loss that keeps speaker information."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pretrain.audio.data import Batch, sent
from pretrain.training.settings import AT_LEAST_ONE, NOT_NEGATIVE, Range, check_ranges
from upstreams.errors import UserError
from upstreams.frontend import WaveformFrontEnd, padding_mask
from upstreams.model import AudioEncoder


class CodewordHead(nn.Module):
    """Cosine of the projected frame with each codeword's embedding, over a temperature of 0.1 (HuBERT, equation 3)."""

    def __init__(self, dim: int, codewords: int, code_dim: int = 64) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, code_dim)
        self.codewords = nn.Parameter(torch.randn(codewords, code_dim))

    @property
    def codeword_count(self) -> int:
        """Number of codewords."""
        return len(self.codewords)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits: (..., dim) -> (..., codewords)."""
        code = nn.functional.normalize(self.projection(x), dim=-1)
        return code @ nn.functional.normalize(self.codewords, dim=-1).T / 0.1


class LinearHead(nn.Linear):
    """Linear logits of the codewords (MelHuBERT, arXiv 2211.09944; Fast-HuBERT, arXiv 2309.13860)."""

    @property
    def codeword_count(self) -> int:
        """Number of codewords."""
        return self.out_features


@dataclass(frozen=True)
class Objective:
    """Parts of the loss and their weights. The prediction of the masked frames has weight 1."""

    mask_prob: float = 0.65
    mask_length: int = 5
    head: str = "cosine"  # cosine with codewords of `code_dim` dimensions, or linear
    code_dim: int = 64
    layers: tuple[int, ...] = ()  # inner layers that also predict, each with its own head (Fast-HuBERT)
    unmasked_weight: float = 0.5  # weight of the unmasked frames; 0: only masked frames are predicted
    utterance_weight: float = 0.3  # weight of the utterance loss
    utterance_layer: int = 3  # hidden state that the utterance loss uses
    feature_penalty: float = 10.0  # weight of the mean square of the waveform convolutions' output; log-mel: none
    feature_gradient: float = 0.1  # factor of the gradient into the waveform convolutions

    def check(self, layers: int, where: str) -> None:
        """Raise UserError if a value is out of range for a model with that many layers. where: name of the recipe."""
        if self.head not in ("cosine", "linear"):
            raise UserError(f"objective.head is {self.head!r} in {where}, but must be cosine or linear")
        for layer in self.layers:
            if not isinstance(layer, int) or not 1 <= layer < layers:
                raise UserError(f"objective.layers holds {layer} in {where}, but inner layers are 1 to {layers - 1}")
        if not 1 <= self.utterance_layer <= layers:
            raise UserError(
                f"objective.utterance_layer is {self.utterance_layer} in {where}, but the layers are 1 to {layers}"
            )
        check_ranges(vars(self), RANGES, where, "objective.")


RANGES = {
    "mask_prob": Range(0, 1, low_included=False, high_included=False),
    **dict.fromkeys(("mask_length", "code_dim"), AT_LEAST_ONE),
    **dict.fromkeys(("unmasked_weight", "utterance_weight", "feature_penalty", "feature_gradient"), NOT_NEGATIVE),
}


def build_head(kind: str, dim: int, codewords: int, code_dim: int = 64) -> CodewordHead | LinearHead:
    """Return a new head, which maps frames to logits of the codewords. kind: cosine or linear."""
    return LinearHead(dim, codewords) if kind == "linear" else CodewordHead(dim, codewords, code_dim)


class UtteranceHead(nn.Module):
    """Contrastive loss that pairs the two crops of each utterance (NT-Xent, arXiv 2002.05709).

    It compares the means over frames of one layer. Two crops without overlap share the speaker and the channel but not
    the words; masked prediction alone discards speaker and channel.
    """

    def __init__(self, dim: int, embedding_dim: int = 64, temperature: float = 0.1) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, embedding_dim)
        self.temperature = temperature

    def forward(self, states: Tensor, frames: Tensor, pairs: Tensor) -> Tensor:
        """Return the scalar loss. states: (batch, frames, dim); frames: (batch,).

        pairs: (2 n,), rows of `states`; entries 2 i and 2 i + 1 are of one utterance.
        """
        mean = (states.sum(1) / frames[:, None])[pairs]  # padded frames are zero
        embedding = nn.functional.normalize(self.projection(mean), dim=-1)
        similarity = embedding @ embedding.T / self.temperature
        diagonal = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
        partner = torch.arange(len(similarity), device=similarity.device) ^ 1
        return nn.functional.cross_entropy(similarity.masked_fill(diagonal, float("-inf")), partner)


class Counts(NamedTuple):
    """Numbers of items that the means of a loss are over."""

    masked: float  # frames with a label
    unmasked: float
    crops: float  # with a partner
    frames: float


class Targets(NamedTuple):
    """Frames of a batch, as indices into (batch * frames), and their labels."""

    indices: Tensor
    label: Tensor


@dataclass(frozen=True)
class MaskedBatch:
    """A batch with its mask (batch, frames), True where masked, and the targets of the prediction."""

    waveforms: Tensor
    lengths: Tensor
    mask: Tensor
    masked: Targets
    unmasked: Targets
    pairs: Tensor  # rows of the utterance loss: 2 i and 2 i + 1 of it are of one utterance
    counts: Counts

    def to(self, device: torch.device) -> MaskedBatch:
        """Return the batch on another device, where it may still be on its way."""
        own = (self.waveforms, self.lengths, self.mask, self.pairs)
        waveforms, lengths, mask, pairs = (sent(tensor, device) for tensor in own)
        masked, unmasked = (Targets(*(sent(t, device) for t in one)) for one in (self.masked, self.unmasked))
        return MaskedBatch(waveforms, lengths, mask, masked, unmasked, pairs, self.counts)


def with_mask(batch: Batch, mask: Tensor, frames: Tensor, paired: bool) -> MaskedBatch:
    """Return the batch with its mask and targets. mask: (batch, frames) bool; frames: (batch,).

    paired: crops 2 i and 2 i + 1 are of one utterance. A crop whose partner could not be read is only predicted.
    """
    labels = nn.functional.pad(batch.labels, (0, max(0, mask.shape[1] - batch.labels.shape[1])), value=-1)
    labels = labels[:, : mask.shape[1]].masked_fill(padding_mask(frames, mask.shape[1]), -1)

    def targets_of(selected: Tensor) -> Targets:
        indices = (selected & (labels >= 0)).flatten().nonzero().squeeze(1)
        return Targets(indices, labels.flatten()[indices])

    masked, unmasked = targets_of(mask), targets_of(~mask)
    pairs = batch.pairs() if paired else torch.zeros(0, dtype=torch.long)
    counts = Counts(len(masked.indices), len(unmasked.indices), len(pairs), int(frames.sum()))
    return MaskedBatch(batch.waveforms, batch.lengths, mask, masked, unmasked, pairs, counts)


class ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a constant."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.scale, None


class HubertPretraining(nn.Module):
    """An AudioEncoder with the mask vector and the heads of pre-training."""

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
        """Return the loss of this micro-batch, normalised by the step's totals, and the sums to log.

        totals: None for the batch's own counts. The losses of micro-batches with common totals add up. detailed: also
        compute accuracies and the use of the codewords.
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
                logits = single(self.head(select(states[-1], targets.indices)))
                part = nn.functional.cross_entropy(logits, targets.label, reduction="sum") / total
                inner = [
                    nn.functional.cross_entropy(
                        single(head(select(states[layer], targets.indices))), targets.label, reduction="sum"
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
                    # torch.bincount would wait for the largest codeword.
                    used = logits.new_zeros(logits.shape[-1]).index_add_(0, guess, logits.new_ones(len(guess)))
                    sums["codewords"] = used / total
        if batch.counts.crops and objective.utterance_weight and totals.crops:
            utterance = self.utterance_head(states[objective.utterance_layer], frames, batch.pairs)
            utterance = utterance * (batch.counts.crops / totals.crops)
            loss = loss + objective.utterance_weight * utterance
            sums["loss_utterance"] = utterance.detach()
        if penalty is not None:
            penalty = penalty / totals.frames
            loss = loss + objective.feature_penalty * penalty
            sums["feature_penalty"] = penalty.detach()
        return loss, sums

    def embed(self, batch: MaskedBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the encoder's input (batch, frames, dim), frames (batch,), and the feature penalty summed over frames.

        The penalty is None for a log-mel front-end. Its gradient is scaled too, as in the reference.
        """
        front_end = self.model.front_end
        if not isinstance(front_end, WaveformFrontEnd):
            return *self.model.embed(batch.waveforms, batch.lengths), None
        waveforms, lengths = batch.waveforms, batch.lengths
        waveforms = waveforms.masked_fill(padding_mask(lengths, waveforms.shape[1]), 0.0)
        convolved, frames = front_end.convolve(waveforms, lengths)
        convolved = ScaleGradient.apply(convolved, self.objective.feature_gradient)
        squares = single(convolved).square().mean(-1)
        penalty = squares.masked_fill(padding_mask(frames, squares.shape[1]), 0.0).sum()
        return front_end.project(convolved), frames, penalty


def single(x: Tensor) -> Tensor:
    """Return x in single precision if it is in half precision."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def select(states: Tensor, indices: Tensor) -> Tensor:
    """Return the frames that a head predicts: (batch, frames, dim), indices into (batch * frames) -> (indices, dim)."""
    return states.flatten(0, 1).index_select(0, indices)
