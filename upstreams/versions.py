"""Software versions and this project's commit, for the provenance of a run."""

from __future__ import annotations

import functools
import json
import os
import platform
import shlex
import subprocess
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What a commit must hold unchanged for its digest to name the code that runs.
CODE = ("upstreams", "pretrain", "runners", "downstream_configs", "superbit.py")


def versions() -> dict[str, str]:
    """Return versions of Python, superbit, torch, torchaudio and s3prl, and this project's git commit.

    The commit ends in `-dirty` if the code differs from it. It is empty if the code is not in a checkout of its own:
    the commit of a repository that merely encloses the installation says nothing about the code.
    """
    found = {"python": platform.python_version()}
    for package in ("superbit", "torch", "torchaudio", "s3prl"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = ""
    return {**found, "commit": commit(ROOT)}


@functools.cache  # of the code that this process has imported, whatever is checked out later
def commit(root: Path) -> str:
    """Return the commit of the checkout whose top folder is `root`, or the one that pip installed from; else ""."""
    top = _git(root, "rev-parse", "--show-toplevel")
    tracked = _git(root, "ls-files", "--error-unmatch", "upstreams/versions.py")
    head = _git(root, "rev-parse", "HEAD")
    if not top or not tracked or not head or Path(top).resolve() != root.resolve():
        return _installed_commit(root)
    changes = _git(root, "status", "--porcelain", "--", *CODE)
    return f"{head}-dirty" if changes or changes is None else head


def _git(root: Path, *arguments: str) -> str | None:
    """Return what git says about the checkout at `root`; None if it fails."""
    # Inside a git hook, these variables name another repository.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _installed_commit(root: Path) -> str:
    """Return the commit that `pip install git+URL` recorded for the files below `root`; "" without one."""
    try:
        installed = distribution("superbit")
        if Path(str(installed.locate_file(""))).resolve() != root.resolve():
            return ""
        return str(json.loads(installed.read_text("direct_url.json") or "{}").get("vcs_info", {}).get("commit_id", ""))
    except (PackageNotFoundError, ValueError):
        return ""


def install_command(extra: str) -> str:
    """Return the command that installs the packages of one of superbit's extras.

    It names the packages themselves: superbit is installed from a clone or a wheel, not by name from a registry.

    >>> install_command("slurm")
    "pip install 'submitit>=1.5'"
    """
    ends = (f'extra == "{extra}"', f"extra == '{extra}'")
    packages = [package.partition(";")[0].strip() for package in requires("superbit") or () if package.endswith(ends)]
    return f"pip install {shlex.join(packages)}"
