"""What is published about the tasks' corpora: their parts, their labels and their sizes.

Sources: LibriSpeech: Panayotov et al., 2015, table 1. Speech Commands: arXiv 1804.03209. VoxCeleb1: Nagrani et al.,
2017, and iden_split.txt. IEMOCAP: Busso et al., 2008, of which SUPERB takes 5531 utterances of four classes. Fluent
Speech Commands: Lugosch et al., 2019. Audio SNIPS: Lai et al., 2021. Splits of these: data set card of s3prl/superb.
QUESST 2014: Anguera et al., 2014. Libri2Mix (train-100): Cosentino et al., 2020.
"""

from __future__ import annotations

from typing import NamedTuple

LIBRISPEECH_SETS = {"train": "train-clean-100", "dev": "dev-clean", "test": "test-clean"}  # split -> folder
KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")  # of Speech Commands
NOISE = "_background_noise_"  # folder of Speech Commands
EMOTIONS = {"neu": 0, "hap": 1, "ang": 2, "sad": 3}  # SUPERB's classes of IEMOCAP -> their numbers in its lists
VOXCELEB_SPEAKERS = range(10001, 10001 + 1251)  # s3prl's classifier has one output for each


class Split(NamedTuple):
    """Size of one split of a task."""

    utterances: int
    hours: float


_LIBRISPEECH = (Split(28_539, 100.6), Split(2_703, 5.4), Split(2_620, 5.4))
SPLITS: dict[str, tuple[Split, Split, Split]] = {  # task -> train, dev, test
    "asr": _LIBRISPEECH,
    "pr": _LIBRISPEECH,
    "ks": (Split(51_094, 14.2), Split(6_798, 1.9), Split(3_081, 0.9)),
    "sid": (Split(138_361, 317.0), Split(6_904, 16.0), Split(8_251, 19.0)),
    "er": (Split(3_548, 4.5), Split(887, 1.1), Split(1_085, 1.4)),
    "ic": (Split(23_132, 14.7), Split(3_118, 1.9), Split(3_793, 2.4)),
    "sf": (Split(104_672, 80.0), Split(2_800, 2.2), Split(2_800, 2.2)),
}


def _utterances(task: str, *parts: str) -> dict[str, int]:
    return {part: split.utterances for part, split in zip(parts, SPLITS[task], strict=True)}


_LIBRISPEECH_COUNTS = _utterances("asr", *(f"{name} utterances" for name in LIBRISPEECH_SETS.values())) | {
    "train-clean-100 speakers": 251,
    "dev-clean speakers": 40,
    "test-clean speakers": 40,
}
# task -> versions of its corpus -> part -> files, utterances or speakers. Of KS both versions are valid.
COUNTS: dict[str, list[dict[str, int]]] = {
    "asr": [_LIBRISPEECH_COUNTS],
    "pr": [_LIBRISPEECH_COUNTS],
    "ks": [
        {"words": 30, "recordings": 64_721, "background noises": 6, "test recordings": SPLITS["ks"][2].utterances},
        {"words": 35, "recordings": 105_829, "background noises": 6, "test recordings": 4_890},
    ],
    "sid": [{"speakers": len(VOXCELEB_SPEAKERS)} | _utterances("sid", "train", "dev", "test")],
    "er": [
        {"Session1": 1_085, "Session2": 1_023, "Session3": 1_151, "Session4": 1_031, "Session5": 1_241}
        | {"neu": 1_708, "hap": 1_636, "ang": 1_103, "sad": 1_084}
    ],
    "ic": [{"speakers": 97} | _utterances("ic", "train", "valid", "test")],
    "sf": [_utterances("sf", "train", "valid", "test")],
    "qbe": [{"utterances": 12_492, "dev queries": 560, "eval queries": 555}],
    "asv": [{"speakers": 1_211, "utterances": 148_642, "trials": 37_720}],
    "sd": [{"train": 13_900, "dev": 3_000, "test": 3_000}],
}
