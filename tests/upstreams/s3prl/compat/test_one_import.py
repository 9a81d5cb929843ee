"""Each break of s3prl 0.4.18 on today's libraries, by what a user of s3prl would see."""

from __future__ import annotations

import argparse
import builtins
import importlib.util
import math
import os
import shutil
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml

from runners.tasks import task_config
from upstreams.errors import UserError
from upstreams.s3prl import audio as s3prl_audio
from upstreams.s3prl import compat as s3prl_compat

PLAIN_S3PRL = """
import builtins, socket, sys
isinstance_before = builtins.isinstance
def no_network(*args, **kwargs):
    raise AssertionError("tried to use the network")
socket.socket.connect = no_network
socket.getaddrinfo = no_network

import upstreams.s3prl_compat
from s3prl.nn import S3PRLUpstream
import torch

upstream = S3PRLUpstream("fbank")
states, lengths = upstream(torch.randn(1, 16000), torch.LongTensor([16000]))
assert states[0].shape[1] == lengths[0].max(), (states[0].shape, lengths)

from s3prl import run_downstream
sys.argv = ["run_downstream.py", *sys.argv[1:]]
run_downstream.main()
assert builtins.isinstance is isinstance_before
"""


def test_one_import_lets_plain_s3prl_train(tiny_corpora: Path, tmp_path: Path) -> None:
    """Breaks 1 to 7, 9 and 10 together, in a fresh interpreter without a network."""
    config = task_config(
        "ks",
        tiny_corpora,
        {
            "runner.total_steps": 2,
            "runner.save_step": 2,
            "downstream_expert.datarc.batch_size": 4,
            "downstream_expert.datarc.num_workers": 0,
        },
    )
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    arguments = ["-m", "train", "-u", "fbank", "-d", "speech_commands", "--device", "cpu"]
    arguments += ["-c", str(tmp_path / "config.yaml"), "-p", str(tmp_path / "exp")]
    done = subprocess.run([sys.executable, "-c", PLAIN_S3PRL, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "exp" / "states-2.ckpt").exists()


@pytest.fixture
def another_torchaudio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty package in the place of torchaudio; its folder."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        monkeypatch.delitem(sys.modules, name)
    package = tmp_path / "torchaudio"
    package.mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchaudio"]:
        del sys.modules[name]


@pytest.mark.parametrize("error", ["OSError", "RuntimeError"])
def test_1_extension_that_does_not_load(another_torchaudio: Path, error: str) -> None:
    (another_torchaudio / "__init__.py").write_text("from . import _extension\nloaded = _extension\n")
    (another_torchaudio / "_extension.py").write_text(f"raise {error}('libc10_cuda.so')\n")
    torchaudio: Any = s3prl_compat.import_torchaudio()
    assert torchaudio.loaded._IS_TORCHAUDIO_EXT_AVAILABLE is False
    assert torchaudio.loaded.fail_if_no_align(len) is len


def test_1_to_4_leave_a_torchaudio_alone_that_has_it_all(
    another_torchaudio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (another_torchaudio / "__init__.py").write_text("set_audio_backend = load = save = 'its own'\n")
    (another_torchaudio / "_extension.py").write_text("")
    (another_torchaudio / "sox_effects.py").write_text("")
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    s3prl_compat.add_audio_backend_setter()
    s3prl_compat.add_sox_effects()
    s3prl_compat.read_audio_by_soundfile()
    import torchaudio

    assert torchaudio.set_audio_backend == torchaudio.load == torchaudio.save == "its own"
    assert "torchaudio.sox_effects" not in sys.modules


def test_3_sox_effects_of_keyword_spotting(tmp_path: Path) -> None:
    from torchaudio.sox_effects import apply_effects_file, apply_effects_tensor

    time = np.arange(8000) / 8000
    stereo = np.stack([np.sin(2 * np.pi * 100 * time), np.zeros(8000)], axis=1).astype(np.float32)
    soundfile.write(tmp_path / "stereo.wav", stereo, 8000, subtype="FLOAT")
    effects = [["channels", "1"], ["rate", "16000"], ["gain", "-3.0"]]
    wav, rate = apply_effects_file(str(tmp_path / "stereo.wav"), effects)
    assert (wav.shape, rate) == ((1, 16000), 16000)
    middle = slice(1000, 15000)  # the resampling filter sees silence around the ends
    expected = 0.5 * 10 ** (-3 / 20) * np.sin(2 * np.pi * 100 * np.arange(16000) / 16000)
    assert np.abs(wav[0].numpy() - expected)[middle].max() < 2e-3
    same, _ = apply_effects_tensor(wav.T, 16000, [["channels", "1"]], channels_first=False)
    assert torch.equal(same, wav.T)
    with pytest.raises(UserError, match="'reverb 50'"):
        apply_effects_tensor(wav, rate, [["reverb", "50"]])


def test_4_audio_round_trip_and_a_corrupt_file(tmp_path: Path) -> None:
    import torchaudio

    wav = torch.linspace(-0.5, 0.5, 2 * 900).reshape(2, 900)
    path = tmp_path / "a.wav"
    torchaudio.save(str(path), wav, 16000)
    read, rate = torchaudio.load(path)
    assert rate == 16000 and read.dtype == torch.float32
    assert torch.allclose(read, wav, atol=1 / 2**15)
    part, _ = torchaudio.load(path, frame_offset=100, num_frames=50)
    assert torch.equal(part, read[:, 100:150])

    for name, content in (("corrupt.flac", b"fLaC no audio"), ("text.wav", b"RIFF"), ("none.wav", None)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=name):
            torchaudio.load(tmp_path / name)
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16000)
    with pytest.raises(UserError, match=r"empty\.wav holds no samples"):
        s3prl_audio.load_audio(tmp_path / "empty.wav")


def test_5_a_missing_requirement_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "omegaconf" else find_spec(name))
    with pytest.raises(UserError, match="pip install omegaconf"):
        s3prl_compat.check_undeclared_requirements()


def test_6_hub_placeholders_say_so_when_used() -> None:
    from huggingface_hub import HfFolder, Repository

    for use in (HfFolder.get_token, lambda: HfFolder.save_token("x"), lambda: Repository("dir")):
        with pytest.raises(UserError, match="--hub"):
            use()


def test_6_hugging_face_upstreams_are_refused_by_plain_s3prl(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from s3prl import run_downstream

    (tmp_path / "config.yaml").write_text("{}")
    arguments = ["-m", "train", "--hub", "huggingface", "-c", str(tmp_path / "config.yaml"), "-p", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["run_downstream.py", *arguments])
    with pytest.raises(UserError, match="--hub"):
        run_downstream.main()


def test_7_wrapped_sampler_deals_what_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    from catalyst.data.sampler import DistributedSamplerWrapper

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    drawn = [5, 3, 5, 0, 1, 4, 2]
    dealt = []
    for rank in range(2):
        monkeypatch.setattr("torch.utils.data.distributed.dist.is_available", lambda: True)
        monkeypatch.setattr("torch.utils.data.distributed.dist.get_world_size", lambda: 2)
        monkeypatch.setattr("torch.utils.data.distributed.dist.get_rank", lambda rank=rank: rank)
        dealt.append(list(DistributedSamplerWrapper(drawn)))
    assert dealt == [[5, 5, 1, 2], [3, 0, 4, 5]]  # the last one repeats the first, for equal lengths


def test_8_and_11_ctc_loader_keeps_its_config(tiny_corpora: Path) -> None:
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


def test_8_character_corpus_is_there_too(tiny_corpora: Path) -> None:
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


def test_9_checkpoints_with_a_namespace_load(tmp_path: Path) -> None:
    torch.save({"Args": argparse.Namespace(seed=3)}, tmp_path / "states-1.ckpt")
    assert torch.load(tmp_path / "states-1.ckpt")["Args"].seed == 3


def test_10_isinstance_stays() -> None:
    from s3prl.utility import helper

    before = builtins.isinstance
    helper.hack_isinstance()
    assert builtins.isinstance is before


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        (["-m", "train", "--local-rank=1"], None, ["-m", "train", "--local_rank=1"]),
        (["--local-rank", "1", "-m", "train"], "0", ["--local_rank", "1", "-m", "train"]),
        (["-m", "train"], "1", ["-m", "train", "--local_rank", "1"]),
        (["-m", "train"], None, ["-m", "train"]),
    ],
)
def test_13_and_14_launchers(
    given: list[str], environment: str | None, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if environment is not None:
        monkeypatch.setenv("LOCAL_RANK", environment)
    assert s3prl_compat.launcher_arguments(given) == expected


def test_13_and_14_in_s3prls_own_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from s3prl import run_downstream

    (tmp_path / "config.yaml").write_text("{}")
    arguments = ["-m", "train", "-c", str(tmp_path / "config.yaml"), "-p", str(tmp_path), "--local-rank=1"]
    monkeypatch.setattr(sys, "argv", ["run_downstream.py", *arguments])
    assert run_downstream.get_downstream_args()[0].local_rank == 1


def test_saving_is_atomic_and_keeps_the_old_states_until_then(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The trap of max_keep: the old checkpoint is deleted before the new one is written."""
    from s3prl.downstream import runner

    old, new = tmp_path / "states-2.ckpt", tmp_path / "states-4.ckpt"
    runner.torch.save({"Step": 2}, str(old))
    runner.os.remove(str(old))
    assert old.exists()

    def dies(states: Any, path: Path) -> None:
        path.write_bytes(b"half a check")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch, "save", dies)
        runner.torch.save({"Step": 4}, str(new))
    assert list(tmp_path.iterdir()) == [old]
    assert torch.load(old) == {"Step": 2}

    runner.torch.save({"Step": 4}, str(tmp_path / "dev-best.ckpt"))
    assert old.exists()
    runner.torch.save({"Step": 4}, str(new))
    assert sorted(tmp_path.iterdir()) == [tmp_path / "dev-best.ckpt", new]

    other = tmp_path / "other"
    other.mkdir()
    runner.os.remove(str(new))  # of a run that then dies
    runner.torch.save({"Step": 2}, str(other / "states-2.ckpt"))
    assert new.exists()
    assert runner.torch.cuda is torch.cuda and runner.os.path is os.path


def test_voxceleb_paths_are_not_remembered_across_corpora(tmp_path: Path) -> None:
    from s3prl.downstream.voxceleb1 import dataset

    for number, root in enumerate((tmp_path / "first", tmp_path / "second")):
        wav = root / "dev" / "wav" / "id10001" / f"video{number}" / "00001.wav"
        wav.parent.mkdir(parents=True)
        wav.touch()
        (root / "list.txt").write_text(f"1 id10001/video{number}/00001.wav\n")
        found = dataset.SpeakerClassifiDataset("train", root, str(root / "list.txt"))
        assert found.dataset == [str(wav)]
    assert not list(Path(dataset.__file__).parent.glob(".cache"))


def test_keyword_files_come_in_the_order_of_their_names(tiny_corpora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_silence_is_cut_as_sox_cuts_it(tmp_path: Path) -> None:
    """Noise of random lengths and levels around the threshold; against the program where it is installed."""
    random = np.random.default_rng(0)
    for _ in range(8):
        levels = random.choice([0, 2e-4, 9e-4, 1.1e-3, 5e-3, 0.3], size=random.integers(1, 8))
        wave = np.concatenate([level * random.standard_normal(random.integers(200, 6000)) for level in levels])
        wave = np.clip(wave, -1, 1).astype(np.float32)
        effect = ["silence", "1", "0.1", "0.1%", "-1", "0.1", "0.1%"]
        cut, rate = s3prl_audio.apply_effects_tensor(torch.from_numpy(wave)[None], 16000, [effect])
        assert rate == 16000 and cut.shape[0] == 1 and cut.shape[1] <= len(wave)
        np.testing.assert_array_equal(cut[0], _silence_step_by_step(wave, 320, 1600, 0.001))
        if shutil.which("sox"):
            soundfile.write(tmp_path / "in.wav", wave, 16000, subtype="FLOAT")
            command = ["sox", tmp_path / "in.wav", "-e", "floating-point", "-b", "32", tmp_path / "out.wav", *effect]
            subprocess.run(command, check=True, capture_output=True)
            np.testing.assert_allclose(cut[0], soundfile.read(tmp_path / "out.wav", dtype="float32")[0], atol=1e-6)
    with pytest.raises(UserError, match="silence 1 D P -1 D P"):
        s3prl_audio.apply_effects_tensor(torch.zeros(1, 9), 16000, [["silence", "1", "0.1", "0.1%"]])


def _silence_step_by_step(wave: np.ndarray, window: int, duration: int, threshold: float) -> list[float]:
    """The same, sample by sample: search for sound, copy it, search again after silence."""
    kept: list[float] = []
    held: list[float] = []
    recent: list[float] = []
    is_copying = False
    for sample in wave:
        recent = [*recent[-window + 1 :], float(sample) ** 2]
        is_loud = (sum(recent) / window) ** 0.5 > threshold
        if not is_copying:
            held = [*held, sample] if is_loud else []
            if len(held) >= duration:
                kept, held, is_copying = kept + held, [], True
        elif is_loud:
            kept, held = [*kept, *held, sample], []
        else:
            held = [*held, sample]
            if len(held) >= duration:
                held, recent, is_copying = [], [], False
    return kept + held if is_copying else kept
