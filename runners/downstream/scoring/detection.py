"""Scores of query-by-example: the maximum term-weighted value of s3prl's detections, by QUESST's definition."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from upstreams.errors import UserError

# QUESST 2014 and 2015: a query is in an utterance with this probability, and a miss costs 100 false alarms (its
# score-TWV-Cnxe.sh; Anguera et al., 2014).
PRIOR, COST_FALSE_ALARM, COST_MISS = 0.0008, 1.0, 100.0
BETA = COST_FALSE_ALARM / COST_MISS * (1 / PRIOR - 1)

Scores = Mapping[str, Mapping[str, float]]  # query -> utterance -> score


def mtwv(scores: Scores, truth: Mapping[str, set[str]]) -> float:
    """The best term-weighted value that one threshold for all queries gives; 0 where detecting nothing is best.

    TWV = 1 - mean over queries of P(miss) + beta P(false alarm): the part of a query's occurrences that is not
    detected, and the part of the utterances without it that is. Queries that occur nowhere have no P(miss) and are
    left out. Raises UserError where none occurs (Fiscus et al., 2007, section 3; per utterance: Anguera et al., 2014).
    """
    weights: list[tuple[float, float]] = []  # (score, what detecting this one adds to the TWV)
    occurring = {query: truth.get(query, set()) & found.keys() for query, found in scores.items()}
    occurring = {query: utterances for query, utterances in occurring.items() if utterances}
    if not occurring:
        raise UserError("none of the queries occurs in any utterance, so there is no term-weighted value")
    for query, utterances in occurring.items():
        without = len(scores[query]) - len(utterances)
        for utterance, score in scores[query].items():
            gain = 1 / len(utterances) if utterance in utterances else -BETA / without
            weights.append((score, gain / len(occurring)))
    ordered = sorted(weights, reverse=True)
    values, gains = (np.array(column) for column in zip(*ordered, strict=True))
    totals = np.cumsum(gains)
    last_of_a_score = np.append(values[1:] != values[:-1], True)  # what has one score is detected together
    return float(max(0.0, totals[last_of_a_score].max()))


def read_detections(path: Path) -> dict[str, dict[str, float]]:
    """Query -> utterance -> score, of s3prl's benchmark.stdlist.xml."""
    return {
        terms.attrib["termid"]: {term.attrib["file"]: float(term.attrib["score"]) for term in terms.iter("term")}
        for terms in ElementTree.parse(path).iter("detected_termlist")
    }
