"""The flag -o: changes to the arguments and the configuration of an experiment."""

from __future__ import annotations

import argparse
import ast
from typing import Any

import yaml

from runners import tasks
from runners.downstream.arguments import parser
from upstreams.errors import UserError, nearest, shown

# Arguments that have been used before the changes apply.
SETTLED = (
    *("mode", "config", "override", "past_exp", "init_ckpt", "auto_resume", "expname", "downstream", "local_rank"),
    *("hub", "push_to_hf_hub", "hf_hub_org", "upstream_model_name", "upstream_revision", "upstream_module"),
)


def override(changes: str, args: argparse.Namespace, config: dict[str, Any]) -> list[str]:
    """Apply `args.<flag>=<value>` and `config.<dotted key>=<value>`, separated by two commas.

    A value is a Python or YAML literal; anything else is text. Returns the changed keys of the configuration. Raises
    UserError for another form, an unknown key, and a value that the key or the flag does not take.
    """
    changed = []
    for change in filter(None, (part.strip() for part in changes.split(",,"))):
        key, equals, text = (part.strip() for part in change.partition("="))
        target, _, name = key.partition(".")
        if not equals or target not in ("args", "config") or not name:
            raise UserError(f"-o takes args.<flag>=<value> and config.<key>=<value> separated by ',,', not {change!r}")
        value = _literal(text)
        if target == "config":
            tasks.set_key(config, name, value)
            changed.append(name)
        elif name in SETTLED:
            raise UserError(f"args.{name} cannot be changed by -o: give the flag itself")
        elif name in vars(args) and (flag := _flags().get(name)):
            setattr(args, name, _checked(name, value, flag))
        else:
            raise UserError(f"there is no argument {name!r} (-o): {nearest(name, vars(args))}")
    return changed


def _flags() -> dict[str, argparse.Action]:
    return {action.dest: action for action in parser()._actions}


def _checked(name: str, value: Any, flag: argparse.Action) -> Any:
    """Return the value of an argument; raise UserError if its flag does not take such a value."""
    if value is None and flag.default is None:
        return value
    if isinstance(flag.default, bool):
        kind, valid = "true or false", isinstance(value, bool)
    elif flag.type is int:
        kind, valid = "a whole number", isinstance(value, int) and not isinstance(value, bool)
    else:
        kind, valid = "text", isinstance(value, str)
    if not valid:
        raise UserError(f"args.{name} (-o) must be {kind}, not {shown(value)}")
    return value


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    try:
        return yaml.safe_load(text)  # true, null and lists of bare words
    except yaml.YAMLError:
        return text
