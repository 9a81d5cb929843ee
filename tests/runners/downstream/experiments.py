"""Experiments of a few steps with `superbit downstream`, for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runners.downstream import run as downstream

# Settings that fit a task's official head and batches to a few steps on six sounds.
SMALL_LSTM = {"project_dim": 16, "RNNs.dim": [8, 8]}
SMALL: dict[str, dict[str, Any]] = {
    "asr": {"datarc.batch_size": 2} | {f"modelrc.{key}": value for key, value in SMALL_LSTM.items()},
    "pr": {"corpus.batch_size": 2},
    "sf": {"corpus.batch_size": 2} | {f"model.{key}": value for key, value in SMALL_LSTM.items()},
    "ks": {"datarc.batch_size": 4},
    "sid": {"datarc.train_batch_size": 2},
    "er": {"datarc.train_batch_size": 2},
    "ic": {"datarc.train_batch_size": 2},
    "asv": {
        **{"datarc.train_batch_size": 2, "datarc.vad_config.min_sec": 4000},
        **{"modelrc.input_dim": 16, "modelrc.module_config.XVector.agg_dim": 24},
    },
    "sd": {"loaderrc.train_batchsize": 2, "modelrc.hidden_size": 8},
}
LOADER = {"pr": "corpus", "sf": "corpus", "sd": "loaderrc"}  # section of num_workers; datarc for the other tasks


def few_steps(task: str, steps: int = 4, workers: int = 0) -> dict[str, Any]:
    """Return changes to a task's configuration: a few steps, an evaluation and a checkpoint every second one."""
    runner = {"total_steps": steps, "eval_step": 2, "save_step": 2, "log_step": 2, "gradient_accumulate_steps": 1}
    expert = {**SMALL[task], f"{LOADER.get(task, 'datarc')}.num_workers": workers}
    changes = {f"runner.{key}": value for key, value in runner.items()}
    return changes | {f"downstream_expert.{key}": value for key, value in expert.items()}


def overrides(task: str, steps: int = 4, workers: int = 0, **more: Any) -> str:
    """Return the value of -o for `few_steps` and more changes."""
    changes = {f"config.{key}": value for key, value in few_steps(task, steps, workers).items()}
    return ",,".join(f"{key}={value!r}" for key, value in (changes | more).items())


def train(task: str, root: Path, expdir: Path, *more: str, changes: str | None = None) -> None:
    """Train a task on the FBANK upstream with the corpora in `root`."""
    arguments = ["-m", "train", "-u", "fbank_no_cmvn", "-d", task, "-p", str(expdir), "--corpora", str(root)]
    downstream.main([*arguments, "--device", "cpu", "-o", changes or overrides(task), *more])


def logged(expdir: Path) -> dict[str, list[tuple[int, float]]]:
    """Return TensorBoard tag without the task -> [(step, value), ...]."""
    events = EventAccumulator(str(expdir))
    events.Reload()
    return {
        tag.partition("/")[2]: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
