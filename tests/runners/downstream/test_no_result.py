"""A test on an empty split, or with NaN in the head, gives an error and no number."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from runners.downstream import run as downstream
from runners.tasks import SEVEN
from tests.runners.downstream.experiments import overrides, train
from upstreams.errors import UserError

FSC = "fluent_speech_commands_dataset/data/test_data.csv"


def _empty_json(root: Path) -> None:
    listing = root / "IEMOCAP/meta_data/Session1/test_meta_data.json"
    listing.write_text(json.dumps(json.loads(listing.read_text()) | {"meta_data": []}))


def _empty_folders(root: Path, *folders: str) -> None:
    for pattern in folders:
        for folder in root.glob(pattern):
            shutil.rmtree(folder)
            folder.mkdir()


def _keep_lines(path: Path, keep: Callable[[str], bool]) -> None:
    path.write_text("".join(line for line in path.read_text().splitlines(keepends=True) if keep(line)))


EMPTY: dict[str, Callable[[Path], None]] = {
    "asr": lambda root: _keep_lines(root / "len_for_bucket/test-clean.csv", lambda line: line.startswith(",")),
    "pr": lambda root: _empty_folders(root, "LibriSpeech/test-clean/*"),
    "ks": lambda root: _empty_folders(root, "speech_commands_test_set_v0.01/*"),
    "sid": lambda root: _keep_lines(root / "VoxCeleb1/veri_test_class.txt", lambda line: line[0] != "3"),
    "er": _empty_json,
    "ic": lambda root: _keep_lines(root / FSC, lambda line: line.startswith(",")),
    "sf": lambda root: _empty_folders(root, "SNIPS/test"),
}


@pytest.mark.parametrize("task", SEVEN)
def test_an_empty_test_set_and_nan_weights_give_no_number(task: str, tiny_corpora: Path, tmp_path: Path) -> None:
    train(task, tiny_corpora, tmp_path, changes=overrides(task, steps=2))
    states, poisoned = tmp_path / "states-2.ckpt", tmp_path / "poisoned.ckpt"
    evaluate = ["-m", "evaluate", "--device", "cpu", "-e"]
    assert downstream.main([*evaluate, str(states)])

    root = tmp_path / "corpora"
    shutil.copytree(tiny_corpora, root)
    EMPTY[task](root)
    with pytest.raises(UserError) as raised:
        downstream.main([*evaluate, str(states), "--corpora", str(root)])
    assert "\n" not in str(raised.value)

    checkpoint = torch.load(states)
    for name, tensor in checkpoint["Downstream"].items():
        if tensor.is_floating_point() and name != "best_score":
            tensor.fill_(torch.nan)
    torch.save(checkpoint, poisoned)
    with pytest.raises(UserError, match=r"^evaluating test\S* gave \w+ = nan, so there is no result"):
        downstream.main([*evaluate, str(poisoned)])
