"""From LibriSpeech's layout to the report with the real commands: the packaged matrices, killed runs, other engines."""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from runners.corpora.bucket_files import write_bucket_files
from runners.corpora.published import LIBRISPEECH_SETS
from runners.matrix import run as matrix
from runners.matrix.run import Options
from tests.runners.matrix.test_faults import KS, values
from tests.tiny_corpora import Sounds, build

pytestmark = pytest.mark.slow

# The packaged matrices with minis in place of the large models, and a few steps of everything.
ROWS = "upstreams=[fbank, conformer_mini_untrained, conformer_mini, sparseformer_sw_mini_w1a2, conformer_mini_w1a1]"
PRETRAIN = (
    "training.pretrain={iterations: [{layer: 0, clusters: 8, steps: 3}, {layer: 1, clusters: 8, steps: 3}], "
    "cluster_starts: 1, cluster_fraction: 1.0, batch_seconds: 12, crop_seconds: 2, save_every: 1}"
)
QUANTIZE = "training.quantize={steps: 2, batch_seconds: 12, crop_seconds: 2, save_every: 1}"
STEPS = "runner.total_steps: 2, runner.eval_step: 2, runner.save_step: 2, runner.log_step: 2"
DATA = "downstream_expert.datarc.num_workers: 0"
TASKS = {
    # The official recurrent heads need more memory than small machines have.
    "asr": f"{STEPS}, {DATA}, downstream_expert.datarc.batch_size: 2, downstream_expert.modelrc.project_dim: 16, "
    "downstream_expert.modelrc.RNNs.dim: [8, 8]",
    "sf": f"{STEPS}, downstream_expert.corpus.num_workers: 0, downstream_expert.corpus.batch_size: 2, "
    "downstream_expert.model.project_dim: 16, downstream_expert.model.RNNs.dim: [8, 8]",
    "pr": f"{STEPS}, downstream_expert.corpus.num_workers: 0",
    "sid": f"{STEPS}, {DATA}",
    "ic": f"{STEPS}, {DATA}, downstream_expert.datarc.train_batch_size: 2",
    "ks": f"{STEPS}, {DATA}, downstream_expert.datarc.batch_size: 2",
    "er": f"{STEPS}, {DATA}, downstream_expert.datarc.test_fold: fold1",
}
SMALL = [
    *("device=cpu", "training.processes=1", "learning_rates={sid: [1.0e-1, 1.0e-2]}", ROWS, PRETRAIN, QUANTIZE),
    *(f"tasks.{task}={{{values}}}" for task, values in TASKS.items()),
]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All corpora in the published layout; LibriSpeech's sets for pre-training have utterances of 2.5 to 3.2 s."""
    root = build(tmp_path_factory.mktemp("published"))
    sounds = Sounds(5)
    for number, name in enumerate(("train-clean-100", "train-clean-360", "train-other-500")):
        chapter = root / "LibriSpeech" / name / f"{200 + number}" / "7"
        lines = []
        for index in range(8):
            path = chapter / f"{200 + number}-7-{index:04d}.flac"
            sounds.write(path, seconds=2.5 + 0.1 * index, tone=200 + 60 * index + 20 * number)
            lines.append(f"{path.stem} THE CAT SAT\n")
        (chapter / f"{chapter.parent.name}-7.trans.txt").write_text("".join(lines))
    write_bucket_files(root / "LibriSpeech", root / "len_for_bucket", LIBRISPEECH_SETS.values())
    return root


@pytest.mark.parametrize("name", ["paper", "paper_100h"])
def test_the_matrices_of_the_real_corpora_run_from_audio_to_report(published: Path, tmp_path: Path, name: str) -> None:
    runs = tmp_path / "runs"
    arguments = [argument for setting in SMALL for argument in ("--set", setting)]
    command = [sys.executable, "-m", "superbit", "evaluate", name, "--corpora", str(published), "--out", str(runs)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert len(values(runs)) == 5 * 7
    hours = {"paper": 24, "paper_100h": 8}  # utterances of all sets, or of train-clean-100
    assert len((runs / "manifest/train.tsv").read_text().splitlines()) == 1 + hours[name]
    # The label set that the matrix makes is the one that pre-training looks for.
    assert len(list((runs / "seed1337/labels").iterdir())) == 1
    report = (runs / "report/report.html").read_text()
    assert "conformer_mini_w1a1" in report
    assert {path.stem for path in (runs / "measured").iterdir()} == {
        *("conformer_mini", "sparseformer_sw_mini_w1a2", "conformer_mini_w1a1")
    }


@pytest.mark.parametrize("name", ["paper", "paper_100h"])
def test_a_dry_run_of_the_whole_paper_takes_less_than_ten_seconds(published: Path, tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-m", "superbit", "evaluate", name, "--corpora", str(published), "--dry-run"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "runs"), "--set", "tasks.er={downstream_expert.datarc.test_fold: fold1}"],
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # Seconds of the processor: those of the clock depend on what else runs.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 15
    rows = re.findall(r"^pretrain \S+ seed 1337 iteration\d +waits +\d+ +\S+ \S+ +[\d.,]+ ", done.stdout, re.MULTILINE)
    assert len(rows) == 2 * {"paper": 6, "paper_100h": 5}[name]
    assert "GPU hours" in done.stdout.splitlines()[-3]
    assert not (tmp_path / "runs").exists()


def write_small(path: Path, **changes: object) -> Path:
    content = {
        "upstreams": ["fbank", "sparseformer_dn_mini", "sparseformer_dn_mini_w1a1"],
        "tasks": {"ks": KS},
        "seeds": [0],
        "device": "cpu",
        "training": {
            "audio": "LibriSpeech",
            "match": "^train-",
            "schedules": {"w1a1": ["w1a32"]},
            "pretrain": yaml.safe_load(PRETRAIN.partition("=")[2]),
            "quantize": yaml.safe_load(QUANTIZE.partition("=")[2]),
        },
    }
    path.write_text(yaml.safe_dump(content | changes))
    return path


def children(pid: int) -> list[int]:
    """Return the processes below a process."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
    return [process for child in map(int, found) for process in (child, *children(child))]


def test_killed_at_twenty_random_moments_it_ends_with_the_same_table(published: Path, tmp_path: Path) -> None:
    file, runs = write_small(tmp_path / "m.yaml"), tmp_path / "runs"
    assert matrix.evaluate(file, published, tmp_path / "alone", jobs=2) == 0
    command = [sys.executable, "-m", "superbit", "evaluate", str(file), "--corpora", str(published), "--out", str(runs)]
    draw = random.Random(0)
    for _ in range(20):
        driver = subprocess.Popen([*command, "--jobs", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(2, 20))
        victims = [driver.pid, *children(driver.pid)]
        os.kill(draw.choice(victims), signal.SIGKILL) if draw.random() < 0.5 else driver.kill()
        if draw.random() < 0.5:
            driver.kill()
        driver.wait()
    assert matrix.evaluate(file, published, runs, jobs=2) == 0
    assert values(runs) == values(tmp_path / "alone")


def test_slurm_gives_the_same_table(published: Path, tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    file = write_small(tmp_path / "m.yaml")
    assert matrix.evaluate(file, published, tmp_path / "alone", jobs=2) == 0
    file = write_small(tmp_path / "m.yaml", slurm={"cluster": "local", "timeout_min": 30})
    assert matrix.evaluate(file, published, tmp_path / "slurm", jobs=2, options=Options(engine="slurm")) == 0
    assert values(tmp_path / "slurm") == values(tmp_path / "alone")


def test_ray_gives_the_same_table(published: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    file = write_small(tmp_path / "m.yaml")
    assert matrix.evaluate(file, published, tmp_path / "alone", jobs=2) == 0
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        cluster.add_node(num_cpus=2)
        cluster.wait_for_nodes()
        file = write_small(tmp_path / "m.yaml", ray={"address": cluster.address})
        assert matrix.evaluate(file, published, tmp_path / "ray", jobs=2, options=Options(engine="ray")) == 0
    finally:
        cluster.shutdown()
    assert values(tmp_path / "ray") == values(tmp_path / "alone")
