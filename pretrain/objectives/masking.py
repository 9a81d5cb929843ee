"""Span masking of frames (HuBERT, arXiv 2106.07447, section 3.1, after wav2vec 2.0)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def span_mask(lengths: list[int], probability: float, span: int, seed: int) -> Tensor:
    """Return the mask of a batch, (batch, longest) bool, True where masked. lengths: of the utterances, in frames.

    An utterance of T frames gets `probability * T / span` spans of `span` frames (rounded at random, at least one).
    Their starts are drawn without replacement. Spans may overlap, so the masked share is less than `probability`. In an
    utterance of at most one span every second frame is masked, so that unmasked frames remain.
    """
    random = np.random.default_rng(seed)
    mask = torch.zeros(len(lengths), max(lengths, default=0), dtype=torch.bool)
    for row, length in enumerate(lengths):
        if length <= span:
            mask[row, int(random.integers(2)) : length : 2] = True
            continue
        count = max(1, int(probability * length / span + random.random()))
        starts = random.choice(length - span + 1, min(count, length - span + 1), replace=False)
        frames = starts[:, None] + np.arange(span)
        mask[row, torch.from_numpy(frames.ravel())] = True
    return mask
