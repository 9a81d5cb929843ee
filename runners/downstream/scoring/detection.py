"""The score of query-by-example: the maximum term-weighted value (MTWV) of detections, by QUESST's definition."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from upstreams.errors import UserError

# QUESST 2014 and 2015: the prior probability that an utterance contains a query; a miss costs as much as 100 false
# alarms (QUESST's score-TWV-Cnxe.sh; Anguera et al., 2014).
PRIOR, COST_FALSE_ALARM, COST_MISS = 0.0008, 1.0, 100.0
BETA = COST_FALSE_ALARM / COST_MISS * (1 / PRIOR - 1)

Scores = Mapping[str, Mapping[str, float]]  # query -> utterance -> score


def mtwv(scores: Scores, truth: Mapping[str, set[str]]) -> float:
    """Return the highest term-weighted value over all thresholds, the same for all queries; 0 for detecting nothing.

    `truth` maps a query to the utterances that contain it. TWV = 1 - mean over queries of (P(miss) + beta P(false
    alarm)): P(miss) is the fraction of a query's utterances that are not detected, P(false alarm) the fraction of the
    other utterances that are. Queries that occur nowhere have no P(miss) and are left out. Raises UserError if no
    query occurs. Source: Fiscus et al., 2007, section 3; per utterance: Anguera et al., 2014.
    """
    weights: list[tuple[float, float]] = []  # (score, change of the TWV if this one is detected)
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
    last_of_a_score = np.append(values[1:] != values[:-1], True)  # equal scores are detected together
    return float(max(0.0, totals[last_of_a_score].max()))


def read_detections(path: Path) -> dict[str, dict[str, float]]:
    """Return query -> utterance -> score from s3prl's benchmark.stdlist.xml."""
    return {
        terms.attrib["termid"]: {term.attrib["file"]: float(term.attrib["score"]) for term in terms.iter("term")}
        for terms in ElementTree.parse(path).iter("detected_termlist")
    }
