"""Distillation losses at each bit width, over seeds: do intermediate steps of the schedule help?

    python -m benchmarks.binarization --teachers runs/superb --manifest data/mini/manifest/train.tsv \\
        --out runs/binarization

From one float checkpoint of each encoder, for each seed: w8a8 alone; w1a32 -> w1a2 -> w1a1, where each student teaches
the next; and w1a1 in one step with as many training steps as the three together. A missing float checkpoint is
pre-trained by its packaged recipe. Each encoder runs in its own process with one thread. Finished runs are kept, and
interrupted runs resume.

The figure is the distillation loss against the float checkpoint on held-out utterances: the sum of the hidden states'
mean squared errors plus the soft cross-entropy. All runs use the float checkpoint's output map, so the figures are
comparable. The table also shows the loss at the end of training, against each step's own teacher.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import statistics
import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretrain.audio.data import BatchOrder, Crops, loader
from pretrain.audio.manifest import Manifest
from pretrain.distill import DistillationSettings, quantize_checkpoint
from pretrain.objectives.distillation import distillation_loss, load_with_head
from pretrain.pretraining import pretrain
from pretrain.recipes import read_recipe
from upstreams.errors import UserError
from upstreams.files import atomic_write, json_text, sha256

ENCODERS = ("sparseformer_dn_mini", "conformer_mini")
CHAIN = ("w1a32", "w1a2", "w1a1")
ORDER = ("w8a8", *CHAIN)  # claim: the losses rise in this order
ONE_STEP = "w1a1 in one step"
HELD_OUT = 20  # every 20th utterance is held out
BATCHES = 8  # batches of held-out utterances to measure on
FIELDS = ("encoder", "seed", "run", "held_out_loss", "hidden_error", "divergence", "training_loss")


class Plan(NamedTuple):
    """Arguments of one encoder's process."""

    encoder: str
    teachers: Path
    manifest: Path
    out: Path
    seeds: list[int]
    settings: DistillationSettings


def split_manifest(path: Path, out: Path) -> tuple[Path, Path]:
    """Write the manifests of training and held-out utterances, the same split every time; return their paths."""
    manifest = Manifest.read(path)
    parts = out / "train.tsv", out / "held_out.tsv"
    for number, part in enumerate(parts):
        lines = [str(manifest.root.resolve())]
        for index, (name, samples) in enumerate(zip(manifest.paths, manifest.samples, strict=True)):
            if (index % HELD_OUT == 0) == bool(number):
                lines.append(f"{name}\t{samples}")
        with atomic_write(part) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return parts


def run_encoder(plan: Plan) -> list[dict[str, Any]]:
    """Run everything of one encoder; return one row for each seed and run."""
    torch.set_num_threads(1)
    folder = plan.out / plan.encoder
    train, held_out = split_manifest(plan.manifest, folder)
    teacher = plan.teachers / "checkpoints" / f"{plan.encoder}.safetensors"
    if not teacher.is_file():
        teacher = pretrain(
            read_recipe(plan.encoder),
            manifest_path=plan.manifest,
            out=folder / "teacher",
            labels=folder / "labels",
            seed=0,
        )
    one_step = dataclasses.replace(plan.settings, steps=len(CHAIN) * plan.settings.steps)
    rows = []
    for seed in plan.seeds:
        for name, schedule, settings in (
            ("alone", ("w8a8",), plan.settings),
            ("chain", CHAIN, plan.settings),
            ("one_step", ("w1a1",), one_step),
        ):
            out = folder / f"seed{seed}" / name
            quantize_checkpoint(teacher, list(schedule), manifest_path=train, out=out, seed=seed, settings=settings)
            for bits in schedule:
                run = ONE_STEP if name == "one_step" else bits
                losses = measure(teacher, out, bits, held_out)
                rows.append({"encoder": plan.encoder, "seed": seed, "run": run, **losses})
    return rows


def measure(teacher_path: Path, out: Path, bits: str, held_out: Path) -> dict[str, float]:
    """Return a finished run's losses: on held-out utterances against the float teacher, and at the end of training."""
    teacher = load_with_head(teacher_path).eval()
    name = teacher.model.config.name
    path = out / "checkpoints" / f"{name}_{bits}.safetensors"
    cached = path.with_suffix(".json")
    digests = {"checkpoint": sha256(path), "teacher": sha256(teacher_path)}
    if cached.is_file():
        found = json.loads(cached.read_text(encoding="utf-8"))
        if found["digests"] == digests:
            return found["losses"]
    student = load_with_head(path).eval()
    for buffer in ("output_mean", "output_std", "output_rotation"):
        getattr(student.model, buffer).copy_(getattr(teacher.model, buffer))
    settings, manifest, hop = DistillationSettings(), Manifest.read(held_out), teacher.model.config.downsample_rate
    order = BatchOrder(manifest, hop, settings.batch_seconds, settings.crop_seconds, seed=0)
    sums: dict[str, float] = defaultdict(float)
    frames = 0
    with torch.no_grad():
        for batch in loader(Crops(manifest, None, hop), order, 0, min(BATCHES, order.batches_per_epoch)):
            count = int(teacher.model.frame_count(batch.lengths).sum())
            frames += count
            loss, values = distillation_loss(student, teacher, batch)
            for key, value in (values | {"loss": loss}).items():
                sums[key] += count * float(value)
    losses = {"held_out_loss": sums["loss"], "hidden_error": sums["hidden_error"], "divergence": sums["divergence"]}
    losses = {key: value / frames for key, value in losses.items()}
    events = EventAccumulator(str(out / "quantize" / f"{name}_{bits}"))
    events.Reload()
    curve = [event.value for event in events.Scalars("loss")]
    losses["training_loss"] = statistics.fmean(curve[-max(1, len(curve) // 5) :])
    with atomic_write(cached) as temporary:
        temporary.write_text(json_text({"digests": digests, "losses": losses}) + "\n", encoding="utf-8")
    return losses


def table(rows: list[dict[str, Any]]) -> str:
    """Return Markdown: mean and sample deviation over seeds of every run, then whether each claim holds."""
    by_run: dict[tuple[str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in rows:
        by_run[row["encoder"], row["run"]][row["seed"]] = row
    lines = [
        "| encoder | run | loss, held out | hidden error, held out | divergence, held out | loss, end of training |",
        "|---|---|---|---|---|---|",
    ]
    for (encoder, run), seeds in by_run.items():
        cells = [mean_and_deviation([row[key] for row in seeds.values()]) for key in FIELDS[3:]]
        lines.append(f"| {encoder} | {run} | {' | '.join(cells)} |")
    lines.append("")
    for encoder in dict.fromkeys(row["encoder"] for row in rows):
        tried = sorted(by_run[encoder, ONE_STEP])
        loss = {run: [by_run[encoder, run][s]["held_out_loss"] for s in tried] for run in (*ORDER, ONE_STEP)}
        broken = [seed for k, seed in enumerate(tried) if not all(loss[a][k] < loss[b][k] for a, b in pairwise(ORDER))]
        verdict = f"does not hold for seeds {broken}" if broken else f"holds for all {len(tried)} seeds"
        lines.append(f"{encoder}: {' < '.join(ORDER)} in held-out loss {verdict}.")
        gains = [one - many for one, many in zip(loss[ONE_STEP], loss["w1a1"], strict=True)]
        lower = sum(gain > 0 for gain in gains)
        lines.append(
            f"{encoder}: w1a1 through {' -> '.join(CHAIN)} is lower than in one step of as many training steps for "
            f"{lower} of {len(tried)} seeds, by {mean_and_deviation(gains)}."
        )
    return "\n".join(lines) + "\n"


def mean_and_deviation(values: list[float]) -> str:
    """Return a text such as 1.234 ± 0.056; one value has no deviation."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{deviation}"


def main() -> None:
    """Run what is missing; write and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", type=Path, required=True, help="run folder of the float checkpoints")
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--encoders", nargs="+", default=list(ENCODERS))
    parser.add_argument(
        "--steps", type=int, default=DistillationSettings().steps, help="training steps for each bit width"
    )
    parser.add_argument("--batch-seconds", type=float, default=DistillationSettings().batch_seconds)
    arguments = parser.parse_args()
    settings = DistillationSettings(steps=arguments.steps, batch_seconds=arguments.batch_seconds)
    plans = [
        Plan(encoder, arguments.teachers, arguments.manifest, arguments.out, arguments.seeds, settings)
        for encoder in arguments.encoders
    ]
    # One process per encoder, with one thread: models of this size gain little from more threads.
    with ProcessPoolExecutor(len(plans), get_context("spawn")) as pool:
        rows = [row for part in pool.map(run_encoder, plans) for row in part]
    with atomic_write(arguments.out / "losses.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)
    text = table(rows)
    with atomic_write(arguments.out / "losses.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"binarization: {error}")
    except KeyboardInterrupt:
        sys.exit("binarization: stopped; run the same command again to resume")
