"""The losses of masked prediction, compared with plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from pretrain.audio.data import Batch, collate
from pretrain.objectives.hubert import CodewordHead, Counts, HubertPretraining, Objective, UtteranceHead, with_mask
from upstreams.config import preset
from upstreams.formats import checkpoint
from upstreams.frontend import padding_mask


def slow_cross_entropy(head: CodewordHead, x: torch.Tensor, label: int) -> float:
    """Return the cross-entropy of one frame by plain loops."""
    projected = (head.projection.weight @ x + head.projection.bias).tolist()
    norm = math.sqrt(sum(v * v for v in projected))
    logits = []
    for code in head.codewords.tolist():
        length = math.sqrt(sum(v * v for v in code))
        logits.append(sum(a * b for a, b in zip(projected, code, strict=True)) / norm / length / 0.1)
    return math.log(sum(math.exp(v) for v in logits)) - logits[label]


def test_loss_equals_plain_loops() -> None:
    torch.manual_seed(0)
    model = checkpoint.build(preset("sparseformer_dn_mini"))
    objective = Objective(unmasked_weight=0.5, utterance_weight=0.0)
    module = HubertPretraining(model, 7, objective).double()
    lengths = torch.tensor([16_000, 9000])
    waveforms = torch.randn(2, 16_000, dtype=torch.float64) * 0.1
    frames = model.frame_count(lengths).tolist()
    labels = torch.randint(0, 7, (2, frames[0]))
    labels[0, 3] = -1
    mask = torch.zeros(2, frames[0], dtype=torch.bool)
    mask[0, 2:9] = True
    mask[1, 1:4] = True
    batch = Batch(waveforms, lengths, labels)
    loss, _ = module(with_mask(batch, mask, torch.tensor(frames), paired=False))

    embedded, counts = model.embed(waveforms, lengths)
    states = model.encoder(torch.where(mask[..., None], module.mask_vector, embedded), counts)
    parts: dict[bool, list[float]] = {True: [], False: []}
    for row in range(2):
        for frame in range(frames[row]):
            if labels[row, frame] >= 0:
                value = slow_cross_entropy(module.head, states[-1][row, frame], int(labels[row, frame]))
                parts[bool(mask[row, frame])].append(value)
    expected = sum(parts[True]) / len(parts[True]) + 0.5 * sum(parts[False]) / len(parts[False])
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-9)


def test_padding_does_not_change_the_loss() -> None:
    torch.manual_seed(0)
    for name in ("sparseformer_dn_mini", "hubert_base"):
        config = preset(name)
        encoder = replace(config.encoder, layers=2, dropout=0.0, layerdrop=0.0)
        model = checkpoint.build(replace(config, encoder=encoder))
        module = HubertPretraining(model, 7, Objective(utterance_layer=1)).eval()
        waveforms, lengths = torch.randn(2, 8000) * 0.1, torch.tensor([8000, 8000])
        frames = model.frame_count(lengths)
        longest = int(frames.max())
        labels, mask = torch.randint(0, 7, (2, longest)), torch.rand(2, longest) < 0.5
        loss, _ = module(with_mask(Batch(waveforms, lengths, labels), mask, frames, True))
        wide = torch.nn.functional.pad
        more = int(model.frame_count(torch.tensor(17_000))) - longest
        batch = Batch(wide(waveforms, (0, 9000), value=0.3), lengths, wide(labels, (0, more)))
        padded, _ = module(with_mask(batch, wide(mask, (0, more), value=True), frames, True))
        torch.testing.assert_close(loss, padded)


def test_linear_heads_of_inner_layers_and_the_feature_penalty_equal_plain_loops() -> None:
    """HuBERT Base's front-end. The feature penalty is 10 times the mean square over unpadded frames."""
    torch.manual_seed(0)
    config = preset("hubert_base")
    encoder = replace(config.encoder, layers=3, dim=32, heads=2, feed_forward_dim=32, dropout=0.0, layerdrop=0.0)
    model = checkpoint.build(replace(config, encoder=encoder, front_end=replace(config.front_end, width=16)))
    objective = Objective(head="linear", layers=(1,), unmasked_weight=0.0, utterance_layer=1)
    module = HubertPretraining(model, 5, objective).double()
    lengths = torch.tensor([4000, 2500])
    waveforms = torch.randn(2, 4000, dtype=torch.float64) * 0.1
    frames = model.frame_count(lengths)
    labels = torch.randint(0, 5, (2, int(frames.max())))
    mask = torch.zeros_like(labels, dtype=torch.bool)
    mask[:, 1:4] = True
    loss, _ = module(with_mask(Batch(waveforms, lengths, labels), mask, frames, paired=False))

    front_end = model.front_end
    clean = waveforms.masked_fill(padding_mask(lengths, 4000), 0.0)
    convolved, _ = front_end.convolve(clean, lengths)
    states = model.encoder(torch.where(mask[..., None], module.mask_vector, front_end.project(convolved)), frames)
    squares: list[float] = []
    losses: list[float] = []
    for row in range(2):
        for frame in range(int(frames[row])):
            squares.append(sum(v * v for v in convolved[row, frame].tolist()) / 16)
            if mask[row, frame]:
                for head, state in ((module.head, states[3]), (module.inner_heads[0], states[1])):
                    logits = head(state[row, frame]).tolist()
                    losses.append(math.log(sum(math.exp(v) for v in logits)) - logits[int(labels[row, frame])])
    expected = sum(losses) / (len(losses) / 2) + 10 * sum(squares) / len(squares)
    assert float(loss.detach()) == pytest.approx(expected, abs=1e-9)
    # feature_gradient scales the gradient of the convolutions by 0.1.
    weight = front_end.convolutions[3].weight
    loss.backward()
    scaled = weight.grad.clone()
    weight.grad = None
    module.objective = replace(objective, feature_gradient=1.0)
    module(with_mask(Batch(waveforms, lengths, labels), mask, frames, paired=False))[0].backward()
    torch.testing.assert_close(scaled, weight.grad * 0.1)


def test_utterance_loss_is_low_for_crops_of_one_utterance() -> None:
    torch.manual_seed(0)
    head = UtteranceHead(16)
    speaker = torch.randn(4, 1, 16) * 3
    frames = torch.full((8,), 10)
    states = speaker.repeat_interleave(2, 0) + 0.1 * torch.randn(8, 10, 16)
    pairs = torch.arange(8)
    assert head(states, frames, pairs) < 0.2 < head(states, frames, pairs[[0, 2, 4, 6, 1, 3, 5, 7]])


def test_a_crop_that_cannot_be_read_takes_only_its_partner_out_of_the_utterance_loss() -> None:
    torch.manual_seed(0)
    module = HubertPretraining(checkpoint.build(preset("sparseformer_dn_mini")), 7, Objective()).eval()
    audio = [(torch.randn(n).numpy() * 0.1, torch.arange(20).numpy() % 7) for n in (9000, 8000, 7000, 6400, 9000, 8000)]

    def measured(items: Sequence[tuple[np.ndarray, np.ndarray] | None]) -> tuple[Counts, dict[str, torch.Tensor]]:
        batch = collate(list(items))
        frames = module.model.frame_count(batch.lengths)
        masked = with_mask(batch, torch.zeros(len(frames), int(frames.max()), dtype=torch.bool), frames, paired=True)
        return masked.counts, module(masked)[1]

    broken, lost = measured([*audio[:2], None, *audio[3:]])
    whole, kept = measured([*audio[:2], *audio[4:]])
    assert broken.crops == whole.crops == 4 and broken.frames > whole.frames
    torch.testing.assert_close(lost["loss_utterance"], kept["loss_utterance"], atol=1e-4, rtol=0)
    assert measured([audio[0], None])[0].crops == 0 and "loss_utterance" not in measured([audio[0], None])[1]
