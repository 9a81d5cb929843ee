"""The upstreams in s3prl's hub, other people's included: their names, and the files that they are built from."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from upstreams import registry
from upstreams.errors import UserError, nearest
from upstreams.s3prl import hubconf

# s3prl's names end so if the checkpoint is the user's.
OWN_CHECKPOINT = ("_local", "_url", "_gdriveid", "_custom")
# s3prl's upstreams that read a configuration if one is given; others either require one or ignore it.
OPTIONAL_CONFIG = ("distiller", "mos_prediction", "example")


def upstream_names() -> list[str]:
    """Return the names of all upstreams in s3prl's hub. Puts this project's there."""
    hubconf.register()
    from s3prl import hub

    return sorted(name for name in hub.options() if _builds_an_upstream(getattr(hub, name)))


def _builds_an_upstream(value: Any) -> bool:
    """False for what s3prl's hub imports besides upstreams, such as Path."""
    module = str(getattr(value, "__module__", ""))
    return module.endswith(".hubconf") or module.partition(".")[0] not in ("s3prl", "pathlib", "filelock")


def import_modules(modules: Sequence[str]) -> None:
    """Import modules that put upstreams into `s3prl.hub`, installed ones or ones in the current folder.

    Raises UserError if a module is not found, fails, adds no name, or replaces one of this project's.
    """
    hubconf.register()
    from s3prl import hub

    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    for name in modules:
        if name in sys.modules:
            continue
        before = dict(vars(hub))
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if f"{name}.".startswith(f"{error.name}."):
                raise UserError(
                    f"there is no module {name} (--upstream-module, upstream_modules): install it, or run the command "
                    "in the folder that holds it"
                ) from None
            raise UserError(f"the module {name} needs {error.name}, which is not installed") from error
        except Exception as error:
            raise UserError(f"the module {name} cannot be imported: {type(error).__name__}: {error}") from error
        if set(vars(hub)) <= before:
            raise UserError(
                f"the module {name} adds no upstream to s3prl.hub: it should set an attribute for each name"
            )


def module_sources(modules: Sequence[str]) -> list[Path]:
    """Return the source files of imported modules, with all those of the packages that they are part of."""
    files: dict[Path, None] = {}
    for name in modules:
        for part in (name.partition(".")[0], name):
            if source := getattr(sys.modules[part], "__file__", None):
                path = Path(source)
                files |= dict.fromkeys(sorted(path.parent.rglob("*.py")) if path.stem == "__init__" else [path])
    return list(files)


def check_upstream(name: str, ckpt: str | Path | None, model_config: str | Path | None, refresh: bool = False) -> None:
    """Raise UserError for an unknown name, for a file that the upstream needs, and for one that it would ignore.

    name: in s3prl's hub; ckpt, model_config, refresh: the values of -k, -g and -r. Upstreams of other people's modules
    receive all of them unchecked.
    """
    names = upstream_names()
    if name not in names:
        raise UserError(f"there is no upstream {name!r} (-u): {nearest(name, names)}")
    from s3prl import hub

    function = getattr(hub, name)
    if name in registry.names():
        path = registry.checkpoint_path(name, ckpt)
        if not path.is_file():
            raise UserError(f"there is no checkpoint {path} (-k)")
        _check_unread(name, "-g", model_config)
        if refresh:
            raise UserError(f"{name} downloads nothing: remove -r")
    elif str(function.__module__).startswith("s3prl."):
        _check_files(name, function, ckpt, model_config, names)
        if refresh and (name.endswith("_local") or ".baseline." in function.__module__):
            raise UserError(f"{name} downloads nothing: remove -r")


def _check_files(
    name: str, function: Callable[..., Any], ckpt: str | Path | None, model_config: str | Path | None, names: list[str]
) -> None:
    family = function.__module__.split(".")[-2]
    needs_ckpt = name.endswith(OWN_CHECKPOINT) and family != "baseline"
    needs_config = "model_config" in inspect.signature(function).parameters
    if needs_ckpt and not ckpt:
        raise UserError(f"{name} needs a checkpoint: add -k")
    if needs_config and not model_config:
        raise UserError(f"{name} needs a configuration: add -g FILE")
    if ckpt and not needs_ckpt and family != "example":
        local = [other for other in names if other.startswith(f"{family}_") and other.endswith(OWN_CHECKPOINT)]
        _check_unread(name, "-k", ckpt, f", or use {' or '.join(local)}" if local else "")
    if not needs_config and not (family in OPTIONAL_CONFIG and (needs_ckpt or family == "example")):
        _check_unread(name, "-g", model_config)
    if ckpt and name.endswith("_local") and not Path(ckpt).exists():
        raise UserError(f"there is no checkpoint {ckpt} (-k)")
    if model_config and not name.endswith("_url") and not Path(model_config).is_file():
        raise UserError(f"there is no configuration {model_config} (-g)")


def _check_unread(name: str, flag: str, value: str | Path | None, instead: str = "") -> None:
    if value:
        raise UserError(f"{name} does not read {flag}, so {value} would have no effect: remove {flag}{instead}")
