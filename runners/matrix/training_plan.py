"""How a matrix makes the checkpoints of its rows: the key `training` of its file.

```yaml
training:                                # without this key, every checkpoint must exist
  manifest: manifest/train.tsv           # of the training audio, relative to the corpora (default), ...
  audio: LibriSpeech                     # ... or list the audio below this folder of the corpora first, ...
  match: ^train-                         # ... of the paths in which this regular expression is found
  processes: 1                           # of each training; on cuda, each has its own GPU
  pretrain: {iterations.0.steps: 2000}   # changes to the recipe of every pre-training, by dotted keys
  quantize: {steps: 400}                 # changes to the settings of every distillation, by dotted keys
  schedules: {w1a1: [w1a32]}             # bit widths between full precision and those of a row; default: none
```

A row `<model>_<bits>` needs a pre-training by the recipe `<model>`, or by its own key `recipe`, and distillations to
the bit widths of its schedule (its own key `schedule`, or that of `schedules`) and to `<bits>`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from upstreams.config import from_dict
from upstreams.errors import UserError, shown
from upstreams.quantization.spec import FLOAT, Bits


@dataclass(frozen=True)
class TrainingPlan:
    """What the trainings of a matrix have in common."""

    manifest: str = "manifest/train.tsv"
    audio: str = ""
    match: str = ""
    processes: int = 1
    pretrain: dict[str, Any] = field(default_factory=dict)
    quantize: dict[str, Any] = field(default_factory=dict)
    schedules: dict[str, Any] = field(default_factory=dict)


def read_training_plan(content: Any, where: str) -> TrainingPlan:
    """Return the plan in the value of the key `training`. Raises UserError on an unknown key and on a bad value."""
    plan = from_dict(TrainingPlan, content, f"{where}: training")
    if plan.processes < 1:
        raise UserError(f"{where}: training.processes must be 1 or more, not {plan.processes}")
    if plan.match and not plan.audio:
        raise UserError(f"{where}: training.match chooses files below training.audio, which is not set")
    for bits, before in plan.schedules.items():
        Bits.parse(str(bits))
        check_schedule(before, f"{where}: training.schedules.{bits}")
    return plan


def check_schedule(bits: Any, where: str) -> tuple[str, ...]:
    """Return the bit widths of a list in a matrix file. Raises UserError if it is none, or names no bit widths."""
    if not isinstance(bits, list):
        raise UserError(f"{where} must be a list of bit widths such as [w1a32], not {shown(bits)}")
    for width in bits:
        if Bits.parse(str(width)) == FLOAT:
            raise UserError(f"{where} names w32a32, which every schedule starts from: leave it out")
    return tuple(bits)


def as_settings(changes: Mapping[str, Any]) -> list[str]:
    """Return changes by dotted keys as the command line has them: KEY=VALUE, with a VALUE that is JSON and so YAML."""
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


def set_options(settings: Iterable[str]) -> list[str]:
    """Return the options `--set` of settings."""
    return [argument for setting in settings for argument in ("--set", setting)]
