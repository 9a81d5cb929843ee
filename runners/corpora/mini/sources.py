"""Debian packages with recorded speech: download, unpack without installing, verify by checksum."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from upstreams.errors import UserError

_TIMEOUT_SECONDS = 600
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Package:
    """A Debian package, the path of its payload below usr/share, and the payload's SHA-256.

    The digest is of the payload instead of the .deb, so that a rebuilt package with the same audio is valid.
    """

    name: str
    payload: str
    sha256: str

    def path(self, sources: Path) -> Path:
        return sources / self.name / "usr" / "share" / self.payload


QUEEN = Package(
    "flight-of-the-amazon-queen",
    "scummvm/flight-of-the-amazon-queen/queen.1c",
    "cc91960d133fcd4173eda4bac304e80d2bbdbaa085640287ab9e0507bd603f67",
)
PROMPTS = (
    Package(
        "asterisk-core-sounds-en-g722",
        "asterisk/sounds/en_US_f_Allison",
        "4e2275e9973ad8c8eb1f28345e5ce8ead49f1a7dc804ef8561d20f7e8100a827",
    ),
    Package(
        "asterisk-core-sounds-es-g722",
        "asterisk/sounds/es_MX_f_Allison",
        "697f2e59367dccd546c784310445583bfd88d77cd45783794eb634d284c80005",
    ),
    Package(
        "asterisk-core-sounds-fr-g722",
        "asterisk/sounds/fr_CA_f_June",
        "89226a7aaf701235ee81c159fa66bad8de01dfcebf0b25ab67e438664c56114e",
    ),
    Package(
        "asterisk-core-sounds-it-g722",
        "asterisk/sounds/it_IT_m_Carlo",
        "b35cc3abc7cc7ff1c10ffd095ee3d7da95bbd0a962f53123b675fa4c23f5ed55",
    ),
    Package(
        "asterisk-core-sounds-ru-g722",
        "asterisk/sounds/ru_RU_f_IvrvoiceRU",
        "a256061baae5f19d0634083919246e1904609fbd63110009cd1a132a39a2a6c6",
    ),
)
PACKAGES = (QUEEN, *PROMPTS)


class Unavailable(Exception):
    """Recorded speech is not available on this machine; the message gives the reason in one clause."""


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's file names and contents in sorted order."""
    hasher = hashlib.sha256()
    if path.is_file():
        hasher.update(path.read_bytes())
        return hasher.hexdigest()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            hasher.update(file.relative_to(path).as_posix().encode() + b"\0")
            hasher.update(hashlib.sha256(file.read_bytes()).digest())
    return hasher.hexdigest()


def _run(command: list[str], cwd: Path) -> str | None:
    """Run a command; return None if it succeeded, else the last line of its output."""
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return f"{command[0]} did not end within {_TIMEOUT_SECONDS} s"
    if done.returncode == 0:
        return None
    lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"{command[0]} failed with status {done.returncode}"


def _download(names: list[str], folder: Path) -> None:
    """Download the .deb files of the packages `names` to `folder`; raise Unavailable if that fails."""
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            raise Unavailable(f"this system has no {program}")
    if _run(["apt-get", "download", *names], folder) is None:
        return
    # The system's package lists are missing or old. Private lists need no root.
    private = []
    for option, name in (("Dir::State::lists", "lists"), ("Dir::Cache", "cache")):
        (folder / name / ("partial" if name == "lists" else "archives/partial")).mkdir(parents=True)
        private += ["-o", f"{option}={folder / name}"]
    for arguments in (["update"], ["download", *names]):
        problem = _run(["apt-get", *private, *arguments], folder)
        if problem is not None:
            raise Unavailable(f"apt-get {arguments[0]} failed: {problem}")


def verify(package: Package, sources: Path) -> None:
    """Raise UserError unless the package's payload has the expected digest."""
    path = package.path(sources)
    found = digest(path)
    if found != package.sha256:
        raise UserError(
            f"{path} is not the expected release of {package.name}: SHA-256 {found} found, {package.sha256} "
            f"expected; remove {sources / package.name} to download it again, or build from synthesis alone (--no-apt)"
        )


def obtain(sources: Path) -> None:
    """Download and unpack the missing packages to `sources/<package>/`, and verify all packages.

    Raises Unavailable without apt or network, and UserError for a payload with another checksum.
    """
    missing = [package for package in PACKAGES if not package.path(sources).exists()]
    if missing:
        sources.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=sources) as temporary:
            folder = Path(temporary).resolve()
            _log.info("downloading %d Debian packages (at most 90 MB)", len(missing))
            _download([package.name for package in missing], folder)
            for package in missing:
                (archive,) = folder.glob(f"{package.name}_*.deb")
                problem = _run(["dpkg-deb", "-x", str(archive), package.name], folder)
                if problem is not None:
                    raise Unavailable(f"{archive.name} cannot be unpacked: {problem}")
                shutil.rmtree(sources / package.name, ignore_errors=True)
                (folder / package.name).rename(sources / package.name)
    for package in PACKAGES:
        verify(package, sources)
