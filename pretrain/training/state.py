"""Training states on disk: written atomically, verified by digest; the newest ones are kept."""

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

NAME = re.compile(r"step_(?P<step>\d{8})_(?P<digest>[0-9a-f]{16})\.pt")


@dataclass(frozen=True)
class SavedState:
    """One file, whose name holds the next step and the file's digest."""

    path: Path
    step: int
    digest: str


class States:
    """The states of one run in `folder`. The newest `keep` are kept."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder
        self.keep = keep

    def saved(self) -> list[SavedState]:
        """Return the states in the folder, oldest first."""
        matches = ((path, NAME.fullmatch(path.name)) for path in self.folder.glob("step_*.pt"))
        found = [SavedState(p, int(m["step"]), m["digest"]) for p, m in matches if m]
        return sorted(found, key=lambda saved: saved.step)

    def newest(self) -> Path | None:
        """Return the newest intact state, or None. Damaged states are reported and removed."""
        for saved in reversed(self.saved()):
            if sha256(saved.path).startswith(saved.digest):
                return saved.path
            tqdm.write(f"{saved.path} is damaged (its digest does not match): resuming from the state before it")
            saved.path.unlink()
        return None

    def write(self, step: int, state: dict[str, Any]) -> None:
        """Write the state before step number `step`, then remove the states that are not kept."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        digest = hashlib.sha256(content).hexdigest()[:16]
        with atomic_write(self.folder / f"step_{step:08d}_{digest}.pt") as temporary:
            temporary.write_bytes(content)
        for old in self.saved()[: -self.keep]:
            old.path.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other processes. Raises UserError if another process trains in it.

        If torchrun is killed, a process that it started may live on and write states into the same folder. The lock
        ends with the process, however the process ends.
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
        """Remove all states."""
        for saved in self.saved():
            saved.path.unlink()

    def remove_temporary_files(self) -> None:
        """Remove the temporary files of a process that was killed while it wrote a state."""
        for path in self.folder.glob(".step_*.tmp"):
            path.unlink()


def load(path: Path) -> dict[str, Any]:
    """Return the contents of a state, on the CPU. Raises UserError if it cannot be read."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    # On damaged bytes torch.load raises errors of every type.
    except Exception as error:
        raise UserError(f"the training state {path} is damaged ({type(error).__name__}): remove it") from error
    if not isinstance(state, dict):
        raise UserError(f"the training state {path} is damaged: it holds a {type(state).__name__}; remove it")
    return state
