"""Reader of label files in fairseq's .km format: one line for each utterance, with space-separated cluster ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pretrain.audio.manifest import Manifest
from pretrain.targets.alignment import nearest_labels
from upstreams.config import SAMPLE_RATE, FrontEndConfig
from upstreams.errors import UserError
from upstreams.files import text_lines
from upstreams.frontend import receptive_field_centre

MAX_CLUSTERS = 2**15  # labels are stored in 16 bits


def read_labels(
    path: Path,
    manifest: Manifest,
    front_end: FrontEndConfig,
    *,
    label_rate: float = 0.0,
    clusters: int = MAX_CLUSTERS,
) -> list[np.ndarray]:
    """Return an int16 array of cluster ids, (frames,), for each utterance of the manifest.

    front_end: of the encoder that the labels are for. label_rate: rate of the labels in Hz, if it is not that of the
    encoder (0); then each frame takes one label by the rule of `alignment`. clusters: number of ids that are valid. An
    empty line stands for an utterance without labels.

    Raises UserError, naming the first bad line, if the file has more or fewer lines than the manifest has utterances,
    if a line and its audio differ in length by more than 0.1 s (fairseq's tolerance), and for ids that are no whole
    numbers, not below `clusters`, or not in dict.km.txt beside the file.
    """
    if not path.is_file():
        raise UserError(
            f"the label file {path} is missing: it should have a line of space-separated cluster ids for each utterance"
        )
    dictionary = path.with_name("dict.km.txt")
    known = len(list(text_lines(dictionary))) if dictionary.is_file() else MAX_CLUSTERS
    listed = f"{dictionary.name} lists 0 to {known - 1}"
    if clusters < known:
        listed = f"the clusters are 0 to {clusters - 1}"
    hop, centre = front_end.downsample_rate, receptive_field_centre(front_end)
    rate = label_rate or SAMPLE_RATE / hop
    labels: list[np.ndarray] = []
    number = 0
    for number, line in enumerate(text_lines(path), start=1):
        if number > len(manifest):
            continue
        where, samples = f"line {number} of {path}", manifest.samples[number - 1]
        ids = _ids(line, where)
        if len(ids) and not 0 <= ids.min() <= ids.max() < min(known, clusters):
            wrong = next(int(k) for k in ids if not 0 <= k < min(known, clusters))
            raise UserError(f"{where} has the label {wrong}, but {listed}")
        seconds, audio = len(ids) / rate, samples / SAMPLE_RATE
        if len(ids) and abs(seconds - audio) > max(0.1, 2 * hop / SAMPLE_RATE, 2 / rate):
            raise UserError(
                f"{where} has {len(ids)} labels, {seconds:.2f} s at {rate:g} Hz, but the audio "
                f"{manifest.paths[number - 1]} has {samples} samples, {audio:.2f} s: if the labels have another rate, "
                "state it as label_rate in the recipe"
            )
        if label_rate and len(ids):
            frames = nearest_labels(-(-samples // hop), hop, centre, label_rate)
            ids = ids[frames.clip(max=len(ids) - 1)]
        labels.append(ids.astype(np.int16))
    if number != len(manifest):
        raise UserError(f"{path} has {number} lines, but the manifest has {len(manifest)} utterances")
    return labels


def _ids(line: str, where: str) -> np.ndarray:
    """Return the ids of a line. Raises UserError for what is no whole number of 64 bits."""
    try:
        return np.array(line.split(), dtype=np.int64)
    except (ValueError, OverflowError):
        raise UserError(f"{where} must hold cluster ids, whole numbers, not {line.strip()[:40]!r}") from None
