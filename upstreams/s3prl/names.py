"""The upstreams in s3prl's hub, other people's included: their names, and the files that they are built from."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from upstreams import plugins, registry
from upstreams.errors import UserError, nearest
from upstreams.formats import checkpoint
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

    plugins.search_current_folder()
    for name in modules:
        if name in sys.modules:
            continue
        before = dict(vars(hub))
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if f"{name}.".startswith(f"{error.name}."):
                raise plugins.missing(name) from None
            raise UserError(f"the module {name} needs {error.name}, which is not installed") from error
        except Exception as error:
            raise UserError(f"the module {name} cannot be imported: {type(error).__name__}: {error}") from error
        added = {key for key, value in vars(hub).items() if value is not before.get(key)}
        if not added:
            raise UserError(
                f"the module {name} adds no upstream to s3prl.hub: it should set an attribute for each name"
            )
        if taken := added & set(registry.names()):
            raise UserError(f"the module {name} replaces the upstream {min(taken)}: it should choose another name")


def check_upstream(name: str, ckpt: str | Path | None, model_config: str | Path | None, refresh: bool = False) -> None:
    """Raise UserError for an unknown name, a file that the upstream lacks or would ignore, and another architecture.

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
        registry.check_architecture(name, checkpoint.read_config(path), path)
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
        local = [] if family == "baseline" else local
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
