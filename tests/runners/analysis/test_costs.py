"""`superbit profile`: counted costs of names and checkpoints, and measured times and memory."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from upstreams import cost
from upstreams.config import preset
from upstreams.formats import checkpoint
from upstreams.packed import convert
from upstreams.quantization.convert import calibrating


def superbit(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "superbit", "profile", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_costs_of_names_and_checkpoints_on_the_utterances_of_the_leaderboard(tmp_path: Path) -> None:
    """A name needs no checkpoint. A checkpoint of the same shape and bit width costs the same, packed or not."""
    model = checkpoint.build(dataclasses.replace(preset("conformer_mini"), bits="w1a1")).eval()
    with torch.no_grad(), calibrating(model):
        model(torch.randn(1, 16_000) * 0.1)
    files = tmp_path / "mine.safetensors", tmp_path / "packed.safetensors"
    checkpoint.save(files[0], model, torch.nn.Linear(96, 5), {})
    convert.pack_checkpoint(*files)
    names = ["hubert_base", "conformer_mini_w1a1", "conformer_mini_untrained", *files]
    done = superbit(*names, "--json", tmp_path / "costs.json")
    assert done.returncode == 0, done.stderr
    hubert, binary, plain, mine, packed = json.loads((tmp_path / "costs.json").read_text())
    assert hubert["name"] == "hubert_base" and hubert["macs"] == pytest.approx(1669e9, rel=0.005)
    assert "hubert_base" in done.stdout and "1665.5" in done.stdout
    same = ("parameters", "macs", "bops", "storage_bytes", "estimated_runtime", "modules")
    assert all(binary[key] == mine[key] == packed[key] for key in same)
    assert binary["macs"] == plain["macs"] and binary["bops"] < plain["bops"] / 4
    assert binary["storage_bytes"] < plain["storage_bytes"] / 8
    assert plain["bops"] == 1024 * plain["macs"] and plain["estimated_runtime"] == 1 > binary["estimated_runtime"]
    for record in (hubert, binary, plain):
        for key in ("parameters", "macs", "bops", "storage_bytes"):
            assert record[key] == sum(module[key] for module in record["modules"]) > 0
        assert record["macs"] == sum(record[f"macs_{kind}"] for kind in ("linear", "convolution", "attention", "other"))
    assert plain["parameters"] == cost.parameters(model) - sum(
        p.numel() for name, p in model.named_parameters() if name.endswith(("alpha", "beta"))
    )


def test_csv_of_modules_for_one_utterance_length(tmp_path: Path) -> None:
    done = superbit("sparseformer_dn_mini", "--seconds", 0.64, "--modules", "--csv", tmp_path / "costs.csv")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "costs.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    # 0.64 s is 16 frames of 40 ms.
    assert int(rows["encoder.blocks.7.feed_forward.expand"]["macs"]) == 16 * 128 * 640
    assert int(rows["encoder.blocks.7.feed_forward.expand"]["storage_bytes"]) == 4 * (128 * 640 + 640)
    assert int(rows["encoder.positions.convolution"]["macs"]) == 16 * 128 * 15
    # One block of 16 queries and 48 keys, in two products.
    assert int(rows["encoder.blocks.0.attention.product"]["macs"]) == 2 * 16 * 48 * 128
    assert rows["(output map)"]["kind"] == "map" and int(rows["(output map)"]["macs"]) == 9 * 16 * 128 * 128
    assert int(rows["encoder.norm"]["parameters"]) == 256 and rows["encoder.norm"]["kind"] == "other"
    assert "encoder.blocks.7.feed_forward.expand" in done.stdout


def test_measured_times_and_memory(tmp_path: Path) -> None:
    arguments = ("--seconds", 1.5, "--measure", "--batch", 2, "--threads", 1, "--repeats", 4)
    done = superbit(
        "sparseformer_dn_mini", "transformer_base", *arguments, "--json", tmp_path / "a", "--csv", tmp_path / "b"
    )
    assert done.returncode == 0, done.stderr
    small, large = json.loads((tmp_path / "a").read_text())
    for record in (small, large):
        assert record["calls"] == 4 and record["batch"] == 2 and record["threads"] == 1 and record["machine"]
        assert 0 < record["latency_ms_p50"] <= record["latency_ms_p90"] <= record["latency_ms_p99"]
        assert record["real_time_factor"] == pytest.approx(record["latency_ms_p50"] / 1000 / 3, rel=1.0)
    assert large["real_time_factor"] > small["real_time_factor"]
    # transformer_base has 361 MB more weights.
    assert large["peak_memory_bytes"] - small["peak_memory_bytes"] > 300e6
    assert "modules" not in (tmp_path / "b").read_text() and "real-time factor" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["conformer_x"], "did you mean 'conformer_s'"),
        (["conformer_s_w3a1"], "there is no upstream or checkpoint file 'conformer_s_w3a1'"),
        (["superbit_local"], "there is no upstream or checkpoint file 'superbit_local'"),
        (["runs/none.safetensors"], "no checkpoint at runs/none.safetensors"),
        (["conformer_s", "--superb", "--seconds", "3"], "--superb and --seconds exclude each other"),
    ],
)
def test_bad_input_exits_with_code_2_and_one_sentence(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = superbit(*arguments, "--json", tmp_path / "costs.json")
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "costs.json").exists()
