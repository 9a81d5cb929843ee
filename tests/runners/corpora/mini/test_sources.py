"""Download and verification of the Debian packages."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from runners.corpora.mini import sources
from runners.corpora.mini.sources import Package, Unavailable
from upstreams.errors import UserError


@pytest.fixture
def package(monkeypatch, tmp_path) -> Package:
    """A package of one file with its digest, instead of the real packages."""
    payload = tmp_path / "data.bin"
    payload.write_bytes(b"payload")
    package = Package("a-package", "game/data.bin", sources.digest(payload))
    monkeypatch.setattr(sources, "PACKAGES", (package,))
    return package


def tool(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def tools(monkeypatch, tmp_path) -> Path:
    """Substitutes for apt-get, which finds the package only after a private update, and for dpkg-deb."""
    folder = tmp_path / "bin"
    folder.mkdir()
    tool(
        folder,
        "apt-get",
        f'echo "$*" >> {tmp_path}/apt.log\n'
        'case "$*" in *Dir::State::lists=*update) exit 0;; *Dir::State::lists=*download*) : > a-package_1_all.deb;;\n'
        "*) echo E: Unable to locate package >&2; exit 100;; esac",
    )
    tool(folder, "dpkg-deb", 'mkdir -p "$3/usr/share/game" && printf payload > "$3/usr/share/game/data.bin"')
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return folder


def test_missing_packages_are_downloaded_with_private_lists(package, tools, tmp_path):
    folder = tmp_path / "sources"
    sources.obtain(folder)
    assert package.path(folder).read_bytes() == b"payload"
    assert [path.name for path in folder.iterdir()] == ["a-package"]
    calls = (tmp_path / "apt.log").read_text().splitlines()
    assert calls[0] == "download a-package" and calls[1].endswith("update") and len(calls) == 3
    sources.obtain(folder)
    assert len((tmp_path / "apt.log").read_text().splitlines()) == 3


def test_without_network_the_reason_is_given(package, tools, tmp_path):
    tool(tools, "apt-get", "echo E: no network >&2; exit 100")
    with pytest.raises(Unavailable, match="apt-get update failed: E: no network"):
        sources.obtain(tmp_path / "sources")


def test_without_apt_the_reason_is_given(package, monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(Unavailable, match="this system has no apt-get"):
        sources.obtain(tmp_path / "sources")


def test_another_release_is_refused(package, tools, tmp_path):
    tool(tools, "dpkg-deb", 'mkdir -p "$3/usr/share/game" && printf other > "$3/usr/share/game/data.bin"')
    with pytest.raises(UserError) as caught:
        sources.obtain(tmp_path / "sources")
    found = sources.digest(package.path(tmp_path / "sources"))
    for part in ("data.bin", f"{package.sha256} expected", f"{found} found"):
        assert part in str(caught.value)


def test_a_folders_digest_covers_names_and_contents(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a").write_bytes(b"1")
    first = sources.digest(tmp_path / "one")
    (tmp_path / "one" / "a").rename(tmp_path / "one" / "b")
    renamed = sources.digest(tmp_path / "one")
    (tmp_path / "one" / "b").write_bytes(b"2")
    assert len({first, renamed, sources.digest(tmp_path / "one")}) == 3
