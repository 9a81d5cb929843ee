"""One import of the compatibility fixes lets plain s3prl train."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import yaml

from runners.tasks import task_config

PLAIN_S3PRL = """
import builtins, socket, sys
isinstance_before = builtins.isinstance
def no_network(*args, **kwargs):
    raise AssertionError("tried to use the network")
socket.socket.connect = no_network
socket.getaddrinfo = no_network

import upstreams.s3prl.compat
from s3prl.nn import S3PRLUpstream
import torch

upstream = S3PRLUpstream("fbank")
states, lengths = upstream(torch.randn(1, 16000), torch.LongTensor([16000]))
assert states[0].shape[1] == lengths[0].max(), (states[0].shape, lengths)

from s3prl import run_downstream
sys.argv = ["run_downstream.py", *sys.argv[1:]]
run_downstream.main()
assert builtins.isinstance is isinstance_before
"""


def test_one_import_lets_plain_s3prl_train_quietly(tiny_corpora: Path, tmp_path: Path) -> None:
    """All fixes together, in a fresh interpreter without a network."""
    config = task_config(
        "ks",
        tiny_corpora,
        {
            "runner.total_steps": 2,
            "runner.save_step": 2,
            "downstream_expert.datarc.batch_size": 4,
            "downstream_expert.datarc.num_workers": 0,
        },
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    arguments = ["-m", "train", "-u", "fbank", "-d", "speech_commands", "--device", "cpu"]
    arguments += ["-c", str(tmp_path / "config.yaml"), "-p", str(tmp_path / "exp")]
    done = subprocess.run([sys.executable, "-c", PLAIN_S3PRL, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "exp" / "states-2.ckpt").exists()
    assert "ESPnet is not installed" not in done.stderr and "FutureWarning" not in done.stderr
