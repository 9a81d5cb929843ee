"""The upstreams in s3prl: the checks of its own test suite, and more."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch

import upstreams
from upstreams import registry
from upstreams.config import preset
from upstreams.errors import UserError
from upstreams.formats import checkpoint
from upstreams.packed import convert
from upstreams.quantization.convert import calibrating

NAMES = ("sparseformer_dn_mini", "sparseformer_dn_mini_w1a32", "sparseformer_dn_mini_w1a1", "transformer_mini")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    for name in NAMES:
        torch.manual_seed(0)
        base, _, bits = name.partition("_w1")
        model = checkpoint.build(dataclasses.replace(preset(base), bits=f"w1{bits}" if bits else "w32a32"))
        with torch.no_grad(), calibrating(model):
            model.eval()(torch.randn(2, 32_000) * 0.1)
        checkpoint.save(folder / f"{name}.safetensors", model, None, {})
    return folder


@pytest.fixture(autouse=True)
def registered(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.CHECKPOINTS, str(checkpoints))
    upstreams.register()


def waves(*seconds: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(int(s * 16_000), generator=generator) * 0.1 for s in seconds]


@pytest.mark.parametrize("name", NAMES)
def test_the_checks_of_s3prls_test_suite(name: str) -> None:
    """Deterministic in eval mode, equal layers in both modes, lengths within 3 frames, gradients on short input."""
    from s3prl.nn import S3PRLUpstream

    upstream = S3PRLUpstream(name).eval()
    batch = waves(0.05, 0.4, 1.0)
    lengths = torch.tensor([len(w) for w in batch])
    padded = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
    with torch.no_grad():
        first, first_lengths = upstream(padded, lengths)
        second, _ = upstream(padded, lengths)
    assert len(first) == upstream.num_layers and all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for counts, rate in zip(first_lengths, upstream.downsample_rates, strict=True):
        expected = (lengths / rate).round()
        assert ((counts - expected).abs() <= 3).all()
    for seed in range(5):
        torch.manual_seed(seed)
        states, _ = upstream.train()(padded, lengths)
        assert len(states) == len(first)
    for seconds in ((0.05,), (0.05, 0.05), (0.05, 0.6, 1.0)):
        with torch.autograd.detect_anomaly(check_nan=True):
            batch = waves(*seconds)
            states, _ = upstream(
                torch.nn.utils.rnn.pad_sequence(batch, batch_first=True), torch.tensor([len(w) for w in batch])
            )
            sum(s.square().mean() for s in states).backward()  # type: ignore[union-attr]
    grads = [p.grad for p in upstream.parameters() if p.requires_grad and p.grad is not None]
    assert grads and all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_features_in_a_batch_equal_those_alone(name: str) -> None:
    import s3prl.hub

    expert = getattr(s3prl.hub, name)().eval()
    batch = waves(0.05, 0.7, 2.3)
    together = expert(batch)["hidden_states"]
    assert len({state.shape for state in together}) == 1
    for row, wave in enumerate(batch):
        alone = expert([wave])["hidden_states"]
        frames = alone[0].shape[1]
        close = [
            torch.isclose(a[row, :frames], b[0], atol=1e-4).float().mean() for a, b in zip(together, alone, strict=True)
        ]
        # A 1-bit activation near its threshold may flip if a product is summed in another order.
        assert min(close) == 1 if "a1" not in name else min(close) > 0.98


def test_featurizer_and_deepcopy() -> None:
    from s3prl.nn import Featurizer, S3PRLUpstream

    upstream = S3PRLUpstream("transformer_mini")
    featurizer = Featurizer(copy.deepcopy(upstream))
    states, lengths = upstream(torch.randn(2, 16_000) * 0.1, torch.tensor([16_000, 9000]))
    features, _ = featurizer(states, lengths)
    assert features.shape == states[0].shape and featurizer.downsample_rate == 640
    assert "transformer_mini" in S3PRLUpstream.available_names()


@pytest.fixture(scope="module")
def with_dropout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint whose dropout is large enough to notice."""
    config = preset("transformer_mini")
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, dropout=0.5))
    path = tmp_path_factory.mktemp("dropout") / "dropout.safetensors"
    checkpoint.save(path, checkpoint.build(config), None, {})
    return path


def test_a_frozen_upstream_gives_the_same_features_in_train_mode(with_dropout: Path) -> None:
    """S3PRLUpstream is in train mode after it is built, as in the README."""
    from s3prl.nn import S3PRLUpstream

    upstream = S3PRLUpstream("superbit_local", str(with_dropout))
    assert upstream.training
    audio, lengths = torch.stack(waves(0.5, 0.5)), torch.tensor([8000, 8000])
    (first, _), (second, _) = upstream(audio, lengths), upstream(audio, lengths)
    evaluated, _ = upstream.eval()(audio, lengths)
    for one, two, three in zip(first, second, evaluated, strict=True):
        assert torch.equal(one, two) and torch.equal(one, three)
    learning = S3PRLUpstream("superbit_local", str(with_dropout), extra_conf={"frozen": False})
    (first, _), (second, _) = learning(audio, lengths), learning(audio, lengths)
    assert not torch.equal(first[-1], second[-1])


@pytest.mark.parametrize("name", NAMES)
def test_s3prls_randomize_draws_other_weights(name: str) -> None:
    from s3prl.nn import S3PRLUpstream

    audio, lengths = torch.stack(waves(0.5)), torch.tensor([8000])
    trained = S3PRLUpstream(name)
    torch.manual_seed(1)
    random = S3PRLUpstream(name, randomize=True)
    states = random(audio, lengths)[0]
    assert all(torch.isfinite(state).all() for state in states)
    assert not torch.allclose(states[-1], trained(audio, lengths)[0][-1], atol=1e-2)


def test_randomizing_keeps_what_was_fitted_to_activations() -> None:
    import s3prl.hub

    expert = s3prl.hub.sparseformer_dn_mini_w1a1()
    fitted = [p for name, p in expert.named_parameters() if name.endswith((".alpha", ".beta"))]
    with torch.no_grad():
        for number, parameter in enumerate(fitted):
            parameter.copy_(torch.linspace(0.1, 1 + number, parameter.numel()).view(parameter.shape))
    before = [parameter.clone() for parameter in fitted]
    expert.randomize()
    assert fitted
    assert all(torch.equal(*pair) for pair in zip(before, fitted, strict=True))


def test_a_packed_model_is_neither_randomized_nor_fine_tuned(checkpoints: Path, tmp_path: Path) -> None:
    import s3prl.hub
    from s3prl.nn import S3PRLUpstream

    packed = tmp_path / "packed.safetensors"
    convert.pack_checkpoint(checkpoints / "sparseformer_dn_mini_w1a1.safetensors", packed)
    with pytest.raises(UserError, match="cannot be randomized: give the checkpoint that it was packed from"):
        S3PRLUpstream("superbit_local", str(packed), randomize=True)
    with pytest.raises(UserError, match="cannot be fine-tuned"):
        s3prl.hub.superbit_local(ckpt=packed).fine_tune()


def test_a_batch_as_one_tensor_is_a_list_of_waveforms() -> None:
    """s3prl's own baselines take it, too."""
    import s3prl.hub

    for upstream in (s3prl.hub.transformer_mini().eval(), s3prl.hub.fbank_no_cmvn()):
        batch = torch.stack(waves(0.5, 0.5))
        together = upstream(batch)["hidden_states"]
        listed = upstream(list(batch))["hidden_states"]
        assert all(torch.equal(one, other) for one, other in zip(together, listed, strict=True))


@pytest.mark.parametrize(
    ("name", "held", "message"),
    [
        ("transformer_mini", "sparseformer_dn_mini", "holds a sparseformer_dn_mini with .*kind sparseformer"),
        ("sparseformer_dn_mini_w1a1", "sparseformer_dn_mini_w1a32", "with bits w1a32, but .* has bits w1a1"),
        ("sparseformer_dn_mini_untrained", "sparseformer_dn_mini_w1a1", "use the upstream superbit_local"),
    ],
)
def test_a_checkpoint_of_another_architecture_under_a_name_is_refused(
    name: str, held: str, message: str, checkpoints: Path
) -> None:
    import s3prl.hub

    file = checkpoints / f"{held}.safetensors"
    with pytest.raises(UserError, match=message):
        getattr(s3prl.hub, name)(ckpt=file)
    s3prl.hub.superbit_local(ckpt=file)


@pytest.mark.parametrize(
    ("wavs", "message"),
    [
        (torch.zeros(1, 1, 100), r"must be \(batch, samples\), not of shape \(1, 1, 100\)"),
        ([torch.zeros(100, dtype=torch.int16)], "waveform 0 is torch.int16, but must be floating point"),
        ([], "the list of waveforms is empty"),
        ([torch.zeros(100), torch.zeros(1, 100)], r"waveform 1 has shape \(1, 100\), but must be 1-D"),
        ([torch.zeros(100), torch.zeros(0)], "utterance 1 of the batch has length 0"),
        ([torch.full((100,), float("inf"))], "utterance 0 of the batch holds NaN or infinite samples .* inf"),
    ],
)
def test_bad_waveforms_raise_an_error_that_says_why(wavs: list[torch.Tensor], message: str) -> None:
    import s3prl.hub

    with pytest.raises(ValueError, match=message):
        s3prl.hub.transformer_mini()(wavs)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    import s3prl.hub

    with pytest.raises(UserError, match=r"no checkpoint at .*none\.safetensors"):
        s3prl.hub.superbit_local(ckpt=str(tmp_path / "none.safetensors"))
