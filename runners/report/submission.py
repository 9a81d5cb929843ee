"""`superbit submission`: the predictions of one upstream as the SUPERB leaderboard's upload expects them.

What s3prl's submit/submit.py gathers from its experiments' folders, from this project's cells: predict/<task>_public/
with one file a task, and predict.zip of it.
"""

from __future__ import annotations

import shlex
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runners.report.write import Table, collect
from runners.tasks import FOLDS
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
    """Gather the upstream's predictions into OUT/predict and zip them; return OUT/predict.zip.

    seed: of the cells, when there are several. Says which tasks are not in it. Raises UserError when there are no such
    cells, or a cell that has a number has no predictions any more.
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
        say(f"{folder}: in the submission")
    for task in FILES.keys() - cells.keys():
        say(f"{task}: not in the submission, as there is no result")
    folds = [folder for folder, _, _ in files if folder.startswith("er_")]
    if folds and len(folds) < len(FOLDS):
        say(f"er: {len(folds)} of 5 folds, so the leaderboard will not score it")
    return out / "predict.zip"


def chosen(table: Table, upstream: str, seed: int | None) -> dict[str, dict[str, Any]]:
    """The upstream's result of each task; raises UserError where several seeds leave it open which."""
    found: dict[str, dict[str, Any]] = {}
    for result in table.results:
        if result["upstream"] != upstream or (seed is not None and result["seed"] != seed):
            continue
        if result["task"] in found:
            seeds = sorted({r["seed"] for r in table.results if r["upstream"] == upstream})
            raise UserError(f"{upstream} has cells of the seeds {', '.join(map(str, seeds))}: choose one by --seed")
        found[result["task"]] = result
    if not found:
        raise UserError(f"{upstream} has no cell of seed {seed}")
    return {task: result for task, result in found.items() if task in FILES}


def predictions(result: dict[str, Any]) -> list[tuple[str, Path, str]]:
    """(folder, file, name in the submission) of a cell; of emotion recognition one a fold that was tested."""
    folder, source, name = FILES[result["task"]]
    if result["task"] != "er":
        expdir = Path(tested_state(result))
        expdir = expdir if expdir.is_dir() else expdir.parent
        candidates = [(folder, expdir / source, name)]
        if result["task"] == "sd":
            found = sorted((expdir / "scoring/predictions").glob("*.h5"))
            candidates += [(f"{folder}/scoring/predictions", path, path.name) for path in found]
    else:
        alone = result["identity"]["config"]["downstream_expert"]["datarc"].get("test_fold", "fold1")
        candidates = [
            (folder.format(fold=fold), Path(tested_state(of)).parent / source.format(fold=fold), name)
            for fold, of in (result.get("folds") or {alone: result}).items()
        ]
    for _, path, _ in candidates:
        if not path.is_file():
            raise UserError(
                f"{path} is missing, the predictions of {result['upstream']}/{result['task']}: run its "
                f"command again: {result['command']}"
            )
    return candidates


def tested_state(result: dict[str, Any]) -> str:
    """The path of the head's state that a cell's test was run on, as its command has it; of one without, its folder."""
    words = shlex.split(result["command"])
    return words[words.index("-e" if "-e" in words else "-p") + 1]
