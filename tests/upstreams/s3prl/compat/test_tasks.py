"""s3prl's datasets."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

import upstreams.s3prl.compat  # noqa: F401
from runners.tasks import task_config


def test_the_ctc_loader_keeps_its_config(tiny_corpora: Path) -> None:
    from s3prl.downstream.ctc.data import load_dataset
    from s3prl.downstream.ctc.text import load_text_encoder

    expert = task_config("pr", tiny_corpora)["downstream_expert"]
    corpus = expert["corpus"] | {"num_workers": 0, "batch_size": 4}
    before = dict(corpus)
    tokenizer = load_text_encoder(**expert["text"])
    wavs, labels, names = next(iter(load_dataset("dev", tokenizer, corpus)))
    assert corpus == before
    assert len(wavs) == len(labels) == len(names) == 1
    assert tokenizer.decode(labels[0]) == "DH AH0 Z UW1 S AE1 T AH0 D AO1 G"  # longest first
    wavs, labels, names = next(iter(load_dataset("train", tokenizer, corpus)))
    assert len(wavs) == 4 and [len(wav) for wav in wavs] == sorted(map(len, wavs), reverse=True)


def test_the_character_corpus_exists(tiny_corpora: Path) -> None:
    from s3prl.downstream.ctc.data import create_dataset

    class Characters:
        def encode(self, text: str) -> list[int]:
            return list(text.encode())

    dataset, _ = create_dataset(
        "dev",
        Characters(),
        "librispeech",
        bucketing=True,
        batch_size=4,
        path=str(tiny_corpora / "LibriSpeech"),
        dev=["dev-clean"],
    )
    path, symbols = dataset[0]
    assert bytes(symbols) == b"THE ZOO SAT A DOG" and path.name == "101-1-0002.flac"


def test_voxceleb_paths_are_not_cached_across_corpora(tmp_path: Path) -> None:
    from s3prl.downstream.voxceleb1 import dataset

    for number, root in enumerate((tmp_path / "first", tmp_path / "second")):
        wav = root / "dev" / "wav" / "id10001" / f"video{number}" / "00001.wav"
        wav.parent.mkdir(parents=True)
        wav.touch()
        (root / "list.txt").write_text(f"1 id10001/video{number}/00001.wav\n")
        found = dataset.SpeakerClassifiDataset("train", root, str(root / "list.txt"))
        assert found.dataset == [str(wav)]
    assert not list(Path(dataset.__file__).parent.glob(".cache"))


def test_keyword_files_are_sorted_by_path(tiny_corpora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from s3prl.downstream.speech_commands import dataset

    root = tiny_corpora / "speech_commands_v0.01"
    listed = [(path.parent.name, path) for path in root.glob("[a-z]*/*.wav")]
    roots = {
        "speech_commands_root": str(root),
        "speech_commands_test_root": str(tiny_corpora / "speech_commands_test_set_v0.01"),
    }
    one, other = (dataset.SpeechCommandsDataset(order, **roots) for order in (listed, listed[::-1]))
    assert one.data == other.data and one.sample_weights == other.sample_weights
    assert len(one.data) == len(one.sample_weights) == len(listed) + 1
    weights = dict(zip(map(str, (path for _, path in one.data)), one.sample_weights, strict=True))
    assert math.isclose(weights[str(root / "_background_noise_" / "hum.wav")], len(one.data))
    test = dataset.SpeechCommandsTestingDataset(**roots).data
    assert [path for _, path in test] == sorted(path for _, path in test)
