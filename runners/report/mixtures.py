"""What the cells of one row, or the rows of one table, do not share: checkpoints, versions, machines."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from typing import Any

from runners.report.note import Note, listed
from runners.report.results import tested_parts
from runners.report.table import Table

PACKAGES = ("superbit", "torch", "torchaudio", "s3prl", "python")
Key = tuple[str, int, str]  # task, seed, fold
Value = Callable[[Mapping[str, Any]], str]  # of a tested part


def mixtures(table: Table) -> list[Note]:
    """Return a note on each property that differs within a row or between rows, and on code without a commit."""
    found = _checkpoints(table)
    for plural, value_of in _properties().items():
        found += [*_within_rows(table, plural, value_of), *_between_rows(table, plural, value_of)]
    dirty = [
        upstream
        for upstream in table.upstreams
        if any(part["versions"].get("commit", "").endswith("-dirty") for _, part in _parts(table, upstream))
    ]
    if dirty:
        found.append(Note("the code of some cells differed from the commit that they name (-dirty)", dirty))
    return found


def _properties() -> dict[str, Value]:
    """Return by its plural what should be one value in a table."""
    versions: dict[str, Value] = {f"versions of {name}": functools.partial(_version, name) for name in PACKAGES}
    return {
        "commits": _commit,
        "code": _code,
        **versions,
        "devices": itemgetter("device"),
        "machines": itemgetter("machine"),
    }


def _within_rows(table: Table, plural: str, value_of: Value) -> list[Note]:
    """Return one note for all rows whose cells are mixed in the same way."""
    rows: dict[str, list[str]] = {}
    for upstream in table.upstreams:
        groups = _groups(table, upstream, value_of)
        if len(groups) > 1:
            where = "; ".join(f"{value} ({_cells(table, upstream, cells)})" for value, cells in groups.items())
            rows.setdefault(where, []).append(upstream)
    return [Note(f"the row mixes {plural}: {where}", upstreams) for where, upstreams in rows.items()]


def _between_rows(table: Table, plural: str, value_of: Value) -> list[Note]:
    """Return a note if rows that are not mixed themselves have different values."""
    rows: dict[str, list[str]] = {}
    for upstream in table.upstreams:
        groups = _groups(table, upstream, value_of)
        if len(groups) == 1:
            rows.setdefault(next(iter(groups)), []).append(upstream)
    if len(rows) < 2:
        return []
    where = "; ".join(f"{value} ({listed(upstreams)})" for value, upstreams in rows.items())
    return [Note(f"the rows differ in {plural}: {where}")]


def _checkpoints(table: Table) -> list[Note]:
    """Return notes on rows with several checkpoints; one for each seed is another matter than several in one seed."""

    def digest(part: Mapping[str, Any]) -> str:
        return (part["checkpoint_sha256"] or "none")[:12]

    mixed = []
    for_each_seed = []
    for upstream in table.upstreams:
        by_seed: dict[int, set[str]] = {}
        for (_, seed, _), part in _parts(table, upstream):
            by_seed.setdefault(seed, set()).add(digest(part))
        if any(len(digests) > 1 for digests in by_seed.values()):
            groups = _groups(table, upstream, digest)
            where = "; ".join(f"{value} ({_cells(table, upstream, cells)})" for value, cells in groups.items())
            mixed.append(Note(f"the row mixes checkpoints: {where}", [upstream]))
        elif len(set.union(*by_seed.values())) > 1:
            for_each_seed.append(upstream)
    if for_each_seed:
        mixed.append(Note("seeds have checkpoints of their own: the deviation includes pre-training", for_each_seed))
    return mixed


def _parts(table: Table, upstream: str) -> list[tuple[Key, Mapping[str, Any]]]:
    return [
        ((result["task"], result["seed"], fold), part)
        for result in table.of_upstream(upstream)
        for fold, part in tested_parts(result).items()
    ]


def _groups(table: Table, upstream: str, value_of: Value) -> dict[str, list[Key]]:
    groups: dict[str, list[Key]] = {}
    for key, part in _parts(table, upstream):
        groups.setdefault(value_of(part), []).append(key)
    return groups


def _cells(table: Table, upstream: str, cells: Iterable[Key]) -> str:
    """Return the cells in words: whole seeds or whole tasks of the row if they are, otherwise one by one."""
    chosen, everything = set(cells), {key for key, _ in _parts(table, upstream)}
    for place, word in ((1, "seed "), (0, "")):
        values = {key[place] for key in chosen}
        if chosen == {key for key in everything if key[place] in values}:
            return listed(f"{word}{value}" for value in sorted(values, key=str))
    return listed(f"{task} seed {seed} {fold}".rstrip() for task, seed, fold in sorted(chosen))


def _code(part: Mapping[str, Any]) -> str:
    """Return the digests of the code: two states of one checkout may have the same commit, and other code."""
    return listed(f"{what} {digest[:12]}" for what, digest in part.get("code", {}).items()) or "unknown"


def _version(package: str, part: Mapping[str, Any]) -> str:
    return part["versions"].get(package) or "unknown"


def _commit(part: Mapping[str, Any]) -> str:
    digest, dash, dirty = part["versions"].get("commit", "").partition("-")
    return f"{digest[:12]}{dash}{dirty}" or "unknown"
