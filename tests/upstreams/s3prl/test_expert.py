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


@pytest.mark.parametrize(
    ("wavs", "message"),
    [
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
