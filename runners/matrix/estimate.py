"""Expected time, disk and memory of a training: measured if available, otherwise estimated from MACs."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runners.corpora.embedded import described_tasks
from runners.corpora.published import SPLITS
from runners.downstream.pooling import averages_over_time
from runners.matrix.cell import Cell, Training
from runners.tasks import TASKS
from upstreams.config import EncoderConfig, FrontEndConfig, ModelConfig
from upstreams.files import read_json

SHARED_AUDIO = {"pr": "asr"}  # task -> task with the same recordings, and so the same features
PROCESS_BYTES = 0.7 * 2**30  # Python with torch and s3prl
# Of a GPU, assumed until a training was measured: 30 TFLOP/s, a tenth of an A100's peak in bfloat16, as encoders this
# small do not fill a GPU.
GPU_MACS = 15e12  # per second
UPSTREAM_EFFICIENCY = 0.5  # fraction of the speed of a large matrix product
HEAD_EFFICIENCY = 0.15  # the same for small products, recurrent layers and the optimizer
STEP_SECONDS = 0.01  # overhead of every step: reading audio, bookkeeping
TYPICAL_SECONDS = 8.0  # of an utterance, for its multiply-accumulates
BYTES = {"fp16": 2, "int8": 1, "fp32": 4}  # of a number in the feature store


@dataclass(frozen=True)
class Audio:
    """Size of one split of a task."""

    utterances: int
    seconds: float

    @property
    def mean(self) -> float:
        """Mean seconds of an utterance."""
        return self.seconds / max(1, self.utterances)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimate for one training and one test; seconds and feature_bytes are None if the upstream is unknown."""

    seconds: float | None
    feature_bytes: int | None  # of the training and dev audio, stored already or not
    checkpoint_bytes: int
    memory_bytes: int
    source: str  # "measured" or "MACs"


class Estimator:
    """Estimates trainings from the measured ones in the runs folder `out`."""

    def __init__(self, out: Path) -> None:
        self._trainings = _by_kind(out.glob("cells/*/*/seed*/**/trained.json"))
        self._results = _by_kind(out.glob("cells/*/*/seed*/**/results.json"))

    def __call__(self, training: Training) -> Estimate:
        """Return the estimate for one training."""
        cell = training.cell
        _, _, test = audio(cell)
        shape = upstream_shape(cell.upstream, cell.checkpoint)
        if not TASKS[cell.task].has_head:
            return Estimate(
                seconds=None,
                feature_bytes=None,
                checkpoint_bytes=0,
                memory_bytes=_memory(training, shape, head=0),
                source="MACs",
            )
        features = None
        if shape is not None:
            features = _feature_bytes(training, shape)
        head = head_parameters(training.config, shape.dim if shape else 768)
        measured = self._trainings.get(_kind(training.identity), [])
        tested = self._results.get(_kind(training.identity), [])
        seconds = _seconds(training, shape, head) if shape else None
        if measured:
            steps = training.config["runner"]["total_steps"]
            seconds = steps * statistics.median(record["step_seconds"] for record in measured)
            if tested:
                seconds += statistics.median(result["seconds"]["evaluate"] for result in tested)
            elif shape:
                seconds += test.seconds * shape.macs_per_second / (machine_macs() * UPSTREAM_EFFICIENCY)
        memory = max((record["peak_memory_bytes"] for record in measured), default=0)
        return Estimate(
            seconds=seconds,
            feature_bytes=features,
            checkpoint_bytes=6 * 4 * head,  # weights and Adam's two moments, in the last checkpoint and in the best
            memory_bytes=int(1.1 * memory) or _memory(training, shape, head),
            source="measured" if measured else "MACs",
        )


Kind = tuple[str, str | None, str, str]


def _by_kind(paths: Iterable[Path]) -> dict[Kind, list[dict[str, Any]]]:
    """Return the JSON objects in the files, grouped by the kind of their training."""
    found: dict[Kind, list[dict[str, Any]]] = {}
    for path in sorted(paths):
        if content := read_json(path):
            found.setdefault(_kind(content["identity"]), []).append(content)
    return found


def _kind(identity: Mapping[str, Any]) -> Kind:
    """Return a key that is the same for trainings whose steps take the same time."""
    config = {key: value for key, value in identity["config"].items() if key not in ("runner", "optimizer")}
    accumulated = identity["config"]["runner"].get("gradient_accumulate_steps")
    return identity["upstream"], identity["checkpoint_sha256"], identity["task"], f"{accumulated} {config}"


def audio(cell: Cell) -> tuple[Audio, Audio, Audio]:
    """Return the sizes of train, dev and test: counted in corpus.json, or those of the published corpus."""
    described = described_tasks(cell.corpora).get(cell.task, {}).get("splits", {})
    splits = {name: Audio(split["utterances"], 3600 * split["hours"]) for name, split in described.items()}
    if {"train", "dev", "test"} <= splits.keys():
        return splits["train"], splits["dev"], splits["test"]
    if splits:  # ER's sessions: a fifth is the test set, a fifth of the rest the dev set
        utterances = sum(split.utterances for split in splits.values())
        seconds = sum(split.seconds for split in splits.values())
        train, dev, test = (Audio(int(share * utterances), share * seconds) for share in (0.64, 0.16, 0.2))
    else:  # a task that is not listed is assumed to have medium size
        train, dev, test = (Audio(n, 3600 * hours) for n, hours in SPLITS.get(cell.task, SPLITS["ic"]))
    return train, dev, test


@dataclass(frozen=True)
class Shape:
    """Shape of an upstream's features and its cost."""

    layers: int  # hidden states
    dim: int
    frame_rate: float  # Hz
    macs_per_second: float  # of audio
    weight_bytes: int


@functools.cache
def upstream_shape(name: str, checkpoint: Path | None) -> Shape | None:
    """Return the shape of an upstream; None unless it is this project's or one of s3prl's log-mel baselines."""
    from upstreams import cost, registry

    if name in ("fbank", "fbank_no_cmvn"):
        macs = cost.superb_fbank_macs() / (sum(cost.SUPERB_SAMPLES) / 16000)
        return Shape(layers=1, dim=240, frame_rate=100.0, macs_per_second=macs, weight_bytes=0)
    if name not in registry.names():
        return None
    if name == registry.LOCAL:
        return shape(registry.cost_model(registry.checkpoint_path(name, checkpoint)).config)
    return shape(registry.model_config(name))


def shape(config: ModelConfig) -> Shape:
    """Return the shape of a model of this project, in full precision: bit widths change no multiply-accumulate."""
    return _shape(config.front_end, config.encoder)


@functools.cache
def _shape(front_end: FrontEndConfig, encoder: EncoderConfig) -> Shape:
    from upstreams import cost
    from upstreams.formats.checkpoint import skeleton

    model = skeleton(ModelConfig("estimated", front_end, encoder))
    macs = sum(module.macs for module in cost.profile(model, [int(16000 * TYPICAL_SECONDS)]))
    return Shape(
        layers=encoder.layers + 1,
        dim=encoder.dim,
        frame_rate=16000 / model.config.downsample_rate,
        macs_per_second=macs / TYPICAL_SECONDS,
        weight_bytes=4 * cost.parameters(model),
    )


def head_parameters(config: Mapping[str, Any], dim: int) -> int:
    """Return the approximate number of a head's weights, from the sizes in its configuration."""
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
    """Return the number of utterances in a micro-batch."""
    data = config["downstream_expert"].get("datarc") or config["downstream_expert"].get("corpus") or {}
    return int(data.get("train_batch_size") or data.get("batch_size") or 32)


def _drawn(training: Training) -> float:
    """Return the number of training utterances that pass through the head, repetitions included."""
    runner = training.config["runner"]
    return float(runner["total_steps"] * runner["gradient_accumulate_steps"] * _batch(training.config))


def _averaged(training: Training) -> bool:
    """True if the store gives the head one frame for each utterance."""
    return training.cell.store is not None and averages_over_time(TASKS[training.cell.task].downstream, training.config)


def _feature_bytes(training: Training, shape: Shape) -> int:
    """Return the bytes that the features of the training and dev audio take in the store."""
    train, dev, _ = audio(training.cell)
    store = training.cell.store
    if store is None:
        return 0
    utterances = min(_drawn(training), train.utterances)
    if _averaged(training):
        return int(shape.layers * shape.dim * BYTES["fp32"] * (utterances + dev.utterances))
    seconds = utterances * train.mean + dev.seconds
    return int(shape.layers * shape.dim * shape.frame_rate * BYTES[store.dtype] * seconds)


def _seconds(training: Training, shape: Shape, head: int) -> float:
    """Return the seconds of a training and a test, from MACs."""
    train, dev, test = audio(training.cell)
    runner = training.config["runner"]
    passes = runner["total_steps"] * runner["gradient_accumulate_steps"]
    heard = _drawn(training) * train.mean
    evaluations = runner["total_steps"] // runner["eval_step"]
    sets = [test if "test" in split else dev for split in runner["eval_dataloaders"]]
    evaluated = evaluations * sum(split.seconds for split in sets)
    if training.cell.store is None:
        computed = heard + evaluated
    else:
        computed = min(heard, train.seconds) + min(evaluated, dev.seconds)
    computed += test.seconds
    # Training takes the work of three forward passes (forward and backward), evaluation of one.
    frames = shape.frame_rate * (3 * heard + evaluated)
    if _averaged(training):
        frames = 3 * _drawn(training) + evaluations * sum(split.utterances for split in sets)
    if training.cell.device == "cuda":
        return (computed * shape.macs_per_second + frames * head) / GPU_MACS + passes * STEP_SECONDS
    upstream = computed * shape.macs_per_second / (machine_macs() * UPSTREAM_EFFICIENCY)
    return upstream + frames * head / (machine_macs() * HEAD_EFFICIENCY) + passes * STEP_SECONDS


def _memory(training: Training, shape: Shape | None, head: int) -> int:
    """Return the bytes that a training needs at most."""
    train, _, _ = audio(training.cell)
    if training.cell.device == "cuda":  # features and head are in the GPU's memory
        return int(4 * PROCESS_BYTES + (shape.weight_bytes if shape else 0))
    if shape is None:  # as s3prl's largest upstreams: too high a guess only leaves a core idle
        shape = Shape(layers=25, dim=1024, frame_rate=50.0, macs_per_second=0.0, weight_bytes=4 * 320_000_000)
    longest = _batch(training.config) * (1.0 if _averaged(training) else 2.5 * train.mean * shape.frame_rate)
    features = 3 * 4 * shape.layers * shape.dim * longest
    # Activations and gates of the layers, whose width is about the root; generous, as measured on the minis.
    recurrent = 10 * 4 * longest * head**0.5
    return int(PROCESS_BYTES + shape.weight_bytes + 16 * head + features + recurrent)


@functools.cache
def machine_macs() -> float:
    """Return one core's MACs per second in a large fp32 matrix product, measured in about 0.2 s."""
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
    """Return a key that is the same for cells that read the same features."""
    return cell.upstream, cell.checkpoint_sha256, SHARED_AUDIO.get(cell.task, cell.task)
