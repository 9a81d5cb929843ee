"""s3prl's tasks: datasets missing from its package, and caches that mix up corpora."""

from __future__ import annotations

import functools
import importlib.util
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from upstreams.errors import UserError
from upstreams.s3prl import audio, ctc_corpus
from upstreams.s3prl.compat.patching import Fix, Overlay, add_module, needs, replaced
from upstreams.s3prl.corpus_path import CorpusPath
from upstreams.s3prl.recordings import read_recordings
from upstreams.s3prl.speech_lengths import speech_lengths


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


@needs("SpeakerVerifi_train", "apply_effects_file", "EFFECTS", "__file__")
def keep_verification_lengths(dataset: types.ModuleType) -> None:
    """Keep the lengths of speaker verification's files beside the corpus, and measure them again when it changes.

    s3prl keeps them inside site-packages by the corpus's folder name only, for ever, and measures in 12 new processes.
    """
    init = dataset.SpeakerVerifi_train.__init__

    def length(path: Path) -> int:
        return dataset.apply_effects_file(str(path), dataset.EFFECTS)[0].shape[-1]

    @functools.wraps(init)
    def __init__(self: Any, vad_config: Any, key_list: Any, file_path: Any, *args: Any, **kwargs: Any) -> None:
        (key,), (root,) = key_list, file_path  # s3prl's expert gives one of each
        lengths = speech_lengths(Path(root), f"{key}_length.pt", length)
        # s3prl reads .wav_lengths beside the module.
        with replaced(dataset, "__file__", str(lengths.parent.parent / "dataset.py")):
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


@needs("SequenceDataset._load_transcript", "SequenceDataset._parse_x_name", "pd")
def read_librispeech_as_checked(dataset: types.ModuleType) -> None:
    """Read the transcripts of ASR as the check of the corpus does, and refuse a character that has no class.

    s3prl drops the utterance after a byte-order mark and one with a dot in its name, fails at a blank line, and adds
    new characters to the dictionary behind the head.
    """

    def _load_transcript(self: Any, x_list: list[str]) -> dict[str, str]:
        transcripts = {}
        for chapter in sorted({Path(name).parent for name in x_list}):
            listing = Path(self.libri_root, chapter, f"{'-'.join(chapter.parts[-2:])}.trans.txt")
            for utterance, words in ctc_corpus.read_transcripts(listing).items():
                characters = words.upper().replace(" ", "|")
                if strange := set(characters) - self.dictionary.indices.keys():
                    raise UserError(f"{listing}: {utterance} has {min(strange)!r}, which is not in ASR's dictionary")
                transcripts[utterance] = " ".join(characters) + " |"
        return transcripts

    dataset.SequenceDataset._load_transcript = _load_transcript
    dataset.SequenceDataset._parse_x_name = lambda self, name: Path(name).stem
    _take_no_word_for_missing(dataset)


@needs("pd")
def _take_no_word_for_missing(module: types.ModuleType) -> None:
    """Read tables without pandas' list of words for missing values: `None` can be a label."""
    read = functools.partial(module.pd.read_csv, keep_default_na=False)
    module.pd = Overlay(module.pd, read_csv=read)  # type: ignore[attr-defined]


@needs("Path")
def see_corpora_as_checked(module: types.ModuleType) -> None:
    """Let a module find what the check of the corpus finds: no hidden files, and .wav in any case."""
    module.Path = CorpusPath  # type: ignore[attr-defined]


@needs("torchaudio.load")
def load_only_speech(module: types.ModuleType) -> None:
    """Refuse audio that is not 16 kHz mono, naming the file: s3prl would take it for slower or longer speech."""
    module.torchaudio = Overlay(module.torchaudio, load=audio.load_mono)  # type: ignore[attr-defined]


@needs("sf.read")
def read_only_speech(module: types.ModuleType) -> None:
    """Refuse audio of diarization that is not 16 kHz mono, naming the file."""
    module.sf = Overlay(module.sf, read=audio.read_mono)  # type: ignore[attr-defined]


@needs("KaldiData._load_wav_scp")
def find_recordings_beside_their_list(module: types.ModuleType) -> None:
    """Take a relative path in wav.scp from the folder of wav.scp, not only from the current one."""

    def _load_wav_scp(self: Any, path: str) -> dict[str, str]:
        return {name: str(file) for name, file in read_recordings(Path(path).parent)}

    module.KaldiData._load_wav_scp = _load_wav_scp


@needs("IEMOCAPDataset._load_wav", "torchaudio.load")
def load_emotions_at_one_rate(module: types.ModuleType) -> None:
    """Refuse audio of emotion recognition whose rate is not the first file's: s3prl resamples all by that one."""

    def _load_wav(self: Any, path: str) -> Any:
        wav, _ = audio.load_mono(Path(self.data_dir, path), self.resampler.orig_freq)
        return self.resampler(wav).squeeze(0)

    module.IEMOCAPDataset._load_wav = _load_wav


@needs("etree.ElementTree")
def write_detections_to_any_folder(expert: types.ModuleType) -> None:
    """Write query-by-example's XML to the path as it is: lxml takes a path for a URL, in which % is an escape."""
    tree = expert.etree.ElementTree

    class Tree:
        def __init__(self, root: Any):
            self.tree = tree(root)

        def write(self, path: str, **options: Any) -> None:
            with Path(path).open("wb") as file:
                self.tree.write(file, **options)

    expert.etree = Overlay(expert.etree, ElementTree=Tree)  # type: ignore[attr-defined]


FIXES: dict[str, tuple[Fix, ...]] = {
    "s3prl.downstream.asr.dataset": (read_librispeech_as_checked, load_only_speech),
    "s3prl.downstream.ctc.data": (add_ctc_corpora, keep_ctc_config, load_only_speech),
    "s3prl.downstream.voxceleb1.dataset": (disable_voxceleb_path_cache, load_only_speech),
    "s3prl.downstream.voxceleb1.expert": (see_corpora_as_checked,),
    "s3prl.downstream.sv_voxceleb1.dataset": (keep_verification_lengths, see_corpora_as_checked),
    "s3prl.downstream.speech_commands.dataset": (sort_speech_commands, see_corpora_as_checked),
    "s3prl.downstream.speech_commands.expert": (see_corpora_as_checked,),
    "s3prl.downstream.fluent_commands.dataset": (load_only_speech,),
    "s3prl.downstream.fluent_commands.expert": (_take_no_word_for_missing,),
    "s3prl.downstream.emotion.dataset": (load_emotions_at_one_rate,),
    "s3prl.downstream.diarization.dataset": (read_only_speech, find_recordings_beside_their_list),
    "s3prl.downstream.quesst14_dtw.expert": (write_detections_to_any_folder,),
}
