"""Where quantization error enters and how it propagates, checked on models with known quantized modules."""

from __future__ import annotations

import csv
import dataclasses
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runners.analysis.errors import compare, read_audio, without_quantizers
from runners.analysis.measurements import Ratio, Similarity
from runners.cli import main
from tests.pretrain.tiny_audio import write_corpus
from upstreams.config import QuantizationConfig, preset
from upstreams.errors import UserError
from upstreams.formats import checkpoint
from upstreams.formats.checkpoint import build
from upstreams.model import AudioEncoder
from upstreams.quantization.convert import calibrate

CONFORMER = "conformer_mini"
FLOAT, BINARY = (f"sparseformer_sw_mini_{bits}.safetensors" for bits in ("w32a32", "w1a1"))


def quantized(name: str, bits: str, overrides: dict[str, str] | None = None, seed: int = 0) -> AudioEncoder:
    torch.manual_seed(seed)
    config = dataclasses.replace(preset(name), bits=bits, quantization=QuantizationConfig(overrides or {}))
    model = build(config).eval()
    calibrate(model, noise(1, seed=9)[0][None], torch.tensor([16_000]))
    return model


def noise(count: int, samples: int = 16_000, seed: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [0.1 * torch.randn(samples, generator=generator) for _ in range(count)]


def test_ratios_are_sums_in_decibels() -> None:
    ratio = Ratio()
    assert ratio.decibels is None
    ratio.add(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    assert ratio.decibels == pytest.approx(20.0)
    assert (ratio + Ratio(75.0, 0.75)).decibels == pytest.approx(20.0)
    assert Ratio(1.0, 0.0).decibels is None


def test_similarity_is_linear_cka() -> None:
    torch.manual_seed(0)
    x, other = torch.randn(50, 6), torch.randn(50, 4)
    rotation = torch.linalg.qr(torch.randn(6, 6)).Q
    equal, different = Similarity(), Similarity()
    for part in (slice(0, 20), slice(20, 50)):  # in two utterances
        equal.add(x[part], 3 * x[part] @ rotation + 7)
        different.add(x[part], other[part])
    assert equal.value == pytest.approx(1.0, abs=1e-5)
    centred_x, centred_y = (x - x.mean(0)).double(), (other - other.mean(0)).double()
    gram_x, gram_y = centred_x @ centred_x.T, centred_y @ centred_y.T  # CKA in its kernel form
    assert different.value == pytest.approx(float((gram_x * gram_y).sum() / gram_x.norm() / gram_y.norm()), abs=1e-5)


@pytest.mark.parametrize(
    ("encoder", "bits", "name"),
    [
        ("conformer_mini", "w2a4", "encoder.blocks.1.attention.product"),
        ("conformer_mini", "w2a4", "encoder.blocks.2.convolution.expand"),
        ("conformer_mini", "w2a4", "encoder.blocks.1.convolution.depthwise.convolution"),
        ("conformer_mini", "w2a4", "encoder.blocks.7.second.contract"),
        ("sparseformer_dn_mini", "w1a1", "encoder.blocks.3.attention.product"),
        ("sparseformer_dn_mini", "w2a4", "encoder.blocks.2.feed_forward.contract"),
    ],
)
@torch.no_grad()
def test_local_ratios_equal_those_of_a_model_with_only_that_module_quantized(
    encoder: str, bits: str, name: str
) -> None:
    """Build such a model and run it; propagated ratios must equal those of the fully quantized model."""
    overrides = {"depthwise": bits} if encoder == "conformer_mini" else {}
    model = quantized(encoder, bits, overrides)
    reference = without_quantizers(model)
    utterance = noise(1, 15_000)[0]  # 24 frames: a window of 16 frames reaches beyond the end
    found = {m.name: m for m in compare(model, reference, [utterance]).measurements}[name]

    alone = build(
        dataclasses.replace(model.config, bits="w32a32", quantization=QuantizationConfig({name: bits}))
    ).eval()
    state = model.state_dict()
    alone.load_state_dict({key: state[key] for key in alone.state_dict()})
    outputs = []
    for network in (reference, alone, model):
        network.get_submodule(name).register_forward_hook(lambda m, i, o: outputs.append(o))
        network(utterance)
    if outputs[0].ndim == 4 and encoder == "sparseformer_dn_mini":
        # Two blocks of 16 queries; the utterance has 24 frames.
        assert outputs[0].shape[:3] == (2, 4, 16)
        outputs = [output.transpose(1, 2).flatten(0, 1)[:24] for output in outputs]
    for ratio, output in ((found.local_output, outputs[1]), (found.propagated_output, outputs[2])):
        expected = Ratio()
        expected.add(outputs[0], output)
        assert ratio.decibels == pytest.approx(expected.decibels, abs=1e-3)
    assert found.propagated_output.decibels < found.local_output.decibels


@torch.no_grad()
def test_error_is_found_in_the_quantized_part_and_propagates_from_there() -> None:
    model = quantized("conformer_mini", "w32a32", {"encoder.blocks.3.convolution.*": "w2a32"})
    analysis = compare(model, without_quantizers(model), noise(2))
    assert [m.name.removeprefix("encoder.blocks.3.") for m in analysis.measurements] == [
        "convolution.expand",
        "convolution.depthwise.convolution",
        "convolution.contract",
        "convolution",
    ]
    first, _, last, part = analysis.measurements
    assert part.is_part and part.kind == "convolution" and part.block == 3 and first.bits == "w2a32"
    # Nothing before the first module is quantized: its input has no noise, and local equals propagated.
    assert first.propagated_input.decibels is None and first.local_input.decibels is None
    assert first.propagated_output.decibels == first.local_output.decibels == pytest.approx(6, abs=6)
    assert last.propagated_output.decibels < last.local_output.decibels
    assert part.local_output.decibels == pytest.approx(part.propagated_output.decibels, abs=1e-6)
    assert analysis.similarity[:4] == pytest.approx([1.0] * 4)
    assert all(0 < value < 0.999 for value in analysis.similarity[4:])


@torch.no_grad()
def test_ratios_by_kind_are_sums_and_improve_with_the_bit_width() -> None:
    totals = {}
    for bits in ("w8a8", "w4a4", "w2a2"):
        model = quantized("conformer_mini", bits)
        analysis = compare(model, without_quantizers(model), noise(1))
        totals[bits] = analysis.by_kind()
        assert set(totals[bits]) == {"attention", "convolution", "feed_forward"}
        feed_forwards = [p for p in analysis.parts() if p.kind == "feed_forward"]
        assert len(feed_forwards) == 16
        assert totals[bits]["feed_forward"].local_output.noise == pytest.approx(
            sum(p.local_output.noise for p in feed_forwards)
        )
    for kind in ("attention", "convolution", "feed_forward"):
        for key in ("weight", "local_output", "propagated_output"):
            ratios = [getattr(totals[bits][kind], key).decibels for bits in ("w8a8", "w4a4", "w2a2")]
            assert ratios[0] > ratios[1] + 6 > ratios[2] + 9, (kind, key, ratios)


@torch.no_grad()
def test_without_quantizers_keeps_weights_and_inserted_relus() -> None:
    model = quantized("transformer_mini", "w1a1")
    twin = without_quantizers(model)
    assert type(twin.encoder.blocks[0].feed_forward.activation) is torch.nn.ReLU
    assert torch.equal(twin.encoder.blocks[0].attention.key.weight, model.encoder.blocks[0].attention.key.weight)
    states = compare(twin, twin, noise(1)).similarity
    assert states == pytest.approx([1.0] * 5)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analyse")
    for name, bits in (
        ("sparseformer_sw_mini", "w32a32"),
        ("sparseformer_sw_mini", "w1a1"),
        ("conformer_mini", "w32a32"),
    ):
        model = quantized(name, bits)
        checkpoint.save(folder / f"{name}_{bits}.safetensors", model, None, {})
    write_corpus(folder / "audio", utterances=6, seconds=0.5)
    (folder / "truncated.safetensors").write_bytes((folder / "conformer_mini_w32a32.safetensors").read_bytes()[:9999])
    soundfile.write(folder / "8k.wav", torch.zeros(800).numpy(), 8_000)
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["superbit", "analyse", *map(str, arguments)])
    main()


def test_files_of_an_analysis(checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    against = ["--against", checkpoints / FLOAT]
    manifest = ["--manifest", checkpoints / "audio/train.tsv", "--seconds", 2]
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, checkpoints / BINARY, *against, *manifest, "--out", tmp_path)
    assert stopped.value.code == 0
    with (tmp_path / "modules.csv").open() as file:
        rows = list(csv.DictReader(file))
    parts = [row["name"].removeprefix("encoder.blocks.") for row in rows if row["what"] == "part"]
    assert parts == ["0.attention", "0.feed_forward", "1.attention", "1.feed_forward"]
    assert len(rows) == 4 + 2 * 7 and all(float(row["propagated_output_db"]) < 40 for row in rows)
    with (tmp_path / "kinds.csv").open() as file:
        assert [row["kind"] for row in csv.DictReader(file)] == ["attention", "feed_forward"]
    with (tmp_path / "layers.csv").open() as file:
        assert [row["layer"] for row in csv.DictReader(file)] == ["0", "1", "2"]
    assert (tmp_path / "depth.png").read_bytes()[1:4] == b"PNG"
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("propagated_output_db/attention")] == [0, 1]
    assert events.Tags()["images"] == ["depth"] and len(events.Scalars("cka")) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([FLOAT], "is a float model"),
        (
            ["sparseformer_sw_mini_w1a1.safetensors", "--against", "conformer_mini_w32a32.safetensors"],
            "have different architectures",
        ),
        (
            ["sparseformer_sw_mini_w1a1.safetensors", "--against", "sparseformer_sw_mini_w1a1.safetensors"],
            "needs a float",
        ),
        (["truncated.safetensors"], "damaged"),
        ([BINARY, "8k.wav"], "give either --manifest or audio files"),
    ],
)
def test_bad_input_exits_with_code_2_and_one_sentence(
    checkpoints: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(checkpoints)
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, *arguments, "--manifest", "audio/train.tsv", "--out", tmp_path / "x")
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_audio_from_files_or_spread_over_a_manifest(checkpoints: Path) -> None:
    assert len(read_audio(None, [checkpoints / "audio/1.wav"], 1.0)) == 1
    assert 2 <= len(read_audio(checkpoints / "audio/train.tsv", [], 1.4)) <= 4
    with pytest.raises(UserError, match="8000 Hz"):
        read_audio(None, [checkpoints / "8k.wav"], 1.0)
    with pytest.raises(UserError, match="needs real audio"):
        read_audio(None, [], 1.0)
