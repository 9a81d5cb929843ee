"""Provenance of a training: what it is made from, and whether files of an earlier run were made from the same."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from pretrain.audio.manifest import Manifest
from pretrain.training import distributed
from pretrain.training.settings import TrainingSettings
from upstreams.config import ModelConfig, from_dict
from upstreams.errors import UserError, shown
from upstreams.files import read_record, write_json
from upstreams.formats import checkpoint
from upstreams.machine import device_name, machine
from upstreams.versions import versions

RUN_CONFIG = "config.json"  # the provenance in a run's folder

# Settings that a run may change when it resumes: they change no weight, or only how a step is computed, so that a run
# can go on after it ran out of memory.
MAY_CHANGE = (
    *("workers", "save_every", "save_minutes", "keep", "max_skipped", "source", "expected"),
    *("micro_batch_seconds", "compile", "checkpointing"),
)

_log = logging.getLogger(__name__)

Settings = TypeVar("Settings", bound=TrainingSettings)


@dataclass(frozen=True)
class Provenance:
    """The settings of a training and its inputs.

    key: name of the settings in JSON. inputs: seed, data and other values that fix the result, as JSON has them.
    """

    key: str
    settings: TrainingSettings
    inputs: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the contents for config.json and for a checkpoint, with the versions and the machine that compute."""
        computed_on = {"machine": machine(), "device": device_name("cuda" if torch.cuda.is_available() else "cpu")}
        return {self.key: dataclasses.asdict(self.settings), **self.inputs, **versions(), **computed_on}

    def matches(self, saved: dict[str, Any]) -> bool:
        """True if `saved`, the dictionary of an earlier run, has the same inputs and the same settings."""
        return same_settings(saved.get(self.key), self.settings) and all(
            saved.get(key) == value for key, value in self.inputs.items()
        )

    def is_of(self, path: Path) -> bool:
        """True if the checkpoint exists and has this provenance, so that the training is finished."""
        return path.is_file() and self.matches(checkpoint.read(path)[2])


def describe(manifest: Manifest) -> dict[str, Any]:
    """Return what identifies a manifest in a provenance."""
    return {"utterances": len(manifest), "hours": round(manifest.hours, 4)}


def same_settings(saved: Any, settings: TrainingSettings) -> bool:
    """True if the saved settings equal these; missing keys take defaults, settings that may change are ignored."""
    try:
        before = from_dict(type(settings), saved, "saved settings")
    except UserError:
        return False
    ignored = {key: getattr(settings, key) for key in MAY_CHANGE if hasattr(settings, key)}
    return dataclasses.replace(before, **ignored) == settings


def read_run_config(folder: Path) -> dict[str, Any]:
    """Return the contents of a run folder's config.json; empty if there is none. Raises UserError if it is damaged."""
    remedy = f"move {folder} away, or train into another folder"
    content = read_record(folder / RUN_CONFIG, remedy)
    count = content.get("micro_batches", 1)
    if type(count) is not int or count < 1:
        raise UserError(f"{folder / RUN_CONFIG} is damaged: micro_batches is {shown(count)}, no whole number; {remedy}")
    return content


def write_run_config(folder: Path, content: dict[str, Any]) -> None:
    """Write a run folder's config.json."""
    write_json(folder / RUN_CONFIG, content)


def micro_batches_of_run(settings: TrainingSettings, saved: dict[str, Any]) -> int:
    """Return the number of micro-batches of a run that resumes. saved: the contents of its config.json, if any.

    If the settings leave the number to the world size, it is the stored one, so that a run that resumes with another
    world size trains on the same micro-batches. Otherwise it is that of `settings`.
    """
    return (
        settings.micro_batches if settings.micro_batch_seconds else saved.get("micro_batches", settings.micro_batches)
    )


def note_on_processes(settings: TrainingSettings, config: ModelConfig, *, utterance_loss: bool) -> None:
    """Log on rank 0 what the number of processes changes in the result, if micro_batch_seconds leaves it open."""
    parts = ["the negatives of the utterance loss"] if utterance_loss else []
    parts += ["the statistics of batch normalisation"] if config.encoder.kind in ("conformer", "squeezeformer") else []
    if settings.micro_batch_seconds or not parts or distributed.rank():
        return
    _log.info(
        "micro_batch_seconds is 0, so a micro-batch holds batch_seconds / processes = %g s of audio: the number of "
        "processes at the start of the run changes %s; set micro_batch_seconds to fix them",
        settings.seconds_per_micro_batch,
        " and ".join(parts),
    )


def with_stored_micro_batches(settings: Settings, folder: Path) -> Settings:
    """Return `settings` with the number of micro-batches of the run in that folder, see `micro_batches_of_run`."""
    count = int(distributed.broadcast(str(micro_batches_of_run(settings, read_run_config(folder)))))
    return dataclasses.replace(settings, micro_batch_seconds=settings.batch_seconds / count)
