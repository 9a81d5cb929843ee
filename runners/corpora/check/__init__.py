"""Checks of a task's corpus before training: every folder, list and file that s3prl will open.

One module for each corpus; this one chooses the check of a task and compares sizes with the published ones.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from runners.corpora.check.fluent_commands import check_ic
from runners.corpora.check.iemocap import check_er
from runners.corpora.check.libri2mix import check_sd
from runners.corpora.check.librispeech import check_asr, check_pr
from runners.corpora.check.quesst import check_qbe
from runners.corpora.check.snips import check_sf
from runners.corpora.check.speech_commands import check_ks
from runners.corpora.check.voxceleb import check_asv, check_sid
from runners.corpora.counts import counts, unlisted
from runners.tasks import FOLD, FOLDS, TASKS, Task, task_config
from upstreams.errors import UserError
from upstreams.versions import install_command

# task -> check; its arguments are s3prl's `downstream_expert` settings and the splits that will be used
CHECKS: dict[str, Callable[[Mapping[str, Any], Sequence[str]], None]] = {
    "asr": check_asr,
    "pr": check_pr,
    "ks": check_ks,
    "sid": check_sid,
    "er": check_er,
    "ic": check_ic,
    "sf": check_sf,
    "qbe": check_qbe,
    "asv": check_asv,
    "sd": check_sd,
}


_CHECKED: ContextVar[bool] = ContextVar("corpora are checked", default=False)


@contextmanager
def checked_corpora() -> Iterator[None]:
    """Skip the checks inside the block: the plan of a matrix has looked up every file, and its cells need not do so."""
    token = _CHECKED.set(True)
    try:
        yield
    finally:
        _CHECKED.reset(token)


def check_corpus(task: str, root: str | Path) -> None:
    """Raise UserError unless the corpora root holds everything that training and testing a task will open.

    The message names the first thing that is missing, and the expected layout.
    """
    check_config(TASKS[task], task_config(task, root))


def check_config(task: Task, config: Mapping[str, Any], splits: Collection[str] | None = None) -> None:
    """Raise UserError unless everything exists that s3prl will open with a task's resolved configuration.

    splits: s3prl's names of the splits that will be used; by default the training split, the ones evaluated during
    training, and the test split. Does nothing inside `checked_corpora`.
    """
    if _CHECKED.get():
        return
    for package in task.packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{task.name} needs the package {package}: `{install_command('superb')}` installs it")
    if splits is None:
        splits = ["train"] if task.has_head else ["dev"]
        splits += [*config["runner"].get("eval_dataloaders", ()), task.eval_split]
    try:
        CHECKS[task.name](config["downstream_expert"], list(dict.fromkeys(splits)))
    except UserError as error:
        raise UserError(f"{error}. The layout expected for {task.name}: {task.layout}") from None


def check_whole(task: str, root: Path, any_size: bool, say: Callable[[str], object]) -> None:
    """Check all splits (of ER all folds) of a task's corpus, and print its size beside the published one with `say`.

    Raises UserError for the first thing that is missing. Also raises it for a part whose size differs from the
    published one, unless `any_size` is set or the corpora are the embedded ones.
    """
    is_embedded = (root / "corpus.json").is_file()
    check_config(TASKS[task], task_config(task, root))
    for fold in FOLDS[1:] if task == "er" else ():
        if not any_size or (root / "IEMOCAP" / fold.replace("fold", "Session")).is_dir():
            check_config(TASKS[task], task_config(task, root, {FOLD: fold}))
    found = counts(task, task_config(task, root))
    say(f"{task}: every file is there")
    for count in found:
        published = "" if count.is_as_published or is_embedded else f", published: {count.published}"
        say(f"  {count.part}: {count.found}{published}")
    if left := unlisted(task, task_config(task, root)):
        say(f"  audio files that no list names: {len(left)}, such as {left[0]}")
    wrong = [count for count in found if not count.is_as_published]
    if wrong and not any_size and not is_embedded:
        raise UserError(
            f"{root} holds {wrong[0].found} {wrong[0].part} of {task}, but {wrong[0].published} are published: "
            "is the download complete? --any-size accepts other sizes"
        )
