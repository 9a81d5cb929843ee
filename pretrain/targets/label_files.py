"""Reader of label files in fairseq's .km format: one line for each utterance, with space-separated cluster ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pretrain.audio.manifest import Manifest
from upstreams.config import SAMPLE_RATE
from upstreams.errors import UserError

MAX_CLUSTERS = 2**15  # labels are stored in 16 bits


def read_labels(path: Path, manifest: Manifest, hop: int, label_rate: float | None = None) -> list[np.ndarray]:
    """Return an int16 array of cluster ids, (frames,), for each utterance of the manifest.

    hop: samples of an encoder frame. label_rate: rate of the labels in Hz, if it is not that of the encoder; then a
    frame takes the last label that begins at or before its own begin, as in fairseq. An empty line stands for an
    utterance without labels.

    Raises UserError, naming the first bad line, if the file has more or fewer lines than the manifest has utterances,
    if a line and its audio differ in length by more than 0.1 s (fairseq's tolerance), and for ids that are no whole
    numbers or not in dict.km.txt beside the file.
    """
    if not path.is_file():
        raise UserError(
            f"the label file {path} is missing: it should have a line of space-separated cluster ids for each utterance"
        )
    dictionary = path.with_name("dict.km.txt")
    known = len(dictionary.read_text(encoding="utf-8").splitlines()) if dictionary.is_file() else MAX_CLUSTERS
    frame_rate = SAMPLE_RATE / hop
    ratio = (label_rate or frame_rate) / frame_rate
    labels: list[np.ndarray] = []
    number = 0
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if number > len(manifest):
                continue
            where, samples = f"line {number} of {path}", manifest.samples[number - 1]
            try:
                ids = np.array(line.split(), dtype=np.int64)
            except ValueError:
                raise UserError(f"{where} must hold cluster ids, whole numbers, not {line.strip()[:40]!r}") from None
            if len(ids) and not 0 <= ids.min() <= ids.max() < known:
                wrong = next(int(k) for k in ids if not 0 <= k < known)
                raise UserError(f"{where} has the label {wrong}, but {dictionary.name} lists 0 to {known - 1}")
            seconds, audio = len(ids) / (frame_rate * ratio), samples / SAMPLE_RATE
            if len(ids) and abs(seconds - audio) > max(0.1, 2 / frame_rate):
                raise UserError(
                    f"{where} has {len(ids)} labels, {seconds:.2f} s at {frame_rate * ratio:g} Hz, but the audio "
                    f"{manifest.paths[number - 1]} has {samples} samples, {audio:.2f} s"
                )
            if ratio != 1:
                at = np.floor(np.arange(-(-samples // hop)) * ratio).astype(np.int64)
                ids = ids[at[at < len(ids)]]
            labels.append(ids.astype(np.int16))
    if number != len(manifest):
        raise UserError(f"{path} has {number} lines, but the manifest has {len(manifest)} utterances")
    return labels
