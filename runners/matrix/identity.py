"""What a number depends on: the identity of a fold or a training, and in words what differs between two identities.

An identity holds contents, never the paths where they lie: digests of the checkpoint, of the corpus's lists and the
sizes of its audio, of the code, and the versions of the libraries. So moved corpora, another clone of the same code and
a renamed checkpoint change nothing.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import upstreams
from runners import downstream, features, tasks
from runners.features.code import code_digest
from runners.tasks import TASKS, flat_keys, path_keys
from upstreams import plugins
from upstreams.files import json_ready, json_text, sha256
from upstreams.versions import versions

# What computed a number, in contrast to the experiment that the number is of.
ORIGIN = ("code", "versions")
PACKAGES = ("torch", "torchaudio", "s3prl")

# Settings without an effect on the experiment: what is printed, kept and loaded in advance. The number of workers
# changes which random crops a seed draws, and nothing else.
NO_EFFECT = ("runner.log_step", "runner.max_keep")
NO_EFFECT_SUFFIXES = (".num_workers", ".max_workers", ".pre_load")

WORDS = {
    "upstream": "upstream",
    "checkpoint_sha256": "checkpoint (SHA-256)",
    "task": "task",
    "seed": "seed",
    "learning_rates": "learning rates",
    "features": "number format of the stored features",
}
CODE = {
    "features": "other code that computes features",
    "heads": "other code that trains and tests heads",
    "upstream": "other code of the upstream",
}


@functools.cache  # of the code that this process has imported, whatever happens to its files later
def origin(*upstream_modules: str) -> dict[str, dict[str, str]]:
    """Return `code`, digests of what computes features and heads, and `versions` of the libraries.

    upstream_modules: the modules of other people that the upstream is from.
    """
    heads = [Path(package.__file__ or "").parent for package in (downstream, features)]
    here = Path(__file__).parent
    heads += [Path(tasks.__file__), here / "training.py", here / "layer_choice.py"]
    installed = versions()
    return {
        "code": {
            "features": code_digest(Path(upstreams.__file__).parent)[:16],
            "heads": code_digest(*heads)[:16],
            **({"upstream": code_digest(*plugins.sources(upstream_modules))[:16]} if upstream_modules else {}),
        },
        # A build for another device, such as 2.11.0+cpu, is the same version.
        "versions": {name: installed[name].partition("+")[0] for name in PACKAGES},
    }


def portable(task: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's configuration without paths and without settings that have no effect. JSON values only.

    A path of the task's corpus becomes a placeholder, as the identity has a digest of what lies there. Another absolute
    path of a file becomes the digest of the file.
    """
    paths = _path_keys(task)

    def convert(value: Any, key: str) -> Any:
        if key in paths:
            return "(path)"
        if isinstance(value, Mapping):
            names = {name: f"{key}.{name}" if key else str(name) for name in value}
            return {name: convert(value[name], full) for name, full in names.items() if not _has_no_effect(full)}
        if isinstance(value, list | tuple):
            return [convert(item, "") for item in value]
        if isinstance(value, str) and value.startswith("/") and Path(value).is_file():
            return f"sha256:{_digest(value, Path(value).stat().st_mtime_ns)}"
        return value

    return json_ready(convert(config, ""))


@functools.cache
def _path_keys(task: str) -> frozenset[str]:
    return frozenset(path_keys(TASKS[task]))


@functools.cache
def _digest(file: str, changed: int) -> str:
    return sha256(Path(file))


def _has_no_effect(key: str) -> bool:
    return key in NO_EFFECT or key.endswith(NO_EFFECT_SUFFIXES)


def short(identity: object) -> str:
    """Return a short digest of an identity, for the name of a folder."""
    return hashlib.sha256(json_text(identity, indent=None).encode()).hexdigest()[:12]


def same_experiment(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """True if two identities differ at most in the code and the versions that computed the numbers."""
    one, two = ({key: value for key, value in identity.items() if key not in ORIGIN} for identity in (first, second))
    return one == two


def same_origin(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """True if two identities have the same code and versions."""
    return all(first.get(key) == second.get(key) for key in ORIGIN)


def reason(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return in words what differs between a stored identity and the one that is wanted now."""
    return ", ".join(_differences(stored, wanted))


def _differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    if missing := wanted.keys() - stored.keys() - {"learning_rates", "features"}:
        yield f"results of an older format, without {' and '.join(sorted(missing))}"
    for key, word in WORDS.items():
        if key not in missing and stored.get(key) != wanted.get(key):
            yield f"{word} {_text(stored.get(key))} -> {_text(wanted.get(key))}"
    if "corpus" not in missing:
        yield from _of_mapping(stored.get("corpus", {}), wanted.get("corpus", {}), "corpus, ")
    yield from _of_mapping(_leaves(stored.get("config", {})), _leaves(wanted.get("config", {})), "")
    if "code" not in missing:
        yield from (word for part, word in CODE.items() if stored["code"].get(part) != wanted["code"].get(part))
    if "versions" not in missing:
        yield from _of_mapping(stored["versions"], wanted["versions"], "")


def _of_mapping(stored: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for key in {**stored, **wanted}:
        if stored.get(key) != wanted.get(key):
            before, now = _text(stored.get(key)), _text(wanted.get(key))
            change = "other content" if before == now else f"{before} -> {now}"
            yield f"{prefix}{key} {change}"


def _leaves(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flat_keys(config) if not isinstance(value, Mapping)}


def _text(value: Any) -> str:
    """Return a value for a message: without a digest's last characters."""
    if isinstance(value, Mapping):  # a part of the corpus
        return f"{value['files']} files, {value['bytes']} bytes"
    text = "nothing" if value is None else str(value)
    return f"{text[:12]}..." if len(text) == 64 and set(text) <= set("0123456789abcdef") else text
