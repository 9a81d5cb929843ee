"""Agreement of labels and phones: phone purity, cluster purity and PNMI (HuBERT, arXiv 2106.07447, section 4.4)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from upstreams.errors import UserError
from upstreams.files import text_lines


def purity(labels: Path, reference: Path) -> dict[str, float | int]:
    """Return measures of agreement over the frames of all utterances that have both labels and phones.

    Both files have one line for each utterance. The symbols of a line divide the utterance into equal parts, so the
    files may have different rates. Raises UserError if a file is missing, if the numbers of lines differ, or if no
    utterance has both.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    for path in (labels, reference):
        if not path.is_file():
            raise UserError(
                f"the file {path} is missing: expected a line of space-separated symbols for each utterance"
            )
    ids, phones = ([line.split() for line in text_lines(path)] for path in (labels, reference))
    if len(ids) != len(phones):
        raise UserError(
            f"{labels} has {len(ids)} lines, but {reference} has {len(phones)}: both need one line for each utterance"
        )
    for own, aligned in zip(ids, phones, strict=True):
        if own and aligned:
            middle = (np.arange(len(own)) + 0.5) * len(aligned) / len(own)
            pairs.update(zip(own, (aligned[int(at)] for at in middle), strict=True))
    if not pairs:
        raise UserError(f"no utterance has both labels in {labels} and phones in {reference}")
    return agreement(contingency(pairs))


def contingency(pairs: Counter[tuple[str, str]]) -> np.ndarray:
    """Return the counts of (label, phone) pairs as an array (labels, phones)."""
    rows = {label: k for k, label in enumerate(sorted({label for label, _ in pairs}))}
    columns = {phone: k for k, phone in enumerate(sorted({phone for _, phone in pairs}))}
    counts = np.zeros((len(rows), len(columns)))
    for (label, phone), count in pairs.items():
        counts[rows[label], columns[phone]] = count
    return counts


def agreement(counts: np.ndarray) -> dict[str, float | int]:
    """Return the measures for counts of frames (labels, phones)."""
    joint = counts / counts.sum()
    of_label, of_phone = joint.sum(1), joint.sum(0)
    entropy = -(of_phone * np.log(of_phone)).sum()
    there = joint > 0
    independent = np.outer(of_label, of_phone)
    information = (joint[there] * np.log(joint[there] / independent[there])).sum()
    return {
        "frames": int(counts.sum()),
        "labels": len(of_label),
        "phones": len(of_phone),
        "phone_purity": float(joint.max(1).sum()),  # accuracy of replacing each label by its most likely phone
        "cluster_purity": float(joint.max(0).sum()),  # accuracy of replacing each phone by its most likely label
        "pnmi": float(information / entropy) if entropy > 0 else 0.0,  # part of the phones' entropy that labels explain
        "most_frequent_phone": float(of_phone.max()),  # phone purity of labels without information
    }
