"""What a cell departs from: the published corpus and the official settings, without which no number is comparable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runners.corpora.counts import COUNTERS
from runners.corpora.embedded import described_tasks
from runners.corpora.published import COUNTS
from runners.matrix.cell import Cell, Fold
from runners.matrix.identity import NO_EFFECT, NO_EFFECT_SUFFIXES
from runners.tasks import FOLD, TASKS, Task, flat_keys, path_keys, task_config
from upstreams.errors import UserError
from upstreams.files import json_ready

# Settings that change no result, and the learning rate, which SUPERB lets everybody tune on dev. The report knows
# about folds.
FREE = {*NO_EFFECT, "runner.save_step", "optimizer.lr", FOLD}
ABSENT = "nothing"
EMBEDDED = "embedded corpus"  # begins the deviation of a corpus that corpus.json describes


def compare(fold: Fold) -> dict[str, Any]:
    """Return `corpus`, its `speech` and `label`, and `deviations`, one phrase each; without any, numbers compare.

    corpus.json describes an embedded corpus. A corpus without that file is real, and is labelled as published only if
    its sizes are the published ones. Deviations are those of the corpus and those of the configuration.
    """
    cell = fold.cell
    described = described_tasks(cell.corpora).get(cell.task)
    if described is not None:
        corpus = {key: described[key] for key in ("speech", "label")}
        found = [f"{EMBEDDED} ({corpus['speech']}, {corpus['label']})"]
    else:
        found = _of_real_corpus(cell, fold.config)
        corpus = {"speech": "real", "label": "not as published" if found else "as published"}
    found += _of_settings(TASKS[cell.task], fold.config, cell.corpora)
    if cell.store is not None and cell.store.dtype == "int8":
        found.append("trained on features in int8")
    return {"corpus": corpus, "deviations": found}


def _of_real_corpus(cell: Cell, config: Mapping[str, Any]) -> list[str]:
    try:
        counted = COUNTERS[cell.task](config["downstream_expert"])
    except (OSError, LookupError, ValueError, UserError) as error:  # a finished number is not lost for a count
        return [f"the corpus could not be counted ({type(error).__name__}: {error})"]
    # Of the versions that `superbit corpus check` accepts, the first is SUPERB's.
    published = COUNTS[cell.task][0]
    return [f"{counted[part]} {part} instead of {size}" for part, size in published.items() if counted[part] != size]


def _of_settings(task: Task, config: Mapping[str, Any], corpora: Path) -> list[str]:
    official = json_ready(task_config(task.name, corpora))
    differences = dict(_differences(official, json_ready(config)))
    for key in path_keys(task):
        differences.pop(key, None)  # where the corpora lie
    differences |= _own_files(task, config)
    return [f"{key} {text}" for key, text in differences.items()]


def _differences(official: Mapping[str, Any], found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name in {**official, **found}:
        key, ours, theirs = prefix + name, found.get(name, ABSENT), official.get(name, ABSENT)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            yield from _differences(theirs, ours, f"{key}.")
        elif key == "runner.eval_dataloaders":
            if _dev_splits(ours) != _dev_splits(theirs):
                yield key, f"{ours} instead of {theirs}"
        elif ours != theirs and key not in FREE and not key.endswith(NO_EFFECT_SUFFIXES):
            yield key, "changed" if isinstance(theirs, Mapping) else f"{ours} instead of {theirs}"


def _dev_splits(splits: Any) -> list[str]:
    """Return the splits that choose the best checkpoint: a test split is only logged."""
    return [split for split in splits if "test" not in split] if isinstance(splits, list) else [str(splits)]


def _own_files(task: Task, config: Mapping[str, Any]) -> dict[str, str]:
    """Return the settings whose file differs from the packaged one: dictionaries and lists of phones."""
    packaged = {path.name: path for path in task.config_file.parent.iterdir() if path.suffix in (".txt", ".dict")}
    flat = dict(flat_keys(config))
    raw = dict(flat_keys(task_config(task.name, "")))
    found = {}
    for key in path_keys(task):
        name = Path(str(raw[key])).name
        if name in packaged and _bytes(flat.get(key)) != packaged[name].read_bytes():
            found[key] = f"{flat.get(key)} instead of the packaged {name}"
    return found


def _bytes(path: Any) -> bytes | None:
    try:
        return Path(str(path)).read_bytes()
    except OSError:
        return None
