"""A stand-in for Ray: each task is a process in another folder, with the environment that `ray.init` was given."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCRIPT = (
    "import pickle, sys; from pathlib import Path\n"
    "function, arguments = pickle.loads(Path(sys.argv[1]).read_bytes())\n"
    "Path(sys.argv[1] + '.result').write_bytes(pickle.dumps(function(*arguments)))"
)


class RayError(Exception):
    """What Ray raises for a task whose process died."""


class Task:
    """A function that runs in a process of its own."""

    def __init__(self, ray: FakeRay, function: Callable[..., Any]) -> None:
        self.ray, self.function = ray, function

    def options(self, **needs: Any) -> Task:
        return self

    def remote(self, *arguments: Any) -> tuple[subprocess.Popen[bytes], Path]:
        file = self.ray.folder / f"task{len(list(self.ray.folder.iterdir()))}"
        file.write_bytes(pickle.dumps((self.function, arguments)))
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(file)], env={**os.environ, **self.ray.environment}, cwd="/"
        )
        return process, file


class FakeRay(types.ModuleType):
    """The functions of Ray that the engine calls."""

    def __init__(self, folder: Path) -> None:
        super().__init__("ray")
        folder.mkdir()
        self.folder = folder
        self.environment: dict[str, str] = {}
        self.exceptions = types.SimpleNamespace(RayError=RayError)

    def is_initialized(self) -> bool:
        return False

    def init(self, address: str | None, runtime_env: dict[str, Any], log_to_driver: bool) -> None:
        self.environment = runtime_env["env_vars"]

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": {"memory": 1e15}}]

    def remote(self, **needs: Any) -> Callable[[Callable[..., Any]], Task]:
        return lambda function: Task(self, function)

    def wait(self, references: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        references[0][0].wait()
        return [reference for reference in references if reference[0].poll() is not None], []

    def get(self, reference: Any) -> Any:
        process, file = reference
        if process.returncode:
            raise RayError(f"the process ended with code {process.returncode}")
        return pickle.loads(file.with_name(f"{file.name}.result").read_bytes())

    def cancel(self, reference: Any, force: bool) -> None:
        reference[0].kill()

    def shutdown(self) -> None: ...
