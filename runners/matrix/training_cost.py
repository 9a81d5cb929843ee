"""What trainings of a matrix take: multiply-accumulates, memory and disk, from the configuration of the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from runners.matrix.command import Command, Size
from runners.matrix.engines.work import Resources
from runners.matrix.estimate import GPU_MACS, PROCESS_BYTES, machine_macs, shape
from upstreams.files import read_json

if TYPE_CHECKING:
    from pretrain.recipes import Recipe
    from pretrain.training.settings import TrainingSettings
    from upstreams.config import ModelConfig

FORWARD_AND_BACKWARD = 3  # times the multiply-accumulates of a forward pass
TRAINED_WEIGHT = 4  # times a weight: itself, the optimizer's two moments, and the moving average
CPU_EFFICIENCY = 0.3  # fraction of the speed of a large matrix product
# Seconds for a unit of what is no training, on one core: audio (labels, manifest) and models (pack, measure).
SECONDS = {"manifest": 1e-4, "labels": 0.006, "pack": 10.0, "measure": 1.0}


_bytes: dict[str, tuple[float, float]] = {}  # of weights and of a second's activations, by configuration


def _required(config: ModelConfig, settings: TrainingSettings) -> tuple[float, float]:
    from pretrain.training.memory import required_bytes

    key = f"{config!r} {settings.crop_seconds} {settings.checkpointing}"
    if key not in _bytes:
        _bytes[key] = required_bytes(config, settings.crop_seconds, settings.checkpointing)
    return _bytes[key]


def training_resources(config: ModelConfig, settings: TrainingSettings, processes: int, *, on_gpu: bool) -> Resources:
    """Return what a training needs; on a GPU, the memory is the machine's, not the GPU's."""
    memory = processes * PROCESS_BYTES * (3 if on_gpu else 1)
    if not on_gpu:
        weights, per_second = _required(config, settings)
        seconds = settings.micro_batch_seconds or settings.batch_seconds / processes
        memory += processes * (weights + per_second * seconds)
    return Resources(memory=int(memory), processes=processes, gpus=processes if on_gpu else 0)


def pretraining_size(recipe: Recipe, number: int) -> Size:
    """Return the size of iteration `number`, counted from 1; 0: of the recipe's teacher alone."""
    weights = TRAINED_WEIGHT * shape(recipe.config).weight_bytes
    steps = recipe.iterations[number - 1].steps if number else 0
    if number in (0, len(recipe.iterations)):
        steps += recipe.teacher.steps if recipe.teacher.name else 0
    macs = FORWARD_AND_BACKWARD * steps * recipe.batch_seconds * shape(recipe.config).macs_per_second
    return Size(
        kind="pretrain", model=recipe.name, units=macs, steps=steps, disk_bytes=int(weights * (recipe.keep + 1))
    )


def distillation_size(config: ModelConfig, settings: TrainingSettings, steps: int) -> Size:
    """Return the size of a distillation, in which the teacher computes a forward pass."""
    weights = TRAINED_WEIGHT * shape(config).weight_bytes
    macs = (FORWARD_AND_BACKWARD + 1) * steps * settings.batch_seconds * shape(config).macs_per_second
    return Size(
        kind="quantize", model=config.name, units=macs, steps=steps, disk_bytes=int(weights * (settings.keep + 1))
    )


class CommandTimes:
    """Expected seconds of commands, from those that a runs folder has recorded."""

    def __init__(self, out: Path) -> None:
        self._measured: dict[tuple[str, str], list[float]] = {}
        for file in sorted(out.glob("stages/*/made.json")):
            for part in (read_json(file) or {}).get("parts", {}).values():
                self._add(part)

    def _add(self, part: Mapping[str, object]) -> None:
        size, seconds = part.get("size"), part.get("seconds")
        if isinstance(size, dict) and isinstance(seconds, float) and size["units"]:
            self._measured.setdefault((size["kind"], size["model"]), []).append(seconds / size["units"])

    def __call__(self, command: Command) -> tuple[float | None, str]:
        """Return the seconds of a command, None if its data is not there yet, and where they are from."""
        size = command.size
        if measured := self._measured.get((size.kind, size.model)):
            return size.units * sorted(measured)[len(measured) // 2], "measured"
        if size.kind in SECONDS:
            return (size.units * SECONDS[size.kind] if size.units else None), "audio"
        each = GPU_MACS if command.resources.gpus else machine_macs() * CPU_EFFICIENCY
        return size.units / (each * command.resources.processes), "FLOPs"
