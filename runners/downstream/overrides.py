"""The flag -o: changes to the arguments and the configuration of an experiment."""

from __future__ import annotations

import argparse
import ast
from typing import Any

import yaml

from runners import tasks
from upstreams.errors import UserError, nearest


def override(changes: str, args: argparse.Namespace, config: dict[str, Any]) -> None:
    """Apply `args.<flag>=<value>` and `config.<dotted key>=<value>`, separated by two commas.

    A value is a Python or YAML literal; anything else is text. Raises UserError for another form and an unknown key.
    """
    for change in filter(None, (part.strip() for part in changes.split(",,"))):
        key, equals, text = (part.strip() for part in change.partition("="))
        target, _, name = key.partition(".")
        if not equals or target not in ("args", "config") or not name:
            raise UserError(f"-o takes args.<flag>=<value> and config.<key>=<value> separated by ',,', not {change!r}")
        value = _literal(text)
        if target == "config":
            tasks.set_key(config, name, value)
        elif name in vars(args):
            setattr(args, name, value)
        else:
            raise UserError(f"there is no argument {name!r} (-o): {nearest(name, vars(args))}")


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    try:
        return yaml.safe_load(text)  # true, null and lists of bare words
    except yaml.YAMLError:
        return text
