"""Provenance of a training: what it is made from, and whether files of an earlier run were made from the same."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from pretrain.audio.manifest import Manifest
from pretrain.training import distributed
from pretrain.training.settings import TrainingSettings
from upstreams.config import from_dict
from upstreams.errors import UserError
from upstreams.files import write_json
from upstreams.formats import checkpoint
from upstreams.machine import device_name, machine
from upstreams.versions import versions

RUN_CONFIG = "config.json"  # the provenance in a run's folder

# Settings that change no weight.
WITHOUT_EFFECT = ("workers", "save_every", "keep", "max_skipped", "source", "expected")

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
    """True if the saved settings equal these; missing keys take defaults, settings without effect are ignored."""
    try:
        before = from_dict(type(settings), saved, "saved settings")
    except UserError:
        return False
    ignored = {key: getattr(settings, key) for key in WITHOUT_EFFECT if hasattr(settings, key)}
    return dataclasses.replace(before, **ignored) == settings


def read_run_config(folder: Path) -> dict[str, Any]:
    """Return the contents of a run folder's config.json; empty if there is none."""
    file = folder / RUN_CONFIG
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def write_run_config(folder: Path, content: dict[str, Any]) -> None:
    """Write a run folder's config.json."""
    write_json(folder / RUN_CONFIG, content)


def with_stored_micro_batches(settings: Settings, folder: Path) -> Settings:
    """Return `settings` with the number of micro-batches stored in the run folder's config.json.

    If the settings leave the number to the world size, a run that resumes with another world size so trains on the same
    micro-batches. Without a config.json the number is that of `settings`.
    """
    count = settings.micro_batches
    if not settings.micro_batch_seconds:
        count = read_run_config(folder).get("micro_batches", count)
    count = int(distributed.broadcast(str(count)))
    return dataclasses.replace(settings, micro_batch_seconds=settings.batch_seconds / count)
