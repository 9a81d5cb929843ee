"""States of training on disk: written whole, checked by digest, the last few and the best kept."""

from __future__ import annotations

import fcntl
import hashlib
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from upstreams.errors import UserError
from upstreams.files import atomic_write, sha256

NAME = re.compile(r"step_(?P<step>\d{8})_loss_(?P<loss>[-\w.+]+)_(?P<digest>[0-9a-f]{16})\.pt")


@dataclass(frozen=True)
class Saved:
    """One state: its file's name says the next step, the mean loss since the state before, and the digest."""

    path: Path
    step: int
    loss: float
    digest: str


class States:
    """The states of one run in `folder`; the newest `keep` and the one of lowest loss stay."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def saved(self) -> list[Saved]:
        """What is there, oldest first."""
        matches = ((path, NAME.fullmatch(path.name)) for path in self.folder.glob("step_*.pt"))
        found = [Saved(p, int(m["step"]), float(m["loss"]), m["digest"]) for p, m in matches if m]
        return sorted(found, key=lambda saved: saved.step)

    def newest(self) -> Path | None:
        """The newest intact state. One that is damaged is named, in a line, and removed."""
        for saved in reversed(self.saved()):
            if sha256(saved.path).startswith(saved.digest):
                return saved.path
            tqdm.write(f"{saved.path} is damaged (it does not fit its digest): going on from the state before it")
            saved.path.unlink()
        return None

    def write(self, step: int, loss: float, state: dict[str, Any]) -> None:
        """Write the state from which step `step` is next, then remove what is not to be kept."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        digest = hashlib.sha256(content).hexdigest()[:16]
        with atomic_write(self.folder / f"step_{step:08d}_loss_{loss:.6g}_{digest}.pt") as temporary:
            temporary.write_bytes(content)
        saved = self.saved()
        finite = [s for s in saved if s.loss == s.loss]
        best = min(finite, key=lambda s: s.loss) if finite else None
        for old in saved[: -self.keep]:
            if old != best:
                old.path.unlink(missing_ok=True)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Inside it no other process may train in the folder. Raises UserError when one does.

        A process that torchrun started outlives a torchrun that was killed: two would write one run's states. The claim
        ends with the process, however that ends.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another process is training in {self.folder}: wait until it ends, stop it, or give another --out"
                ) from None
            yield

    def clear(self) -> None:
        """Forget all states."""
        for saved in self.saved():
            saved.path.unlink()

    def remove_leftovers(self) -> None:
        """Remove what a process that was killed while it wrote has left."""
        for path in self.folder.glob(".step_*.tmp"):
            path.unlink()


def load(path: Path) -> dict[str, Any]:
    """A state's contents, on the CPU."""
    return torch.load(path, weights_only=True, map_location="cpu")
