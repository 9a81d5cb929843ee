"""Experiments with a feature store."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from runners.tasks import SEVEN
from tests.runners.downstream.experiments import logged, overrides, train
from upstreams.config import preset
from upstreams.errors import UserError
from upstreams.formats import checkpoint


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return flags for an upstream of this project and its checkpoint."""

    path = tmp_path_factory.mktemp("checkpoints") / "mini.safetensors"
    torch.manual_seed(0)
    checkpoint.save(path, checkpoint.build(preset("transformer_mini")), None, {})
    return ["-u", "transformer_mini_untrained", "-k", str(path)]


@pytest.mark.parametrize("name", SEVEN)
def test_a_feature_store_does_not_change_the_numbers(
    name: str, tiny_corpora: Path, tmp_path: Path, untrained: list[str]
) -> None:
    more = {"config.downstream_expert.datarc.max_timestep": 6000} if name == "sid" else {}  # shorter than some files
    changes = overrides(name, **more)
    store = ["--feature-store", str(tmp_path / "features")]
    for folder, extra in (("plain", []), ("cold", store), ("warm", store)):
        train(name, tiny_corpora, tmp_path / folder, *untrained, *extra, changes=changes)
    plain, cold, warm = (logged(tmp_path / folder) for folder in ("plain", "cold", "warm"))
    # Losses with fp16 and fp32 features agree to three digits; with an empty and a full store they are equal.
    assert any("loss" in tag for tag in plain)
    for tag, steps in plain.items():
        if "loss" in tag:
            assert [value for _, value in cold[tag]] == pytest.approx([value for _, value in steps], rel=2e-3)
    for curves in (cold, warm):
        del curves["hits"], curves["misses"]
    assert warm == cold
    # The store does not grow when the same waveforms come again, and it holds no crops.
    shards = list((tmp_path / "features").glob("*/*.shard"))
    assert len(shards) == 1, "the second training found everything that the first had stored"


def test_a_feature_store_needs_a_frozen_upstream(tiny_corpora: Path, tmp_path: Path) -> None:
    store = ["--feature-store", str(tmp_path / "features")]
    for flags, message in (
        (["-f"], "frozen upstream"),
        (["-s", "last_hidden_state"], "stores only hidden_states"),
        (["--feature-store-gb", "0"], "must be above 0"),
        (["--feature-store-dtype", "fp8"], "invalid choice"),
    ):
        with pytest.raises(UserError, match=message):
            train("ic", tiny_corpora, tmp_path / "exp", *store, *flags)
    assert not (tmp_path / "features").exists()


def test_hits_and_misses_are_shown(tiny_corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("cold", "warm"):
        train("ic", tiny_corpora, tmp_path / folder, "--feature-store", str(tmp_path / "features"))
        curves = logged(tmp_path / folder)
        assert [step for step, _ in curves["hits"]] == [2, 4] == [step for step, _ in curves["misses"]]
    # Four utterances each of train, dev and test, and the noise with which s3prl measures the upstream.
    printed = re.findall(r"feature store: (\d+) utterances read \(hits\), (\d+) computed", capsys.readouterr().out)
    assert [int(misses) for _, misses in printed] == [13, 0]
    assert int(printed[1][0]) == int(printed[0][0]) + 13
