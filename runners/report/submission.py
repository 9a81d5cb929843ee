"""`superbit submission`: the predictions of one upstream in the layout of the SUPERB leaderboard's upload.

Same layout as s3prl's submit/submit.py, which collects from s3prl's experiment folders: predict/<task>_public/ with one
file for each task, and predict.zip.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runners.report.results import expdir, tested_parts
from runners.report.table import Table, collect
from runners.tasks import FOLD, FOLDS, flat_keys
from upstreams.errors import UserError, nearest
from upstreams.files import atomic_write

# task -> folder below predict/, the file that s3prl's test writes, its name in the submission
FILES = {
    "pr": ("pr_public", "test-hyp.ark", "predict.ark"),
    "sid": ("sid_public", "test_predict.txt", "predict.txt"),
    "ks": ("ks_public", "test_predict.txt", "predict.txt"),
    "ic": ("ic_public", "test_predict.csv", "predict.csv"),
    "er": ("er_{fold}_public", "test_{fold}_predict.txt", "predict.txt"),
    "asr": ("asr_public", "test-clean-noLM-hyp.ark", "predict.ark"),
    "sf": ("sf_public", "test-hyp.ark", "predict.ark"),
    "qbe": ("qbe_public", "benchmark.stdlist.xml", "benchmark.stdlist.xml"),
    "asv": ("sv_public", "test_predict.txt", "predict.txt"),
    "sd": ("sd_public", "frame_shift", "frame_shift"),  # and scoring/predictions/*.h5
}


def write_submission(runs: Path, upstream: str, out: Path, seed: int | None, say: Callable[[str], object]) -> Path:
    """Copy the upstream's predictions to OUT/predict and zip them; return OUT/predict.zip.

    seed: required if the run folder has several seeds of the upstream. `say` receives one line for each task, included
    or not. Raises UserError if there is no such upstream or seed, or if a cell's predictions were deleted.
    """
    table = collect([runs])
    if upstream not in table.upstreams:
        raise UserError(f"{runs} has no upstream {upstream!r}: {nearest(upstream, table.upstreams)}")
    cells = chosen(table, upstream, seed)
    files = [(folder, source, name) for result in cells.values() for folder, source, name in predictions(result)]
    target = out / "predict"
    shutil.rmtree(target, ignore_errors=True)
    for folder, source, name in files:
        (target / folder).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target / folder / name)
    with (
        atomic_write(out / "predict.zip") as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for path in sorted(target.rglob("*")):
            archive.write(path, path.relative_to(out))
    for folder in dict.fromkeys(folder for folder, _, _ in files if "/" not in folder):
        say(f"{folder}: included")
    for task in FILES.keys() - cells.keys():
        say(f"{task}: not included (no result)")
    folds = [folder for folder, _, _ in files if folder.startswith("er_")]
    if folds and len(folds) < len(FOLDS):
        say(f"er: only {len(folds)} of {len(FOLDS)} folds; the leaderboard will not score it")
    return out / "predict.zip"


def chosen(table: Table, upstream: str, seed: int | None) -> dict[str, dict[str, Any]]:
    """Return the upstream's result of each task; raises UserError if no seed is given and a task has several."""
    found: dict[str, dict[str, Any]] = {}
    for result in table.of_upstream(upstream):
        if seed is not None and result["seed"] != seed:
            continue
        if result["task"] in found:
            seeds = sorted({r["seed"] for r in table.of_upstream(upstream)})
            raise UserError(f"{upstream} has results of the seeds {', '.join(map(str, seeds))}: choose one with --seed")
        found[result["task"]] = result
    if not found:
        raise UserError(f"{upstream} has no result of seed {seed}")
    return {task: result for task, result in found.items() if task in FILES}


def predictions(result: dict[str, Any]) -> list[tuple[str, Path, str]]:
    """Return (folder, file, name in the submission) of a cell; for emotion recognition, one for each tested fold.

    Raises UserError if a file is missing.
    """
    folder, source, name = FILES[result["task"]]
    files = []
    for key, part in tested_parts(result).items():
        folder_of_test = expdir(result, part)
        fold = key or dict(flat_keys(result["identity"]["config"])).get(FOLD, FOLDS[0])
        files.append((folder.format(fold=fold), folder_of_test / source.format(fold=fold), name))
        if result["task"] == "sd":
            found = sorted((folder_of_test / "scoring/predictions").glob("*.h5"))
            files += [(f"{folder}/scoring/predictions", path, path.name) for path in found]
    for _, path, _ in files:
        if not path.is_file():
            raise UserError(
                f"{path}, the predictions of {result['upstream']}/{result['task']}, is missing: repeat its test with"
                f" {result['command']}"
            )
    return files
