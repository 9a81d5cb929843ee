"""`superbit probe`: accuracies by layer on corpora whose classes are tones, and on labels without information."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from runners.analysis.probe import features as probe_features
from runners.analysis.probe.items import draw
from runners.analysis.probe.run import accuracy
from runners.cli import app
from runners.corpora import phones
from upstreams.errors import UserError
from upstreams.formats import checkpoint
from upstreams.packed.convert import pack_checkpoint
from upstreams.quantization.convert import calibrate
from upstreams.registry import model_config
from upstreams.s3prl.expert import UpstreamExpert

RATE = 16000
TONES = {"AA": 300.0, "S": 3000.0}  # phone -> Hz
SEGMENT = 20  # length of a phone, in 10 ms


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of transformer_mini whose output map is not the identity."""
    torch.manual_seed(0)
    model = checkpoint.build(model_config("transformer_mini")).eval()
    model.output_mean.normal_()
    model.output_std.uniform_(0.5, 2.0)
    model.output_rotation.copy_(torch.linalg.qr(torch.randn_like(model.output_rotation)).Q)
    path = tmp_path_factory.mktemp("checkpoints") / "transformer_mini_untrained.safetensors"
    checkpoint.save(path, model, None, {})
    return path


def probe(*arguments: object) -> str:
    """What the command prints."""
    done = CliRunner().invoke(app, ["probe", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "probe.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def phones_of_tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PR's corpus: 200 ms tones in random order, and in alignments/ the phone of each 10 ms."""
    root = tmp_path_factory.mktemp("tones")
    random = np.random.default_rng(0)
    for split in ("train-clean-100", "dev-clean"):
        folder = root / "LibriSpeech" / split / "1" / "2"
        folder.mkdir(parents=True)
        lines = []
        for number in range(8):
            order = random.choice(list(TONES), 10)
            time = np.arange(SEGMENT * 160) / RATE
            wave = np.concatenate([0.3 * np.sin(2 * np.pi * TONES[phone] * time) for phone in order])
            name = f"{split}/1/2/1-2-{number:04d}.flac"
            soundfile.write(root / "LibriSpeech" / name, wave + 0.01 * random.standard_normal(len(wave)), RATE)
            lines.append(phones.line(root / "LibriSpeech" / name, name, "A", np.repeat(order, SEGMENT).tolist()))
        (folder / "1-2.trans.txt").write_text("".join(f"1-2-{number:04d} A\n" for number in range(8)))
        kept = phones.kept_file(root, split)
        kept.parent.mkdir(exist_ok=True)
        kept.write_text("".join(lines))
    return root


def test_classes_that_are_tones_are_found_in_every_layer(tiny_corpora: Path, untrained: Path, tmp_path: Path) -> None:
    arguments = (untrained, "--corpora", tiny_corpora, "--task", "ks", "--task", "sid", "--task", "ic")
    text = probe(*arguments, "--out", tmp_path / "a")
    found = rows(tmp_path / "a")
    assert [row["layer"] for row in found if row["task"] == "ks"] == ["log-mel", *"01234", "mean"]
    counts = {row["task"]: (int(row["train_items"]), int(row["dev_items"])) for row in found}
    assert counts == {"ks": (22, 11), "sid": (4, 2), "ic": (4, 4)}  # as tests/tiny_corpora.py writes them
    constant = {row["task"]: float(row["constant"]) for row in found}
    assert constant == pytest.approx(
        {"ks": 1 / 11, "sid": 1 / 2, "ic": 1 / 2}
    )  # one of 11 words, 2 speakers, 2 intents
    assert {row["accuracy"] for row in found if row["layer"] != "log-mel"} == {"1.0"}
    assert {(row["pooling"], row["seed"]) for row in found} == {("mean", "0")}
    assert "KS, keyword: accuracy in % on 11 (±15.1) dev items" in text and "IC, intent" in text
    assert "transformer_mini_untrained" in text
    assert (tmp_path / "a" / "probe.png").read_bytes().startswith(b"\x89PNG")
    probe(*arguments, "--out", tmp_path / "b")
    assert (tmp_path / "a" / "probe.csv").read_bytes() == (tmp_path / "b" / "probe.csv").read_bytes()


def test_phones_are_compared_with_the_frames_of_their_own_time(
    phones_of_tones: Path, untrained: Path, tmp_path: Path
) -> None:
    arguments = (untrained, "--task", "pr", "--out", tmp_path, "--corpora")
    probe(*arguments, phones_of_tones)
    in_time = {row["layer"]: row for row in rows(tmp_path)}
    assert {(row["train_items"], row["dev_items"], row["pooling"]) for row in in_time.values()} == {
        ("800", "800", "frame")
    }
    late = tmp_path / "late"
    shutil.copytree(phones_of_tones, late)
    for kept in (late / "alignments").iterdir():
        lines = [line.split("\t") for line in kept.read_text().splitlines()]
        shifted = [[name, source, " ".join(np.roll(of_time.split(" "), 30))] for name, source, of_time in lines]
        kept.write_text("".join("\t".join(line) + "\n" for line in shifted))
    probe(*arguments, late)
    late_by_layer = {row["layer"]: float(row["accuracy"]) for row in rows(tmp_path)}
    right = {layer: float(row["accuracy"]) for layer, row in in_time.items()}
    assert right["log-mel"] > 0.95 and late_by_layer["log-mel"] < 0.7
    assert right["0"] > 0.95 and late_by_layer["0"] < right["0"] - 0.1  # its positions are a convolution over time


def test_features_are_the_pooled_hidden_states_of_the_upstream(tiny_corpora: Path, untrained: Path) -> None:
    items = draw("ic", tiny_corpora, 20, 0)["dev"]
    waveforms = [items.read(index) for index in range(len(items.files))]
    source = probe_features.Source("mini", UpstreamExpert(untrained).model)
    for pooling in probe_features.POOLINGS:
        found = probe_features.features(source, items, waveforms, pooling)
        for index, waveform in enumerate(waveforms):
            states = UpstreamExpert(untrained)([waveform])["hidden_states"]
            states = [*states, torch.stack(states).mean(0)]
            for layer, state in zip(found, states, strict=True):
                expected = state[0].mean(0) if pooling == "mean" else state[0].amax(0)
                torch.testing.assert_close(layer[index], expected, rtol=1e-3, atol=1e-4)


def test_labels_without_information_are_not_found_and_labels_in_the_features_are() -> None:
    random = np.random.default_rng(0)
    x, x_dev = random.standard_normal((2, 400, 32)).astype(np.float32)
    y, y_dev = (random.choice(list("abcd"), (400, 1)) for _ in range(2))
    assert abs(accuracy(x, y, x_dev, y_dev) - 0.25) < 3 * (0.25 * 0.75 / 400) ** 0.5
    for features, labels in ((x, y), (x_dev, y_dev)):
        features[:, :4] = 5 * (labels == np.array(list("abcd")))
    assert accuracy(x, y, x_dev, y_dev) == 1.0
    # Of two slots, both must be right.
    both = [np.hstack([labels, random.choice(list("ab"), (400, 1))]) for labels in (y, y_dev)]
    assert abs(accuracy(x, both[0], x_dev, both[1]) - 0.5) < 3 * 0.5 / 400**0.5


def speech_commands(root: Path, counts: dict[str, int]) -> None:
    """Write empty files: `counts` of each word, of speakers whom the corpus assigns to train or dev."""
    for word, count in counts.items():
        (root / "speech_commands_v0.01" / word).mkdir(parents=True)
        for number in range(count):
            (root / "speech_commands_v0.01" / word / f"{number:08x}_nohash_0.wav").touch()


def test_items_are_drawn_evenly_over_classes_by_the_seed(tmp_path: Path) -> None:
    speech_commands(tmp_path, {"yes": 400, "no": 300, "cat": 900, "dog": 900, "_background_noise_": 50})
    first, again, other = (draw("ks", tmp_path, 60, seed) for seed in (0, 0, 1))
    assert Counter(first["train"].labels[:, 0]) == {"yes": 20, "no": 20, "_unknown_": 20}
    assert Counter(first["dev"].labels[:, 0]) == {"yes": 20, "no": 20, "_unknown_": 20}
    assert not set(first["train"].files) & set(first["dev"].files)
    assert first["train"].files == again["train"].files != other["train"].files
    # Ten training items of a class are needed: 20 items are of two classes, the same in dev.
    few = draw("ks", tmp_path, 20, 0)
    assert len(set(few["train"].labels[:, 0])) == 2 and set(few["dev"].labels[:, 0]) == set(few["train"].labels[:, 0])


def test_alignments_are_kept_and_made_again_for_other_words(
    phones_of_tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    shutil.copytree(phones_of_tones, root)
    shutil.rmtree(root / "alignments")
    asked: list[str] = []
    monkeypatch.setattr(
        phones, "aligned", lambda audio, text: asked.append(text) or ([] if text == "c" else ["AA"] * 9)
    )
    names = sorted(path.relative_to(root / "LibriSpeech").as_posix() for path in root.rglob("dev-clean/1/2/*.flac"))

    def found(words: str, count: int) -> list[str]:
        utterances = list(zip(names, words, strict=False))
        return list(phones.phones_in_time(root, root / "LibriSpeech", "dev-clean", utterances, count))

    assert found("ACB", 2) == [names[0], names[2]] and asked == [
        "a",
        "c",
        "b",
    ]  # one that cannot be aligned is left out
    assert found("ACB", 2) == [names[0], names[2]] and asked == ["a", "c", "b"]
    assert found("AXB", 3) == names[:3] and asked == ["a", "c", "b", "x"]
    assert found("A", 1) == [names[0]] and found("AXB", 3) == names[:3] and len(asked) == 4  # nothing was lost


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--task", "ks"],
            r"the folder .*speech_commands_v0.01 is missing. The layout expected for ks: speech_commands",
        ),
        (["--task", "sid"], r"veri_test_class.txt is missing; `superbit corpus prepare sid` makes it"),
        (["--task", "ic"], r"fluent_speech_commands_dataset is missing.*wavs/speakers"),
        (["--task", "pr"], r"the folder .*LibriSpeech is missing. The layout expected for pr"),
        (["--task", "asr"], "there is no probe for 'asr'"),
        (["--pooling", "men"], "did you mean 'mean'"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], message: str, untrained: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        probe(untrained, "--corpora", tmp_path, "--out", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_a_packed_file_is_probed_as_the_checkpoint_that_it_was_packed_from(tiny_corpora: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = checkpoint.build(model_config("sparseformer_dn_mini_w1a32")).eval()
    calibrate(model, 0.1 * torch.randn(1, RATE), torch.tensor([RATE]))
    files = [tmp_path / folder / "binary.safetensors" for folder in ("whole", "packed")]
    checkpoint.save(files[0], model, None, {})
    pack_checkpoint(*files)
    text = probe(*files, "--corpora", tiny_corpora, "--task", "ks", "--out", tmp_path, "--pooling", "max")
    found = {}
    for row in rows(tmp_path):
        found.setdefault(row["checkpoint"], {})[row["layer"]] = row["accuracy"]
    # Equal names: the rows have the paths. 8 blocks: layers 0 to 8, and their mean.
    assert len(found[str(files[0])]) == 10 and found[str(files[0])] == found[str(files[1])]
    assert {row["pooling"] for row in rows(tmp_path)} == {"max"} and "max over time" in text
