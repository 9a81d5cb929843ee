"""Other people's modules that put upstreams into s3prl's hub: how to find them, and their code. Imports no torch."""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from upstreams.errors import UserError


def search_current_folder() -> None:
    """Let Python find modules in the current folder, after all others."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)


def missing(module: str) -> UserError:
    """Return the error for a module that is not found."""
    return UserError(
        f"there is no module {module} (--upstream-module, upstream_modules): install it, or run the command in the "
        "folder that holds it"
    )


def sources(modules: Sequence[str]) -> list[Path]:
    """Return the Python files of modules, with all those of the packages that they are part of.

    Raises UserError for a module whose package is not found. Imports none of them.
    """
    search_current_folder()
    files: dict[Path, None] = {}
    for module in modules:
        try:
            spec = importlib.util.find_spec(module.partition(".")[0])
        except ValueError:
            spec = None
        if spec is None:
            raise missing(module)
        if spec.submodule_search_locations:
            found = [path for folder in spec.submodule_search_locations for path in sorted(Path(folder).rglob("*.py"))]
        else:
            found = [Path(spec.origin)] if spec.origin else []
        files |= dict.fromkeys(found)
    return list(files)


@functools.cache
def s3prl_names() -> frozenset[str]:
    """Return the names of s3prl's own upstreams, without importing s3prl."""
    spec = importlib.util.find_spec("s3prl")
    folders = (spec.submodule_search_locations if spec else None) or []
    files = [file for folder in folders for file in Path(folder).glob("*/*/hubconf.py")]
    return frozenset(name for file in files for name in re.findall(r"^def (\w+)\(", file.read_text("utf-8"), re.M))
