"""HuBERT's masked prediction (arXiv 2106.07447) over any AudioEncoder, and what keeps the speaker in its features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from upstreams.frontend import padding_mask
from upstreams.model import AudioEncoder


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


@dataclass(frozen=True)
class Objective:
    """Weights of the parts of the loss; the masked frames' prediction has weight 1."""

    mask_prob: float = 0.65
    mask_length: int = 5
    unmasked_weight: float = 0.5
    utterance_weight: float = 0.3
    utterance_layer: int = 3


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


class HubertPretraining(nn.Module):
    """An AudioEncoder with the mask vector and the heads that pre-training needs."""

    def __init__(self, model: AudioEncoder, codewords: int, objective: Objective) -> None:
        super().__init__()
        dim = model.config.encoder.dim
        self.model = model
        self.objective = objective
        self.mask_vector = nn.Parameter(torch.empty(dim).uniform_())
        self.head = CodewordHead(dim, codewords)
        self.utterance_head = UtteranceHead(dim)

    def forward(
        self, waveforms: Tensor, lengths: Tensor, labels: Tensor, mask: Tensor, paired: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and what is logged of it.

        waveforms (batch, samples), lengths (batch,) samples, labels (batch, any) with -1 for none,
        mask (batch, frames) True where masked; paired: crops 2 i and 2 i + 1 are of one utterance.
        """
        embedded, frames = self.model.embed(waveforms, lengths)
        masked = torch.where(mask[..., None], self.mask_vector, embedded)
        states = self.model.encoder(masked, frames)
        logits = self.head(states[-1])
        labels = labels[:, : logits.shape[1]]
        labels = nn.functional.pad(labels, (0, logits.shape[1] - labels.shape[1]), value=-1)
        labels = labels.masked_fill(padding_mask(frames, logits.shape[1]), -1)

        loss = logits.new_zeros(())
        scalars = {}
        correct = logits.argmax(-1) == labels
        for name, chosen, weight in (
            ("masked", mask & (labels >= 0), 1.0),
            ("unmasked", ~mask & (labels >= 0), self.objective.unmasked_weight),
        ):
            part = nn.functional.cross_entropy(logits[chosen], labels[chosen]) if chosen.any() else loss * 0
            loss = loss + weight * part
            scalars[f"loss_{name}"] = part.detach()
            scalars[f"accuracy_{name}"] = correct[chosen].float().mean() if chosen.any() else loss.detach() * 0
        if paired and self.objective.utterance_weight:
            utterance = self.utterance_head(states[self.objective.utterance_layer], frames)
            loss = loss + self.objective.utterance_weight * utterance
            scalars["loss_utterance"] = utterance.detach()
        scalars["loss"] = loss.detach()
        return loss, scalars
