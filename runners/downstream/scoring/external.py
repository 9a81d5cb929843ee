"""Scorers that s3prl delegates to external programs: query-by-example and diarization."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from runners.corpora.ground_truth import read_occurrences
from runners.downstream.scoring.detection import mtwv, read_detections
from runners.downstream.scoring.diarization import error_rate

Scorer = Callable[[Path, str, Mapping[str, Any]], dict[str, float]]


def query_by_example(expdir: Path, split: str, config: Mapping[str, Any]) -> dict[str, float]:
    """Return the MTWV of the detections that an evaluation wrote to `expdir`, against QUESST 2014's ground truth."""
    folder = "dev" if split == "dev" else "eval"  # s3prl, too, takes every other name for the test set
    root = Path(config["downstream_expert"]["datarc"]["dataset_root"])
    truth = read_occurrences(root / "scoring" / f"groundtruth_quesst14_{folder}")
    value = mtwv(read_detections(expdir / "benchmark.stdlist.xml"), truth)
    print(f"{split} mtwv: {value}")
    return {"mtwv": value}


def diarization(expdir: Path, split: str, config: Mapping[str, Any]) -> dict[str, float]:
    """Return the DER of the predictions that an evaluation wrote to `expdir`, against the test set's RTTM file.

    s3prl writes predictions of the test set only: another split has no DER.
    """
    if split != "test":
        return {}
    expert = config["downstream_expert"]
    frame_shift = int((expdir / "frame_shift").read_text(encoding="utf-8"))
    reference = Path(expert["loaderrc"]["test_dir"], "rttm")
    seconds = frame_shift * expert["datarc"]["subsampling"] / expert["datarc"]["rate"]
    value = error_rate(expdir / "scoring" / "predictions", reference, seconds)
    print(f"test DER: {value}")
    return {"DER": value}


SCORERS: dict[str, Scorer] = {"qbe": query_by_example, "sd": diarization}
