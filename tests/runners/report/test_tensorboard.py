"""The report's TensorBoard files."""

from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from runners.report.write import report
from tests.runners.report.fake_cells import UPSTREAMS, write_runs


def test_tensorboard_has_metrics_table_and_figures(tmp_path: Path) -> None:

    runs = write_runs(tmp_path / "runs", seed=1)
    report([runs])
    report([runs])  # replaces the events of the first report
    folder = runs / "report" / "tensorboard"
    top = EventAccumulator(str(folder))
    top.Reload()
    assert len(top.Images("score_against_storage")) == 1
    assert b"tiny_mini_w1a1" in top.Tensors("table/text_summary")[0].tensor_proto.string_val[0]
    assert (runs / "report" / "score_storage.png").read_bytes().startswith(b"\x89PNG")

    sessions = {path.parent for path in folder.glob("hparams/*/*/events*")}
    assert len(sessions) == len(UPSTREAMS)
    session = EventAccumulator(str(folder / "hparams" / "tiny_mini" / "seed1"))
    session.Reload()
    assert session.Scalars("final_percent/pr_per")[0].value == pytest.approx(70)
    plugin = session.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    start = HParamsPluginData.FromString(plugin).session_start_info
    assert start.hparams["upstream"].string_value == "tiny_mini"
    assert start.hparams["storage_bytes"].number_value == 6_800_000
