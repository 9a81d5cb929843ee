"""The diarization error rate of s3prl's predictions: frames to segments, and segments against the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.signal import medfilt

from runners.corpora.ground_truth import Segments, read_rttm
from upstreams.errors import UserError

# SUPERB scores each of these and reports the lowest rate (s3prl's downstream/diarization/score.sh).
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
MEDIANS = (1, 11)


def segments(probabilities: np.ndarray, threshold: float, median: int, frame_seconds: float) -> Segments:
    """(frames, speakers) probabilities of speech -> where each speaker speaks, after a median filter over frames.

    Times are rounded to 10 ms, as s3prl's RTTM files hold them.
    """
    active = np.where(probabilities > threshold, 1, 0)
    if median > 1:
        active = medfilt(active, (median, 1))
    found: Segments = {}
    for speaker, frames in enumerate(active.T):
        (changes,) = np.where(np.diff(np.pad(frames, (1, 1))) != 0)
        spans = zip(changes[::2] * frame_seconds, changes[1::2] * frame_seconds, strict=True)
        found[str(speaker)] = [(round(begin, 2), round(begin, 2) + round(end - begin, 2)) for begin, end in spans]
    return found


def errors(reference: Segments, hypothesis: Segments) -> tuple[float, float]:
    """(seconds in error, seconds of reference speech) of one recording, speakers mapped so that fewest are in error.

    Missed speech, false alarms and confusions, overlaps counted for each speaker, without a collar (NIST md-eval).
    """
    times = sorted({time for spans in (*reference.values(), *hypothesis.values()) for span in spans for time in span})
    lengths = np.diff(times)
    middles = np.array(times[:-1]) + lengths / 2

    def speaking(of: Segments) -> np.ndarray:
        """(speakers, intervals) whether each speaks there."""
        rows = [
            sum(((begin <= middles) & (middles < end) for begin, end in spans), np.zeros(len(middles), bool))
            for spans in of.values()
        ]
        return np.array(rows, dtype=bool).reshape(len(rows), len(middles))

    truth, guess = speaking(reference), speaking(hypothesis)
    together = (truth[:, None] & guess[None]) @ lengths
    rows, columns = linear_sum_assignment(together, maximize=True)
    right = sum(truth[row] & guess[column] for row, column in zip(rows, columns, strict=True))
    wrong = np.maximum(truth.sum(0), guess.sum(0)) - right
    return float(wrong @ lengths), float(truth.sum(0) @ lengths)


def error_rate(predictions: Path, reference: Path, frame_seconds: float) -> float:
    """The lowest diarization error rate over SUPERB's thresholds and median filters, as a part of the speech.

    predictions: folder of <recording>.h5 with `T_hat` (frames, speakers); reference: RTTM file. A recording of the
    reference without a prediction counts as missed. Raises UserError where nothing speaks in the reference.
    """
    import h5py

    truth = read_rttm(reference)
    guesses = {}
    for recording in truth:
        path = predictions / f"{recording}.h5"
        if path.is_file():
            with h5py.File(path, "r") as file:
                guesses[recording] = np.asarray(file["T_hat"])
    rates = []
    for threshold in THRESHOLDS:
        for median in MEDIANS:
            wrong = speech = 0.0
            for recording, spans in truth.items():
                guess = guesses.get(recording)
                found = {} if guess is None else segments(guess, threshold, median, frame_seconds)
                in_error, spoken = errors(spans, found)
                wrong, speech = wrong + in_error, speech + spoken
            if speech == 0:
                raise UserError(f"nobody speaks in {reference}, so there is no error rate")
            rates.append(wrong / speech)
    return min(rates)
