"""A stand-in for the commands that make checkpoints: it writes the files that they would write, at once."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from upstreams import registry
from upstreams.errors import UserError
from upstreams.formats import checkpoint
from upstreams.model import AudioEncoder


@functools.cache
def _model(name: str) -> AudioEncoder:
    return checkpoint.build(registry.model_config(name))


class FakeCommands:
    """Replaces `run_superbit`. What a checkpoint contains depends on the command and on the files that it reads."""

    def __init__(self, folder: Path) -> None:
        self.calls = folder / "commands"
        self.fails = ""  # commands with this text in them fail
        self.kills_itself = ""  # the first time, commands with this text in them are killed
        self.seconds = 0.0

    def run(self, arguments: Sequence[str], *, processes: int, on_gpu: bool, lock: int) -> None:
        command = " ".join(arguments)
        with self.calls.open("a") as file:
            file.write(json.dumps([*arguments]) + "\n")
        time.sleep(self.seconds)
        if self.fails and self.fails in command:
            raise UserError("superbit failed")
        if self.kills_itself and self.kills_itself in command and self.made().count(list(arguments)) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        options = dict(itertools.pairwise(arguments))
        for path in self._outputs(arguments, options):
            path.parent.mkdir(parents=True, exist_ok=True)
            source = Path(arguments[1]).read_bytes() if Path(arguments[1]).is_file() else b""
            settings = [a for a in arguments if not a.startswith("/")]  # no path: the folder may be another
            made_from = hashlib.sha256(source + path.name.encode() + str(settings).encode()).hexdigest()
            if path.suffix == ".safetensors":  # a real one: the next run checks those that are made
                model = Path(arguments[1]).stem if arguments[0] == "pack" else path.stem
                checkpoint.save(path, _model(model), None, {"made_from": made_from})
            else:
                path.write_text(made_from)

    def _outputs(self, arguments: Sequence[str], options: dict[str, str]) -> list[Path]:
        out = Path(options.get("--out") or options["--json"])
        if arguments[0] == "labels":
            return [out / "train.km"]
        if arguments[0] == "quantize":
            model = Path(arguments[1]).stem.partition("_w")[0]
            return [out / "checkpoints" / f"{model}_{options['--bits']}.safetensors"]
        if arguments[0] in ("pack", "profile"):
            return [out]
        untrained = out / "checkpoints" / f"{arguments[1]}_untrained.safetensors"
        if untrained.exists() or "--stage" in options:
            made = [] if untrained.exists() else [untrained]
        else:
            made = [untrained]
        return made if "--stage" in options else [*made, out / "checkpoints" / f"{arguments[1]}.safetensors"]

    def made(self) -> list[list[str]]:
        """Return the arguments of all commands that were run, in their order."""
        return [json.loads(line) for line in self.calls.read_text().splitlines()] if self.calls.exists() else []
