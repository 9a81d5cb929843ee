"""s3prl's checkpoints that are damaged, or are something else: one sentence names the file, and nothing in it runs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from runners.downstream import run as downstream
from upstreams.errors import UserError


def write_state(path: Path, **changes: Any) -> Path:
    args = argparse.Namespace(upstream="fbank_no_cmvn", downstream="fluent_commands")
    content = {"Args": args, "Config": {"runner": {}}, "Downstream": {"weight": torch.ones(500)}}
    torch.save(content | changes, path)
    return path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1500])


def one_bit_of_a_weight(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(torch.ones(8).numpy().tobytes()) + 3] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def a_text(path: Path) -> None:
    path.write_text("<html>not found</html>")


def a_list(path: Path) -> None:
    torch.save([1, 2], path)


class Code:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def code(path: Path) -> None:
    write_state(path, Featurizer=Code(path.with_name("ran")))


DAMAGES = {
    cut: "is damaged",
    one_bit_of_a_weight: "is damaged: the checksum of .* is wrong",
    empty: "is damaged",
    a_text: "is damaged, or not one of s3prl's",
    a_list: "is not one of s3prl's: it holds a list",
    code: "is damaged, or not one of s3prl's",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_of_a_head_is_named_and_runs_no_code(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    path = write_state(tmp_path / "states-2.ckpt")
    damage(path)
    new = ["-u", "fbank_no_cmvn", "-d", "ic", "-p", str(tmp_path / "new"), "--corpora", str(tmp_path)]
    for flags in (
        ["-m", "evaluate", "-e", str(path)],
        ["-m", "train", "-e", str(tmp_path)],
        ["-m", "evaluate", "-i", str(path), *new],
        ["-m", "train", "-i", str(path), *new],
    ):
        with pytest.raises(UserError, match=DAMAGES[damage]) as error:
            downstream.main([*flags, "--device", "cpu"])
        assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "new").exists()


@pytest.mark.parametrize("changes", [{"Args": {}}, {"Config": []}])
def test_a_checkpoint_of_another_program_is_named(changes: dict[str, Any], tmp_path: Path) -> None:
    path = write_state(tmp_path / "states-2.ckpt", **changes)
    with pytest.raises(UserError, match=rf"{path} is not a checkpoint of a downstream experiment"):
        downstream.main(["-m", "evaluate", "-e", str(path), "--device", "cpu"])
