"""Fixtures of the tests of several wings."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.runners.foreign_upstream import MODULE


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a package whose module `module` registers an upstream; the current folder holds it."""
    folder = tmp_path / "my_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "module.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    for name in ("my_package", "my_package.module"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder
