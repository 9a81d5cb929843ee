"""Values of a configuration are checked before anything is trained, wherever they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from runners import tasks
from runners.downstream import run as downstream
from runners.downstream.values import check_values
from runners.tasks import TASKS, task_config
from tests.runners.downstream.experiments import overrides
from upstreams.errors import UserError

EXPERT = "downstream_expert"

# (task, key, value, message): what ended in a traceback, in no result, or had no effect
BAD_VALUES: list[tuple[str, str, Any, str]] = [
    (
        "ks",
        "optimizer.lr",
        "1e-4",
        r"optimizer\.lr must be a number.*not '1e-4' \(YAML reads 1e-4 as text: write 1\.0e-4",
    ),
    ("ks", "optimizer.lr", -1.0, "must be a number above 0"),
    ("ks", "optimizer.lr", float("nan"), "must be a number above 0"),
    ("ks", "optimizer.lr", None, "has no value"),
    ("ks", "runner.log_step", 0, "must be a whole number of 1 or more, not 0"),
    ("ks", "runner.total_steps", -5, "must be a whole number of 1 or more, not -5"),
    ("ks", "runner.total_steps", 1000.5, "must be a whole number"),
    ("ks", "runner.total_steps", 10, "save_step 1000 is more than runner.total_steps 10: nothing would be saved"),
    ("ks", "runner.log_step", True, "must be a number"),
    ("ks", "runner.eval_dataloaders", [3], "must be text, such as 'dev', not 3"),
    ("ks", "runner.fp_16", True, r"no key 'runner\.fp_16': did you mean 'runner\.fp16'"),
    ("ks", "runner.evaluate_ratio", 0, "above 0 and up to 1"),
    ("ks", "optimizer.name", "TorchOptm", r"no optimizer\.name 'TorchOptm': did you mean 'TorchOptim'"),
    ("ks", "optimizer.torch_optim_name", "Adamm", r"no optimizer\.torch_optim_name 'Adamm': did you mean 'Adam'"),
    ("ks", "optimizer.torch_optim_name", "LBFGS", "cannot use the section optimizer: .*closure"),
    ("ks", "optimizer.momentum", 0.9, "unexpected keyword argument 'momentum'"),
    ("ks", "optimizer.betas", [1, 2], "must be a number of 0 or more and below 1"),
    ("ks", "scheduler", {"name": "linear", "num_warmup_steps": 3}, r"no scheduler\.name 'linear': .*linear_schedule"),
    ("ks", "scheduler", {"num_warmup_steps": 3}, "section scheduler: the key 'name' is missing"),
    ("ks", "scheduler", {"name": "linear_schedule_with_warmup"}, "num_warmup_steps"),
    ("ks", f"{EXPERT}.datarc.num_workers", -1, "must be a whole number of 0 or more"),
    ("ks", f"{EXPERT}.modelrc.UtteranceLevel.pooling", "MeenPooling", "MeenPooling"),
    ("asr", "specaug.num_time_mask", 0, "whole number of 1 or more"),
    ("asr", "specaug.num_time_masks", 2, "num_time_masks"),
    ("asr", "specaug.time_mask_width_range", [40, 0], "the second above the first"),
    ("asr", f"{EXPERT}.modelrc.RNNs.dim", [8], "one entry for each layer"),
    ("asr", f"{EXPERT}.modelrc.RNNs.dropout", [0.2, 2], "must be a number from 0 to 1, not 2"),
    ("pr", f"{EXPERT}.model.select", "Framelevel", "did you mean 'FrameLevel'"),
    ("sf", f"{EXPERT}.metric", ["cerr"], "did you mean 'cer'"),
    ("er", f"{EXPERT}.datarc.valid_ratio", 1, "above 0 and below 1"),
    ("er", f"{EXPERT}.datarc.test_fold", "fold9", "'fold9'"),
    ("er", f"{EXPERT}.modelrc.select", "DeepModell", "did you mean 'DeepModel'"),
    ("qbe", f"{EXPERT}.dtwrc.dist_method", "cosin", "Unknown Distance Metric: cosin"),
    ("asv", f"{EXPERT}.modelrc.agg_module", "XP", "XP"),
    ("sd", f"{EXPERT}.modelrc.hidden_size", 0, "whole number of 1 or more"),
]


def changed(task: str, key: str, value: Any, root: Path) -> dict[str, Any]:
    """Return the official configuration with one value that is not checked here."""
    config = task_config(task, root)
    *sections, last = key.split(".")
    inner = config
    for section in sections:
        inner = inner[section]
    inner[last] = value
    return config


@pytest.mark.parametrize("task", TASKS)
def test_the_official_values_are_valid(task: str) -> None:
    check_values(TASKS[task], task_config(task, "/corpora"))


@pytest.mark.parametrize(
    ("task", "key", "value"),
    [
        ("ks", "optimizer", {"name": "TorchOptim", "torch_optim_name": "SGD", "lr": 1.0, "momentum": 0.9}),
        ("ks", "optimizer", {"name": "AdamW", "lr": 0.1}),
        ("ks", "optimizer", {"name": "Lamb_with_schedule", "lr": 0.1}),
        ("ks", "runner.gradient_clipping", float("inf")),
        ("ks", "runner.fp16", True),
        ("ks", "scheduler", {"name": "cosine_schedule_with_warmup", "num_warmup_steps": 5}),
        ("asr", "specaug", None),
        ("asr", f"{EXPERT}.modelrc.select", "Wav2Letter"),
        ("pr", f"{EXPERT}.model.select", "RNNs"),
        ("er", f"{EXPERT}.modelrc.select", "DeepModel"),
        ("er", f"{EXPERT}.datarc.test_fold", None),
        ("asv", f"{EXPERT}.modelrc.ObjectiveLoss", "SoftmaxLoss"),
        ("sd", f"{EXPERT}.modelrc.rnn_layers", 0),
    ],
)
def test_other_values_that_s3prl_can_use_are_valid(task: str, key: str, value: Any) -> None:
    check_values(TASKS[task], changed(task, key, value, Path("/corpora")))


@pytest.mark.parametrize(("task", "key", "value", "message"), BAD_VALUES)
def test_a_bad_value_of_a_config_file_is_refused_naming_task_key_and_file(
    task: str, key: str, value: Any, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(yaml.safe_dump(changed(task, key, value, tmp_path)), encoding="utf-8")
    arguments = ["-m", "train" if TASKS[task].has_head else "evaluate", "-u", "fbank", "-d", task, "-c", str(file)]
    with pytest.raises(UserError, match=f"^{task}: .*{message}") as raised:
        downstream.main([*arguments, "-p", str(tmp_path / "exp"), "--device", "cpu"])
    assert str(file) in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "exp").exists()


def test_a_misspelt_key_of_a_config_file_is_named(tmp_path: Path) -> None:
    config = task_config("ks", tmp_path)
    config[EXPERT]["datarc"]["batch_sise"] = config[EXPERT]["datarc"].pop("batch_size")
    file = tmp_path / "my.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(UserError, match=r"batch_sise': did you mean 'downstream_expert\.datarc\.batch_size'"):
        downstream.main(["-m", "train", "-u", "fbank", "-d", "ks", "-c", str(file), "-p", str(tmp_path / "exp")])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("runner.log_step=0", "whole number of 1 or more, not 0"),
        ("runner.total_steps=-5", "whole number of 1 or more, not -5"),
        ("optimizer.lr='1e-4'", "must be a number"),
        ("optimizer.torch_optim_name=Adamm", "did you mean 'Adam'"),
        ("scheduler.name=linear", "scheduler.name"),
    ],
)
def test_a_bad_value_of_the_flag_o_is_refused(change: str, message: str, tiny_corpora: Path, tmp_path: Path) -> None:
    arguments = ["-m", "train", "-u", "fbank", "-d", "ks", "-p", str(tmp_path / "exp"), "--corpora", str(tiny_corpora)]
    with pytest.raises(UserError, match=message):
        downstream.main([*arguments, "--device", "cpu", "-o", f"{overrides('ks', steps=2)},,config.{change}"])
    assert not (tmp_path / "exp").exists()


def test_a_configuration_without_the_runners_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks the key 'runner\.total_steps'"):
        tasks.check_keys(None, {"runner": {}, "optimizer": {"name": "Adam"}})
