"""Distillation from a teacher instead of another iteration: its layers are predicted from the student's last one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pretrain.audio.data import Batch, BatchOrder, Crops, loader
from pretrain.audio.manifest import Manifest
from pretrain.recipes import Recipe, Teacher
from pretrain.training import distributed
from pretrain.training.loop import compile_blocks, fit, optimizers
from pretrain.training.throughput import step_flops
from upstreams import registry
from upstreams.config import SAMPLE_RATE
from upstreams.errors import UserError, nearest
from upstreams.frontend import padding_mask
from upstreams.model import AudioEncoder
from upstreams.s3prl.expert import UpstreamExpert


def load_teacher(settings: Teacher, device: torch.device) -> nn.Module:
    """The teacher as s3prl's contract has it: a list of waveforms -> {"hidden_states": ...}; frozen.

    settings.name: a checkpoint file, a name of this project's whose checkpoint there is, or one of s3prl's upstreams.
    Raises UserError when it is none of these, or lacks one of the layers.
    """
    name = settings.name
    if Path(name).suffix == ".safetensors" or name in registry.names():
        path = Path(name) if Path(name).suffix == ".safetensors" else registry.checkpoint_path(name)
        teacher: nn.Module = UpstreamExpert(path)
    else:
        from upstreams.s3prl import compat as s3prl_compat  # noqa: F401  (lets s3prl import)

        import s3prl.hub  # isort: skip

        known = [n for n in dir(s3prl.hub) if not n.startswith("_") and callable(getattr(s3prl.hub, n))]
        if name not in known:
            raise UserError(f"no teacher is called {name!r}, in s3prl or here: {nearest(name, known)}")
        try:
            teacher = getattr(s3prl.hub, name)()
        except (OSError, RuntimeError, ImportError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"the teacher {name} of s3prl cannot be loaded: {reason}") from error
    teacher = teacher.to(device).eval().requires_grad_(False)
    states = _hidden_states(teacher, [torch.zeros(SAMPLE_RATE, device=device)])
    if not 0 <= min(settings.layers) <= max(settings.layers) < len(states):
        raise UserError(
            f"teacher.layers {list(settings.layers)} are not all among the hidden states of {name}, "
            f"0 to {len(states) - 1}"
        )
    return teacher


@torch.no_grad()
def _hidden_states(teacher: nn.Module, waveforms: list[Tensor]) -> list[Tensor]:
    return list(teacher(waveforms)["hidden_states"])


def at_rate(states: Tensor, frames: Tensor, own: Tensor) -> Tensor:
    """(batch, any, dim) of `own` (batch,) frames an utterance -> (batch, frames.max(), dim), each frame the nearest's.

    Frames of two rates that cover one utterance: the middle of frame i of n lies at (i + 1/2) / n of it.
    """
    longest = int(frames.max())
    middle = (torch.arange(longest, device=states.device) + 0.5) / frames[:, None]  # beyond 1 where padded
    place = (middle * own[:, None]).long().clamp_max((own - 1)[:, None])
    return states.gather(1, place[..., None].expand(-1, -1, states.shape[2]))


class Learner(nn.Module):
    """A model with a linear layer for each of the teacher's layers that it predicts (arXiv 2110.01900, section 2)."""

    def __init__(self, model: AudioEncoder, teacher_dim: int, layers: int) -> None:
        super().__init__()
        self.model = model
        self.predictors = nn.ModuleList(nn.Linear(model.config.encoder.dim, teacher_dim) for _ in range(layers))

    def forward(
        self, batch: Batch, targets: list[Tensor], cosine_weight: float, total: float | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """L1, a mean over dimensions, minus the log-sigmoid of the cosine; both summed over layers, a mean over frames.

        targets: for each layer (batch, frames, teacher's dim), at this model's frame rate; total: the frames that the
        mean is over, those of the batch when None.
        """
        embedded, frames = self.model.embed(batch.waveforms, batch.lengths)
        last = self.model.encoder(embedded, frames)[-1]
        valid = ~padding_mask(frames, last.shape[1])
        count = total or float(frames.sum())
        distance, cosine = last.new_zeros(()), last.new_zeros(())
        for predictor, target in zip(self.predictors, targets, strict=True):
            guess, wanted = predictor(last[valid]), target[valid]
            distance = distance + (guess - wanted).abs().mean(-1).sum() / count
            likeness = nn.functional.cosine_similarity(guess, wanted, dim=-1)
            cosine = cosine - nn.functional.logsigmoid(likeness).sum() / count
        return distance + cosine_weight * cosine, {"l1": distance.detach(), "cosine_loss": cosine.detach()}


@dataclass
class Learning:
    """Distillation from a teacher as the trainer wants it."""

    module: Learner
    teacher: nn.Module
    recipe: Recipe
    manifest: Manifest
    seed: int

    def __post_init__(self) -> None:
        recipe, hop = self.recipe, self.recipe.config.downsample_rate
        self.crops = Crops(self.manifest, None, hop)
        self.order = BatchOrder(self.manifest, hop, recipe.seconds_at_once, recipe.crop_seconds, self.seed)
        self.flops = step_flops(self.module.model, int(recipe.crop_seconds * SAMPLE_RATE))
        compile_blocks(self.module.model.encoder.blocks, recipe)

    def batches(self, first: int) -> Iterable[Batch]:
        """This process's micro-batches, from step `first` on."""
        recipe = self.recipe
        count, steps = recipe.micro_batches, recipe.teacher.steps
        share = distributed.share(count)
        return loader(self.crops, self.order, first, steps, micro_batches=count, share=share, workers=recipe.workers)

    def prepare(self, batch: Batch, number: int) -> tuple[Batch, Tensor]:
        """The batch and its frames."""
        return batch, self.module.model.frame_count(batch.lengths).sum().double()[None]

    def loss(self, prepared: Batch, totals: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A micro-batch's part of the step's loss."""
        batch = prepared.to(next(self.module.parameters()).device)
        waveforms = [w[:n] for w, n in zip(batch.waveforms, batch.lengths.tolist(), strict=True)]
        states = _hidden_states(self.teacher, waveforms)
        frames = self.module.model.frame_count(batch.lengths)
        # The teacher's frames of an utterance are in proportion to its length, whatever its rate.
        own = (batch.lengths / batch.lengths.max() * states[0].shape[1]).round().long().clamp_min(1)
        targets = [at_rate(states[layer], frames, own) for layer in self.recipe.teacher.layers]
        return self.module(batch, targets, self.recipe.teacher.cosine_weight, float(totals[0]))

    def work(self, prepared: Batch) -> tuple[float, float]:
        """Seconds of audio and the FLOPs of training on them; the teacher's are not counted."""
        lengths = prepared.lengths.tolist()
        return sum(lengths) / SAMPLE_RATE, self.flops(lengths)

    def summary(self, sums: dict[str, Tensor]) -> dict[str, float]:
        """The losses."""
        return {name: float(total) for name, total in sums.items()}


def learn_from_teacher(
    model: AudioEncoder, recipe: Recipe, manifest: Manifest, folder: Path, seed: int, device: torch.device
) -> None:
    """Train `model` to predict the recipe's teacher. Raises UserError as `load_teacher` does."""
    teacher = load_teacher(recipe.teacher, device)
    torch.manual_seed(seed)
    dim = _hidden_states(teacher, [torch.zeros(SAMPLE_RATE, device=device)])[recipe.teacher.layers[0]].shape[2]
    module = Learner(model, dim, len(recipe.teacher.layers)).to(device).train()
    task = Learning(module, teacher, recipe, manifest, seed)
    updates = optimizers(module, recipe, model.encoder.blocks)
    fit(task, updates, recipe, recipe.teacher.steps, folder, seed=seed, title=f"{recipe.name} teacher")
