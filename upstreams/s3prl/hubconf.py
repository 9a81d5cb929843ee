"""This project's upstreams under s3prl's hub: `s3prl.hub.<name>(ckpt=...)` builds one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from upstreams import registry
from upstreams.s3prl import compat as s3prl_compat  # noqa: F401  (lets s3prl import)


def _entry(name: str) -> Callable[..., nn.Module]:
    def build(ckpt: str | Path | None = None, model_config: Any = None, refresh: bool = False, **_: Any) -> nn.Module:
        from upstreams.s3prl.expert import UpstreamExpert

        return UpstreamExpert(registry.checkpoint_path(name, ckpt))

    build.__name__ = name
    build.__doc__ = f"The frozen upstream {name}. ckpt: a .safetensors file in place of the registry's."
    return build


def register() -> list[str]:
    """Set this project's names in `s3prl.hub`; return them."""
    import s3prl.hub

    names = registry.names()
    for name in names:
        setattr(s3prl.hub, name, _entry(name))
    return names
