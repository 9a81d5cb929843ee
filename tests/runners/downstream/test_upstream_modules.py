"""Upstreams of other people's modules in `superbit downstream`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from runners.downstream import run as downstream
from tests.runners.downstream.experiments import overrides, train
from upstreams.errors import UserError

TWO_STEPS = overrides("ic", steps=2)


def test_a_module_registers_an_upstream_for_training_and_evaluation(
    package: Path, tiny_corpora: Path, tmp_path: Path
) -> None:
    upstream = ["-u", "an_upstream_of_mine", "--upstream-module", "my_package.module"]
    scale = tmp_path / "scale.txt"
    scale.write_text("2.0")
    train("ic", tiny_corpora, tmp_path / "exp", *upstream, "-k", str(scale), changes=TWO_STEPS)
    evaluate = ["-m", "evaluate", "-e", str(tmp_path / "exp"), "--device", "cpu"]
    metrics = downstream.main(evaluate)  # the checkpoint names the module
    assert metrics and 0 <= metrics["acc"] <= 1
    scale.write_text("3.0")
    with pytest.raises(UserError, match=r"was trained on .*scale\.txt with SHA-256"):
        downstream.main(evaluate)


def test_stored_features_are_of_the_modules_code(package: Path, tiny_corpora: Path, tmp_path: Path) -> None:
    upstream = ["-u", "an_upstream_of_mine", "--upstream-module", "my_package.module"]
    store = ["--feature-store", str(tmp_path / "features")]
    for number in range(3):
        if number == 2:
            (package / "helper.py").write_text("changed = True\n")
        train("ic", tiny_corpora, tmp_path / str(number), *upstream, *store, changes=TWO_STEPS)
        assert len(list((tmp_path / "features").glob("*/about.json"))) == (2 if number == 2 else 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"there is no module my_package\.other \(--upstream-module, upstream_modules\): install it"),
        ("import nothing_of_this_name\n", "needs nothing_of_this_name, which is not installed"),
        ("1 / 0\n", "cannot be imported: ZeroDivisionError: division by zero"),
        ("", r"adds no upstream to s3prl\.hub"),
        ("import s3prl.hub\ns3prl.hub.transformer_mini = print\n", "replaces the upstream transformer_mini"),
    ],
)
def test_a_module_that_registers_nothing_is_refused(
    content: str | None, message: str, package: Path, tiny_corpora: Path, tmp_path: Path
) -> None:
    if content is not None:
        (package / "other.py").write_text(content)
    with pytest.raises(UserError, match=message) as raised:
        train("ic", tiny_corpora, tmp_path / "exp", "--upstream-module", "my_package.other")
    assert "\n" not in str(raised.value)
    sys.modules.pop("my_package.other", None)
