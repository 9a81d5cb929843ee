"""The diarization error rate (DER) of s3prl's predictions: frames become segments, compared with the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.signal import medfilt

from runners.corpora.ground_truth import Segments, read_rttm
from upstreams.errors import UserError

# SUPERB reports the lowest DER over these (s3prl's downstream/diarization/score.sh).
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
MEDIANS = (1, 11)


def segments(probabilities: np.ndarray, threshold: float, median: int, frame_seconds: float) -> Segments:
    """Return each speaker's segments from the probabilities of speech (frames, speakers).

    `median` is the length of a median filter in frames, `frame_seconds` the length of a frame. Times are rounded to
    10 ms, as in s3prl's RTTM files.
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
    """Return the seconds in error and the seconds of reference speech of one recording.

    Errors are missed speech, false alarms and confusions; overlapping speech counts for each speaker; there is no
    collar (NIST md-eval). Speakers are mapped so that the errors are fewest.
    """
    times = sorted({time for spans in (*reference.values(), *hypothesis.values()) for span in spans for time in span})
    lengths = np.diff(times)
    middles = np.array(times[:-1]) + lengths / 2

    def speaking(of: Segments) -> np.ndarray:
        """Return (speakers, intervals): True where the speaker speaks."""
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
    """Return the lowest diarization error rate over SUPERB's thresholds and median filters, as a fraction of 1.

    predictions: folder of <recording>.h5 with `T_hat` (frames, speakers); reference: RTTM file. A recording of the
    reference without a prediction counts as missed. Raises UserError if the reference has no speech.
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
                raise UserError(f"{reference} holds no speech, so there is no diarization error rate")
            rates.append(wrong / speech)
    return min(rates)
