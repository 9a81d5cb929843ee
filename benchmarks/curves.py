"""Loss curves of several pre-training runs: `python -m benchmarks.curves runs/minis --out docs/pretraining.png`.

Reads the TensorBoard events of every recipe in RUNS/pretrain. The runs must have used `superbit pretrain --valid`.
Prints the last validation loss and accuracy of each iteration, and those of guessing by frequency (the entropy of the
labels and the share of the most frequent label). Draws training and validation loss over the steps.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SMOOTHING = 0.8  # of the training loss, as set by TensorBoard's slider


def scalars(folder: Path, name: str) -> tuple[list[int], list[float]]:
    """Return the steps and values of a scalar in a folder's TensorBoard events."""
    events = EventAccumulator(str(folder))
    events.Reload()
    found = events.Scalars(name)
    return [event.step for event in found], [event.value for event in found]


def smoothed(values: list[float]) -> list[float]:
    """Return the exponential moving average, corrected for the bias of its start."""
    mean, weight, result = 0.0, 0.0, []
    for value in values:
        mean, weight = SMOOTHING * mean + (1 - SMOOTHING) * value, SMOOTHING * weight + 1 - SMOOTHING
        result.append(mean / weight)
    return result


def by_frequency(labels: Path) -> tuple[float, float]:
    """Return cross-entropy and accuracy of guessing by the frequency of the labels."""
    _, counts = np.unique(labels.read_text(encoding="utf-8").split(), return_counts=True)
    share = counts / counts.sum()
    return -float((share * np.log(share)).sum()), float(share.max())


def main() -> None:
    """Print a table and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder that `superbit pretrain --out` wrote to")
    parser.add_argument("--out", type=Path, required=True, help="PNG")
    arguments = parser.parse_args()
    recipes = sorted(path for path in (arguments.runs / "pretrain").iterdir() if path.is_dir())
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    print("| recipe | iteration | steps | loss | accuracy | loss, by frequency | accuracy, by frequency |")
    print("|---|---|---|---|---|---|---|")
    for number, recipe in enumerate(recipes):
        for iteration, panel in enumerate(axes, start=1):
            folder = recipe / f"iteration{iteration}"
            steps, losses = scalars(folder, "valid/loss")
            _, accuracies = scalars(folder, "valid/accuracy")
            panel.plot(steps, losses, "o-", color=f"C{number}", markersize=3, label=recipe.name)
            steps_trained, trained = scalars(folder, "loss_masked")
            panel.plot(steps_trained, smoothed(trained), color=f"C{number}", linewidth=0.7, alpha=0.5)
            made = [*recipe.glob(f"labels{iteration}_*"), *sorted((arguments.runs / "labels").glob("mfcc100_*"))]
            labels = made[0]
            entropy, most_frequent = by_frequency(labels / "valid.km")
            print(
                f"| {recipe.name} | {iteration} | {steps[-1]} | {losses[-1]:.3f} | {100 * accuracies[-1]:.1f} % | "
                f"{entropy:.3f} | {100 * most_frequent:.1f} % |"
            )
    for iteration, panel in enumerate(axes, start=1):
        panel.set(title=f"iteration {iteration}", xlabel="step", ylabel="cross-entropy of masked frames")
        panel.set_ylim(top=math.log(200))
        panel.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.suptitle("held-out audio (dots) and training (thin)", fontsize=10)
    figure.savefig(arguments.out, dpi=110)


if __name__ == "__main__":
    main()
