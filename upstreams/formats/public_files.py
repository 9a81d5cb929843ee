"""Reads public checkpoints: a file, a folder, or the index of shards, to tensors and what lies beside them.

Only tensors and plain values are read. An object of another program becomes a placeholder that keeps its state, so that
nothing of it runs.
"""

from __future__ import annotations

import argparse
import json
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from upstreams.errors import UserError, shown
from upstreams.formats import contents

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".th")
INDEX = ".index.json"
# What transformers names its files, in the order in which it looks for them.
_IN_FOLDER = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")

# Programs whose objects lie beside the weights of public files: vocabularies, arguments, numbers. Placeholders suffice.
_KNOWN = re.compile(
    r"(fairseq|omegaconf|s3prl|optimizers|argparse|typing|enum|numpy)\..+|_operator\.getitem|collections\.defaultdict"
    r"|(__builtin__|builtins)\.(dict|list|set|tuple|str|int|float|bool|object|Ellipsis)"
)


@dataclass(frozen=True)
class PublicFile:
    """A checkpoint of another library."""

    path: Path  # as the user gave it
    files: tuple[Path, ...]  # that hold the tensors
    tensors: dict[str, Tensor]
    beside: dict[str, Any] = field(default_factory=dict)  # a PyTorch file's other entries, as plain values


class Placeholder:
    """Stands for an object of another program; keeps what it was made from."""

    def __new__(cls, *args: Any) -> Placeholder:
        self = super().__new__(cls)
        self.content = args
        return self

    def __init__(self, *args: Any) -> None:
        self.content: Any = args

    def __setstate__(self, state: Any) -> None:
        self.content = state


def read(path: Path) -> PublicFile:
    """Return the tensors of a file, of a folder or of an index of shards, and a PyTorch file's other entries.

    Raises UserError if there is no such file, if it is no checkpoint, saying what it is instead, if it is damaged, or
    if it could run code.
    """
    files = files_of(path)
    tensors: dict[str, Tensor] = {}
    beside: dict[str, Any] = {}
    for file in files:
        content = _load(file)
        state = _state_dict(content, file)
        if twice := tensors.keys() & state.keys():
            raise UserError(f"{min(twice)} is in {file} and in another shard: each tensor must be in one")
        tensors |= state
        if state is not content:
            beside |= {str(key): value for key, value in content.items() if value is not state}
    return PublicFile(path, files, tensors, beside)


def files_of(path: Path) -> tuple[Path, ...]:
    """Return the files that hold the tensors of a file, a folder or an index of shards."""
    main = _main_file(path)
    return _shards(main) if main.name.endswith(INDEX) else (main,)


def plain(value: Any) -> Any:
    """Return the state of a placeholder as a mapping or a plain value, as far as it shows them; others as they are."""
    for _ in range(8):  # omegaconf nests the content of its objects
        if isinstance(value, Placeholder):
            value = value.content
        elif isinstance(value, argparse.Namespace):  # torch.load may know it
            value = vars(value)
        elif isinstance(value, tuple) and len(value) == 1:  # the argument from which an enum's member is made
            value = value[0]
        elif isinstance(value, Mapping) and "_content" in value:  # omegaconf's mapping
            value = value["_content"]
        elif isinstance(value, Mapping) and "_val" in value:  # omegaconf's value
            value = value["_val"]
        else:
            break
    return value


def _main_file(path: Path) -> Path:
    if path.is_file():
        if re.search(r"-\d+-of-\d+\.\w+$", path.name):
            raise UserError(f"{path} is one shard of several: give the folder, or the file that ends in {INDEX}")
        return path
    if not path.is_dir():
        raise UserError(f"there is no file {path}: give a HuBERT checkpoint of transformers, fairseq or s3prl")
    for name in _IN_FOLDER:
        if (path / name).is_file():
            return path / name
    found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
    if len(found) != 1:
        listed = ": " + ", ".join(p.name for p in found[:5]) if found else ""
        raise UserError(f"the folder {path} has {len(found)} checkpoint files{listed}; give the file itself")
    return found[0]


def _shards(index: Path) -> tuple[Path, ...]:
    """Return the files that an index names, which lie beside it."""
    names = sorted({shown(n) if not isinstance(n, str) else n for n in _weight_map(index).values()})
    for name in names:
        if Path(name).name != name or not (index.parent / name).is_file():
            raise UserError(f"{index} names the shard {shown(name)}, which is no file beside it: download it, too")
    return tuple(index.parent / name for name in names)


def _weight_map(index: Path) -> dict[str, Any]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"{index} is no index of shards: it lacks the mapping weight_map")
    return names


def read_json(path: Path) -> dict[str, Any]:
    """Return the mapping in a JSON file. Raises UserError if it holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {shown(content)}, but must hold a JSON object")
    return content


def _load(path: Path) -> Mapping[str, Any]:
    """Return what a file holds: a mapping."""
    what = contents.described(path)
    is_named_safetensors = path.suffix == ".safetensors"
    if what == contents.SAFETENSORS and not is_named_safetensors:
        raise UserError(f"{path} {what}: rename it to {path.with_suffix('.safetensors').name}")
    if what == contents.PYTORCH and is_named_safetensors:
        raise UserError(f"{path} {what}: rename it to {path.with_suffix('.pt').name}")
    if what not in (contents.SAFETENSORS, contents.PYTORCH):
        raise UserError(f"{path} {what}")
    try:
        content = load_file(path) if is_named_safetensors else _unpickled(path)
    except UserError:
        raise
    # On damaged bytes the unpickler and both libraries raise errors of every type.
    except Exception as error:
        raise UserError(f"{path} is damaged or not a checkpoint ({type(error).__name__})") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, but must hold a state dict: names and tensors")
    return content


def _unpickled(path: Path) -> Any:
    """Return what a PyTorch file holds, with placeholders for the objects of known programs."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            # torch.load does not compare checksums: one wrong bit would become a wrong weight.
            if damaged := archive.testzip():
                raise UserError(f"{path} is damaged: the checksum of {damaged} is wrong; download or copy it again")
    objects = _objects(path)
    if foreign := sorted(name for name in objects if not _KNOWN.fullmatch(name)):
        raise UserError(
            f"{path} holds Python objects besides tensors, which could run code and are not loaded ({foreign[0]}): "
            "save the state dict alone, with safetensors or torch.save"
        )
    placeholders: list[Any] = [(Placeholder, name) for name in objects]
    with torch.serialization.safe_globals(placeholders), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _objects(path: Path) -> set[str]:
    """Return the names of the objects in a PyTorch file that are neither tensors nor plain values."""
    if zipfile.is_zipfile(path):
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    names: set[str] = set()
    with path.open("rb") as file:
        for _ in range(4):  # before version 1.6: a magic number, a version, the machine, then what was saved
            names |= {str(arg).replace(" ", ".") for code, arg, _ in pickletools.genops(file) if code.name == "GLOBAL"}
    unpickler = getattr(torch, "_weights_only_unpickler", None)
    allowed_globals = getattr(unpickler, "_get_allowed_globals", None)
    if allowed_globals is None:  # private: without it, torch.load alone refuses foreign objects
        return set()
    allowed = allowed_globals()
    return {name for name in names if name not in allowed}


# Entries that hold the weights: fairseq's, s3prl's, Lightning's, s3prl's DistilHuBERT.
_WEIGHTS = ("model", "model_weight", "state_dict", "Distiller", "model_state_dict")


def _state_dict(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Return the mapping of names to tensors in the content of a file: the content itself, or one of its entries."""
    named = [content[key] for key in _WEIGHTS if key in content]
    for candidate in (content, *named, *content.values()):
        if isinstance(candidate, dict) and candidate and all(_is_entry(*entry) for entry in candidate.items()):
            return candidate
    raise UserError(f"{path} holds no state dict: it must map names to tensors")


def _is_entry(name: Any, tensor: Any) -> bool:
    return isinstance(name, str) and isinstance(tensor, Tensor)
