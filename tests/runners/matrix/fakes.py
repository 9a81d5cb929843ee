"""A matrix of keyword spotting, and a stand-in for s3prl that trains nothing."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import yaml


def write_matrix(path: Path, **changes: Any) -> Path:
    ks: dict[str, Any] = {"runner.total_steps": 4, "runner.eval_step": 2, "runner.save_step": 2, "runner.log_step": 2}
    ks |= {"runner.eval_dataloaders": ["dev"], "downstream_expert.datarc.num_workers": 0}
    content = {"upstreams": ["fbank_no_cmvn"], "tasks": {"ks": ks}, "seeds": [1], "device": "cpu"}
    path.write_text(yaml.safe_dump(content | changes), encoding="utf-8")
    return path


class FakeDownstream:
    """Stands in for s3prl and writes the checkpoints that it would write. `behaviour` is set by upstream."""

    def __init__(self, folder: Path) -> None:
        self.calls = folder / "calls"
        self.behaviour: dict[str, str] = {}
        self.replaces: dict[Path, bytes] = {}  # files that every training replaces

    def main(self, argv: list[str], on_step: Any = None) -> dict[str, float] | None:
        options = dict(zip(argv[::2], argv[1::2], strict=True))
        with self.calls.open("a") as file:
            file.write(json.dumps({**options, "store": "--feature-store" in argv}) + "\n")
        if options["-m"] == "evaluate":
            upstream = self.upstream_of(Path(options["-e"]))
            acc = float("nan") if self.behaviour.get(upstream) == "nan" else 0.5
            return {"acc": acc, "loss": 1.0, "wer": 50.0, "per": 0.5, "slot_type_f1": 0.5}
        resumed = "-e" in options
        expdir = Path(options["-e"] if resumed else options["-p"])
        upstream = self.upstream_of(expdir / "states-2.ckpt") if resumed else options["-u"]
        torch.save({"upstream": upstream}, expdir / "states-2.ckpt")
        behaviour = self.behaviour.get(upstream)
        for path, content in self.replaces.items():
            path.write_bytes(content)
        if behaviour == "raise":
            raise RuntimeError("the head\nexploded")
        if behaviour == "exit":
            sys.exit(2)
        if behaviour == "killed" and not resumed:
            os.kill(os.getpid(), signal.SIGKILL)
        if on_step is not None:
            on_step(2)
        if behaviour != "no best":
            dev = torch.tensor([self.dev(expdir)])
            torch.save({"Downstream": {"best_score": dev}, "upstream": upstream}, expdir / "dev-best.ckpt")
        return None

    def dev(self, expdir: Path) -> float:
        """Return the accuracy on dev, which is best at a learning rate of 0.01."""
        lr = yaml.safe_load((expdir.parent / "config.yaml").read_text())["optimizer"]["lr"]
        return 1 - abs(math.log10(lr) + 2) / 10

    def upstream_of(self, checkpoint: Path) -> str:
        return str(torch.load(checkpoint, weights_only=True)["upstream"])

    def calls_made(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.calls.read_text().splitlines()] if self.calls.exists() else []


def results(runs: Path, label: str, seed: int = 1) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((runs / "cells" / label / "ks" / f"seed{seed}" / "results.json").read_text())
    return content
