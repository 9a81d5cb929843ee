"""The first minutes on a GPU machine: `make gpu-check`, or `python -m benchmarks.gpu_check --out FOLDER`.

Measures whether every encoder computes on the GPU what it computes on the CPU, how often the host waits, graphs and
breaks under torch.compile, the speed of pre-training steps against transformers' and torchaudio's, 1-bit training
steps, packed models, and a SUPERB task with and without the feature store. Writes gpu-check.json and gpu-check.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu_parts import PARTS, Row, Scale
from upstreams.errors import UserError
from upstreams.files import json_text
from upstreams.machine import device_name, machine
from upstreams.versions import versions


def check(device: torch.device, scale: Scale, out: Path, parts: Sequence[str] = tuple(PARTS)) -> bool:
    """Measure the parts, write both files into `out`, and return whether every part ran and reached its aims."""
    rows: list[Row] = []
    failed: dict[str, str] = {}
    for name in parts:
        print(f"gpu-check: {name}", file=sys.stderr)
        try:
            rows += PARTS[name](device, scale)
        # One part that fails must not lose what the others measured on a rented machine.
        except (Exception, SystemExit) as error:
            failed[name] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    about = {"device": device_name(str(device)), "machine": machine(), **versions()}
    content = {**about, "rows": [dataclasses.asdict(row) for row in rows], "failed": failed}
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu-check.json").write_text(json_text(content) + "\n", encoding="utf-8")
    (out / "gpu-check.md").write_text(table(about["device"], rows, failed), encoding="utf-8")
    return not failed and all(row.ok for row in rows)


def table(device: str, rows: Sequence[Row], failed: dict[str, str]) -> str:
    """Return the figures as Markdown."""
    lines = [f"# gpu-check on {device}", "", "| part | what | figure | unit | aim |", "|---|---|--:|---|---|"]
    for row in rows:
        aim = f"{row.wanted}: {'reached' if row.ok else 'missed'}" if row.wanted else ""
        lines.append(f"| {row.part} | {row.name} | {row.value:.4g} | {row.unit} | {aim} |")
    lines += ["", *(f"{name} failed: {reason}" for name, reason in failed.items())]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Exit with 0 if all is well, 1 if a part failed or missed its aim, 2 if there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-check"), help="folder of the two files")
    parser.add_argument("--corpora", type=Path, default=Scale.corpora, help="corpora of the part `task`")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise UserError(f"gpu-check measures a GPU, but torch {torch.__version__} finds none: run it on a GPU machine")
    reached = check(torch.device("cuda"), Scale(corpora=arguments.corpora), arguments.out, arguments.parts)
    print((arguments.out / "gpu-check.md").read_text(encoding="utf-8"))
    print(f"{arguments.out}/gpu-check.json and gpu-check.md hold the figures", file=sys.stderr)
    sys.exit(0 if reached else 1)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
