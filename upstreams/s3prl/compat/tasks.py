"""s3prl's tasks: datasets missing from its package, and caches that mix up corpora."""

from __future__ import annotations

import functools
import importlib.util
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from upstreams.s3prl import ctc_corpus
from upstreams.s3prl.compat.patching import Fix, add_module, needs, replaced


def add_ctc_corpora(data: types.ModuleType) -> None:
    """Add `s3prl.downstream.ctc.corpus`, which the package lacks; `data.create_dataset` imports from it."""
    package = "s3prl.downstream.ctc.corpus"
    if importlib.util.find_spec(package) is None:
        add_module(package)
        add_module(f"{package}.libriphone", LibriPhoneDataset=ctc_corpus.LibriPhoneDataset)
        add_module(f"{package}.librispeech", LibriDataset=ctc_corpus.LibriDataset)
        add_module(f"{package}.snips", SnipsDataset=ctc_corpus.SnipsDataset)


@needs("load_dataset")
def keep_ctc_config(data: types.ModuleType) -> None:
    """Give `load_dataset` a copy of the config: it pops num_workers, which the next call and the checkpoint need."""
    load_dataset = data.load_dataset
    data.load_dataset = lambda split, tokenizer, corpus: load_dataset(split, tokenizer, dict(corpus))  # type: ignore[attr-defined]


@needs("SpeakerClassifiDataset", "CACHE_PATH")
def disable_voxceleb_path_cache(dataset: types.ModuleType) -> None:
    """Search the files of speaker identification each time.

    s3prl caches their paths inside site-packages by split only: with a second corpus it would read the first one's
    files.
    """
    init = dataset.SpeakerClassifiDataset.__init__

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        with tempfile.TemporaryDirectory() as folder, replaced(dataset, "CACHE_PATH", folder):
            init(self, *args, **kwargs)

    dataset.SpeakerClassifiDataset.__init__ = __init__


@needs("SpeakerVerifi_train", "Parallel", "__file__")
def cache_voxceleb_lengths_beside_the_corpus(dataset: types.ModuleType) -> None:
    """Cache the file lengths of speaker verification in the corpus's dev/.wav_lengths, measured in threads.

    s3prl caches them inside site-packages by the corpus's folder name only, and measures in 12 new processes.
    """
    init = dataset.SpeakerVerifi_train.__init__

    @functools.wraps(init)
    def __init__(self: Any, vad_config: Any, key_list: Any, file_path: Any, *args: Any, **kwargs: Any) -> None:
        beside = str(Path(file_path[0]).parent / "dataset.py")
        threads = functools.partial(dataset.Parallel, backend="threading")
        with replaced(dataset, "__file__", beside), replaced(dataset, "Parallel", threads):
            init(self, vad_config, key_list, file_path, *args, **kwargs)

    dataset.SpeakerVerifi_train.__init__ = __init__


@needs("SpeechCommandsDataset", "SpeechCommandsTestingDataset")
def sort_speech_commands(dataset: types.ModuleType) -> None:
    """Sort the files of keyword spotting by path: s3prl takes the file system's order, which a copy need not keep."""

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


FIXES: dict[str, tuple[Fix, ...]] = {
    "s3prl.downstream.ctc.data": (add_ctc_corpora, keep_ctc_config),
    "s3prl.downstream.voxceleb1.dataset": (disable_voxceleb_path_cache,),
    "s3prl.downstream.sv_voxceleb1.dataset": (cache_voxceleb_lengths_beside_the_corpus,),
    "s3prl.downstream.speech_commands.dataset": (sort_speech_commands,),
}
