"""Run by a process of its own: how often the host waits for a device in a training step.

The device is imagined: its tensors compute on the CPU, but report another device, and every operation for which the
host would wait is counted.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from pretrain.audio.manifest import Manifest
from pretrain.objectives.distillation import DistillationTask
from pretrain.objectives.hubert import HubertPretraining, Objective
from pretrain.objectives.masked_prediction import MaskedPrediction
from pretrain.objectives.task import AudioTask
from pretrain.training import loop, state
from pretrain.training.settings import TrainingSettings
from tests.pretrain.students import student_and_teacher
from tests.pretrain.tiny_audio import write_corpus
from upstreams.config import preset
from upstreams.model import AudioEncoder

DEVICE = "meta"  # autograd takes its tensors without a device of that kind
# The host reads a value, or needs one to know the shape of the result.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "is_nonzero", "equal", "item")
waits: list[tuple[str, str]] = []  # phase and operation
phase = ["before"]


class OnDevice(torch.Tensor):
    """A tensor whose values are on the imagined device."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        found = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=DEVICE
        )
        found.inner = inner
        return found

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Factories(TorchDispatchMode):
    """Makes tensors that are created on the imagined device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute on the CPU; note if the host would wait."""
    wrappers: dict[int, OnDevice] = {}
    has_cpu = []

    def unwrap(value: Any) -> Any:
        if isinstance(value, OnDevice):
            wrappers[id(value.inner)] = value
            return value.inner
        if isinstance(value, Tensor) and value.ndim:
            has_cpu.append(value)
        return value

    args, kwargs = tree_map(unwrap, args), tree_map(unwrap, kwargs)
    name, target = func._overloadpacket.__name__, kwargs.get("device")
    there = bool(wrappers) if target is None else torch.device(target).type == DEVICE
    if name == "_to_copy" and target is not None and there != bool(wrappers):
        if not (there and kwargs.get("non_blocking")):
            waits.append((phase[0], f"copy to {target}"))
    elif wrappers and (
        name in WAITING
        or (name == "copy_" and has_cpu)
        or (name in ("index", "index_put_", "_index_put_impl_") and _has_mask(args[1]))
        or (name == "repeat_interleave" and func._overloadname == "Tensor")
    ):
        waits.append((phase[0], name))
    if target is not None:
        kwargs["device"] = torch.device("cpu")
    result = func(*args, **kwargs)

    def wrap(value: Any) -> Any:
        if not isinstance(value, Tensor) or not there:
            return value
        return wrappers[id(value)] if id(value) in wrappers else OnDevice(value)

    return tree_map(wrap, result)


def _has_mask(indices: Any) -> bool:
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


def train(name: str, folder: Path, steps: int) -> dict[str, int]:
    """Train a small model of an encoder; return how often the host waited in each step."""
    config = preset(name)
    layers = {"layers": 3, "reduce": 1, "recover": 2} if config.encoder.kind == "squeezeformer" else {"layers": 2}
    small = replace(config.encoder, **layers)  # type: ignore[arg-type]
    front_end = replace(config.front_end, width=16) if config.front_end.kind == "waveform" else config.front_end
    model = AudioEncoder(replace(config, encoder=small, front_end=front_end))
    module = HubertPretraining(model, 8, Objective(utterance_layer=1)).train()
    settings = TrainingSettings(
        batch_seconds=6, micro_batch_seconds=3, crop_seconds=1.0, save_every=1000, ema=0.9, max_skipped=3
    )
    manifest = Manifest.read(folder / "train.tsv")
    MaskedPrediction.read_labels = lambda self, path, manifest: [np.arange(300) % 8] * len(manifest)  # type: ignore[method-assign, assignment, return-value]
    task = MaskedPrediction(module, settings, manifest, folder, views=2, steps=steps, seed=0)
    return waits_of(task, folder / name, module)


def distil(folder: Path, steps: int) -> dict[str, int]:
    """Train a 1-bit student; return how often the host waited in each step."""
    student, teacher, _ = student_and_teacher("w1a1")
    settings = TrainingSettings(batch_seconds=6, micro_batch_seconds=3, crop_seconds=1.0, save_every=1000)
    manifest = Manifest.read(folder / "train.tsv")
    task = DistillationTask(student.train(), teacher, settings, manifest, steps=steps, seed=0)
    return waits_of(task, folder / "distillation", student, teacher)


def waits_of(task: AudioTask[Any], folder: Path, *modules: nn.Module) -> dict[str, int]:
    """Train on the imagined device; return how often the host waited in each step but the first."""
    waits.clear()
    for module in modules:
        module._apply(OnDevice)
    with Factories():
        task.train(folder, title=folder.name)
    return {f"step{number}": sum(where == f"step{number}" for where, _ in waits) for number in range(1, task.steps)}


def noted(method: Any) -> Any:
    """Return the method, which notes the number of the step that is queued."""

    def call(self: Any, *args: Any) -> Any:
        phase[0] = f"step{self.step}"
        return method(self, *args)

    return call


def check_the_count() -> None:
    """Raise AssertionError if a way to wait for the device is not counted."""
    x = OnDevice(torch.arange(3.0))
    for wait in (
        *(lambda: float(x.sum()), lambda: bool(x[0] > 1), lambda: x[x > 0], lambda: x.nonzero(), lambda: x.cpu()),
        *(lambda: x.copy_(torch.ones(3)), lambda: torch.bincount(x.long())),
    ):
        waits.clear()
        wait()
        assert waits, f"operation {wait.__code__.co_firstlineno} is not counted"


def main(folder: Path, names: list[str]) -> None:
    """Exit with 0 if the host waits at most once in each step."""
    optimizer._get_fused_kernels_supported_devices = lambda: [DEVICE]  # type: ignore[assignment]
    Tensor.pin_memory = lambda self: self  # type: ignore[method-assign, assignment]
    torch.autocast = torch.amp.autocast = lambda *args, **kwargs: __import__("contextlib").nullcontext()  # type: ignore[misc, assignment]
    state.States.write = lambda *args: None  # type: ignore[method-assign, assignment]
    with Factories():
        check_the_count()
    write_corpus(folder, utterances=12)
    for method in ("compute_gradients", "update", "fetch", "read"):
        setattr(loop._Run, method, noted(getattr(loop._Run, method)))
    for name in (*names, "distillation"):
        counts = distil(folder, 4) if name == "distillation" else train(name, folder, 4)
        assert max(counts.values()) <= 1, f"{name}: the host waits {waits}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
