"""`superbit quantize`: BiT's multi-distillation (arXiv 2205.13016, section 3.4): each student is the next teacher."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pretrain.audio.manifest import Manifest
from pretrain.objectives.distillation import DistillationTask, ModelWithHead, load_with_head
from pretrain.recipes import read_values, with_settings
from pretrain.training import distributed
from pretrain.training.calibration import calibrate_on_longest, calibration_batches
from pretrain.training.monitor import warn_of_smallest_scales
from pretrain.training.provenance import (
    Provenance,
    describe,
    micro_batches_of_run,
    note_on_processes,
    read_run_config,
    with_stored_micro_batches,
    write_run_config,
)
from pretrain.training.settings import TrainingSettings
from pretrain.training.state import States
from upstreams.config import QuantizationConfig, from_dict, preset
from upstreams.errors import UserError
from upstreams.files import sha256
from upstreams.formats import checkpoint
from upstreams.model import AudioEncoder
from upstreams.quantization.convert import inherit, quantize, summary
from upstreams.quantization.spec import FLOAT, Bits

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DistillationSettings(TrainingSettings):
    """Settings of every distillation step: the defaults, or a recipe's YAML file."""

    model: str = ""  # the preset that a recipe is made for; empty: any
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    steps: int = 120  # 0: calibrate the scales and train nothing
    lr: float = 1e-3
    matrix_lr: float = 5e-3
    weight_decay: float = 0.0


def read_distillation_settings(
    path: Path | None, steps: int | None = None, changes: Sequence[str] = ()
) -> DistillationSettings:
    """Return the recipe in a YAML file, or the defaults without a file; `steps` replaces the recipe's steps.

    changes: KEY=VALUE with dotted keys, such as lr=0.002. Raises UserError if there is no such file, and on unknown
    keys and bad values.
    """
    settings = _read_recipe(path, changes)
    return settings if steps is None else dataclasses.replace(settings, steps=steps)


def read_schedule(schedule: str | None, bits: str) -> list[str]:
    """Return the bit widths of all distillation steps, `bits` last, from a list separated by commas or None.

    Raises UserError if the list does not end at `bits`.
    """
    steps = schedule.split(",") if schedule else [bits]
    if steps[-1] != bits:
        raise UserError(f"--schedule {schedule} ends at {steps[-1]}, but --bits is {bits}")
    return steps


def _read_recipe(path: Path | None, changes: Sequence[str]) -> DistillationSettings:
    if path is not None and not path.is_file():
        raise UserError(f"no distillation recipe at {path}: a YAML file is expected")
    where = "the settings of distillation" if path is None else f"recipe {path}"
    values = {} if path is None else read_values(path, where) or {}
    settings = from_dict(DistillationSettings, with_settings(values, changes), where)
    settings.check(where)
    if settings.steps < 0:
        raise UserError(f"steps is {settings.steps} in {where}, but must be 0 (calibrate only) or more")
    return settings


def quantize_checkpoint(
    teacher_path: Path,
    schedule: list[str],
    *,
    manifest_path: Path,
    out: Path,
    seed: int,
    settings: DistillationSettings,
) -> Path:
    """Distil a checkpoint through `schedule` (bit widths such as w1a32, w1a1); return the last checkpoint.

    Every step writes OUT/checkpoints/<model>_<bits>.safetensors. A finished step is skipped, an interrupted one
    resumes. Raises UserError if the teacher has no pre-training head or another architecture than the recipe's model,
    and on invalid bits and overrides.
    """
    for bits in schedule:
        if Bits.parse(bits) == FLOAT:
            raise UserError("w32a32 in a schedule is the teacher itself: name the bits to distil to, such as w1a1")
    if not schedule:
        raise UserError("the schedule names no bits: give at least one, such as w1a1")
    device = distributed.initialize()
    manifest = Manifest.read(manifest_path)
    for bits in schedule:
        teacher_path = _distil(
            teacher_path, bits, manifest=manifest, out=out, seed=seed, settings=settings, device=device
        )
    return teacher_path


def start_student(teacher: ModelWithHead, bits: str, settings: DistillationSettings) -> tuple[ModelWithHead, list[str]]:
    """Return a quantized copy of the teacher, its new scales not yet calibrated, and the lines of a summary.

    Raises UserError on an override that matches no module, and if the recipe is for another architecture.
    """
    config = teacher.model.config
    if settings.model:
        wanted = preset(settings.model)
        if (config.encoder, config.front_end) != (wanted.encoder, wanted.front_end):
            raise UserError(
                f"teacher {config.name} has another architecture than {settings.model}, the model of the recipe"
            )
    model = AudioEncoder(config)
    sites = quantize(model, bits, settings.quantization)
    student = ModelWithHead(model, copy.deepcopy(teacher.head).requires_grad_(True))
    inherit(student, teacher)
    return student, summary(sites)


def _distil(
    teacher_path: Path,
    bits: str,
    *,
    manifest: Manifest,
    out: Path,
    seed: int,
    settings: DistillationSettings,
    device: torch.device,
) -> Path:
    """Run one step of the schedule; return its checkpoint."""
    teacher = load_with_head(teacher_path).eval().requires_grad_(False).to(device)
    name, hop = teacher.model.config.name, teacher.model.config.downsample_rate
    final, folder = out / "checkpoints" / f"{name}_{bits}.safetensors", out / "quantize" / f"{name}_{bits}"
    inputs = {"bits": bits, "seed": seed, "teacher_sha256": sha256(teacher_path)}
    provenance = Provenance("distillation", settings, {**inputs, "manifest": describe(manifest)})
    if distributed.agreed(provenance.is_of(final)):
        return final

    note_on_processes(settings, teacher.model.config, utterance_loss=False)
    torch.manual_seed(seed)
    student, changes = start_student(teacher, bits, settings)
    student.to(device)
    content = provenance.to_dict()
    if distributed.rank() == 0:
        for line in changes:
            _log.info("%s %s: %s", name, bits, line)
        saved = read_run_config(folder)
        if not provenance.matches(saved):
            States(folder).clear()  # of another teacher, seed, manifest or recipe
            saved = {}
        count = micro_batches_of_run(settings, saved)
        write_run_config(folder, content | {"micro_batches": count})
        statistics = [(w.to(device), n.to(device)) for w, n in calibration_batches(manifest, settings, hop, seed)]
        calibrate_on_longest(student.model, statistics)
    distributed.broadcast_module(student)
    student.train()
    fixed = with_stored_micro_batches(settings, folder)
    task = DistillationTask(student, teacher, fixed, manifest, steps=settings.steps, seed=seed)
    task.train(folder, title=f"{name} {bits}")
    student.eval()
    if distributed.rank() == 0:
        student.model.fit_output(statistics)
        warn_of_smallest_scales(student.model, f"{name} {bits}")
        checkpoint.save(final, student.model, student.head, {**content, "stage": "distilled"})
    distributed.barrier()
    return final
