"""Packages besides torchaudio that s3prl imports: missing ones are named, removed parts are replaced."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator
from typing import Any, NoReturn

import torch

from upstreams.errors import UserError
from upstreams.s3prl.compat.patching import add_module


def check_undeclared_requirements() -> None:
    """Raise UserError naming a missing package that s3prl 0.4.18 imports without declaring it as a requirement."""
    for package in ("omegaconf", "transformers", "tensorboardX", "pandas", "librosa", "editdistance"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"s3prl needs the package {package}: install it with `pip install {package}`")


def refuse_hugging_face_hub(*args: Any, **kwargs: Any) -> NoReturn:
    """Raise UserError: s3prl's code for the Hugging Face Hub needs classes that huggingface_hub 1 removed."""
    raise UserError("the Hugging Face Hub is not supported: keep --hub torch and remove --push_to_hf_hub")


def add_hugging_face_placeholders() -> None:
    """Add `HfFolder` and `Repository`, which huggingface_hub 1 removed and s3prl's runner imports.

    Using one of them raises UserError.
    """
    import huggingface_hub

    if not hasattr(huggingface_hub, "HfFolder"):
        refuse = staticmethod(refuse_hugging_face_hub)
        huggingface_hub.HfFolder = type("HfFolder", (), {"get_token": refuse, "save_token": refuse})
    if not hasattr(huggingface_hub, "Repository"):
        huggingface_hub.Repository = type("Repository", (), {"__init__": refuse_hugging_face_hub})


class DistributedSamplerWrapper(torch.utils.data.DistributedSampler):
    """Distributes the indices that another sampler draws over the ranks."""

    def __init__(self, sampler: torch.utils.data.Sampler[int]):
        super().__init__(sampler, shuffle=False)  # type: ignore[arg-type]
        self.sampler = sampler

    def __iter__(self) -> Iterator[int]:
        drawn = list(self.sampler)
        return (drawn[position] for position in super().__iter__())


def add_catalyst_sampler() -> None:
    """Add the one class of catalyst that keyword spotting uses; catalyst's last release fails on Python >= 3.10."""
    if importlib.util.find_spec("catalyst") is None:
        add_module("catalyst")
        add_module("catalyst.data")
        add_module("catalyst.data.sampler", DistributedSamplerWrapper=DistributedSamplerWrapper)


def add_sox_package() -> None:
    """Add the package sox, which needs the sox program: speaker verification imports it and uses nothing of it."""
    if importlib.util.find_spec("sox") is None:
        add_module("sox", Transformer=object)


def allow_namespace_in_checkpoints() -> None:
    """Let `torch.load` read s3prl's checkpoints: they hold an argparse.Namespace, and torch 2.6 loads weights only."""
    torch.serialization.add_safe_globals([argparse.Namespace])
