"""Time to train a SUPERB head on a frozen upstream: plain s3prl against the feature store.

    python benchmarks/downstream.py --corpora data/mini --out runs/bench ks ic er pr

Each task is trained in four modes, each in its own process with one thread, without data-loader workers, with official
batch sizes, and with one evaluation on dev at the end:

- `plain`: s3prl's own loop.
- `cold`: starts with an empty store.
- `warm`: repeats the same training on the full store. Trials of other learning rates draw the same batches.
- `new-seed`: trains with another seed on the full store; random crops (silence in KS) are new.

The table shows CPU seconds of the whole process, imports included. With one thread, this is the time on an idle
machine, and other processes do not add to it. Wall-clock seconds are in the JSON files. If --plain-steps is less than
--steps, `plain` runs that many steps and its time is scaled, which the table notes. A fifth mode, `numbers`, trains
with the store for as many steps as `plain`: the dev metrics of both are printed side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from upstreams.files import json_text

MODES = ("plain", "cold", "warm", "new-seed", "numbers")
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", help="names of tasks, such as ks ic er pr")
    parser.add_argument("--corpora", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--out", type=Path, required=True, help="folder for trainings, stores and measurements")
    parser.add_argument("--preset", default="transformer_base", help="preset whose untrained copy is the upstream")
    parser.add_argument("--steps", type=int, default=1000, help="steps with the store")
    parser.add_argument("--plain-steps", type=int, default=1000, help="steps without the store")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES, help="modes to run")
    options = parser.parse_args()
    checkpoint = options.out / f"{options.preset}_untrained.safetensors"
    if not checkpoint.exists():
        write_untrained(options.preset, checkpoint)
    for task in options.tasks:
        for mode in options.modes:
            steps = options.plain_steps if mode in ("plain", "numbers") else options.steps
            measured = measure(task, mode, steps=steps, checkpoint=checkpoint, corpora=options.corpora, out=options.out)
            (options.out / f"{task}-{mode}.json").write_text(json_text(measured) + "\n")
    print(table(options.out, options.steps))


def write_untrained(preset: str, path: Path) -> None:
    """Write a checkpoint with random weights."""
    import torch

    from upstreams.config import preset as read_preset
    from upstreams.formats import checkpoint

    torch.manual_seed(SEED)
    checkpoint.save(path, checkpoint.build(read_preset(preset)), None, {"stage": "untrained"})


def measure(
    task: str, mode: str, *, steps: int, checkpoint: Path, corpora: Path, out: Path, device: str = "cpu"
) -> dict[str, Any]:
    """Train in a process of its own; return its times in seconds and its dev metrics."""
    store, expdir = out / f"features-{task}", out / f"{task}-{mode}"
    shutil.rmtree(expdir, ignore_errors=True)
    if mode == "cold":
        shutil.rmtree(store, ignore_errors=True)
    data = "corpus" if task in ("pr", "sf") else "datarc"
    changes: dict[str, Any] = {f"runner.{key}_step": steps for key in ("eval", "save", "log")}
    changes |= {"runner.total_steps": steps, "runner.eval_dataloaders": ["dev"]}
    changes |= {f"downstream_expert.{data}.num_workers": 0}
    arguments = [
        *("-m", "train", "-u", checkpoint.stem, "-k", str(checkpoint), "-d", task, "-p", str(expdir)),
        *("--corpora", str(corpora), "--device", device, "--seed", str(SEED + (mode == "new-seed"))),
        *("-o", ",,".join(f"config.{key}={value}" for key, value in changes.items())),
    ]
    if mode != "plain":
        arguments += ["--feature-store", str(store)]
    script = (
        "import json, sys, time; from runners.downstream import run as downstream; times = []\n"
        "downstream.main(json.loads(sys.argv[1]), lambda step: times.append(time.process_time()))\n"
        "print('STEPS', json.dumps([times[0], times[-1]]))\n"
    )
    started = time.time()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path[1:]])}
    process = subprocess.Popen(
        [sys.executable, "-c", script, json.dumps(arguments)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    ended = time.time()
    if status != 0:
        raise SystemExit(f"{task} {mode} failed:\n{output[-2000:]}")
    cpu_seconds = usage.ru_utime + usage.ru_stime
    first, last = json.loads(output[output.index("STEPS ") :].partition(" ")[2].splitlines()[0])
    return {
        "steps": steps,
        "wall_seconds": ended - started,
        "seconds": cpu_seconds,
        "start_seconds": first,
        "step_seconds": (last - first) / max(1, steps - 1),
        "end_seconds": cpu_seconds - last,
        "dev": {name: float(value) for name, value in re.findall(r"^dev ([\w-]+): ([-\d.e]+)", output, re.MULTILINE)},
    }


def table(out: Path, steps: int) -> str:
    """Return a Markdown table of everything in the folder that has been measured."""
    lines = [
        "| task | s3prl | cold store | warm store | new seed | s3prl / cold | s3prl / warm | s3prl / new seed |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|",
    ]
    notes = []
    for path in sorted(out.glob("*-plain.json")):
        task = path.stem.removesuffix("-plain")
        found = {
            mode: json.loads((out / f"{task}-{mode}.json").read_text())
            for mode in MODES
            if (out / f"{task}-{mode}.json").exists()
        }
        plain = found["plain"]
        plain_seconds = plain["start_seconds"] + plain["step_seconds"] * (steps - 1) + plain["end_seconds"]
        note = "" if plain["steps"] == steps else f" (from {plain['steps']} steps)"
        stored = [found.get(mode) for mode in ("cold", "warm", "new-seed")]
        times = [f"{run['seconds']:.0f} s" if run else "not run" for run in stored]
        ratios = [f"{plain_seconds / run['seconds']:.1f}" if run else "not run" for run in stored]
        lines.append(f"| {task} | {plain_seconds:.0f} s{note} | {' | '.join(times)} | {' | '.join(ratios)} |")
        if "numbers" in found:
            notes.append(
                f"{task}, dev after {plain['steps']} steps: s3prl {plain['dev']}, store {found['numbers']['dev']}"
            )
    return "\n".join([*lines, "", *notes])


if __name__ == "__main__":
    main()
