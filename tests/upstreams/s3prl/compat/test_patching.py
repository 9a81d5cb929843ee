"""Fixes depend on features: a module without the feature is left unchanged."""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from contextlib import nullcontext
from pathlib import Path

import pytest

from upstreams.s3prl.compat import command_line, runner, tasks
from upstreams.s3prl.compat.patching import FixOnImport, Overlay, add_module, needs, replaced

FIXES = command_line.FIXES | runner.FIXES | tasks.FIXES


@pytest.mark.parametrize("name", FIXES)
def test_another_s3prl_without_the_attributes_is_left_unchanged(name: str) -> None:
    module = types.ModuleType(name)
    before = dict(vars(module))
    for fix in FIXES[name]:
        fix(module)
    assert vars(module) == before


def test_an_added_module_is_found() -> None:
    try:
        module = add_module("added_module", value=1)
        assert importlib.import_module("added_module") is module and module.value == 1
        assert importlib.util.find_spec("added_module") is not None
    finally:
        del sys.modules["added_module"]


def test_a_fix_needs_every_attribute_it_names() -> None:
    @needs("Runner.train", "os")
    def fix(module: types.ModuleType) -> None:
        vars(module)["fixed"] = True

    module = types.ModuleType("runner")
    vars(module).update(os=os, Runner=type("Runner", (), {}))
    fix(module)
    assert not hasattr(module, "fixed")
    vars(module)["Runner"].train = None
    fix(module)
    assert hasattr(module, "fixed")


def test_modules_are_fixed_before_and_after_they_are_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "patched_package"
    package.mkdir()
    for name in ("__init__", "early", "late", "other"):
        (package / f"{name}.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    import patched_package.early

    def double(module: types.ModuleType) -> None:
        vars(module)["value"] *= 2

    FixOnImport(
        "patched_package", {f"patched_package.{name}": (double, double) for name in ("early", "late")}, nullcontext
    ).install()
    import patched_package.late
    import patched_package.other

    values = [patched_package.early.value, patched_package.late.value, patched_package.other.value]
    assert values == [4, 4, 1]


def test_replaced_and_overlaid_names() -> None:
    module = types.ModuleType("module")
    vars(module).update(first=1, second=2)
    with replaced(module, "first", 3):
        assert module.first == 3
        assert (Overlay(module, second=4).first, Overlay(module, second=4).second) == (3, 4)
    assert (module.first, module.second) == (1, 2)
