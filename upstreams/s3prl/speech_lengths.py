"""Lengths of speaker verification's training files after their silence has been cut out."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from tqdm import tqdm

from upstreams.audio_files import find_audio
from upstreams.errors import UserError
from upstreams.s3prl.made_files import State, digest, making, place, state


def speech_lengths(root: Path, name: str, length: Callable[[Path], int]) -> Path:
    """Return the path of a file with the lengths of all audio below `root`, in s3prl's format; measure if necessary.

    The file is `.wav_lengths/<name>` beside `root`, or in the cache if the corpus is read-only. One that was measured
    on other files is measured again. `length` returns the length of one file in samples. Raises UserError for a file of
    unknown origin that lists other audio.
    """
    path = place(root.parent, f".wav_lengths/{name}")
    names = find_audio(root)
    source = digest(item for file in names for item in (file, (root / file).stat().st_size))
    found = state(path, source)
    if found is State.OWN and _listed(path) != {tuple(file.split("/")) for file in names}:
        raise UserError(f"{path} lists other audio than {root} holds: delete it, and the lengths are measured again")
    if found in (State.MISSING, State.STALE):
        if found is State.STALE:
            print(f"[superbit] {path} is stale: the audio has changed, its lengths are measured again")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            lengths = pool.map(length, (root / file for file in names))
            measured = list(tqdm(lengths, total=len(names), desc="lengths without silence", dynamic_ncols=True))
        with making(path, source) as temporary:
            torch.save([[tuple(file.split("/")) for file in names], measured], temporary)
    return path


def _listed(path: Path) -> set[tuple[str, ...]]:
    """Return the audio that a user's file of lengths lists, each as the parts of its path."""
    try:
        tags, _ = torch.load(path, weights_only=True)
        return {tuple(tag) for tag in tags}
    except Exception as error:  # on damaged bytes torch.load raises errors of every type
        raise UserError(
            f"{path} is damaged ({type(error).__name__}): delete it, and the lengths are measured again"
        ) from None
