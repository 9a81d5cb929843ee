"""SUPERB's ten tasks: their names in s3prl, metrics, configurations and the layouts of their corpora."""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import downstream_configs
from upstreams.errors import UserError, nearest, shown
from upstreams.files import parse_yaml, read_text
from upstreams.s3prl.made_files import place

CONFIGS = Path(downstream_configs.__file__).parent
_PLACEHOLDER = re.compile(r"^\$\{[a-z]+\}")  # only at the start: a folder may have such a name


@dataclass(frozen=True)
class Task:
    """One SUPERB task as s3prl runs it."""

    name: str
    downstream: str  # s3prl's -d
    metric: str  # the leaderboard's, by s3prl's name
    higher_is_better: bool
    best: str  # file name of the checkpoint with the best dev score; "" if s3prl evaluates no dev set in training
    eval_split: str  # s3prl's -t
    layout: str  # of the corpus below the corpora root
    has_head: bool = True  # False if nothing is trained
    best_by_accuracy: bool = False  # s3prl selects the best checkpoint by frame accuracy instead of the metric
    packages: tuple[str, ...] = ()  # of the extra `superb`, which s3prl imports for this task
    percent: float = 100.0  # factor from s3prl's value to percent: s3prl gives fractions, but asr's error rates in %

    @property
    def config_file(self) -> Path:
        """Path of the packaged configuration: official values, with placeholders for paths."""
        return CONFIGS / self.name / "config.yaml"

    def in_percent(self, value: float) -> float:
        """Return the metric's value in percent. Only s3prl's own output is in other units."""
        return round(value * self.percent, 10)  # 0.565 is 56.5 %, not 56.49999999999999 %


_LIBRISPEECH = (
    "LibriSpeech/{train-clean-100,dev-clean,test-clean}/<speaker>/<chapter>/<speaker>-<chapter>-<n>.flac and "
    "<speaker>-<chapter>.trans.txt"
)

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            *("asr", "asr", "wer", False, "dev-clean-best.ckpt", "test-clean"),
            layout=f"{_LIBRISPEECH}; len_for_bucket/<set>.csv",
            percent=1.0,
        ),
        Task(
            *("pr", "ctc", "per", False, "dev-best.ckpt", "test"),
            layout=f"{_LIBRISPEECH}; lexicon/librispeech-lexicon*.txt and, if it has other phones, lexicon/phoneme.txt",
        ),
        Task(
            *("ks", "speech_commands", "acc", True, "dev-best.ckpt", "test"),
            layout="speech_commands_v0.01/{<word>,_background_noise_}/*.wav; "
            "speech_commands_test_set_v0.01/{<ten words>,_unknown_,_silence_}/*.wav",
        ),
        Task(
            *("sid", "voxceleb1", "acc", True, "dev-best.ckpt", "test"),
            layout="VoxCeleb1/{dev,test}/wav/<id1xxxx>/<video>/<n>.wav; VoxCeleb1/veri_test_class.txt with lines "
            "`1|2|3 <id1xxxx>/<video>/<n>.wav`",
        ),
        Task(
            *("er", "emotion", "acc", True, "dev-best.ckpt", "test"),
            layout="IEMOCAP/Session<k>/sentences/wav/<dialog>/<utterance>.wav; "
            "IEMOCAP/meta_data/Session<k>/{train,test}_meta_data.json",
        ),
        Task(
            *("ic", "fluent_commands", "acc", True, "dev-best.ckpt", "test"),
            layout="fluent_speech_commands_dataset/{wavs/speakers/<speaker>/<n>.wav,data/{train,valid,test}_data.csv}",
        ),
        Task(
            *("sf", "ctc", "slot_type_f1", True, "dev-best.ckpt", "test"),
            layout="SNIPS/{train,valid,test}/<Speaker>-snips-<split>-<n>.wav, SNIPS/all.iob.snips.txt, SNIPS/slots.txt",
        ),
        Task(
            *("qbe", "quesst14_dtw", "mtwv", True, "", "test"),
            layout="quesst14Database/{Audio,dev_queries,eval_queries}/*.wav; quesst14Database/scoring/"
            "{language_key_{utterances,dev,eval}.lst,groundtruth_quesst14_{dev,eval}/*.{rttm,tlist.xml}}",
            has_head=False,
            packages=("dtw", "lxml"),
        ),
        Task(
            *("asv", "sv_voxceleb1", "EER", False, "", "test"),
            layout="VoxCeleb1/{dev,test}/wav/<id1xxxx>/<video>/<n>.wav; VoxCeleb1/veri_test.txt with lines "
            "`0|1 <id1xxxx>/<video>/<n>.wav <id1xxxx>/<video>/<n>.wav`",
            packages=("joblib",),
        ),
        Task(
            *("sd", "diarization", "DER", False, "best-states-dev.ckpt", "test"),
            layout="Libri2Mix_diarization/{train,dev,test}/{wav.scp,segments,utt2spk,spk2utt,reco2dur,rttm}",
            best_by_accuracy=True,
            packages=("h5py",),
        ),
    )
}

# The tasks that `all` stands for: those of the embedded corpora and of the paper's tables.
SEVEN = ("asr", "pr", "ks", "sid", "er", "ic", "sf")


def chosen_tasks(names: Collection[str]) -> list[str]:
    """Return the named tasks in the order of TASKS, with `all` for the seven; raise UserError for an unknown one."""
    for name in names:
        if name not in (*TASKS, "all"):
            raise UserError(f"there is no task {name!r}: {nearest(name, (*TASKS, 'all'))}")
    return [task for task in TASKS if task in names or ("all" in names and task in SEVEN)]


FOLD = "downstream_expert.datarc.test_fold"  # ER's key for the fold to test on; fold N is session N of IEMOCAP
FOLDS = ("fold1", "fold2", "fold3", "fold4", "fold5")

# Optional keys of s3prl that the official configurations leave out.
OPTIONAL_KEYS = (
    *("runner.fp16", "runner.evaluate_ratio", "runner.train_dataloader"),
    *("optimizer.weight_decay", "optimizer.betas", "optimizer.eps", "optimizer.amsgrad", "optimizer.momentum"),
    *("scheduler", "scheduler.name", "scheduler.num_warmup_steps", "specaug"),
)


def task_of(downstream: str, config: Mapping[str, Any]) -> Task | None:
    """Return the task for s3prl's `-d` name and a configuration; None for a task outside SUPERB."""
    corpus = config.get("downstream_expert", {}).get("corpus", {}).get("name")
    if downstream == "ctc":
        return {"libriphone": TASKS["pr"], "snips": TASKS["sf"]}.get(corpus)
    return next((task for task in TASKS.values() if task.downstream == downstream), None)


def task_config(task: str, root: str | Path, overrides: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Return s3prl's configuration of a task: official values, paths below the corpora root, then dotted overrides.

    Raises UserError for an unknown task or key, naming the nearest valid ones.
    """
    if task not in TASKS:
        raise UserError(f"there is no task {task!r}: {nearest(task, TASKS)}")
    config = read_config(TASKS[task].config_file, root)
    for key, value in (overrides or {}).items():
        set_key(config, key, value)
    return config


def task_configs(task: str, root: str | Path, overrides: Mapping[str, object]) -> list[dict[str, Any]]:
    """Return the configurations whose results are averaged: one for each fold of ER, a single one for other tasks.

    ER has five folds unless the overrides give one fold, or a list of folds, as test_fold. Raises UserError as
    `task_config` does, and for an unknown fold.
    """
    if task != "er":
        return [task_config(task, root, overrides)]
    value = overrides.get(FOLD, FOLDS)
    folds = list(dict.fromkeys([value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []))
    if not folds or not set(folds) <= set(FOLDS):
        raise UserError(f"{FOLD} must be one or a list of {', '.join(FOLDS)}, not {shown(value)}")
    return [task_config(task, root, {**overrides, FOLD: fold}) for fold in folds]


def read_config(file: str | Path, root: str | Path | None) -> dict[str, Any]:
    """Read a task's YAML file and fill in its placeholders for paths.

    `${root}` is the corpora root; `${made}/X` is the path of a file or folder that is made for the corpora, below the
    root or, if the root is read-only, in a cache (upstreams.s3prl.made_files). Both stay if `root` is None. `${here}`
    is the file's folder; `${phonemes}` is the root's lexicon/phoneme.txt if it exists, else phoneme.txt beside the
    file. A path with `*` in a list becomes all matching paths, sorted by name. Raises UserError if the file is missing
    or no YAML mapping.
    """
    file = Path(file).absolute()
    if not file.is_file():
        raise UserError(f"the configuration {file} is missing")
    config = parse_yaml(read_text(file), str(file))
    if not isinstance(config, dict):
        raise UserError(f"{file} must map runner, optimizer and downstream_expert to their settings")
    phonemes = file.parent / "phoneme.txt"
    if root is not None:
        root = Path(root).absolute()
        if (root / "lexicon" / "phoneme.txt").exists():
            phonemes = root / "lexicon" / "phoneme.txt"

    places = {"${here}": str(file.parent), "${phonemes}": str(phonemes)} | (
        {} if root is None else {"${root}": str(root)}
    )

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: fill(item) for key, item in value.items()}
        if isinstance(value, list):
            return [path for item in value for path in _matches(fill(item))]
        if isinstance(value, str):
            if root is not None and value.startswith("${made}/"):
                return str(place(root, value.removeprefix("${made}/")))
            return _PLACEHOLDER.sub(lambda match: places.get(match[0], match[0]), value)
        return value

    return fill(config)


def _matches(item: Any) -> list[Any]:
    """Return the paths that a pattern matches, or the item itself if it is no pattern or matches nothing."""
    if not isinstance(item, str) or "*" not in item:
        return [item]
    return sorted(map(str, Path(item).parent.glob(Path(item).name))) or [item]


def flat_keys(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every (dotted key, value) of a nested configuration, sections included."""
    for key, value in config.items():
        yield prefix + str(key), value
        if isinstance(value, Mapping):
            yield from flat_keys(value, f"{prefix}{key}.")


def set_key(config: dict[str, Any], key: str, value: object) -> None:
    """Set one value of a configuration by its dotted key.

    Raises UserError for a key that neither the configuration nor s3prl knows, and for a value whose kind differs from
    that of the value it replaces.
    """
    known = dict(flat_keys(config))
    if key not in known and key not in OPTIONAL_KEYS:
        raise UserError(f"the configuration has no key {shown(key)}: {nearest(key, [*known, *OPTIONAL_KEYS])}")
    before = known.get(key)
    if before is not None and value is not None:
        check_kind(key, value, before)
    *sections, last = key.split(".")
    for section in sections:
        config = config.setdefault(section, {})
    config[last] = copy.deepcopy(value)


def check_kind(key: str, value: object, example: object) -> None:
    """Raise UserError for a value whose kind is not that of `example`."""
    if kind(value) == kind(example):
        return
    hint = ""
    is_short_text = isinstance(value, str) and len(value) < 40
    if is_short_text and kind(example) == "a number" and (number := EXPONENT.fullmatch(str(value))):
        hint = f" (YAML reads {value} as text: write {float(number['mantissa'])}e{int(number['exponent']):+d})"
    raise UserError(f"{key} must be {kind(example)}, such as {example!r}, not {shown(value)}{hint}")


def kind(value: object) -> str:
    """Return the kind of a value of a configuration, for messages."""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", Path: "text"}
    return kinds.get(type(value), "a list" if isinstance(value, list | tuple) else "a mapping")


def missing_root(config: Mapping[str, Any]) -> str | None:
    """Return the first dotted key whose path still needs the corpora root; None if there is none."""
    return next((key for key, value in flat_keys(config) if _needs_root(value)), None)


def _needs_root(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return any(isinstance(item, str) and item.startswith(("${root}", "${made}")) for item in values)


def path_keys(task: Task) -> list[str]:
    """Return the dotted keys of a task's configuration that hold paths."""
    raw = yaml.safe_load(task.config_file.read_text(encoding="utf-8"))
    return [key for key, value in flat_keys(raw) if not isinstance(value, dict) and "${" in str(value)]


# A number that YAML 1.1 takes for text, as its mantissa has no point or its exponent no sign.
EXPONENT = re.compile(r"(?P<mantissa>[+-]?\d+\.?\d*)[eE](?P<exponent>[+-]?\d+)")

# Keys that s3prl reads from every configuration with which a head is trained.
RUNNER_KEYS = (
    *("total_steps", "gradient_clipping", "gradient_accumulate_steps", "log_step", "eval_step", "save_step"),
    *("max_keep", "eval_dataloaders"),
)


def check_keys(task: Task | None, config: Mapping[str, Any]) -> None:
    """Raise UserError unless a configuration has all keys that s3prl's runner and the task's dataset need.

    task: None for a downstream of s3prl that is not a SUPERB task.
    """
    needed = [f"runner.{key}" for key in RUNNER_KEYS] + ["optimizer.name"]
    if task is not None:
        official = yaml.safe_load(task.config_file.read_text(encoding="utf-8"))
        needed = [f"{section}.{key}" for section in ("runner", "optimizer") for key in official.get(section, ())]
        needed += path_keys(task)
    known = dict(flat_keys(config))
    for key in needed:
        if key not in known:
            raise UserError(f"the configuration of {task.name if task else 'the task'} lacks the key {key!r}")
