"""Matrix files: packaged ones by name, others by path."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

import pytest

from runners.matrix.file import matrix_names, read_matrix
from runners.tasks import SEVEN
from upstreams.errors import UserError


@pytest.mark.parametrize("name", matrix_names())
def test_the_packaged_matrices_are_valid(name: str) -> None:
    matrix = read_matrix(name)
    assert set(matrix.tasks) == set(SEVEN)
    assert matrix.upstreams[0].label in ("fbank", "fbank_no_cmvn")
    assert matrix.training is not None
    rows = {"superb_mini": 6, "study_mini": 27, "paper": 31, "paper_100h": 16}
    assert len(matrix.upstreams) == rows[name]


def test_a_packaged_matrix_is_found_by_name_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert matrix_names() == ["paper", "paper_100h", "study_mini", "superb_mini"]
    packaged = resources.files("runners.matrix") / "matrices" / "superb_mini.yaml"
    shutil.copyfile(str(packaged), tmp_path / "copy.yaml")
    assert read_matrix("superb_mini") == read_matrix("copy.yaml") == read_matrix(tmp_path / "copy.yaml")


@pytest.mark.parametrize("name", ["supreb_mini", "runners/matrices/superb-mini.yaml"])
def test_an_unknown_name_is_answered_with_the_closest_one(name: str) -> None:
    with pytest.raises(UserError, match=f"no matrix or file is called '{name}'; did you mean 'superb_mini'") as raised:
        read_matrix(name)
    assert "\n" not in str(raised.value)


def test_a_folder_is_not_a_matrix(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no matrix or file is called"):
        read_matrix(tmp_path)
