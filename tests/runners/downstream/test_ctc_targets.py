"""CTC targets that are too long for their frames are counted, printed and part of the results."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from torch import nn

from runners.downstream import run as downstream
from runners.downstream.ctc_targets import count_targets
from tests.runners.downstream.experiments import logged, overrides, train
from tests.tiny_corpora import Sounds
from upstreams.config import preset
from upstreams.formats import checkpoint
from upstreams.model import AudioEncoder
from upstreams.s3prl import ctc_corpus as ctc


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.objective = nn.CTCLoss(zero_infinity=True)


@pytest.mark.parametrize("training", [True, False])
def test_targets_that_ctc_cannot_align_are_counted(training: bool, capsys: pytest.CaptureFixture[str]) -> None:
    expert = Expert().train(training)
    log_probs = torch.zeros(4, 4, 5).log_softmax(-1)
    # 4 symbols in 4 frames; 3 with a repeat in 4; 4 with two repeats in 4; none in 0
    batch = (
        torch.tensor([[1, 2, 3, 4], [1, 1, 2, 0], [1, 1, 2, 2], [0, 0, 0, 0]]),
        torch.tensor([4, 4, 4, 0]),
        torch.tensor([4, 3, 4, 0]),
    )
    with count_targets(expert, training) as targets, count_targets(expert, not training) as others:
        expert.objective(log_probs, *batch)
    assert (targets.unalignable, targets.total, others.total) == (1, 4, 0)
    expert.objective(log_probs, *batch)
    assert targets.total == 4, "nothing is counted after the block"
    # The counted targets are those with an infinite loss.
    infinite = nn.functional.ctc_loss(log_probs, *batch, reduction="none").isinf().tolist()
    assert infinite == [False, False, True, False]
    targets.print_counts("test")
    others.print_counts("test")
    assert capsys.readouterr().out == "test targets that are too long for CTC (more symbols than frames): 1 of 4\n"
    with count_targets(nn.DataParallel(expert.train()), training=True) as wrapped:
        expert.objective(log_probs, *batch)
    with count_targets(nn.Identity(), training=True) as nothing:
        pass
    assert (wrapped.total, nothing.total) == (4, 0)


@pytest.mark.parametrize("samples_per_frame", [160, 640])
def test_the_counts_are_in_the_log_and_the_metrics(
    samples_per_frame: int, tiny_corpora: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save(tmp_path / "mini.safetensors", AudioEncoder(preset("transformer_mini")), None, {})  # 40 ms a frame
    upstream = {160: ["-u", "fbank_no_cmvn"], 640: ["-u", "superbit_local", "-k", str(tmp_path / "mini.safetensors")]}
    root = tmp_path / "corpora"
    shutil.copytree(tiny_corpora, root)
    for name in ("dev-clean/101/1/101-1", "test-clean/102/1/102-1", "test-clean/102/2/102-2"):
        # THE ZOO SAT A DOG: 13 symbols with the end symbol, in 7 frames of 40 ms or 30 of 10 ms.
        Sounds(0).write(root / f"LibriSpeech/{name}-0002.flac", seconds=0.3)
    lexicon = ctc.read_lexicon([root / "lexicon/librispeech-lexicon.txt"])
    expected = {}
    for split, folder in (("dev", "dev-clean"), ("test", "test-clean")):
        expected[split] = 0
        for file, words in ctc.librispeech_utterances(root / "LibriSpeech", [folder]):
            phones = ctc.pronounce(words, lexicon, file)
            repeats = sum(a == b for a, b in itertools.pairwise(phones))
            # Plus one: s3prl appends an end symbol to each target.
            expected[split] += len(phones) + 1 + repeats > round(soundfile.info(file).frames / samples_per_frame)

    assert expected == ({"dev": 0, "test": 0} if samples_per_frame == 160 else {"dev": 1, "test": 2})
    train("pr", root, tmp_path, *upstream[samples_per_frame], changes=overrides("pr", steps=2))
    printed = capsys.readouterr().out
    assert "train targets that are too long for CTC (more symbols than frames): " in printed
    assert f"dev targets that are too long for CTC (more symbols than frames): {expected['dev']} of 6" in printed
    assert logged(tmp_path)["dev-unalignable_targets"] == [(2, expected["dev"])]
    metrics = downstream.main(["-m", "evaluate", "-e", str(tmp_path / "states-2.ckpt"), "--device", "cpu"])
    assert metrics is not None and (metrics["targets"], metrics["unalignable_targets"]) == (6, expected["test"])
