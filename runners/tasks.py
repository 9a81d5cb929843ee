"""SUPERB's ten tasks: their s3prl names, metrics, configurations and corpora."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import downstream_configs
from upstreams.errors import UserError, nearest

CONFIGS = Path(downstream_configs.__file__).parent


@dataclass(frozen=True)
class Task:
    """One SUPERB task as s3prl runs it."""

    name: str
    downstream: str  # s3prl's -d
    metric: str  # the leaderboard's, by s3prl's name; from 0 to 1, but asr's wer from 0 to 100
    higher_is_better: bool
    best: str  # file name of the checkpoint that was best on dev; "" where there is none, as nothing is tried on dev
    eval_split: str  # s3prl's -t
    layout: str  # what the corpora root must hold
    has_head: bool = True  # something is trained
    best_by_accuracy: bool = False  # on dev s3prl goes by the accuracy of frames, whatever the metric is
    packages: tuple[str, ...] = ()  # that s3prl imports for it, of the extra `superb`

    @property
    def config_file(self) -> Path:
        """The packaged configuration: official values, with placeholders for paths."""
        return CONFIGS / self.name / "config.yaml"


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

# Those that `all` means: the embedded corpora are theirs, and the paper's tables.
SEVEN = ("asr", "pr", "ks", "sid", "er", "ic", "sf")


def chosen_tasks(names: Collection[str]) -> list[str]:
    """The tasks of those names, the seven for `all`; raises UserError for an unknown one, naming the nearest."""
    for name in names:
        if name not in (*TASKS, "all"):
            raise UserError(f"there is no task {name!r}: {nearest(name, (*TASKS, 'all'))}")
    return [task for task in TASKS if task in names or ("all" in names and task in SEVEN)]


FOLD = "downstream_expert.datarc.test_fold"  # of ER
FOLDS = ("fold1", "fold2", "fold3", "fold4", "fold5")

# Keys that s3prl reads where they are present and that the official configurations leave out.
OPTIONAL_KEYS = (
    *("runner.fp16", "runner.evaluate_ratio", "runner.train_dataloader"),
    *("optimizer.weight_decay", "optimizer.betas", "optimizer.eps", "optimizer.amsgrad", "optimizer.momentum"),
    *("scheduler", "scheduler.name", "scheduler.num_warmup_steps", "specaug"),
)


def task_of(downstream: str, config: Mapping[str, Any]) -> Task | None:
    """The task that s3prl's `-d` name and a configuration make; None for a task that is none of SUPERB's."""
    corpus = config.get("downstream_expert", {}).get("corpus", {}).get("name")
    if downstream == "ctc":
        return {"libriphone": TASKS["pr"], "snips": TASKS["sf"]}.get(corpus)
    return next((task for task in TASKS.values() if task.downstream == downstream), None)


def task_config(task: str, root: str | Path, overrides: Mapping[str, object] | None = None) -> dict[str, Any]:
    """s3prl's configuration of a task: the official values, the corpora root's paths, then the dotted overrides.

    Raises UserError for an unknown task or key, naming the nearest valid ones.
    """
    if task not in TASKS:
        raise UserError(f"there is no task {task!r}: {nearest(task, TASKS)}")
    config = read_config(TASKS[task].config_file, root)
    for key, value in (overrides or {}).items():
        set_key(config, key, value)
    return config


def task_configs(task: str, root: str | Path, overrides: Mapping[str, object]) -> list[dict[str, Any]]:
    """The configurations whose mean result is the task's: of ER one a fold, of any other task one.

    ER has five folds unless the overrides name one, or a list of them, as its test_fold. Raises UserError as
    `task_config` does, and for a fold that there is not.
    """
    if task != "er":
        return [task_config(task, root, overrides)]
    named = overrides.get(FOLD, FOLDS)
    folds = list(dict.fromkeys([named] if isinstance(named, str) else named if isinstance(named, list | tuple) else []))
    if not folds or not set(folds) <= set(FOLDS):
        raise UserError(f"{FOLD} must be one or a list of {', '.join(FOLDS)}, not {named!r}")
    return [task_config(task, root, {**overrides, FOLD: fold}) for fold in folds]


def read_config(file: str | Path, root: str | Path | None) -> dict[str, Any]:
    """A task's YAML with its path placeholders filled in.

    `${root}` is the corpora root, and stays when `root` is None; `${here}` is the file's folder; `${phonemes}` is the
    root's lexicon/phoneme.txt where it exists, or else phoneme.txt beside the file. A path with `*` becomes all that
    match it, by name. Raises UserError for a file that is absent or no YAML mapping.
    """
    file = Path(file).absolute()
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no configuration {file}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise UserError(f"{file} must map runner, optimizer and downstream_expert to their settings")
    phonemes = file.parent / "phoneme.txt"
    if root is not None:
        root = Path(root).absolute()
        if (root / "lexicon" / "phoneme.txt").exists():
            phonemes = root / "lexicon" / "phoneme.txt"

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: fill(item) for key, item in value.items()}
        if isinstance(value, list):
            return [path for item in value for path in _matches(fill(item))]
        if isinstance(value, str):
            value = value.replace("${here}", str(file.parent)).replace("${phonemes}", str(phonemes))
            return value if root is None else value.replace("${root}", str(root))
        return value

    return fill(config)


def _matches(item: Any) -> list[Any]:
    """The files that a pattern matches, or the item itself."""
    return (
        sorted(map(str, Path(item).parent.glob(Path(item).name))) if isinstance(item, str) and "*" in item else []
    ) or [item]


def flat_keys(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted key, value) of a nested configuration, the sections too."""
    for key, value in config.items():
        yield prefix + str(key), value
        if isinstance(value, Mapping):
            yield from flat_keys(value, f"{prefix}{key}.")


def set_key(config: dict[str, Any], key: str, value: object) -> None:
    """Change one value of a configuration by its dotted key.

    Raises UserError for a key that neither the configuration nor s3prl knows, and for a value of another kind than
    the one it replaces.
    """
    known = dict(flat_keys(config))
    if key not in known and key not in OPTIONAL_KEYS:
        raise UserError(f"the configuration has no key {key!r}: {nearest(key, [*known, *OPTIONAL_KEYS])}")
    before = known.get(key)
    if before is not None and value is not None and _kind(before) != _kind(value):
        raise UserError(f"{key} must be {_kind(before)}, as {before!r} is, not {value!r}")
    *sections, last = key.split(".")
    for section in sections:
        config = config.setdefault(section, {})
    config[last] = copy.deepcopy(value)


def _kind(value: object) -> str:
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a text", Path: "a text"}
    return kinds.get(type(value), "a list" if isinstance(value, list | tuple) else "a mapping")


def missing_root(config: Mapping[str, Any]) -> str | None:
    """The first dotted key whose path still waits for the corpora root; None when there is none."""
    return next((key for key, value in flat_keys(config) if _waits(value)), None)


def _waits(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return any(isinstance(item, str) and "${root}" in item for item in values)


def path_keys(task: Task) -> list[str]:
    """The dotted keys of a task's configuration that hold paths."""
    raw = yaml.safe_load(task.config_file.read_text(encoding="utf-8"))
    return [key for key, value in flat_keys(raw) if not isinstance(value, dict) and "${" in str(value)]


def check_keys(task: Task, config: Mapping[str, Any]) -> None:
    """Raise UserError unless a configuration has what s3prl's runner and the task's dataset read."""
    official = yaml.safe_load(task.config_file.read_text(encoding="utf-8"))
    needed = [f"{section}.{key}" for section in ("runner", "optimizer") for key in official.get(section, ())]
    known = dict(flat_keys(config))
    for key in [*needed, *path_keys(task)]:
        if key not in known:
            raise UserError(f"the configuration of {task.name} lacks the key {key!r}")


def check_corpus(task: str, root: str | Path) -> None:
    """Raise UserError unless the corpora root holds all that a task's training and test will open.

    The message names the first thing that is missing and the layout expected.
    """
    check_config(TASKS[task], task_config(task, root))


def check_config(task: Task, config: Mapping[str, Any], splits: Collection[str] | None = None) -> None:
    """`check_corpus` for a resolved configuration and s3prl's names of the splits that will be used.

    Without `splits`: training, what is evaluated during it, and the test split.
    """
    from runners.corpora import check as corpus_check

    for package in task.packages:
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{task.name} needs the package {package}: `pip install superbit[superb]` brings it")
    if splits is None:
        splits = ["train"] if task.has_head else ["dev"]
        splits += [*config["runner"].get("eval_dataloaders", ()), task.eval_split]
    try:
        corpus_check.CHECKS[task.name](config["downstream_expert"], list(dict.fromkeys(splits)))
    except UserError as error:
        raise UserError(f"{error}. The layout expected for {task.name}: {task.layout}") from None
