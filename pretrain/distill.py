"""`superbit quantize`: BiT's multi-distillation (arXiv 2205.13016, section 3.4): each student is the next teacher."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from tqdm import tqdm

from pretrain.audio.data import Batch, BatchOrder, Crops, loader
from pretrain.audio.manifest import Manifest
from pretrain.objectives.hubert import CodewordHead, LinearHead, build_head
from pretrain.pretraining import calibration_batches, is_finished, same_settings
from pretrain.training import distributed
from pretrain.training.loop import Training, compile_blocks, fit, optimizers, settled
from pretrain.training.monitor import SignFlips, scales
from pretrain.training.state import States
from pretrain.training.throughput import step_flops
from upstreams.config import SAMPLE_RATE, QuantizationConfig, from_dict, preset
from upstreams.errors import UserError
from upstreams.files import atomic_write, sha256
from upstreams.formats import checkpoint
from upstreams.frontend import padding_mask
from upstreams.model import AudioEncoder
from upstreams.quantization.convert import calibrate, inherit, quantize, summary
from upstreams.quantization.spec import FLOAT, Bits
from upstreams.versions import versions


@dataclass(frozen=True, kw_only=True)
class Distillation(Training):
    """What each step of the schedule is trained with: the defaults, or a recipe's YAML file."""

    model: str = ""  # the preset that a recipe is made for; any when empty
    quantization: QuantizationConfig = field(default_factory=QuantizationConfig)
    steps: int = 120  # 0: the scales are calibrated and nothing is trained
    lr: float = 1e-3
    matrix_lr: float = 5e-3
    weight_decay: float = 0.0


class Student(nn.Module):
    """A quantized model with the teacher's head, compared with its teacher frame by frame."""

    def __init__(self, model: AudioEncoder, head: CodewordHead | LinearHead) -> None:
        super().__init__()
        self.model = model
        self.head = head

    def forward(self, teacher: Student, batch: Batch, total: float | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum over hidden states of the mean squared error, plus soft cross-entropy of the codewords' logits.

        The hidden states are mapped as the teacher exports them (standardised, decorrelated), so that layers weigh
        alike and an error of 1 is that of a constant. Padded frames take no part. Means are over `total` frames, those
        of the batch when None: of several batches with their common total they add up.
        """
        with torch.no_grad():
            wanted = teacher.model(batch.waveforms, batch.lengths)
            target = teacher.head(wanted[-1]).softmax(-1)
        states = self.model(batch.waveforms, batch.lengths)
        frames = self.model.frame_count(batch.lengths)
        valid = ~padding_mask(frames, states[0].shape[1])
        share = 1.0 if total is None else frames.sum() / total
        errors = [(ours - theirs)[valid].square().mean() * share for ours, theirs in zip(states, wanted, strict=True)]
        logits = self.head(states[-1]).log_softmax(-1)
        cross_entropy = -(target * logits).sum(-1)[valid].mean() * share
        # The teacher's own entropy is no one's fault: what is left is the divergence from the teacher.
        entropy = -(target * target.clamp_min(1e-9).log()).sum(-1)[valid].mean() * share
        loss = torch.stack(errors).sum() + cross_entropy
        scalars = {
            "divergence": (cross_entropy - entropy).detach(),
            "hidden_error": torch.stack(errors).mean().detach(),
        }
        return loss, scalars | {f"hidden_error_layer/{k}": error.detach() for k, error in enumerate(errors)}


@dataclass
class Distilling:
    """Distillation as the trainer wants it."""

    module: Student
    teacher: Student
    manifest: Manifest
    settings: Distillation
    seed: int

    def __post_init__(self) -> None:
        settings, config = self.settings, self.module.model.config
        hop = config.downsample_rate
        self.crops = Crops(self.manifest, None, hop)
        self.order = BatchOrder(self.manifest, hop, settings.seconds_at_once, settings.crop_seconds, self.seed)
        self.flips = SignFlips(self.module.model)
        self.flipped: dict[str, Tensor] = {}
        self.flops = step_flops(self.module.model, int(settings.crop_seconds * SAMPLE_RATE))
        compile_blocks(self.module.model.encoder.blocks, settings)

    def batches(self, first: int) -> Iterable[Batch]:
        """This process's micro-batches, from step `first` on."""
        settings = self.settings
        count, workers = settings.micro_batches, settings.workers
        share = distributed.share(count)
        return loader(self.crops, self.order, first, settings.steps, micro_batches=count, share=share, workers=workers)

    def prepare(self, batch: Batch, number: int) -> tuple[Batch, Tensor]:
        """The batch and its frames."""
        if number % self.settings.micro_batches == distributed.rank():
            self.flipped = self.flips()  # by the step before
        return batch, self.module.model.frame_count(batch.lengths).sum().double()[None]

    def loss(self, prepared: Batch, totals: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A micro-batch's part of the step's loss."""
        device = next(self.module.parameters()).device
        return self.module(self.teacher, prepared.to(device), float(totals[0]))

    def work(self, prepared: Batch) -> tuple[float, float]:
        """Seconds of audio and the FLOPs of training on them; the teacher's are not counted."""
        lengths = prepared.lengths.tolist()
        return sum(lengths) / SAMPLE_RATE, self.flops(lengths)

    def summary(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """Losses, the quantizers' scales, and how many signs the step before has flipped."""
        values = {**sums, **scales(self.module.model), **self.flipped}
        return {name: float(value) for name, value in values.items()}


def read_distillation(path: Path) -> Distillation:
    """The recipe in a YAML file. Raises UserError when there is none, on unknown keys and on bad values."""
    if not path.is_file():
        raise UserError(f"there is no distillation recipe at {path}: a YAML file is expected")
    try:
        settings = from_dict(Distillation, yaml.safe_load(path.read_text(encoding="utf-8")) or {}, f"recipe {path}")
    except yaml.YAMLError as error:
        raise UserError(f"recipe {path} is no valid YAML: {error}") from error
    settings.check(f"recipe {path}")
    if settings.steps < 0:
        raise UserError(f"steps is {settings.steps} in recipe {path}, but must be 0 (calibration alone) or more")
    return settings


def quantize_checkpoint(
    teacher_path: Path, schedule: list[str], manifest_path: Path, out: Path, seed: int, settings: Distillation
) -> Path:
    """Distil a checkpoint through `schedule` (such as w1a32, w1a1); return the last one's checkpoint.

    Every step writes OUT/checkpoints/<model>_<bits>.safetensors and is skipped when that is done
    already; a step that was interrupted goes on. Raises UserError when the teacher was not
    pre-trained, or is of another architecture than the recipe is for, and on invalid bits and overrides.
    """
    for bits in schedule:
        if Bits.parse(bits) == FLOAT:
            raise UserError("w32a32 in a schedule is the teacher itself: name the bits to distil to, such as w1a1")
    if not schedule:
        raise UserError("the schedule names no bits: give at least one, such as w1a1")
    device = distributed.join()
    manifest = Manifest.read(manifest_path)
    for bits in schedule:
        teacher_path = _distil(teacher_path, bits, manifest, out, seed, settings, device)
    return teacher_path


def load_with_head(path: Path) -> Student:
    """A checkpoint's model and pre-training head. Raises UserError when it has no head."""
    config, tensors, _ = checkpoint.read(path)
    model = checkpoint.build(config)
    checkpoint.fill(model, tensors, "model.", path)
    if "head.codewords" in tensors:
        head = build_head("cosine", config.encoder.dim, *tensors["head.codewords"].shape)
    elif "head.weight" in tensors:
        head = build_head("linear", config.encoder.dim, len(tensors["head.weight"]))
    else:
        raise UserError(f"{path} has no pre-training head: distillation needs a checkpoint of `superbit pretrain`")
    checkpoint.fill(head, tensors, "head.", path)
    return Student(model, head)


def start_student(teacher: Student, bits: str, settings: Distillation) -> tuple[Student, list[str]]:
    """The teacher's copy in other bits, its new scales not yet calibrated, and what became what, in lines.

    Raises UserError on an override that matches no module, and when the recipe is for another architecture.
    """
    config = teacher.model.config
    if settings.model:
        wanted = preset(settings.model)
        if (config.encoder, config.front_end) != (wanted.encoder, wanted.front_end):
            raise UserError(f"the teacher {config.name} is of another architecture than the recipe's {settings.model}")
    model = AudioEncoder(config)
    sites = quantize(model, bits, settings.quantization)
    student = Student(model, copy.deepcopy(teacher.head).requires_grad_(True))
    inherit(student, teacher)
    return student, summary(sites)


def _distil(
    teacher_path: Path,
    bits: str,
    manifest: Manifest,
    out: Path,
    seed: int,
    settings: Distillation,
    device: torch.device,
) -> Path:
    """One step of the schedule."""
    teacher = load_with_head(teacher_path).eval().requires_grad_(False).to(device)
    name, hop = teacher.model.config.name, teacher.model.config.downsample_rate
    final, run = out / "checkpoints" / f"{name}_{bits}.safetensors", out / "quantize" / f"{name}_{bits}"
    about = {
        "distillation": dataclasses.asdict(settings),
        "bits": bits,
        "seed": seed,
        "teacher_sha256": sha256(teacher_path),
        "manifest": {"utterances": len(manifest), "hours": round(manifest.hours, 4)},
        **versions(),
    }
    keys = ("seed", "teacher_sha256", "manifest")
    if is_finished(final, about, keys, settings, "distillation"):
        return final

    torch.manual_seed(seed)
    student, changes = start_student(teacher, bits, settings)
    student.to(device)
    if distributed.rank() == 0:
        tqdm.write("\n".join(f"{name} {bits}: {line}" for line in changes))
        _start_anew_if_changed(run, about, keys, settings)
    distributed.wait()
    statistics = [(w.to(device), n.to(device)) for w, n in calibration_batches(manifest, settings, hop, seed)]
    # Of the batches the one of the longest crops: one utterance or more without padding.
    calibrate(student.model, *max(statistics, key=lambda batch: batch[0].shape[1]))
    settings = settled(settings, run / "config.json")
    student.train()
    updates = optimizers(student, settings, student.model.encoder.blocks)
    task = Distilling(student, teacher, manifest, settings, seed)
    fit(task, updates, settings, settings.steps, run, seed=seed, title=f"{name} {bits}")
    student.eval()
    student.model.fit_output(statistics)
    if distributed.rank() == 0:
        checkpoint.save(final, student.model, student.head, {**about, "stage": "distilled"})
    distributed.wait()
    return final


def _start_anew_if_changed(run: Path, about: dict[str, Any], keys: tuple[str, ...], settings: Distillation) -> None:
    """Forget the state of an earlier run in this folder that had another teacher, seed, data or settings."""
    file = run / "config.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    same = same_settings(before.get("distillation"), settings) and all(before.get(k) == about[k] for k in keys)
    if not same:
        States(run).clear()
    about = about | {"micro_batches": (before if same else {}).get("micro_batches", settings.micro_batches)}
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
