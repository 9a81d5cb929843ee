"""`superbit manifest`: list the audio below a folder in manifests for training and validation."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from upstreams.audio_files import SUFFIXES, find_audio, read_header
from upstreams.config import SAMPLE_RATE
from upstreams.errors import UserError
from upstreams.files import atomic_write


@dataclass(frozen=True)
class Scan:
    """Audio files below a folder, sorted by path."""

    root: Path
    usable: list[tuple[str, int]]  # (path below the root, samples)
    left_out: list[tuple[str, str]]  # (path below the root, reason)


def scan(root: Path, min_seconds: float, max_seconds: float, workers: int, match: str = "") -> Scan:
    """Inspect the header and the end of every audio file below `root`, in `workers` threads.

    Files are left out, with the reason, if they cannot be read to their end, are not 16 kHz mono, or are shorter than
    `min_seconds` or longer than `max_seconds`. match: regular expression; files in whose path below `root` it is not
    found are not looked at. Raises UserError if it is invalid, and if the folder is missing or holds no usable file.
    """
    root = root.absolute()
    if not root.is_dir():
        raise UserError(f"the folder {root} is missing: name the folder that holds the audio")
    if reason := unwritable(str(root)):
        raise UserError(f"a manifest cannot hold the folder {str(root)!r}: {reason}")
    try:
        wanted = re.compile(match)
    except re.error as error:
        raise UserError(f"--match {match!r} is not a valid regular expression: {error}") from None
    names = sorted(name for name in find_audio(root) if wanted.search(name))
    usable, left_out = [], []
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda name: inspect(root / name), names)
        for name, result in tqdm(
            zip(names, found, strict=True), total=len(names), desc="manifest", unit="file", mininterval=2.0
        ):
            if isinstance(result, str):
                left_out.append((name, result))
            elif reason := unwritable(name):
                left_out.append((name, reason))
            elif not min_seconds <= result / SAMPLE_RATE <= max_seconds:
                left_out.append(
                    (name, f"it is {result / SAMPLE_RATE:.2f} s long, not {min_seconds:g} to {max_seconds:g} s")
                )
            else:
                usable.append((name, result))
    if not usable:
        if match and not names:
            raise UserError(f"--match {match!r} is found in no path of an audio file below {root}")
        reason = f"; {left_out[0][0]}: {left_out[0][1]}" if left_out else f" with a suffix of {' '.join(SUFFIXES)}"
        raise UserError(f"{root} holds no usable audio file{reason}")
    return Scan(root, usable, left_out)


def inspect(path: Path) -> int | str:
    """Return the number of samples of an audio file, or the reason why it cannot be used."""
    header = read_header(path)
    if header.rate and (header.rate, header.channels) != (SAMPLE_RATE, 1):
        return f"it has {header.rate} Hz and {header.channels} channels, but {SAMPLE_RATE} Hz mono is expected"
    if header.problem:
        return header.problem if header.rate else f"it cannot be read: {header.problem}"
    return header.frames


def unwritable(name: str) -> str:
    """Return the reason why a manifest cannot hold a file's name, or an empty text."""
    if "\n" in name:
        return "its name has a line break"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    return ""


def shown(name: str) -> str:
    """Return a file's name with escapes in place of what a manifest cannot hold."""
    return name.replace("\n", "\\n").encode("utf-8", "backslashreplace").decode("utf-8")


def speakers(found: Scan, pattern: str) -> list[str]:
    """Return the speaker of every usable file: the first group of a regular expression, searched in the path.

    Raises UserError if the expression is invalid, has no group, or is not found in a path.
    """
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--speaker {pattern!r} is not a valid regular expression: {error}") from None
    if expression.groups < 1:
        raise UserError(
            rf"--speaker {pattern!r} has no group: put the speaker in parentheses, as in '([^/]+)/[^/]+/[^/]+$'"
        )
    names = []
    for path, _ in found.usable:
        match = expression.search(path)
        if match is None:
            raise UserError(f"--speaker {pattern!r} finds no speaker in the path {path}")
        names.append(match[1])
    return names


def split(groups: list[str], samples: list[int], fraction: float, seed: int) -> np.ndarray:
    """Return a mask of the files for validation: random whole groups that hold about `fraction` of the samples.

    groups: the group of each file; samples: its length. Raises UserError if all files are in one group.
    """
    if fraction == 0:
        return np.zeros(len(groups), bool)
    names = sorted(set(groups))
    if len(names) < 2:
        raise UserError("a single speaker or file cannot be split into training and validation: use --valid 0")
    size = dict.fromkeys(names, 0)
    for group, count in zip(groups, samples, strict=True):
        size[group] += count
    chosen: set[str] = set()
    wanted, total = fraction * sum(samples), 0
    for index in np.random.default_rng(seed).permutation(len(names))[:-1]:  # at least one is left for training
        if chosen and total >= wanted:
            break
        chosen.add(names[index])
        total += size[names[index]]
    return np.array([group in chosen for group in groups])


def write_manifests(
    root: Path,
    out: Path,
    min_seconds: float,
    max_seconds: float,
    valid: float,
    speaker: str | None,
    seed: int,
    workers: int,
    say: Callable[[str], object],
    match: str = "",
) -> None:
    """Write OUT/train.tsv, OUT/valid.tsv (unless `valid` is 0) and OUT/left_out.tsv of the audio below `root`.

    valid: fraction of the audio for validation. speaker: regular expression whose first group is the speaker in a
    path; with it whole speakers are for validation, without it single files. say: called with each line to print.
    match: regular expression that a file's path must match.
    """
    if not 0 <= valid < 1:
        raise UserError(f"--valid is {valid}, but must be at least 0 and less than 1")
    found = scan(root, min_seconds, max_seconds, workers, match)
    groups = [path for path, _ in found.usable] if speaker is None else speakers(found, speaker)
    is_valid = split(groups, [count for _, count in found.usable], valid, seed)
    for name, wanted in (("train", False), ("valid", True)):
        chosen = [entry for entry, own in zip(found.usable, is_valid, strict=True) if own == wanted]
        if not chosen:
            continue
        lines = [str(found.root), *(f"{path}\t{count}" for path, count in chosen)]
        _write(out / f"{name}.tsv", lines)
        hours = sum(count for _, count in chosen) / SAMPLE_RATE / 3600
        members = {group for group, own in zip(groups, is_valid, strict=True) if own == wanted}
        of_speakers = "" if speaker is None else f" of {len(members)} speakers"
        say(f"{out / name}.tsv: {len(chosen)} files{of_speakers}, {hours:.2f} h")
    left_out = [(shown(path), reason) for path, reason in found.left_out]
    _write(out / "left_out.tsv", [f"{path}\t{reason}" for path, reason in left_out])
    for path, reason in left_out[:10]:
        say(f"left out: {path}: {reason}")
    if len(found.left_out) > 10:
        say(f"left out: {len(found.left_out)} files in total, listed in {out / 'left_out.tsv'}")


def _write(path: Path, lines: list[str]) -> None:
    content = "".join(f"{line}\n" for line in lines)
    with atomic_write(path) as temporary:  # bytes, as a name may hold a carriage return
        temporary.write_bytes(content.encode("utf-8"))
