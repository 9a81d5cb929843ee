"""The flag -o."""

from __future__ import annotations

import argparse
from typing import Any

from runners.downstream.overrides import override


def test_override_takes_literals_and_evaluates_nothing() -> None:
    args = argparse.Namespace(seed=1)
    config: dict[str, Any] = {"a": {"x": 1, "text": "t", "list": [1], "flag": True, "none": None}}
    changes = "config.a.x=1e-3,, config.a.text='AdamW' ,,config.a.list=[dev, test],,config.a.flag=false,,args.seed=7"
    override(changes, args, config)
    assert config["a"] == {"x": 1e-3, "text": "AdamW", "list": ["dev", "test"], "flag": False, "none": None}
    assert args.seed == 7
    override("config.a.text=exit(),,config.a.list=['a', 'b'],,config.a.none=/a=b", args, config)
    assert (config["a"]["text"], config["a"]["list"], config["a"]["none"]) == ("exit()", ["a", "b"], "/a=b")
