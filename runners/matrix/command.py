"""A stage that runs a command of superbit and leaves files: labels, a pre-training, a distillation, a packed model.

What it was made from, and what it took, is kept in made.json in the stage's folder. If the recipe, the seed or the data
change, what it left moves aside into `stale-<digest>/` in that folder, and moves back if it is wanted again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners.matrix import locks
from runners.matrix.engines.work import Resources
from runners.matrix.identity import short
from runners.matrix.processes import run_superbit, shell_command
from upstreams.errors import UserError
from upstreams.files import json_ready, read_json, sha256, write_json
from upstreams.machine import machine
from upstreams.versions import versions

if TYPE_CHECKING:
    from pretrain.training.settings import TrainingSettings

MADE = "made.json"


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a command has to do, from which its time and disk are estimated."""

    kind: str  # commands of one kind and model take a time that is proportional to `units`
    model: str
    units: float  # multiply-accumulates of trainings, seconds of audio of the others
    steps: int = 0
    disk_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of superbit, and what it makes. Several commands may have one folder: parts of one pre-training."""

    name: str
    needs: tuple[str, ...]
    arguments: tuple[str, ...]  # of superbit
    folder: Path  # for the lock, the log and made.json
    part: str  # of the folder's commands
    outputs: tuple[Path, ...]
    owned: tuple[Path, ...]  # files and folders that move aside if they are stale
    settings: TrainingSettings | None = None
    inputs: dict[str, Any] = field(default_factory=dict)  # all else that fixes the outputs; JSON values
    manifest: Path | None = None
    source: Path | None = None  # file of another stage that this one starts from
    resources: Resources
    size: Size

    @property
    def log_file(self) -> Path:
        """Output of the command."""
        return self.folder / "log.txt"

    @property
    def shown(self) -> str:
        """The shell command that does the same."""
        return shell_command(self.arguments, self.resources.processes)

    @property
    def identity(self) -> dict[str, Any] | None:
        """What fixes the outputs: settings, inputs, digests of the data. None while a file that it needs is missing."""
        files = {"manifest_sha256": self.manifest, "source_sha256": self.source}
        given = {key: path for key, path in files.items() if path is not None}
        if not all(path.is_file() for path in given.values()):
            return None
        digests = {key: _digest(path) for key, path in given.items()}
        settings = None if self.settings is None else dataclasses.asdict(self.settings)
        return dict(json_ready({"settings": settings, **self.inputs, **digests}))


@functools.cache
def _digest_of(path: Path, changed: int, size: int) -> str:
    if path.suffix == ".tsv":  # a manifest: where its folder lies does not matter
        _, _, files = path.read_bytes().partition(b"\n")
        return hashlib.sha256(files).hexdigest()
    return sha256(path)


def _digest(path: Path) -> str:
    found = path.stat()
    return _digest_of(path, found.st_mtime_ns, found.st_size)


def is_done(command: Command) -> bool:
    """True if the outputs exist, from these settings and this data. The stages that it needs must be done."""
    made = read_json(command.folder / MADE) or {}
    part = made.get("parts", {}).get(command.part)
    if part is None or not _same(command, made["identity"]):
        return False
    return all(path.is_file() and _digest(path) == part["outputs"].get(path.name) for path in command.outputs)


def stale_because(command: Command) -> str:
    """Return what differs between this command and the one whose files are in its folder; empty if nothing does."""
    made = read_json(command.folder / MADE)
    if made is None or _same(command, made["identity"]):
        return ""
    wanted = command.identity
    if wanted is None:
        return ""
    before, now = _flat(made["identity"]), _flat(wanted)
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return ", ".join(f"{key} {_short(before.get(key))} -> {_short(now.get(key))}" for key in keys)


def run_command(command: Command) -> None:
    """Run the command unless its outputs exist, and record them. Raises UserError if it fails, with its last message.

    An interrupted command resumes as it does by itself. What is in its place of other settings or data moves aside.
    """
    with locks.hold(command.folder) as lock:
        if is_done(command):
            return
        _settle(command)
        if is_done(command):
            return
        made = read_json(command.folder / MADE) or {"identity": command.identity, "parts": {}}
        write_json(command.folder / MADE, made)
        is_new = not made.get("started", {}).get(command.part)
        write_json(command.folder / MADE, made | {"started": made.get("started", {}) | {command.part: True}})
        started = time.monotonic()
        try:
            run_superbit(
                command.arguments,
                processes=command.resources.processes,
                on_gpu=command.resources.gpus > 0,
                lock=lock,
            )
        except UserError as error:
            raise UserError(f"{error}: {_last_line(command.log_file)}") from None
        seconds = time.monotonic() - started
        missing = [path for path in command.outputs if not path.is_file()]
        if missing:
            raise UserError(f"superbit {command.arguments[0]} did not write {missing[0]}")
        record = {
            "outputs": {path.name: _digest(path) for path in command.outputs},
            "command": command.shown,
            "seconds": round(seconds, 2) if is_new else None,  # None: it resumed
            "size": dataclasses.asdict(command.size),
            "machine": machine(),
            "versions": versions(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        made = read_json(command.folder / MADE) or made
        write_json(command.folder / MADE, made | {"parts": made["parts"] | {command.part: record}})


def _same(command: Command, saved: Mapping[str, Any]) -> bool:
    """True if a saved identity is this command's. Settings that a newer version has added have their default there."""
    wanted = command.identity
    if wanted is None or {**saved, "settings": None} != {**wanted, "settings": None}:
        return False
    if command.settings is None:
        return saved["settings"] is None
    from pretrain.training.provenance import same_settings

    return same_settings(saved["settings"], command.settings)


def _settle(command: Command) -> None:
    """Move aside what a command of another identity left, and move back what one of this identity left."""
    made = read_json(command.folder / MADE)
    if made is not None and not _same(command, made["identity"]):
        _move(command, command.folder / f"stale-{short(made['identity'])}", aside=True)
    elif made is None and command.settings is None and any(path.exists() for path in command.owned):
        # Nobody knows what it was made from. Trainings check that by themselves.
        _move(command, command.folder / "stale-unknown", aside=True)
    kept = command.folder / f"stale-{short(command.identity)}"
    if kept.is_dir():
        _move(command, kept, aside=False)


def _move(command: Command, kept: Path, *, aside: bool) -> None:
    """Move everything that the folder's commands made into `kept`, made.json last, or back from it, made.json first."""
    while aside and (kept / MADE).exists():
        kept = kept.with_name(f"{kept.name}+")
    kept.mkdir(parents=True, exist_ok=True)
    places = [(path, kept / f"{number}-{path.name}") for number, path in enumerate(command.owned)]
    places.append((command.folder / MADE, kept / MADE))
    for here, there in places if aside else reversed(places):
        source, target = (here, there) if aside else (there, here)
        if source.exists() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
    with contextlib.suppress(OSError):  # it is not empty
        kept.rmdir()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    return lines[-1].rpartition("\r")[2].removeprefix("superbit: ").strip() if lines else "no output"


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, dict):
        return {prefix: content}
    return {
        key: value for name in content for key, value in _flat(content[name], f"{prefix}.{name}".lstrip(".")).items()
    }


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return f"{text[:12]}..." if len(text) == 64 else text
