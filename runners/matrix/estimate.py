"""What a training is expected to take: seconds, disk, memory. From earlier ones where there are, else from MACs."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners.corpora.published import SPLITS
from runners.matrix.cell import Cell
from runners.tasks import TASKS
from upstreams.files import read_json

SHARED_AUDIO = {"pr": "asr"}  # tasks on another's recordings, whose features are the same
PROCESS_BYTES = 0.7 * 2**30  # Python with torch and s3prl
UPSTREAM_EFFICIENCY = 0.5  # of a large matrix product's speed
HEAD_EFFICIENCY = 0.15  # small products, recurrent cells, the optimizer
STEP_SECONDS = 0.01  # that any step takes: reading audio, bookkeeping


@dataclass(frozen=True)
class Audio:
    """One split of a task."""

    utterances: int
    seconds: float

    @property
    def mean(self) -> float:
        return self.seconds / max(1, self.utterances)


@dataclass(frozen=True)
class Estimate:
    """Of one training and a test; None where nothing is known of the upstream."""

    seconds: float | None
    feature_bytes: int | None  # of the training and dev audio, whether or not they are in the store
    checkpoint_bytes: int
    memory_bytes: int
    source: str  # "measured" or "MACs"


class Estimator:
    """Estimates for cells whose runs' folder is `out`."""

    def __init__(self, out: Path) -> None:
        self._trainings = _by_kind(out.glob("cells/*/*/seed*/**/trained.json"))
        self._results = _by_kind(out.glob("cells/*/*/seed*/**/results.json"))

    def __call__(self, cell: Cell) -> Estimate:
        """The estimate for one training."""
        train, dev, test = audio(cell)
        shape = upstream_shape(cell.upstream, cell.checkpoint)
        if not TASKS[cell.task].has_head:
            return Estimate(None, None, 0, _memory(cell, shape, 0), "MACs")
        features = None
        if shape is not None:
            features = int(shape.bytes_a_second(cell) * (min(_heard(cell), train.seconds) + dev.seconds))
        head = head_parameters(cell.config, shape.dim if shape else 768)
        earlier = self._trainings.get(_kind(cell.training_identity), [])
        tested = self._results.get(_kind(cell.training_identity), [])
        steps = cell.config["runner"]["total_steps"]
        seconds = _seconds(cell, shape, head) if shape else None
        if earlier:
            seconds = steps * statistics.median(run["step_seconds"] for run in earlier)
            if tested:
                seconds += statistics.median(result["seconds"]["evaluate"] for result in tested)
            elif shape:
                seconds += test.seconds * shape.macs_a_second / (machine_macs() * UPSTREAM_EFFICIENCY)
        memory = max((run["peak_memory_bytes"] for run in earlier), default=0)
        return Estimate(
            seconds,
            features,
            6 * 4 * head,  # weights and Adam's two moments, in the last states and the best
            int(1.1 * memory) or _memory(cell, shape, head),
            "measured" if earlier else "MACs",
        )


Kind = tuple[str, str | None, str, str]


def _by_kind(paths: Iterable[Path]) -> dict[Kind, list[dict[str, Any]]]:
    """The JSON objects in the files, by the kind of training that they are of."""
    found: dict[Kind, list[dict[str, Any]]] = {}
    for path in sorted(paths):
        if content := read_json(path):
            found.setdefault(_kind(content["identity"]), []).append(content)
    return found


def _kind(identity: Mapping[str, Any]) -> Kind:
    """Trainings that take a step in the same time."""
    config = {key: value for key, value in identity["config"].items() if key not in ("runner", "optimizer")}
    accumulated = identity["config"]["runner"].get("gradient_accumulate_steps")
    return identity["upstream"], identity["checkpoint_sha256"], identity["task"], f"{accumulated} {config}"


def audio(cell: Cell) -> tuple[Audio, Audio, Audio]:
    """Training, dev and test audio: as corpus.json counts it, or the published corpus's."""
    described = (read_json(cell.corpora / "corpus.json") or {}).get("tasks", {}).get(cell.task, {}).get("splits", {})
    if {"train", "dev", "test"} <= described.keys():
        return tuple(  # type: ignore[return-value]
            Audio(described[split]["utterances"], 3600 * described[split]["hours"])
            for split in ("train", "dev", "test")
        )
    if described:  # ER's sessions: a fifth is the test, a fifth of the rest dev
        utterances = sum(split["utterances"] for split in described.values())
        seconds = 3600 * sum(split["hours"] for split in described.values())
        return tuple(Audio(int(part * utterances), part * seconds) for part in (0.64, 0.16, 0.2))  # type: ignore[return-value]
    # A task that is not listed is taken for one of middling size.
    return tuple(Audio(n, 3600 * hours) for n, hours in SPLITS.get(cell.task, SPLITS["ic"]))  # type: ignore[return-value]


@dataclass(frozen=True)
class Shape:
    """What an upstream makes of a second of audio."""

    layers: int  # hidden states
    dim: int
    frame_rate: float
    macs_a_second: float
    weight_bytes: int

    def bytes_a_second(self, cell: Cell) -> float:
        """Of features as the cell's store keeps them."""
        if cell.store is None:
            return 0.0
        return self.layers * self.dim * self.frame_rate * {"fp16": 2, "int8": 1, "fp32": 4}[cell.store.dtype]


@functools.cache
def upstream_shape(name: str, checkpoint: Path | None) -> Shape | None:
    """None for upstreams that are neither this project's nor s3prl's log-mel baselines."""
    from upstreams import cost, registry

    seconds = sum(cost.SUPERB_SAMPLES) / 16000
    if name in ("fbank", "fbank_no_cmvn"):
        return Shape(1, 240, 100.0, cost.superb_fbank_macs() / seconds, 0)
    if name not in registry.names():
        return None
    model = registry.costed(registry.checkpoint_path(name, checkpoint))
    macs = sum(c.macs for c in cost.profile(model, cost.SUPERB_SAMPLES))
    encoder = model.config.encoder
    rate = 16000 / model.config.downsample_rate
    return Shape(encoder.layers + 1, encoder.dim, rate, macs / seconds, 4 * cost.parameters(model))


def head_parameters(config: Mapping[str, Any], dim: int) -> int:
    """About how many weights a task's head has, by the sizes that its configuration gives."""
    expert = config["downstream_expert"]
    head = expert.get("modelrc") or expert.get("model") or {}
    width = head.get("projector_dim") or head.get("project_dim") or 256
    parameters = dim * width
    if head.get("select") != "RNNs":
        return parameters + 100 * width
    recurrent = head["RNNs"]
    gates = {"LSTM": 4, "GRU": 3}.get(recurrent["module"], 1)
    directions = 2 if recurrent["bidirection"] else 1
    for size in recurrent["dim"]:
        parameters += directions * gates * size * (width + size)
        width = directions * size
    return parameters + 100 * width


def _batch(config: Mapping[str, Any]) -> int:
    """Utterances that go through the head at once."""
    data = config["downstream_expert"].get("datarc") or config["downstream_expert"].get("corpus") or {}
    return int(data.get("train_batch_size") or data.get("batch_size") or 32)


def _heard(cell: Cell) -> float:
    """Seconds of training audio that go through the head, repetitions counted."""
    runner = cell.config["runner"]
    train, _, _ = audio(cell)
    return float(runner["total_steps"] * runner["gradient_accumulate_steps"] * _batch(cell.config) * train.mean)


def _seconds(cell: Cell, shape: Shape, head: int) -> float:
    train, dev, test = audio(cell)
    runner = cell.config["runner"]
    passes = runner["total_steps"] * runner["gradient_accumulate_steps"]
    heard = _heard(cell)
    evaluations = runner["total_steps"] // runner["eval_step"]
    evaluated = evaluations * sum((test if "test" in split else dev).seconds for split in runner["eval_dataloaders"])
    computed = heard + evaluated if cell.store is None else min(heard, train.seconds) + min(evaluated, dev.seconds)
    computed += test.seconds
    upstream = computed * shape.macs_a_second / (machine_macs() * UPSTREAM_EFFICIENCY)
    # Forward and backward: three passes' work in training, one in evaluation.
    frames = shape.frame_rate * (3 * heard + evaluated)
    return upstream + frames * head / (machine_macs() * HEAD_EFFICIENCY) + passes * STEP_SECONDS


def _memory(cell: Cell, shape: Shape | None, head: int) -> int:
    train, _, _ = audio(cell)
    if shape is None:  # as large as the largest of s3prl's: a guess that rather leaves a core idle
        shape = Shape(25, 1024, 50.0, 0.0, 4 * 320_000_000)
    longest = 2.5 * train.mean * _batch(cell.config) * shape.frame_rate
    features = 3 * 4 * shape.layers * shape.dim * longest
    recurrent = 60 * 4 * longest * head**0.5  # activations and gates of the layers, whose width is about the root
    return int(PROCESS_BYTES + shape.weight_bytes + 16 * head + features + recurrent)


@functools.cache
def machine_macs() -> float:
    """Multiply-accumulates a second of one core in a large fp32 matrix product, measured in about 0.2 s."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        a = torch.ones(768, 768)
        rates = []
        for _ in range(5):
            started = time.perf_counter()
            torch.mm(a, a)
            rates.append(768**3 / (time.perf_counter() - started))
    finally:
        torch.set_num_threads(before)
    return max(rates)


def audio_group(cell: Cell) -> tuple[str, str | None, str]:
    """Cells of one group read the same features."""
    checkpoint = cell.identity["checkpoint_sha256"]
    return cell.upstream, checkpoint, SHARED_AUDIO.get(cell.task, cell.task if cell.task in TASKS else "")
