"""Cells of the table and the trainings they consist of: identity, files, and what is done.

A cell is a number of the table: one upstream on one task with one seed. It has one fold, or several for emotion
recognition, whose number is the mean over its folds. A fold has one training for each learning rate that is tried;
the training that is best on dev is tested. All of it lies in `cells/<label>/<task>/seed<k>[/<fold>][/lr<rate>]/`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runners.features.settings import StoreSettings
from runners.matrix.identity import portable, same_experiment, same_origin, short
from runners.tasks import FOLD, flat_keys
from upstreams.files import read_json, sha256


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A number of the table: one upstream on one task with one seed."""

    label: str  # row of the table
    upstream: str  # name in s3prl.hub
    checkpoint: Path | None  # weights file; None for upstreams without one
    checkpoint_sha256: str | None
    task: str
    seed: int
    configs: tuple[dict[str, Any], ...]  # s3prl's resolved configuration of each fold
    learning_rates: tuple[float, ...]  # tried in each fold; empty: only the configuration's
    corpora: Path
    contents: tuple[dict[str, Any], ...]  # of the corpus, for each fold: `lists` and `audio`
    code: dict[str, str]  # digests of what computes features and heads
    versions: dict[str, str]  # of the libraries
    device: str  # cpu, cuda; auto until the plan is checked
    store: StoreSettings | None
    folder: Path
    upstream_modules: tuple[str, ...] = ()  # that put the upstream into s3prl.hub
    rerun_stale: bool = False  # True: results of other code or versions are not done
    needs: tuple[str, ...] = ()  # the command that makes the checkpoint, while it is not done

    @property
    def name(self) -> str:
        """Name for messages."""
        return f"{self.label}/{self.task} seed {self.seed}"

    @property
    def is_open(self) -> bool:
        """True while the checkpoint is not made: then nobody knows whether the cell is done."""
        return bool(self.needs)

    def with_checkpoint(self) -> Cell:
        """Return the cell once its checkpoint is made."""
        assert self.checkpoint is not None
        return replace(self, checkpoint_sha256=sha256(self.checkpoint), needs=())

    @property
    def results_file(self) -> Path:
        """The cell's number. With one fold, this is the fold's results file."""
        return self.folder / "results.json"

    @property
    def folds(self) -> list[Fold]:
        """Folds in the order of their configurations."""
        names = [str(dict(flat_keys(config))[FOLD]) for config in self.configs] if len(self.configs) > 1 else [""]
        found = zip(names, self.configs, self.contents, strict=True)
        return [Fold(self, name, config, contents) for name, config, contents in found]

    @property
    def trainings(self) -> list[Training]:
        """Trainings of all folds, fold by fold."""
        return [training for fold in self.folds for training in fold.trainings]


@dataclass(frozen=True)
class Fold:
    """Part of a cell that ends in one test: a fold of emotion recognition, or the whole of any other task."""

    cell: Cell
    key: str  # s3prl's name of the fold; "" if the cell has only one
    config: dict[str, Any]  # s3prl's, resolved
    contents: dict[str, Any]  # of the corpus

    @property
    def name(self) -> str:
        """Name for messages."""
        return f"{self.cell.name} {self.key}".rstrip()

    @property
    def folder(self) -> Path:
        """The cell's folder, or a folder below it if the cell has several folds."""
        return self.cell.folder / self.key

    @property
    def results_file(self) -> Path:
        """Exists, with this identity, if and only if the fold is done."""
        return self.folder / "results.json"

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the fold's number depends on; see runners.matrix.identity. JSON values only."""
        cell = self.cell
        identity: dict[str, Any] = {
            "upstream": cell.upstream,
            "checkpoint_sha256": cell.checkpoint_sha256,
            "task": cell.task,
            "seed": cell.seed,
            "config": portable(cell.task, self.config),
            "corpus": self.contents,
            "corpus_sha256": short(self.contents),
            "code": cell.code,
            "versions": cell.versions,
        }
        if cell.learning_rates:
            identity["learning_rates"] = list(cell.learning_rates)
        # Stored as fp16 or fp32, features give the same number as without a store, within its noise.
        if cell.store is not None and cell.store.dtype == "int8":
            identity["features"] = cell.store.dtype
        return identity

    @property
    def trainings(self) -> list[Training]:
        """One training for each learning rate that is tried, or one with the configuration's."""
        return [Training(self, rate) for rate in self.cell.learning_rates] or [Training(self, None)]


@dataclass(frozen=True)
class Training:
    """One training of a head."""

    fold: Fold
    tried_rate: float | None  # a learning rate that is tried; None: only the configuration's is used

    @property
    def cell(self) -> Cell:
        """The cell that the training belongs to."""
        return self.fold.cell

    @property
    def name(self) -> str:
        """Name for messages."""
        return self.fold.name if self.tried_rate is None else f"{self.fold.name} lr {self.tried_rate:g}"

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the stages that must be done before."""
        return self.cell.needs

    @property
    def config(self) -> dict[str, Any]:
        """s3prl's resolved configuration, with this training's learning rate."""
        config = self.fold.config
        if self.tried_rate is None:
            return config
        return config | {"optimizer": config["optimizer"] | {"lr": self.tried_rate}}

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the head's weights depend on, which excludes the other learning rates that are tried."""
        rest = {key: value for key, value in self.fold.identity.items() if key != "learning_rates"}
        return rest | {"config": portable(self.cell.task, self.config)}

    @property
    def folder(self) -> Path:
        """The fold's folder, or a folder below it if learning rates are tried."""
        return self.fold.folder if self.tried_rate is None else self.fold.folder / f"lr{self.tried_rate:g}"

    @property
    def expdir(self) -> Path:
        """s3prl's folder of the experiment."""
        return self.folder / "expdir"

    @property
    def log_file(self) -> Path:
        """Output of s3prl, and the traceback of a failure."""
        return self.folder / "log.txt"

    @property
    def progress_file(self) -> Path:
        """Step of the training, rewritten every second or two while it runs."""
        return self.folder / "progress.json"

    @property
    def started_file(self) -> Path:
        """Identity of the training whose checkpoints are in `expdir`."""
        return self.folder / "cell.json"

    @property
    def trained_file(self) -> Path:
        """Exists, with this identity, if and only if the head is trained. It may not be tested yet."""
        return self.folder / "trained.json"


def finished(fold: Fold) -> dict[str, Any] | None:
    """Return the results of a fold that is done; None if there are none, or if they are of another experiment.

    Results that other code or other versions have computed count, unless the cell asks for its stale results to be
    computed again. Of several folds they count only if all are by the same code and versions: a mean never mixes them.
    """
    if fold.cell.is_open:
        return None
    results = _of_experiment(fold)
    if results is None or same_origin(results["identity"], fold.identity):
        return results
    others = [_of_experiment(other) for other in fold.cell.folds]
    alike = all(other and same_origin(other["identity"], results["identity"]) for other in others)
    return results if alike and not fold.cell.rerun_stale else None


def _of_experiment(fold: Fold) -> dict[str, Any] | None:
    results = read_json(fold.results_file)
    return results if results and same_experiment(results.get("identity", {}), fold.identity) else None


def trained(training: Training) -> dict[str, Any] | None:
    """Return the content of `trained.json`; None if the training is not done, or if the file is stale."""
    content = read_json(training.trained_file)
    if not content or content.get("identity") != training.identity:
        return None
    return content if (training.expdir / content["tested"]).exists() else None
