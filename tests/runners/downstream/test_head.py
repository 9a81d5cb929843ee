"""`superbit pack --with-head`: the decisions of one packed file are those of s3prl's trained head in torch."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from runners.cli import app
from runners.downstream import run as downstream
from runners.downstream.head import read_head
from runners.downstream.states import read_state
from tests.runners.downstream.experiments import overrides
from tests.upstreams.packed.models import HAS_NATIVE, quantized
from upstreams.config import EncoderConfig, ModelConfig
from upstreams.errors import UserError
from upstreams.packed import convert, file
from upstreams.packed.runtime import Runtime
from upstreams.s3prl.expert import UpstreamExpert

SMALL = ModelConfig("small", encoder=EncoderConfig(layers=2, dim=36, heads=3, feed_forward_dim=40, position_groups=36))
SLOTS = {"ks": ["keyword"], "sid": ["speaker"], "er": ["emotion"], "ic": ["action", "object", "location"]}

native = pytest.mark.skipif(not HAS_NATIVE, reason="no native kernel is selected")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "small.safetensors"
    convert.save(path, convert.pack(quantized(dataclasses.replace(SMALL, output_map=True), "w1a1")), {"seed": 1})
    return path


def trained(task: str, packed: Path, corpora: Path, expdir: Path) -> Path:
    arguments = ["-m", "train", "-u", "superbit_local", "-k", str(packed), "-d", task, "-p", str(expdir)]
    changes = overrides(task, **{"config.optimizer.lr": 0.01})
    downstream.main([*arguments, "--corpora", str(corpora), "--device", "cpu", "-o", changes])
    return expdir / "states-4.ckpt"


def pack(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["pack", *map(str, arguments)], catch_exceptions=True)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def scores_in_torch(state: dict[str, Any], packed: Path, waveform: np.ndarray) -> torch.Tensor:
    """Return the logits of s3prl's featurizer, projector and UtteranceLevel."""
    from s3prl.downstream.model import UtteranceLevel
    from s3prl.upstream.interfaces import Featurizer

    parameters = state["Downstream"]
    projector = torch.nn.Linear(*parameters["projector.weight"].shape[::-1])
    last = parameters["model.post_net.linear.weight"]
    model = UtteranceLevel(last.shape[1], last.shape[0], pooling="MeanPooling")
    for name, module in (("projector.", projector), ("model.", model)):
        module.load_state_dict({k.removeprefix(name): v for k, v in parameters.items() if k.startswith(name)})
    expert = UpstreamExpert(packed)
    featurizer = Featurizer(expert, upstream_device="cpu")
    featurizer.load_state_dict(state["Featurizer"])
    waveforms = [torch.from_numpy(waveform)]
    with torch.no_grad():
        (features,) = featurizer(waveforms, expert(waveforms))
        logits, _ = model(projector(features[None]), torch.tensor([len(features)]))
    return logits[0]


@native
@pytest.mark.parametrize("task", SLOTS)
def test_one_file_decides_as_s3prl_does(task: str, packed: Path, tiny_corpora: Path, tmp_path: Path) -> None:
    states, out = trained(task, packed, tiny_corpora, tmp_path / "exp"), tmp_path / "spotter.safetensors"
    state = read_state(states)
    # As after a long training: without it, all layers weigh about the same.
    state["Featurizer"]["weights"] = torch.tensor([0.5, -1.0, 1.5])
    torch.save(state, states)
    assert "packed:" in pack(packed, "--out", out, "--with-head", states)
    runtime, gain = Runtime(out), 10 ** (-3 / 20) if task == "ks" else 1.0
    assert list(runtime.slots) == SLOTS[task]
    assert sum(map(len, runtime.slots.values())) == len(state["Downstream"]["model.post_net.linear.bias"])
    rng = np.random.default_rng(0)
    for samples in (700, 8_000, 16_320, 16_321, 40_999):  # 640 samples are a frame: also halves, to even and to odd
        waveform = (rng.standard_normal(samples) * 0.1).astype(np.float32)
        expected = scores_in_torch(state, packed, waveform * np.float32(gain))
        scores = runtime.scores(waveform)
        np.testing.assert_allclose(np.concatenate(list(scores.values())), expected, atol=1e-4)
        start = 0
        for slot, choice in runtime.decide(waveform).items():
            end = start + len(runtime.slots[slot])
            assert choice == runtime.slots[slot][int(expected[start:end].argmax())]
            start = end
    assert runtime.decide(np.zeros(10, np.float32)).keys() == runtime.slots.keys()
    # The features of the file are those of the file without a head.
    for ours, theirs in zip(runtime(waveform), Runtime(packed)(waveform), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@native
def test_the_decisions_on_a_test_set_are_those_of_an_evaluation(
    packed: Path, tiny_corpora: Path, tmp_path: Path
) -> None:
    """From the audio files of Speech Commands, which s3prl reads at another volume."""
    states, out = trained("ks", packed, tiny_corpora, tmp_path / "exp"), tmp_path / "spotter.safetensors"
    downstream.main(["-m", "evaluate", "-e", str(states), "--device", "cpu"])
    pack(packed, "--out", out, "--with-head", states)
    runtime, root = Runtime(out), tiny_corpora / "speech_commands_test_set_v0.01"
    lines = (tmp_path / "exp" / "test_predict.txt").read_text().splitlines()
    assert len(lines) == 12 and len({line.split()[1] for line in lines}) > 1
    for line in lines:
        name, predicted = line.split()
        folder, _, rest = name.partition("-")
        waveform, _ = soundfile.read(root / folder / rest, dtype="float32")
        assert runtime.decide(waveform) == {"keyword": predicted}


@pytest.fixture(scope="module")
def ks_states(packed: Path, tiny_corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained("ks", packed, tiny_corpora, tmp_path_factory.mktemp("ks") / "exp")


def test_a_head_replaces_a_head_and_torch_reads_the_model_without_it(
    packed: Path, ks_states: Path, tmp_path: Path
) -> None:
    out, twice = tmp_path / "spotter.safetensors", tmp_path / "again.safetensors"
    head = read_head(ks_states, packed)
    convert.pack_checkpoint(packed, out, head)
    convert.pack_checkpoint(out, twice, head)
    assert out.read_bytes() == twice.read_bytes()
    found = file.read(out)
    assert found.head == head.head and found.provenance["head"]["step"] == 4 and found.provenance["seed"] == 1
    waveforms = torch.randn(1, 4000) * 0.1
    for ours, theirs in zip(convert.load(out)(waveforms), convert.load(packed)(waveforms), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(UserError, match="is a packed file"):
        convert.pack_checkpoint(packed, tmp_path / "none.safetensors")


def other_file(state: dict[str, Any]) -> str:
    state["Args"].upstream_files["upstream_ckpt"]["sha256"] = "0" * 64
    return "give the file that it was trained on"


def another_task(state: dict[str, Any]) -> str:
    state["Args"].downstream = "asr"
    return "holds a head of asr: only heads of ks, ic, sid, er can be packed"


def no_task(state: dict[str, Any]) -> str:
    state["Args"].downstream = "mos_prediction"
    return "holds a head of mos_prediction"


def fine_tuned(state: dict[str, Any]) -> str:
    state["Args"].upstream_trainable = True
    return "fine-tuned upstream"


def attentive_pooling(state: dict[str, Any]) -> str:
    state["Downstream"]["model.pooling.sap_layer.W.weight"] = torch.zeros(1, 256)
    return "another head than SUPERB's of ks"


def one_layer(state: dict[str, Any]) -> str:
    state["Featurizer"] = {}
    return "was not trained on the weighted sum"


def too_few_classes(state: dict[str, Any]) -> str:
    for part in ("weight", "bias"):
        name = f"model.post_net.linear.{part}"
        state["Downstream"][name] = state["Downstream"][name][:11]
    return "has 11 outputs, but ks has 12 classes"


def other_layers(state: dict[str, Any]) -> str:
    state["Featurizer"]["weights"] = torch.zeros(4)
    return r"does not fit small: head.layer_weights has shape \(4,\), but must have \(3,\)"


FAULTS = (other_file, another_task, no_task, fine_tuned, attentive_pooling, one_layer, too_few_classes, other_layers)


@pytest.mark.parametrize("fault", FAULTS)
def test_heads_that_cannot_be_packed(fault: Any, packed: Path, ks_states: Path, tmp_path: Path) -> None:
    state, states, out = read_state(ks_states), tmp_path / "states-4.ckpt", tmp_path / "out.safetensors"
    message = fault(state)
    torch.save(state, states)
    with pytest.raises(UserError, match=message):
        convert.pack_checkpoint(packed, out, read_head(states, packed))
    assert not out.exists()


def test_an_intent_head_takes_its_names_from_the_corpus_wherever_it_is(
    packed: Path, tiny_corpora: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(tiny_corpora / "fluent_speech_commands_dataset", first / "fluent_speech_commands_dataset")
    states = trained("ic", packed, first, tmp_path / "exp")
    head = read_head(states, packed).head
    assert head.slots == {
        "action": ("activate", "increase"),
        "object": ("lights", "volume"),
        "location": ("kitchen", "none"),
    }
    first.rename(second)
    with pytest.raises(UserError, match=r"train_data\.csv, which has the names .* does not exist: give the folder"):
        read_head(states, packed)
    assert read_head(states, packed, second).head == head
