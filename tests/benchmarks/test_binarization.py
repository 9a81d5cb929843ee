"""The table of losses states for each claim whether it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.binarization import CHAIN, HELD_OUT, ONE_STEP, split_manifest, table
from pretrain.audio.manifest import Manifest
from tests.pretrain.tiny_audio import write_corpus


def rows(encoder: str, losses: dict[str, tuple[float, float]]) -> list[dict[str, Any]]:
    return [
        {"encoder": encoder, "seed": seed, "run": run, "held_out_loss": value, "hidden_error": 0.5}
        | {"divergence": 0.1, "training_loss": 2.0}
        for run, values in losses.items()
        for seed, value in enumerate(values)
    ]


def test_table_checks_the_order_for_each_seed_and_counts_the_gains() -> None:
    good = {"w8a8": (1.0, 2.0), "w1a32": (2.0, 3.0), "w1a2": (4.0, 5.0), "w1a1": (6.0, 7.0), ONE_STEP: (6.5, 8.5)}
    bad = good | {"w1a2": (4.0, 7.5), ONE_STEP: (5.0, 7.5)}
    text = table(rows("one", good) + rows("two", bad))
    assert "| one | w1a32 | 2.500 ± 0.707 | 0.500 ± 0.000 | 0.100 ± 0.000 | 2.000 ± 0.000 |" in text
    assert "one: w8a8 < w1a32 < w1a2 < w1a1 in held-out loss holds for all 2 seeds." in text
    assert "two: w8a8 < w1a32 < w1a2 < w1a1 in held-out loss does not hold for seeds [1]." in text
    assert f"one: w1a1 through {' -> '.join(CHAIN)} is lower" in text
    assert "lower than in one step of as many training steps for 2 of 2 seeds, by 1.000 ± 0.707." in text
    assert "lower than in one step of as many training steps for 1 of 2 seeds, by -0.250 ± 1.061." in text


def test_held_out_utterances_are_not_in_the_training_manifest(tmp_path: Path) -> None:
    manifest = write_corpus(tmp_path / "audio", utterances=HELD_OUT + 2, seconds=0.2)
    train, held_out = (Manifest.read(path) for path in split_manifest(manifest, tmp_path / "out"))
    assert len(held_out) == 2 and len(train) == HELD_OUT
    assert {*train.paths, *held_out.paths} == set(Manifest.read(manifest).paths)
