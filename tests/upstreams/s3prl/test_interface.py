"""What superbit uses of s3prl: all of it is there, whichever release is installed; what is missing is named."""

from __future__ import annotations

import ast
import importlib
import inspect
import operator
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import upstreams
from runners.tasks import TASKS
from tests.upstreams.packed.models import quantized
from tests.upstreams.s3prl import another_s3prl
from upstreams.formats import checkpoint
from upstreams.s3prl import compat

ROOT = Path(upstreams.__file__).parents[1]

# What is called or read as it is. What fixes need beside it is in compat.FIXES.
USED: dict[str, tuple[str, ...]] = {
    "s3prl.hub": ("options", "fbank"),
    "s3prl.nn": ("S3PRLUpstream",),
    "s3prl.optimizers": ("get_optimizer", "get_TorchOptim"),
    "s3prl.schedulers": ("get_scheduler",),
    "s3prl.util.download": ("_download_dir",),
    "s3prl.run_downstream": ("Runner", "get_downstream_args", "main"),
    "s3prl.downstream.runner": (
        *("Runner._load_weight", "Runner._get_upstream", "Runner._get_featurizer", "Runner._get_optimizer"),
        *("Runner._get_downstream", "Runner.train", "Runner.evaluate", "Runner.inference"),
    ),
    "s3prl.downstream.specaug": ("SpecAug",),
    "s3prl.downstream.diarization.model": ("Model",),
    "s3prl.upstream.interfaces": ("Featurizer._weighted_sum",),
    **{f"s3prl.downstream.{task.downstream}.expert": ("DownstreamExpert",) for task in TASKS.values()},
}
# Attributes that a function sets or reads on its object.
OWN = {
    ("s3prl.downstream.runner", "Runner.__init__"): ("args", "config", "init_ckpt", "upstream", "downstream"),
    ("s3prl.downstream.runner", "ModelEntry.__init__"): ("model",),
    ("s3prl.upstream.interfaces", "Featurizer.__init__"): ("feature_selection", "normalize", "weights"),
}
# The arguments that superbit passes.
CALLS: dict[tuple[str, str], tuple[Any, ...]] = {
    ("s3prl.downstream.runner", "Runner.__init__"): ("self", "args", "config"),
    ("s3prl.downstream.runner", "Runner._load_weight"): ("self", "model", "name"),
    ("s3prl.downstream.runner", "Runner.evaluate"): ("self", "test", None, 0),
    ("s3prl.optimizers", "get_optimizer"): ([], 1, {}),
    ("s3prl.schedulers", "get_scheduler"): (None, 1, {}),
}


def lacking(module: types.ModuleType, names: tuple[str, ...]) -> str:
    """Return a sentence that names what the module lacks; "" if it has all these (dotted) names."""
    absent = []
    for name in names:
        try:
            operator.attrgetter(name)(module)
        except AttributeError:
            absent.append(name)
    return f"{module.__name__} of s3prl lacks {', '.join(absent)}, which superbit uses" if absent else ""


def function(module: str, name: str) -> types.FunctionType:
    """Return s3prl's own function, without the fixes around it."""
    found = inspect.unwrap(operator.attrgetter(name)(importlib.import_module(module)))
    assert isinstance(found, types.FunctionType)
    return found


@pytest.mark.parametrize("module", USED)
def test_all_that_is_used_is_there(module: str) -> None:
    assert not lacking(importlib.import_module(module), USED[module])


@pytest.mark.parametrize("module", compat.FIXES)
def test_all_that_fixes_need_is_there(module: str) -> None:
    """Without it, a fix is skipped and what it mends is back."""
    needed = tuple(name for fix in compat.FIXES[module] for name in getattr(fix, "needs", ()))
    assert not lacking(importlib.import_module(module), needed)


@pytest.mark.parametrize("module, name", OWN)
def test_objects_have_the_attributes_that_are_used(module: str, name: str) -> None:
    absent = [attribute for attribute in OWN[module, name] if attribute not in function(module, name).__code__.co_names]
    assert not absent, f"{module}.{name} of s3prl no longer sets {', '.join(absent)}, which superbit uses"


@pytest.mark.parametrize("module, name", CALLS)
def test_functions_take_the_arguments_that_are_passed(module: str, name: str) -> None:
    signature = inspect.signature(function(module, name))
    try:
        signature.bind(*CALLS[module, name])
    except TypeError as error:
        pytest.fail(f"{module}.{name}{signature} of s3prl does not take what superbit passes: {error}")


def test_a_missing_name_is_one_sentence() -> None:
    runner = types.ModuleType("s3prl.downstream.runner")
    vars(runner)["Runner"] = type("Runner", (), {"train": None})
    assert lacking(runner, ("Runner.train",)) == ""
    assert (
        lacking(runner, ("Runner.train", "Runner.evaluate", "tqdm"))
        == "s3prl.downstream.runner of s3prl lacks Runner.evaluate, tqdm, which superbit uses"
    )


def imported() -> Iterator[tuple[str, str]]:
    """Yield module and name of every import from s3prl in superbit's code; the name is "" for a whole module."""
    for path in sorted(file for wing in ("upstreams", "pretrain", "runners") for file in (ROOT / wing).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((alias.name, "") for alias in node.names if alias.name.partition(".")[0] == "s3prl")
            elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "s3prl":
                yield from ((node.module or "", alias.name) for alias in node.names)


def test_every_import_from_s3prl_is_in_the_list() -> None:
    found = [f"{module}.{name}" if name else module for module, name in imported()]
    listed = {f"{module}.{name.partition('.')[0]}" for module, names in USED.items() for name in names} | USED.keys()
    unlisted = [name for name in found if name not in listed]
    assert found and not unlisted, f"USED lacks {', '.join(unlisted)}"


REGISTER = """
import sys, superbit
names = superbit.register()
import torch, s3prl.hub, s3prl.nn, s3prl.run_downstream, s3prl.downstream.runner, s3prl.downstream.voxceleb1.dataset
from s3prl.downstream.ctc.data import LibriPhoneDataset
assert s3prl.__version__ == "0.5.0" and LibriPhoneDataset.is_own
assert {*names, "fbank"} <= set(s3prl.hub.options())
upstream = s3prl.nn.S3PRLUpstream("transformer_mini_w1a32", sys.argv[1])
with torch.no_grad():
    states, lengths = upstream(torch.zeros(2, 16000), torch.LongTensor([16000, 8000]))
assert len(states) == 5 and states[0].shape[:2] == (2, lengths[0][0]), (states[0].shape, lengths)
assert sorted(vars(s3prl.downstream.runner.Runner).keys() & {"fit", "train", "_get_upstream"}) == ["fit"]
assert "get_downstream_args" not in vars(s3prl.run_downstream)
"""


def test_another_interface_does_not_break_register(tmp_path: Path) -> None:
    """Fixes whose target is not there are skipped; a corpus that s3prl has itself is s3prl's."""
    model = tmp_path / "transformer_mini_w1a32.safetensors"
    checkpoint.save(model, quantized("transformer_mini", "w1a32"), None, {})
    folder = another_s3prl.write(tmp_path / "other")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    command = [sys.executable, "-c", REGISTER, str(model)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
