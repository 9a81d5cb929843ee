"""Prediction of a teacher's layers from the student's last one (DistilHuBERT, arXiv 2110.01900)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pretrain.audio.data import Batch
from pretrain.audio.manifest import Manifest
from pretrain.objectives.task import AudioTask
from pretrain.training.settings import TrainingSettings
from upstreams import registry
from upstreams.config import SAMPLE_RATE
from upstreams.errors import UserError, nearest
from upstreams.frontend import padding_mask
from upstreams.model import AudioEncoder
from upstreams.s3prl.expert import UpstreamExpert


@dataclass(frozen=True)
class TeacherSettings:
    """The stage in which the model predicts a teacher's layers, by L1 distance and cosine."""

    name: str = ""  # a checkpoint file, a superbit name or an s3prl upstream; empty: no such stage
    layers: tuple[int, ...] = (4, 8, 12)  # hidden states of the teacher, 0 its input
    steps: int = 0
    cosine_weight: float = 1.0


def load_teacher(settings: TeacherSettings, device: torch.device) -> nn.Module:
    """Return the frozen teacher as an s3prl upstream: a list of waveforms -> {"hidden_states": ...}.

    settings.name: a checkpoint file, a superbit name that has a checkpoint, or an s3prl upstream. Raises UserError if
    the name is none of these, or if the teacher lacks one of the layers.
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
            raise UserError(
                f"teacher {name!r} is neither a superbit name nor an s3prl upstream: {nearest(name, known)}"
            )
        try:
            teacher = getattr(s3prl.hub, name)()
        except (OSError, RuntimeError, ImportError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"s3prl cannot load the teacher {name}: {reason}") from error
    teacher = teacher.to(device).eval().requires_grad_(False)
    states = hidden_states(teacher, [torch.zeros(SAMPLE_RATE, device=device)])
    if not 0 <= min(settings.layers) <= max(settings.layers) < len(states):
        raise UserError(
            f"teacher.layers is {list(settings.layers)}, but {name} has hidden states 0 to {len(states) - 1}"
        )
    return teacher


@torch.no_grad()
def hidden_states(teacher: nn.Module, waveforms: list[Tensor]) -> list[Tensor]:
    """Return the teacher's hidden states, each (batch, frames, dim). waveforms: each (samples,)."""
    return list(teacher(waveforms)["hidden_states"])


class TeacherFrames:
    """The number of frames that a teacher gives an utterance alone, whatever the padding of its batch.

    s3prl's upstreams do not tell it. It is a step function of the length, with a step every `rate` samples, so that two
    measured utterances determine it. A teacher of another kind is asked about each length with silence.
    """

    def __init__(self, teacher: nn.Module, device: torch.device) -> None:
        self.teacher, self.device = teacher, device
        self.measured: dict[int, int] = {}
        rate = getattr(teacher, "get_downsample_rates", lambda key: 0)("hidden_states")
        self.rate = int(rate) if rate == int(rate) else 0
        if not self.rate:
            return
        # Find the shortest utterance with as many frames as one second has, by bisection.
        self.frames = self._measure(SAMPLE_RATE)
        too_short, self.samples = SAMPLE_RATE - self.rate, SAMPLE_RATE
        while self.samples - too_short > 1:
            middle = (too_short + self.samples) // 2
            if self._measure(middle) < self.frames:
                too_short = middle
            else:
                self.samples = middle
        if any(self._step(n) != self._measure(n) for n in (SAMPLE_RATE - self.rate, 2 * SAMPLE_RATE - 1)):
            self.rate = 0

    def __call__(self, lengths: Tensor) -> Tensor:
        """Return the frames (batch,), at least 1, of utterances of `lengths` (batch,) samples."""
        count = self._step if self.rate else self._measure
        frames = [max(1, count(n)) for n in lengths.tolist()]
        return torch.tensor(frames, device=lengths.device)

    def _step(self, samples: int) -> int:
        return self.frames + (samples - self.samples) // self.rate

    def _measure(self, samples: int) -> int:
        if samples not in self.measured:
            silence = torch.zeros(samples, device=self.device)
            self.measured[samples] = hidden_states(self.teacher, [silence])[-1].shape[1]
        return self.measured[samples]


def resample_nearest(states: Tensor, frames: Tensor, own: Tensor) -> Tensor:
    """Resample hidden states in time: (batch, any, dim) -> (batch, frames.max(), dim), each frame the nearest one.

    own (batch,): frames of each utterance in `states`; frames (batch,): frames of each utterance in the result. Both
    cover the same utterance: the middle of frame i of n lies at (i + 1/2) / n of it.
    """
    longest = int(frames.max())
    middle = (torch.arange(longest, device=states.device) + 0.5) / frames[:, None]  # beyond 1 where padded
    place = (middle * own[:, None]).long().clamp_max((own - 1)[:, None])
    return states.gather(1, place[..., None].expand(-1, -1, states.shape[2]))


class LayerPredictor(nn.Module):
    """A model with one linear layer for each predicted layer of the teacher (arXiv 2110.01900, section 2)."""

    def __init__(self, model: AudioEncoder, teacher_dim: int, layers: int) -> None:
        super().__init__()
        self.model = model
        self.predictors = nn.ModuleList(nn.Linear(model.config.encoder.dim, teacher_dim) for _ in range(layers))

    def forward(
        self, batch: Batch, targets: list[Tensor], cosine_weight: float, total: float | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the L1 distance minus `cosine_weight` times the log-sigmoid of the cosine, and both for the log.

        Both are sums over layers and means over `total` frames (the batch's own if None); L1 is also a mean over
        dimensions. targets: for each layer (batch, frames, teacher_dim), at this model's frame rate.
        """
        embedded, frames = self.model.embed(batch.waveforms, batch.lengths)
        last = self.model.encoder(embedded, frames)[-1]
        padded = padding_mask(frames, last.shape[1])
        count = frames.sum() if total is None else total
        distance, cosine = last.new_zeros(()), last.new_zeros(())
        for predictor, target in zip(self.predictors, targets, strict=True):
            prediction = predictor(last)
            apart = (prediction - target).abs().mean(-1)
            similarity = nn.functional.cosine_similarity(prediction, target, dim=-1)
            distance = distance + apart.masked_fill(padded, 0.0).sum() / count
            cosine = cosine - nn.functional.logsigmoid(similarity).masked_fill(padded, 0.0).sum() / count
        return distance + cosine_weight * cosine, {"l1": distance.detach(), "cosine_loss": cosine.detach()}


class TeacherPrediction(AudioTask[Batch]):
    """Training of a model to predict the layers of a frozen teacher."""

    module: LayerPredictor

    def __init__(
        self,
        module: LayerPredictor,
        teacher: nn.Module,
        teacher_settings: TeacherSettings,
        settings: TrainingSettings,
        manifest: Manifest,
        *,
        seed: int,
    ) -> None:
        super().__init__(module, module.model, settings, manifest, steps=teacher_settings.steps, seed=seed)
        self.teacher, self.teacher_settings = teacher, teacher_settings
        self.teacher_frames = TeacherFrames(teacher, self.device)

    def prepare(self, batch: Batch, number: int) -> tuple[Batch, Tensor]:
        """Return the batch and its number of frames."""
        return batch, self.frame_total(batch)

    def loss(self, prepared: Batch, totals: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the micro-batch's part of the step's loss."""
        waveforms = [w[:n] for w, n in zip(prepared.waveforms, prepared.lengths.tolist(), strict=True)]
        states = hidden_states(self.teacher, waveforms)
        frames = self.model.frame_count(prepared.lengths)
        own = self.teacher_frames(prepared.lengths).clamp_max(states[0].shape[1])
        targets = [resample_nearest(states[layer], frames, own) for layer in self.teacher_settings.layers]
        return self.module(prepared, targets, self.teacher_settings.cosine_weight, float(totals[0]))


def learn_from_teacher(
    model: AudioEncoder,
    teacher_settings: TeacherSettings,
    settings: TrainingSettings,
    manifest: Manifest,
    *,
    folder: Path,
    seed: int,
    device: torch.device,
    title: str,
) -> None:
    """Train `model` to predict the teacher's layers. Raises UserError as `load_teacher` does."""
    teacher = load_teacher(teacher_settings, device)
    torch.manual_seed(seed)
    layers = teacher_settings.layers
    dim = hidden_states(teacher, [torch.zeros(SAMPLE_RATE, device=device)])[layers[0]].shape[2]
    module = LayerPredictor(model, dim, len(layers)).to(device).train()
    task = TeacherPrediction(module, teacher, teacher_settings, settings, manifest, seed=seed)
    task.train(folder, title=title)
