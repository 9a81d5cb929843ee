"""Lets s3prl 0.4.18 from PyPI run on torch 2.11 to 2.13, torchaudio 2.11 and huggingface_hub 1 and 2.

`import upstreams.s3prl.compat` before the first import of s3prl is all there is to do. Each function below mends
one break; what works already is left alone. Fixes to s3prl's own modules are applied when s3prl imports those
modules, so that nothing is loaded that is not used.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.abc
import importlib.util
import os
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import torch

from upstreams.errors import UserError, nearest
from upstreams.files import atomic_write
from upstreams.s3prl import audio as s3prl_audio
from upstreams.s3prl import ctc_corpus as s3prl_ctc_corpus


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` inside the block."""
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _module(name: str, **contents: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(contents)
    sys.modules[name] = module
    return module


# ---- libraries, mended before s3prl imports them -----------------------------------------------------------------


def import_torchaudio() -> types.ModuleType:
    """Break 1, torchaudio 2.11: its extension is linked against CUDA and does not load beside a CPU torch.

    Nothing that s3prl calls needs the extension, so a stand-in says that there is none.
    """
    try:
        return importlib.import_module("torchaudio")
    except (OSError, RuntimeError):
        _module(
            "torchaudio._extension",
            _IS_TORCHAUDIO_EXT_AVAILABLE=False,
            _IS_ALIGN_AVAILABLE=False,
            fail_if_no_align=lambda function: function,
        )
        return importlib.import_module("torchaudio")


def add_audio_backend_setter() -> None:
    """Break 2, torchaudio >= 2.9: set_audio_backend is gone, and s3prl.hub calls it while it is imported."""
    torchaudio = import_torchaudio()
    if not hasattr(torchaudio, "set_audio_backend"):
        torchaudio.set_audio_backend = lambda backend: None  # type: ignore[attr-defined]


def add_sox_effects() -> None:
    """Break 3, torchaudio >= 2.9: sox_effects is gone, and s3prl.hub and KS import it."""
    torchaudio = import_torchaudio()
    if importlib.util.find_spec("torchaudio.sox_effects") is None:
        torchaudio.sox_effects = _module(  # type: ignore[attr-defined]
            "torchaudio.sox_effects",
            apply_effects_tensor=s3prl_audio.apply_effects_tensor,
            apply_effects_file=s3prl_audio.apply_effects_file,
        )


def read_audio_by_soundfile() -> None:
    """Break 4, torchaudio >= 2.9: load and save want TorchCodec, and that wants FFmpeg's libraries."""
    torchaudio = import_torchaudio()
    try:
        importlib.import_module("torchcodec")
    except (ImportError, OSError, RuntimeError):
        torchaudio.load = s3prl_audio.load_audio  # type: ignore[attr-defined]
        torchaudio.save = s3prl_audio.save_audio  # type: ignore[attr-defined]


def check_undeclared_requirements() -> None:
    """Break 5, s3prl 0.4.18: hub, runner and tasks import packages that s3prl does not require; name a missing one."""
    for package in ("omegaconf", "transformers", "tensorboardX", "pandas", "librosa", "editdistance"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"s3prl needs the package {package}: install it with `pip install {package}`")


def _refuse_the_hub(*args: Any, **kwargs: Any) -> None:
    raise UserError("the Hugging Face Hub is not supported here: leave --hub at torch and drop --push_to_hf_hub")


def add_hub_placeholders() -> None:
    """Break 6, huggingface_hub >= 1: HfFolder and Repository are gone, and the runner imports them."""
    import huggingface_hub

    if not hasattr(huggingface_hub, "HfFolder"):
        refuse = staticmethod(_refuse_the_hub)
        huggingface_hub.HfFolder = type("HfFolder", (), {"get_token": refuse, "save_token": refuse})
    if not hasattr(huggingface_hub, "Repository"):
        huggingface_hub.Repository = type("Repository", (), {"__init__": _refuse_the_hub})


class DistributedSamplerWrapper(torch.utils.data.DistributedSampler):
    """Deals the indices that another sampler draws to the ranks."""

    def __init__(self, sampler: torch.utils.data.Sampler[int]):
        super().__init__(sampler, shuffle=False)  # type: ignore[arg-type]
        self.sampler = sampler

    def __iter__(self) -> Iterator[int]:
        drawn = list(self.sampler)
        return (drawn[position] for position in super().__iter__())


def add_catalyst_sampler() -> None:
    """Break 7: KS imports one class of catalyst, whose last release dies on Python >= 3.10."""
    if importlib.util.find_spec("catalyst") is None:
        _module("catalyst")
        _module("catalyst.data")
        _module("catalyst.data.sampler", DistributedSamplerWrapper=DistributedSamplerWrapper)


def add_sox_package() -> None:
    """ASV imports a class of the package sox, which it does not use, and which asks for the sox program."""
    if importlib.util.find_spec("sox") is None:
        _module("sox", Transformer=object)


def allow_namespace_in_checkpoints() -> None:
    """Break 9, torch >= 2.6: load is weights_only by default, and s3prl's checkpoints hold an argparse.Namespace."""
    torch.serialization.add_safe_globals([argparse.Namespace])


# ---- s3prl's own modules, mended as they are imported ------------------------------------------------------------


def add_ctc_corpora(data: types.ModuleType) -> None:
    """Break 8, s3prl 0.4.18: downstream.ctc.corpus is not in the package; data.create_dataset imports from it."""
    package = "s3prl.downstream.ctc.corpus"
    if importlib.util.find_spec(package) is None:
        _module(package)
        _module(f"{package}.libriphone", LibriPhoneDataset=s3prl_ctc_corpus.LibriPhoneDataset)
        _module(f"{package}.librispeech", LibriDataset=s3prl_ctc_corpus.LibriDataset)
        _module(f"{package}.snips", SnipsDataset=s3prl_ctc_corpus.SnipsDataset)


def leave_isinstance_alone(helper: types.ModuleType) -> None:
    """Break 10: hack_isinstance replaces builtins.isinstance for the whole process, for DDP before torch 1.8."""
    helper.hack_isinstance = lambda: None  # type: ignore[attr-defined]


def keep_ctc_config(data: types.ModuleType) -> None:
    """Break 11: load_dataset pops num_workers from the config, so the next call and the checkpoint lack it."""
    load_dataset = data.load_dataset
    data.load_dataset = lambda split, tokenizer, corpus: load_dataset(split, tokenizer, dict(corpus))  # type: ignore[attr-defined]


def launcher_arguments(argv: Sequence[str]) -> list[str]:
    """Breaks 13 and 14: `argv` with the local rank as run_downstream expects it.

    torch.distributed.launch spells the flag --local-rank; torchrun passes no flag but sets LOCAL_RANK, without which
    every process believes itself alone and all write to one folder.
    """
    arguments = [a.replace("--local-rank", "--local_rank", 1) if a.startswith("--local-rank") else a for a in argv]
    given = any(argument.startswith("--local_rank") for argument in arguments)
    if not given and "LOCAL_RANK" in os.environ:
        arguments += ["--local_rank", os.environ["LOCAL_RANK"]]
    return arguments


def accept_launchers(run_downstream: types.ModuleType) -> None:
    """Breaks 13 and 14 in s3prl's own command line."""
    parse = run_downstream.get_downstream_args

    def get_downstream_args() -> Any:
        with replaced(sys, "argv", launcher_arguments(sys.argv)):
            return parse()

    run_downstream.get_downstream_args = get_downstream_args  # type: ignore[attr-defined]


@contextlib.contextmanager
def gpu_hidden() -> Iterator[None]:
    """torch reports no GPU inside the block, and choosing one, or moving a tensor to it as ASV does, does nothing."""
    with (
        replaced(torch.cuda, "is_available", lambda: False),
        replaced(torch.cuda, "set_device", lambda device: None),
        replaced(torch.Tensor, "cuda", lambda tensor, *args, **kwargs: tensor),
    ):
        yield


def keep_to_the_device(run_downstream: types.ModuleType) -> None:
    """Breaks 12 and 17: with --device cpu s3prl still enters torch.cuda.device and calls torch.cuda.set_device."""
    run = run_downstream.main

    def main() -> None:
        parsed = run_downstream.get_downstream_args()
        args = parsed[0]
        if args.hub == "huggingface" or args.push_to_hf_hub:
            _refuse_the_hub()
        on_gpu = str(args.device).startswith("cuda")
        with (
            contextlib.nullcontext() if on_gpu else gpu_hidden(),
            replaced(run_downstream, "get_downstream_args", lambda: parsed),
        ):
            run()

    run_downstream.main = main  # type: ignore[attr-defined]


def count_steps_on_every_rank(runner: types.ModuleType) -> None:
    """Break 15: only rank 0 moves the bar that the training loop ends by, so the other ranks never end.

    The loop zeroes the optimizer once a step, whatever became of the gradient: the other ranks count there. The bar
    is closed however training ends, as an open one is drawn again below the message of an error.
    """
    get_optimizer, run = runner.Runner._get_optimizer, runner.Runner.train
    bars: dict[str, Any] = {}

    class StepBar(runner.tqdm):  # type: ignore[name-defined]
        def __init__(self, *args: Any, desc: str | None = None, **kwargs: Any):
            super().__init__(*args, desc=desc, **kwargs)
            if desc == "overall":
                bars["overall"] = self

    def _get_optimizer(self: Any, models: Any) -> Any:
        optimizer = get_optimizer(self, models)
        if not runner.is_leader_process():
            zero_grad = optimizer.zero_grad

            def count_and_zero() -> None:
                bars["overall"].update(1)
                zero_grad()

            optimizer.zero_grad = count_and_zero
        return optimizer

    def train(self: Any) -> None:
        try:
            run(self)
        finally:
            if "overall" in bars:
                bars.pop("overall").close()

    runner.tqdm = StepBar  # type: ignore[attr-defined]
    runner.Runner._get_optimizer = _get_optimizer
    runner.Runner.train = train


def let_rank_zero_evaluate_alone(runner: types.ModuleType) -> None:
    """Breaks 16 and 17: DDP broadcasts the buffers in forward, where rank 0 is alone; on CPU it takes no device_ids."""
    ddp = runner.DDP

    def wrap(model: torch.nn.Module, device_ids: Any = None, **kwargs: Any) -> torch.nn.Module:
        on_gpu = next(model.parameters()).is_cuda
        return ddp(model, device_ids=device_ids if on_gpu else None, broadcast_buffers=False, **kwargs)

    runner.DDP = wrap  # type: ignore[attr-defined]


# ---- traps: s3prl runs on, and does something else than was asked ------------------------------------------------


class _Overlay(types.ModuleType):
    """A module of which some names are replaced, for one user of it."""

    def __init__(self, module: types.ModuleType, **replacements: Any):
        super().__init__(module.__name__)
        self._module = module
        vars(self).update(replacements)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def save_atomically(runner: types.ModuleType) -> None:
    """A run that dies while saving leaves half a checkpoint, and max_keep has deleted the one before it.

    Checkpoints get a temporary name first, and a deletion waits until the new one is on disk.
    """
    outdated: list[str] = []

    def save(states: Any, path: str) -> None:
        with atomic_write(path) as temporary:
            torch.save(states, temporary)
        if Path(path).name.startswith("states-"):
            for old in outdated:
                # Of another folder: left by a run in this process that died before it saved what replaces it.
                if old != path and Path(old).parent == Path(path).parent:
                    Path(old).unlink(missing_ok=True)
            outdated.clear()

    runner.torch = _Overlay(torch, save=save)  # type: ignore[attr-defined]
    runner.os = _Overlay(os, remove=outdated.append)  # type: ignore[attr-defined]


def refuse_empty_loaders(runner: types.ModuleType) -> None:
    """Training on an empty loader loops for ever, and evaluating on one divides by zero."""
    get_downstream = runner.Runner._get_downstream

    def _get_downstream(self: Any) -> Any:
        entry = get_downstream(self)
        get_dataloader = entry.model.get_dataloader

        def checked(split: str, **kwargs: Any) -> Any:
            loader = get_dataloader(split, **kwargs)
            if len(loader) == 0:
                raise UserError(
                    f"the {split} split of {self.args.downstream} fills no batch: give it more utterances or make "
                    "the batch size in the config smaller"
                )
            return loader

        entry.model.get_dataloader = checked
        return entry

    runner.Runner._get_downstream = _get_downstream


def refuse_unknown_features(runner: types.ModuleType) -> None:
    """An unknown -s becomes hidden_states without an error."""
    get_featurizer = runner.Runner._get_featurizer

    def _get_featurizer(self: Any) -> Any:
        entry = get_featurizer(self)
        wanted = self.args.upstream_feature_selection
        if entry.model.feature_selection != wanted:
            with torch.no_grad():
                features = self.upstream.model([torch.zeros(runner.SAMPLE_RATE, device=self.args.device)])
            raise UserError(f"{self.args.upstream} has no features {wanted!r} (-s): {nearest(wanted, features)}")
        return entry

    runner.Runner._get_featurizer = _get_featurizer


def search_voxceleb_anew(dataset: types.ModuleType) -> None:
    """SID remembers paths inside site-packages by split only: a second corpus silently reads the first one's files."""
    init = dataset.SpeakerClassifiDataset.__init__

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        with tempfile.TemporaryDirectory() as folder, replaced(dataset, "CACHE_PATH", folder):
            init(self, *args, **kwargs)

    dataset.SpeakerClassifiDataset.__init__ = __init__


def measure_voxceleb_anew(dataset: types.ModuleType) -> None:
    """ASV remembers lengths inside site-packages by the corpus's name only, and measures in 12 new processes.

    They are kept beside the corpus, in dev/.wav_lengths, and measured in threads.
    """
    init = dataset.SpeakerVerifi_train.__init__

    @functools.wraps(init)
    def __init__(self: Any, vad_config: Any, key_list: Any, file_path: Any, *args: Any, **kwargs: Any) -> None:
        beside = str(Path(file_path[0]).parent / "dataset.py")
        threads = functools.partial(dataset.Parallel, backend="threading")
        with replaced(dataset, "__file__", beside), replaced(dataset, "Parallel", threads):
            init(self, vad_config, key_list, file_path, *args, **kwargs)

    dataset.SpeakerVerifi_train.__init__ = __init__


def sort_speech_commands(dataset: types.ModuleType) -> None:
    """KS takes its files in the order that the file system lists them in, so a copied corpus trains differently."""

    def sorting(init: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(init)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            init(self, *args, **kwargs)
            order = sorted(range(len(self.data)), key=lambda index: str(self.data[index][1]))
            self.data = [self.data[index] for index in order]
            if hasattr(self, "sample_weights"):
                self.sample_weights = [self.sample_weights[index] for index in order]

        return __init__

    for kind in (dataset.SpeechCommandsDataset, dataset.SpeechCommandsTestingDataset):
        kind.__init__ = sorting(kind.__init__)


# ---- applying them -----------------------------------------------------------------------------------------------

ON_IMPORT: dict[str, tuple[Callable[[types.ModuleType], None], ...]] = {
    "s3prl.utility.helper": (leave_isinstance_alone,),
    "s3prl.run_downstream": (accept_launchers, keep_to_the_device),
    "s3prl.downstream.runner": (
        count_steps_on_every_rank,
        let_rank_zero_evaluate_alone,
        save_atomically,
        refuse_empty_loaders,
        refuse_unknown_features,
    ),
    "s3prl.downstream.ctc.data": (add_ctc_corpora, keep_ctc_config),
    "s3prl.downstream.voxceleb1.dataset": (search_voxceleb_anew,),
    "s3prl.downstream.sv_voxceleb1.dataset": (measure_voxceleb_anew,),
    "s3prl.downstream.speech_commands.dataset": (sort_speech_commands,),
}


class FixOnImport(importlib.abc.MetaPathFinder):
    """Runs the fixes of ON_IMPORT right after the body of the module that they are for."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in ON_IMPORT:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return None
        run_body = spec.loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            run_body(module)
            for fix in ON_IMPORT[fullname]:
                fix(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _apply() -> None:
    check_undeclared_requirements()
    add_audio_backend_setter()
    add_sox_effects()
    read_audio_by_soundfile()
    add_hub_placeholders()
    add_catalyst_sampler()
    add_sox_package()
    allow_namespace_in_checkpoints()
    sys.meta_path.insert(0, FixOnImport())
    for name in ON_IMPORT.keys() & sys.modules.keys():
        for fix in ON_IMPORT[name]:
            fix(sys.modules[name])


_apply()
