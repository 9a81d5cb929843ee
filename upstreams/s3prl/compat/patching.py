"""Tools for changing modules of other packages: temporarily, for one user of a module, or when a module is imported."""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import operator
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

Fix = Callable[[types.ModuleType], None]


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set `owner.name` to `value` inside the block and restore it afterwards."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def add_module(name: str, **contents: Any) -> types.ModuleType:
    """Return a new module with these contents, importable under `name`."""
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, loader=None)  # without one, importlib.util.find_spec(name) raises ValueError
    vars(module).update(contents)
    sys.modules[name] = module
    return module


class Overlay(types.ModuleType):
    """A module with some names replaced, for one user of it; all other names come from the original module."""

    def __init__(self, module: types.ModuleType, **replacements: Any):
        super().__init__(module.__name__)
        self._module = module
        vars(self).update(replacements)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def needs(*attributes: str) -> Callable[[Fix], Fix]:
    """Return a decorator that skips a fix if its module lacks one of these (dotted) attributes.

    A fix depends on features, not on version numbers: another release of s3prl may have renamed what is fixed here.
    The decorated fix has the names in its attribute `needs`.
    """

    def decorate(fix: Fix) -> Fix:
        @functools.wraps(fix)
        def fix_if_present(module: types.ModuleType) -> None:
            try:
                operator.attrgetter(*attributes)(module)
            except AttributeError:
                return
            fix(module)

        fix_if_present.needs = attributes  # type: ignore[attr-defined]
        return fix_if_present

    return decorate


class FixOnImport(importlib.abc.MetaPathFinder):
    """Runs a package's module bodies inside `context`, and each fix right after the body of its module."""

    def __init__(
        self, package: str, fixes: Mapping[str, Sequence[Fix]], context: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self.package = package
        self.fixes = fixes
        self.context = context

    def install(self) -> None:
        """Fix the modules that are imported already, and all others when they are imported."""
        sys.meta_path.insert(0, self)
        for name in self.fixes.keys() & sys.modules.keys():
            self._fix(sys.modules[name])

    def _fix(self, module: types.ModuleType) -> None:
        for fix in self.fixes.get(module.__name__, ()):
            fix(module)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != self.package:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        run_body = spec.loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            with self.context():
                run_body(module)
            self._fix(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
