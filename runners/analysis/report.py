"""The files of `superbit analyse`: CSV tables, a picture over depth, TensorBoard events."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path

import matplotlib.image

# Figure alone, without pyplot, needs no display and keeps no global state.
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from runners.analysis.measurements import Analysis, Measurement
from upstreams.files import atomic_write

RATIOS = ("weight", "local_input", "local_output", "propagated_input", "propagated_output")
COLOURS = {"attention": "tab:blue", "convolution": "tab:orange", "feed_forward": "tab:green"}


def write(analysis: Analysis, title: str, out: Path) -> str:
    """Write modules.csv, kinds.csv, layers.csv, depth.png and TensorBoard events; return the table of kinds."""
    modules = []
    for number, m in enumerate(analysis.measurements):
        block = "" if m.block is None else m.block
        modules.append([number, block, m.name, m.kind, "part" if m.is_part else "module", m.bits, *_decibels(m)])
    _write_csv(out / "modules.csv", ["order", "block", "name", "kind", "what", "bits", *_headings()], modules)
    totals = [[kind, *_decibels(total)] for kind, total in analysis.by_kind().items()]
    _write_csv(out / "kinds.csv", ["kind", *_headings()], totals)
    _write_csv(out / "layers.csv", ["layer", "cka"], [[k, f"{v:.6f}"] for k, v in enumerate(analysis.similarity)])
    figure = draw(analysis, title)
    with atomic_write(out / "depth.png") as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    text = table(analysis)
    _write_tensorboard(analysis, f"{title}\n\n{text}", out / "depth.png", out / "tensorboard")
    return text


def table(analysis: Analysis) -> str:
    """Return Markdown: the ratios in dB of each kind of part over all blocks.

    `lost` is the difference between the outputs' ratios without and with quantization before the part.
    """
    lines = [
        "| kind | weights | output, only this part quantized | input, all before quantized |"
        " output, all up to here quantized | lost |",
        "|---|---|---|---|---|---|",
    ]
    for kind, total in analysis.by_kind().items():
        local, propagated = total.local_output.decibels, total.propagated_output.decibels
        lost = "" if local is None or propagated is None else f"{local - propagated:.1f}"
        ratios = (total.weight.decibels, local, total.propagated_input.decibels, propagated)
        lines.append(f"| {kind} | {' | '.join(map(_text, ratios))} | {lost} |")
    return "\n".join(lines) + "\n"


def draw(analysis: Analysis, title: str) -> Figure:
    """Draw the output ratios of the parts over the blocks, and below them the similarity of the hidden states."""
    figure = Figure(figsize=(8, 7), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    by_block: dict[int | None, list[Measurement]] = {}
    for part in analysis.parts():
        by_block.setdefault(part.block, []).append(part)
    points: dict[str, list[tuple[float, Measurement]]] = {}
    for block, parts in by_block.items():
        for place, part in enumerate(parts):
            # Block k lies between hidden states k and k + 1; its parts follow in the order of computation.
            points.setdefault(part.kind, []).append(((block or 0) + (place + 0.5) / len(parts), part))
    for kind, colour in COLOURS.items():
        if kind not in points:
            continue
        depth = [x for x, _ in points[kind]]
        for key, style, label in (
            ("local_output", "o:", "only this part quantized"),
            ("propagated_output", "s-", "all up to here quantized"),
        ):
            ratios = [getattr(part, key).decibels for _, part in points[kind]]
            values = [float("nan") if ratio is None else ratio for ratio in ratios]
            upper.plot(depth, values, style, color=colour, label=f"{kind}, {label}", markersize=4)
    upper.set_ylabel("signal-to-quantization-noise ratio of the output (dB)")
    upper.set_title(title, fontsize=9)
    upper.legend(fontsize=7)
    upper.grid(alpha=0.3)
    lower.plot(range(len(analysis.similarity)), analysis.similarity, "k.-")
    lower.set_xlabel("depth (blocks; 0: input of the encoder)")
    lower.set_ylabel("linear CKA with the float model")
    lower.set_ylim(0, 1.02)
    lower.grid(alpha=0.3)
    return figure


def _headings() -> list[str]:
    return [f"{ratio}_db" for ratio in RATIOS]


def _decibels(measurement: Measurement) -> list[str]:
    return [_text(getattr(measurement, ratio).decibels, 3) for ratio in RATIOS]


def _text(decibels: float | None, digits: int = 1) -> str:
    return "" if decibels is None else f"{decibels:.{digits}f}"


def _write_csv(path: Path, headings: list[str], rows: Sequence[Sequence[object]]) -> None:
    with atomic_write(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(headings)
        writer.writerows(rows)


def _write_tensorboard(analysis: Analysis, text: str, image: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # TensorBoard would also show the events of an earlier analysis
    with SummaryWriter(str(folder)) as writer:
        writer.add_text("kinds", text)
        writer.add_image("depth", matplotlib.image.imread(image)[..., :3], dataformats="HWC")
        # The step is the depth. The two feed-forwards of a block have separate curves.
        for part in analysis.parts():
            place = part.name.rpartition(".")[2]
            for key in ("local_output", "propagated_output"):
                if (decibels := getattr(part, key).decibels) is not None:
                    writer.add_scalar(f"{key}_db/{place}", decibels, part.block)
        for layer, value in enumerate(analysis.similarity):
            writer.add_scalar("cka", value, layer)
