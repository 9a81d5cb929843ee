"""Distillation through the command line: checkpoints of all steps, bit-exact resume, refusal of bad input."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pretrain.audio.manifest import load_audio
from pretrain.distill import DistillationSettings, quantize_checkpoint, read_distillation_settings
from pretrain.objectives.distillation import load_with_head
from pretrain.recipes import read_recipe
from pretrain.training.state import States
from runners.cli import main
from tests.pretrain.command import superbit, weights
from tests.pretrain.tiny_audio import write_recipe
from upstreams.errors import UserError
from upstreams.files import sha256
from upstreams.formats import checkpoint
from upstreams.quantization.quantizers import Quantizer
from upstreams.quantization.spec import Bits

RECIPE = """
model: sparseformer_dn_mini
steps: 12
save_every: 1
batch_seconds: 3
crop_seconds: 1.0
quantization:
  overrides: {front_end: w8a8, "encoder.blocks.0.*": w4a4}
  weight_scale: channel
"""


def teacher_path(work: Path) -> Path:
    return work / "run/checkpoints/sparseformer_dn_mini.safetensors"


@pytest.fixture(scope="module")
def distilled(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with recipe.yaml (RECIPE) and run/, the finished schedule w2a8, w1a1."""
    out = tmp_path_factory.mktemp("distilled")
    (out / "recipe.yaml").write_text(RECIPE)
    done = superbit("quantize", *arguments(work, out), "--out", out / "run")
    assert done.returncode == 0, done.stderr
    assert "sparseformer_dn_mini w1a1: front_end: 1 modules w8a8, input signed" in done.stdout + done.stderr
    return out


def arguments(work: Path, out: Path) -> list[object]:
    bits = ["--bits", "w1a1", "--schedule", "w2a8,w1a1"]
    return [teacher_path(work), *bits, "--manifest", work / "audio/train.tsv", "--recipe", out / "recipe.yaml"]


def test_every_step_writes_a_checkpoint_that_teaches_the_next(work: Path, distilled: Path) -> None:
    middle, final = (
        distilled / f"run/checkpoints/sparseformer_dn_mini_{bits}.safetensors" for bits in ("w2a8", "w1a1")
    )
    assert checkpoint.read(final)[2]["teacher_sha256"] == sha256(middle)
    assert checkpoint.read(middle)[2]["teacher_sha256"] == sha256(teacher_path(work))
    model = checkpoint.load(final)
    assert all(bool(m.calibrated) for m in model.modules() if isinstance(m, Quantizer))
    expected = {"front_end.projection": Bits(8, 8), "encoder.blocks.0.attention.key": Bits(4, 4)}
    expected["encoder.blocks.1.attention.key"] = Bits(1, 1)
    assert {name: model.get_submodule(name).bits for name in expected} == expected
    with torch.no_grad():
        assert all(torch.isfinite(state).all() for state in model(torch.randn(2, 9000) * 0.1))
    assert load_with_head(final).head.codewords.shape[0] == 10


def test_calibration_without_training_keeps_the_weights(work: Path, tmp_path: Path) -> None:
    """--steps 0: the weights equal the teacher's, the scales are calibrated, the hidden states are close."""
    where = ["--manifest", work / "audio/train.tsv", "--out", tmp_path, "--steps", 0]
    done = superbit("quantize", teacher_path(work), "--bits", "w8a8", *where)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "checkpoints/sparseformer_dn_mini_w8a8.safetensors"
    ours, theirs = weights(path), weights(teacher_path(work))
    mapped = {key for key in theirs if "output_" in key}
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs.keys() - mapped)
    student, teacher = load_with_head(path).eval(), load_with_head(teacher_path(work)).eval()
    waveforms = torch.from_numpy(load_audio(work / "audio/0.wav"))[None]
    with torch.no_grad():
        embedded = teacher.model.embed(waveforms)
        exact, close = (m.model.encoder(*embedded)[-1] for m in (teacher, student))
    assert 20 < 10 * torch.log10(exact.square().sum() / (exact - close).square().sum()) < 100


def test_logged_values(distilled: Path) -> None:
    events = EventAccumulator(str(distilled / "run/quantize/sparseformer_dn_mini_w1a1"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"loss", "divergence", *(f"hidden_error_layer/{k}" for k in range(9))} <= tags
    assert "scale/encoder.blocks.3.attention.product.query" in tags
    assert {"sign_flips/attention", "sign_flips/feed_forward"} <= tags
    # The first layers have several bits. Only 1-bit weights have signs that flip.
    flips = [event.value for event in events.Scalars("sign_flips/attention")]
    assert all(0 <= value < 0.5 for value in flips) and any(value > 0 for value in flips)


def test_a_killed_distillation_resumes_with_the_same_losses(work: Path, distilled: Path) -> None:
    """kill -9 during w1a1: weights and logged losses equal those of an uninterrupted run."""
    out = distilled / "killed"
    command = [
        sys.executable,
        "-m",
        "superbit",
        "quantize",
        *map(str, arguments(work, distilled)),
        "--out",
        str(out),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    states = States(out / "quantize/sparseformer_dn_mini_w1a1")
    while not states.saved() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < states.saved()[-1].step < 12
    done = superbit("quantize", *arguments(work, distilled), "--out", out)
    assert done.returncode == 0, done.stderr
    name = "checkpoints/sparseformer_dn_mini_w1a1.safetensors"
    ours, reference = weights(out / name), weights(distilled / "run" / name)
    assert ours.keys() == reference.keys() and all(torch.equal(ours[key], reference[key]) for key in ours)
    curves = []
    for folder in (out, distilled / "run"):
        events = EventAccumulator(str(folder / "quantize/sparseformer_dn_mini_w1a1"))
        events.Reload()
        curves.append({event.step: event.value for event in events.Scalars("loss")})
    assert curves[0] == curves[1] and set(curves[0]) == {0, 10, 11}


def test_finished_steps_are_skipped_and_states_of_other_settings_removed(
    work: Path, distilled: Path, tmp_path: Path
) -> None:
    final = distilled / "run/checkpoints/sparseformer_dn_mini_w1a1.safetensors"
    before = final.stat().st_mtime_ns
    assert superbit("quantize", *arguments(work, distilled), "--out", distilled / "run").returncode == 0
    assert final.stat().st_mtime_ns == before
    # A folder with a state of another recipe: the run starts from step 0.
    run = tmp_path / "quantize/sparseformer_dn_mini_w2a8"
    run.mkdir(parents=True)
    newest = States(distilled / "run/quantize/sparseformer_dn_mini_w2a8").saved()[-1].path
    (run / newest.name).write_bytes(newest.read_bytes())
    config = json.loads((distilled / "run/quantize/sparseformer_dn_mini_w2a8/config.json").read_text())
    config["distillation"]["lr"] = 7.0
    (run / "config.json").write_text(json.dumps(config))
    options = ["--bits", "w2a8", "--recipe", distilled / "recipe.yaml", "--manifest", work / "audio/train.tsv"]
    done = superbit("quantize", teacher_path(work), *options, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    name = "checkpoints/sparseformer_dn_mini_w2a8.safetensors"
    ours, reference = weights(tmp_path / name), weights(distilled / "run" / name)
    assert all(torch.equal(ours[key], reference[key]) for key in ours)


def refused(arguments: list[object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the message of the command line on bad input; check that its exit code is 2."""
    monkeypatch.setattr(sys, "argv", ["superbit", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "recipe", "message"),
    [
        (["--bits", "w3a1"], "steps: 1", "bits 'w3a1' are not valid"),
        (["--bits", "w1a1", "--schedule", "w1a1,w1a32"], "steps: 1", "ends at w1a32, but --bits is w1a1"),
        (["--bits", "w32a32"], "steps: 1", "the teacher itself"),
        (["--bits", "w1a1"], "quantization: {overrides: {front_ends: w8a8}}", "did you mean 'front_end'"),
        (["--bits", "w1a1"], "quantization: {overrides: {front_end: w5a8}}", "bits 'w5a8' are not valid"),
        (["--bits", "w1a1"], "quantisation: {}", "did you mean 'quantization'"),
        (["--bits", "w1a1"], "quantization: {weight_scales: channel}", "did you mean 'weight_scale'"),
        (["--bits", "w1a1"], "steps: -1", "must be 0 (calibrate only) or more"),
        (["--bits", "w1a1"], "save_every: 0", "must be 1 or more"),
        (["--bits", "w1a1"], "steps: [", "is not valid YAML"),
        (["--bits", "w1a1"], "", "is empty"),
        (
            ["--bits", "w1a1"],
            "model: transformer_mini",
            "has another architecture than transformer_mini, the model of the recipe",
        ),
    ],
)
def test_bad_input_gets_one_sentence(
    work: Path,
    tmp_path: Path,
    options: list[str],
    recipe: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe)
    where = ["--manifest", work / "audio/train.tsv", "--out", tmp_path / "x", "--recipe", tmp_path / "recipe.yaml"]
    error = refused(["quantize", teacher_path(work), *options, *where], monkeypatch, capsys)
    assert message in error and ("YAML" in message or len(error.strip().splitlines()) == 1)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("damage", "message"), [("untrained", "has no pre-training head"), ("truncated", "damaged"), ("altered", "altered")]
)
def test_an_unusable_teacher_is_refused(
    work: Path,
    tmp_path: Path,
    damage: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = bytearray(teacher_path(work).read_bytes())
    if damage == "untrained":
        data = bytearray(teacher_path(work).with_name("sparseformer_dn_mini_untrained.safetensors").read_bytes())
    elif damage == "truncated":
        data = data[: len(data) // 2]
    else:
        data[-100] ^= 1
    (tmp_path / "teacher.safetensors").write_bytes(data)
    where = ["--manifest", work / "audio/train.tsv", "--out", tmp_path / "x"]
    command = ["quantize", tmp_path / "teacher.safetensors", "--bits", "w1a32", *where]
    assert message in refused(command, monkeypatch, capsys)
    assert not (tmp_path / "x").exists()


def test_a_missing_recipe_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no distillation recipe at"):
        read_distillation_settings(tmp_path / "none.yaml")


def test_quantization_from_the_first_step_of_pretraining(work: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", first=2, second=2)
    recipe.write_text(recipe.read_text() + "quantization: {bits: w1a2, config: {overrides: {front_end: w8a32}}}\n")
    done = superbit("pretrain", recipe, "--manifest", work / "audio/train.tsv", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    model = checkpoint.load(tmp_path / "run/checkpoints/sparseformer_dn_mini_w1a2.safetensors")
    assert model.get_submodule("encoder.blocks.0.attention.query").bits == Bits(1, 2)
    assert model.get_submodule("front_end.projection").bits == Bits(8, 32)
    assert all(bool(m.calibrated) for m in model.modules() if isinstance(m, Quantizer))
    # The float initialisation equals that of the float recipe, bit for bit.
    name = "checkpoints/sparseformer_dn_mini_untrained.safetensors"
    ours, reference = weights(tmp_path / "run" / name), weights(work / "run" / name)
    assert all(torch.equal(ours[key], reference[key]) for key in reference)
    recipe.write_text(recipe.read_text().replace("w1a2", "w1a3"))
    with pytest.raises(UserError, match="'w1a3' are not valid"):
        read_recipe(str(recipe))


def test_scales_at_the_smallest_value_are_named_at_the_end(
    work: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pretrain.training.optimizers.keep_positive", _shrink_a_scale)
    quantize_checkpoint(
        work / "run/checkpoints/sparseformer_dn_mini.safetensors",
        ["w1a8"],
        manifest_path=work / "audio/train.tsv",
        out=tmp_path,
        seed=0,
        settings=DistillationSettings(steps=1, batch_seconds=2, crop_seconds=1),
    )
    named = [record.message for record in caplog.records if "scale_lr" in record.message]
    assert named == [
        "sparseformer_dn_mini w1a8: 1 of 1 scales of encoder.blocks.0.attention.query.input ended at the "
        "smallest value, 1e-05; a lower scale_lr may keep them"
    ]


def _shrink_a_scale(quantizers: Sequence[Quantizer]) -> None:
    """End every step with the first scale at the smallest value."""
    with torch.no_grad():
        quantizers[0].alpha.fill_(1e-5)
