"""Heads that average over time get one frame for each utterance from the feature store, and learn the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from runners.downstream.pooling import averages_over_time
from runners.features.settings import StoreSettings
from runners.features.store import FeatureStore
from runners.tasks import SEVEN, TASKS, task_config
from tests.runners.downstream.experiments import logged, overrides, train
from tests.runners.features.toy import GIGABYTE, Counting, waveforms
from upstreams.config import preset
from upstreams.formats import checkpoint


def test_the_mean_is_over_the_frames_that_the_featurizer_gives_to_the_head(tmp_path: Path) -> None:
    from s3prl.upstream.interfaces import Featurizer

    class Longer(Counting):
        """Has a frame more than s3prl expects, as an encoder that pads has: the featurizer cuts it off."""

        def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor]]:
            states = super().forward(wavs)["hidden_states"]
            return {"hidden_states": [torch.cat([state, 1e3 * state[:, -1:]], dim=1) for state in states]}

    wavs = [wav[: len(wav) // 100 * 100] for wav in waveforms()]
    for wav in wavs:  # alone: in a batch, Longer's frame of one utterance is a frame of a longer one
        upstream = Longer()
        featurizer = Featurizer(upstream, upstream_device="cpu")
        frames = featurizer([wav], upstream([wav]))[0]
        store = FeatureStore(upstream, StoreSettings(tmp_path, GIGABYTE), "space", means=True).eval()
        for _ in range(2):  # computed, then read
            states = store([wav])["hidden_states"]
            assert [tuple(state.shape) for state in states] == [(1, 1, 100)] * 2
            torch.testing.assert_close(featurizer._weighted_sum(list(states))[0, 0], frames.mean(0))


@pytest.mark.parametrize("name", SEVEN)
def test_the_official_heads_of_utterance_tasks_are_averaged_and_no_others(name: str, tmp_path: Path) -> None:
    config = task_config(name, tmp_path, {})
    assert averages_over_time(TASKS[name].downstream, config) == (name in ("ks", "ic", "sid", "er"))


@pytest.mark.parametrize(
    ("changes", "more"),
    [
        ({"config.downstream_expert.modelrc.UtteranceLevel.pooling": "AttentivePooling"}, []),
        ({"config.specaug": {"apply_time_warp": False, "time_mask_width_range": [0, 2]}}, []),
        ({}, ["--upstream_feature_normalize"]),
    ],
)
def test_other_heads_and_changed_features_get_all_frames(
    changes: dict[str, Any], more: list[str], tiny_corpora: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mini.safetensors"
    torch.manual_seed(0)
    checkpoint.save(path, checkpoint.build(preset("transformer_mini")), None, {})
    flags = ["-u", "transformer_mini_untrained", "-k", str(path), *more]
    store = ["--feature-store", str(tmp_path / "features"), "--feature-store-dtype", "fp32"]
    train("ic", tiny_corpora, tmp_path / "stored", *store, *flags, changes=overrides("ic", **changes))
    folders = [path.name for path in (tmp_path / "features").iterdir() if path.is_dir()]
    assert [name.endswith("-mean") for name in folders] == [False]
    if "config.specaug" not in changes:  # its masks are drawn at random
        train("ic", tiny_corpora, tmp_path / "plain", *flags, changes=overrides("ic", **changes))
        plain, stored = logged(tmp_path / "plain"), logged(tmp_path / "stored")
        for tag in plain:
            if "loss" in tag:
                assert stored[tag] == [(step, pytest.approx(value, rel=1e-3)) for step, value in plain[tag]]


def test_a_store_of_means_takes_one_frame_of_disk_for_each_utterance(tiny_corpora: Path, tmp_path: Path) -> None:
    train("ks", tiny_corpora, tmp_path / "exp", "--feature-store", str(tmp_path / "features"), changes=overrides("ks"))
    (folder,) = (tmp_path / "features").iterdir()
    shards = sum(path.stat().st_size for path in folder.glob("*.shard"))
    assert folder.name.endswith("-mean") and 0 < shards < 200 * 1500  # an fbank frame has 240 numbers
