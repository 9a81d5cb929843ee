"""How well labels agree with phones: phone purity, cluster purity and PNMI (HuBERT, arXiv 2106.07447, section 4.4)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from upstreams.errors import UserError


def purity(labels: Path, reference: Path) -> dict[str, float | int]:
    """Of the frames of every utterance that has both labels and phones.

    Both files have one line an utterance; a line's symbols divide its utterance into equal parts, so the two may be at
    different rates. Raises UserError when the lines are not as many or no utterance has both.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    for path in (labels, reference):
        if not path.is_file():
            raise UserError(f"there is no file {path}: one line an utterance of space-separated symbols is expected")
    with labels.open(encoding="utf-8") as ours, reference.open(encoding="utf-8") as theirs:
        ids, phones = [line.split() for line in ours], [line.split() for line in theirs]
    if len(ids) != len(phones):
        raise UserError(
            f"{labels} has {len(ids)} lines, but {reference} has {len(phones)}: one an utterance is expected"
        )
    for own, spoken in zip(ids, phones, strict=True):
        if own and spoken:
            middle = (np.arange(len(own)) + 0.5) * len(spoken) / len(own)
            pairs.update(zip(own, (spoken[int(at)] for at in middle), strict=True))
    if not pairs:
        raise UserError(f"no utterance has both labels in {labels} and phones in {reference}")
    return of_counts(table(pairs))


def table(pairs: Counter[tuple[str, str]]) -> np.ndarray:
    """Counts of (label, phone) pairs as an array (labels, phones)."""
    rows = {label: k for k, label in enumerate(sorted({label for label, _ in pairs}))}
    columns = {phone: k for k, phone in enumerate(sorted({phone for _, phone in pairs}))}
    counts = np.zeros((len(rows), len(columns)))
    for (label, phone), count in pairs.items():
        counts[rows[label], columns[phone]] = count
    return counts


def of_counts(counts: np.ndarray) -> dict[str, float | int]:
    """counts: frames of each label (rows) and phone (columns)."""
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
        "phone_purity": float(joint.max(1).sum()),  # when every label is taken for its most likely phone
        "cluster_purity": float(joint.max(0).sum()),  # and every phone for its most likely label
        "pnmi": float(information / entropy) if entropy > 0 else 0.0,  # of the phones' entropy, what labels explain
        "most_frequent_phone": float(of_phone.max()),  # the phone purity of labels that say nothing
    }
