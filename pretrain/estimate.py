"""`superbit pretrain RECIPE --dry-run`: FLOPs, GPU hours and memory of a recipe, computed from its model."""

from __future__ import annotations

from dataclasses import dataclass

from pretrain.recipes import Recipe
from pretrain.training.memory import required_bytes
from pretrain.training.throughput import FORWARD_AND_BACKWARD, step_flops
from upstreams.config import SAMPLE_RATE
from upstreams.model import AudioEncoder, without_values

# Dense bfloat16 products with float32 sums, FLOPs per second, from the makers' data sheets.
PEAKS = {"RTX 3090": 71e12, "RTX 4090": 165e12, "A100": 312e12, "H100 SXM": 989e12}
HALVINGS = 4  # micro-batches of the recipe's size, a half of it, a quarter and an eighth


@dataclass(frozen=True)
class Stage:
    """What one stage computes. hours: of audio, each time that it is computed."""

    name: str
    steps: int
    hours: float
    flops: float


def stages(recipe: Recipe, corpus_hours: float) -> list[Stage]:
    """Return the iterations of a recipe, their labels from a model's layer, and the teacher's stage.

    All batches are taken as full of crops of `crop_seconds`. A multiply-accumulate is two FLOPs; heads, MFCC labels,
    k-means, and a teacher's own forward pass are not counted. corpus_hours: length of the training audio.
    """
    with without_values():
        model = AudioEncoder(recipe.config)
    crop = int(recipe.crop_seconds * SAMPLE_RATE)
    per_hour = step_flops(model, crop)([crop]) / recipe.crop_seconds * 3600
    repeated = (FORWARD_AND_BACKWARD + 1) / FORWARD_AND_BACKWARD if recipe.checkpointing else 1.0

    def training(name: str, steps: int) -> Stage:
        hours = steps * recipe.batch_seconds / 3600
        return Stage(name, steps, hours, hours * per_hour * repeated)

    found = []
    for number, iteration in enumerate(recipe.iterations, start=1):
        if iteration.layer:
            # Once for k-means' sample, once for all labels. The blocks after the layer do not run.
            hours = corpus_hours * (1 + recipe.cluster_fraction)
            share = iteration.layer / recipe.config.encoder.layers / FORWARD_AND_BACKWARD
            found.append(Stage(f"labels{number}", 0, hours, hours * per_hour * share))
        found.append(training(f"iteration{number}", iteration.steps))
    if recipe.teacher.name:
        found.append(training("teacher", recipe.teacher.steps))
    return found


def memory_table(recipe: Recipe) -> list[tuple[float, float, float]]:
    """Return (seconds of a micro-batch, bytes of a GPU, bytes with checkpointing) for a recipe's size and smaller ones.

    Weights, gradients and optimizer are float32, activations bfloat16. A micro-batch holds the crops of one utterance.
    """
    weights, per_second = required_bytes(recipe.config, recipe.crop_seconds)
    _, checkpointed = required_bytes(recipe.config, recipe.crop_seconds, checkpointing=True)
    smallest = (recipe.views if recipe.iterations else 1) * recipe.crop_seconds
    sizes = [recipe.seconds_per_micro_batch / 2**k for k in range(HALVINGS)]
    return [
        (seconds, weights + per_second / 2 * seconds, weights + checkpointed / 2 * seconds)
        for seconds in sizes
        if seconds >= smallest
    ]


def describe(recipe: Recipe, utilisation: float, corpus_hours: float | None = None) -> str:
    """Return the estimates as text. utilisation: fraction of a GPU's peak. corpus_hours: None: those of the recipe."""
    hours = recipe.expected.audio_hours if corpus_hours is None else corpus_hours
    found = stages(recipe, hours)
    with without_values():
        parameters = sum(p.numel() for p in AudioEncoder(recipe.config).parameters())
    lines = [
        f"{recipe.model}: {parameters / 1e6:.1f} M parameters; a step is {recipe.batch_seconds:g} s of audio "
        f"(micro-batches: {recipe.micro_batches} of {recipe.seconds_per_micro_batch:g} s)",
        f"{'stage':<12}{'steps':>10}{'hours of audio':>16}{'EFLOPs':>10}",
    ]
    total = Stage("total", sum(s.steps for s in found), sum(s.hours for s in found), sum(s.flops for s in found))
    for stage in [*found, total] if len(found) > 1 else found:
        steps = f"{stage.steps:>10}" if stage.steps else " " * 10
        lines.append(f"{stage.name:<12}{steps}{stage.hours:>16,.0f}{stage.flops / 1e18:>10.3g}")
    lines += ["", f"GPU hours at {100 * utilisation:g} % of the peak of bfloat16 products:"]
    for name, peak in PEAKS.items():
        lines.append(f"{name:<12}{total.flops / peak / utilisation / 3600:>10,.1f}")
    lines += ["", "memory of a GPU in GB:", f"{'micro-batch':<12}{'plain':>10}{'checkpointing':>16}"]
    for seconds, plain, checkpointed in memory_table(recipe):
        lines.append(f"{f'{seconds:g} s':<12}{plain / 1e9:>10.1f}{checkpointed / 1e9:>16.1f}")
    return "\n".join(lines)
