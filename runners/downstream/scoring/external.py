"""What s3prl leaves to other programs: the scores of query-by-example's detections and of diarization's segments."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Scorer = Callable[[argparse.Namespace, Mapping[str, Any]], dict[str, float]]


def query_by_example(args: argparse.Namespace, config: Mapping[str, Any]) -> dict[str, float]:
    """MTWV of the detections that an evaluation has written; the ground truth is the split's of QUESST 2014."""
    from runners.corpora.ground_truth import read_occurrences
    from runners.downstream.scoring import detection

    split = "dev" if args.evaluate_split == "dev" else "eval"  # as s3prl takes any other name
    root = Path(config["downstream_expert"]["datarc"]["dataset_root"])
    truth = read_occurrences(root / "scoring" / f"groundtruth_quesst14_{split}")
    value = detection.mtwv(detection.read_detections(Path(args.expdir, "benchmark.stdlist.xml")), truth)
    print(f"{args.evaluate_split} mtwv: {value}")
    return {"mtwv": value}


def diarization(args: argparse.Namespace, config: Mapping[str, Any]) -> dict[str, float]:
    """DER of the predictions that an evaluation has written, against the test set's RTTM file; none of other splits."""
    if args.evaluate_split != "test":
        return {}
    from runners.downstream.scoring.diarization import error_rate

    expert = config["downstream_expert"]
    frame_shift = int(Path(args.expdir, "frame_shift").read_text(encoding="utf-8"))
    reference = Path(expert["loaderrc"]["test_dir"], "rttm")
    seconds = frame_shift * expert["datarc"]["subsampling"] / expert["datarc"]["rate"]
    value = error_rate(Path(args.expdir, "scoring", "predictions"), reference, seconds)
    print(f"test DER: {value}")
    return {"DER": value}


SCORERS: dict[str, Scorer] = {"qbe": query_by_example, "sd": diarization}
