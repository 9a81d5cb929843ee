"""This project's upstreams in s3prl's hub: `s3prl.hub.<name>(ckpt=...)` builds one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from upstreams import registry
from upstreams.s3prl import compat  # noqa: F401  (makes s3prl importable)
from upstreams.s3prl.expert import UpstreamExpert


def _builder(name: str) -> Callable[..., nn.Module]:
    def build(
        ckpt: str | Path | None = None,
        model_config: Any = None,
        refresh: bool = False,
        frozen: bool = True,
        **_: Any,
    ) -> nn.Module:
        path = registry.checkpoint_path(name, ckpt)
        expert = UpstreamExpert(path, frozen)
        registry.check_architecture(name, expert.model.config, path)
        return expert

    build.__name__ = name
    build.__doc__ = (
        f"Return the frozen upstream {name}. ckpt: a .safetensors file that replaces the registry's. "
        "frozen: False lets train mode turn on dropout, for fine-tuning."
    )
    return build


def register() -> list[str]:
    """Add this project's upstreams to `s3prl.hub`; return their names."""
    import s3prl.hub

    names = registry.names()
    for name in names:
        setattr(s3prl.hub, name, _builder(name))
    return names
