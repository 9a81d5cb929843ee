"""The supervised ceilings of the embedded benchmark: the network, and the command on one task."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import ceilings
from benchmarks.ceiling_network import SupervisedConvolutions


def test_features_of_an_utterance_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    network = SupervisedConvolutions().eval()
    short, long = 0.1 * torch.randn(9000), 0.1 * torch.randn(16_000)
    alone = network([short])["hidden_states"][0]
    together = network([long, short])["hidden_states"][0]
    assert alone.shape == (1, 15, 144) and together.shape == (2, 25, 144)
    torch.testing.assert_close(together[1, :15], alone[0], rtol=1e-4, atol=1e-4)
    assert not together[1, 15:].any()


def test_masks_hide_parts_of_the_input_in_training_only() -> None:
    torch.manual_seed(0)
    network = SupervisedConvolutions()
    for norm in network.norms:
        norm.eval()  # so that only the masks differ
    wave = [0.1 * torch.randn(16_000)]
    first, second = (network(wave)["hidden_states"][0] for _ in range(2))
    assert not torch.equal(first, second)
    network.eval()
    first, second = (network(wave)["hidden_states"][0] for _ in range(2))
    assert torch.equal(first, second)


def test_the_command_trains_tests_and_writes_a_table(
    tiny_corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["ceilings", "ic", "--corpora", str(tiny_corpora), "--out", str(tmp_path), "--steps", "4"]
    monkeypatch.setattr(sys, "argv", arguments)
    ceilings.main()
    (row,) = csv.DictReader((tmp_path / "ceilings.csv").open())
    assert (row["task"], row["metric"], row["steps"]) == ("ic", "acc", "4") and 0 <= float(row["score"]) <= 100
    weights = torch.load(next(tmp_path.glob("ic/seed0/expdir/*.ckpt")), weights_only=False)["Upstream"]
    assert any("convolutions" in name for name in weights)  # the network is trained, not only the head
    monkeypatch.setattr(ceilings.downstream, "main", None)
    ceilings.main()  # a finished task is not trained again
