"""Packed models against the fake-quantized models they come from, with every kernel of this machine."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

import upstreams
from runners.cli import app
from tests.upstreams.packed.models import calm_noise, noise, quantized
from upstreams import cost, registry
from upstreams.config import EncoderConfig, ModelConfig, preset, preset_names
from upstreams.errors import UserError
from upstreams.files import sha256
from upstreams.formats import checkpoint
from upstreams.packed import convert, file, kernels
from upstreams.packed.codes import unpack_codes
from upstreams.packed.modules import pack_codes
from upstreams.quantization.modules import QuantConv1d, QuantLinear, QuantMatmul
from upstreams.s3prl.expert import UpstreamExpert

MIXED = {"front_end": "w4a8", "positions": "w1a1", "depthwise": "w1a1", "encoder.blocks.1.*": "w8a8"}

every_kernel = pytest.mark.parametrize("kernel", kernels.available())


def relative_error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    return float((ours - reference).abs().max() / reference.abs().max().clamp_min(1e-9))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_codes_hold_every_whole_number(bits: int) -> None:
    low, high = (-1, 1) if bits == 1 else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    whole = torch.randint(low, high + 1, (5, 37))
    whole[0, :2] = torch.tensor([low, high])
    whole = torch.where(whole == 0, 1, whole) if bits == 1 else whole
    codes = pack_codes(whole, bits)
    assert codes.dtype == torch.uint8 and codes.shape == (5, -(-37 * bits // 8))
    assert torch.equal(unpack_codes(codes, 37, bits, torch), whole.to(torch.int8))
    assert np.array_equal(unpack_codes(codes.numpy(), 37, bits, np), whole.numpy().astype(np.int8))


@every_kernel
@pytest.mark.parametrize(
    ("name", "bits", "overrides"),
    [
        ("sparseformer_dn_mini", "w1a1", {}),
        ("conformer_mini", "w1a1", MIXED),
        ("sparseformer_dn_mini", "w1a8", {}),
        ("squeezeformer_mini", "w1a8", MIXED),
        ("transformer_mini", "w2a4", {}),
        ("transformer_mini", "w1a32", {}),
        ("sparseformer_sw_mini", "w8a8", {}),
    ],
)
@torch.no_grad()
def test_every_module_on_its_input_in_the_model(
    kernel: str, name: str, bits: str, overrides: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Module by module: in a whole model a rounding error that crosses a threshold would hide the error of a module."""
    monkeypatch.setenv(kernels.VARIABLE, kernel)
    model = quantized(name, bits, overrides)
    packed = convert.pack(copy.deepcopy(model))
    seen: set[str] = set()

    def compare(label: str) -> object:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            ours = packed.get_submodule(label)(*inputs)
            assert ours.dtype == output.dtype and ours.shape == output.shape
            assert relative_error(ours, output) < 1e-4, label
            seen.add(label)

        return hook

    kinds = (QuantLinear, QuantConv1d, QuantMatmul)
    labels = [label for label, module in model.named_modules() if isinstance(module, kinds)]
    for label in labels:
        model.get_submodule(label).register_forward_hook(compare(label))
    model(noise(2, 24_000), torch.tensor([24_000, 15_000]))
    assert seen == set(labels)


@st.composite
def encoders(draw: st.DrawFn) -> EncoderConfig:
    """Return small encoders, most with a width that is not a multiple of 32."""
    heads = draw(st.integers(1, 4))
    even = 2 * draw(st.integers(2, 24))
    dim = draw(st.sampled_from([144, 168, 196, heads * even])) // heads // 2 * 2 * heads
    kind = draw(st.sampled_from(["sparseformer", "transformer", "conformer", "squeezeformer"]))
    return EncoderConfig(
        kind=kind,
        layers=2,
        dim=dim,
        heads=heads,
        feed_forward_dim=draw(st.integers(3, 200)),
        activation=draw(st.sampled_from(["relu", "gelu", "swish"])),
        norm=draw(st.sampled_from(["pre", "post"])),
        positions=draw(st.sampled_from(["conv", "relative", "rotary", "none"])),
        position_groups=dim,
        radius=draw(st.integers(1, 20)),
        kernel=5,
        reduce=0,
        recover=1,
    )


@settings(max_examples=25, deadline=None, derandomize=True)
@given(encoders(), st.sampled_from(["w1a1", "w1a32"]), st.integers(1, 20_000), st.integers(1, 20_000))
@torch.no_grad()
def test_hidden_states_of_any_encoder(encoder: EncoderConfig, bits: str, first: int, second: int) -> None:
    """A padded batch, from one frame on. The examples are fixed: in others a rounding error may cross a threshold."""
    model = quantized(ModelConfig("random", encoder=encoder), bits)
    lengths = torch.tensor([first, second])
    waveforms = noise(2, int(lengths.max()))
    reference = model(waveforms, lengths)
    packed = convert.pack(copy.deepcopy(model))
    for kernel in kernels.available():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(kernels.VARIABLE, kernel)
            for ours, state in zip(packed(waveforms, lengths), reference, strict=True):
                torch.testing.assert_close(ours, state, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of checkpoints and their packed files."""
    folder = tmp_path_factory.mktemp("packed")
    for name, bits in (("sparseformer_dn_mini", "w1a1"), ("transformer_mini", "w1a8")):
        path = folder / f"{name}_{bits}.safetensors"
        checkpoint.save(path, quantized(name, bits), None, {"seed": 3})
        (folder / "packed").mkdir(exist_ok=True)
        result = CliRunner().invoke(app, ["pack", str(path), "--out", str(folder / "packed" / path.name)])
        assert result.exit_code == 0, result.output
    return folder


@torch.no_grad()
def test_bits_on_disk_are_bits(files: Path) -> None:
    path = files / "packed" / "sparseformer_dn_mini_w1a1.safetensors"
    packed = file.read(path)
    config, arrays, provenance = packed.config, packed.tensors, packed.provenance
    assert config.bits == "w1a1" and provenance["seed"] == 3
    assert provenance["packed_from"] == sha256(files / path.name)
    codes = sum(array.nbytes for name, array in arrays.items() if name.endswith(".codes"))
    dim, hidden = config.encoder.dim, config.encoder.feed_forward_dim
    assert codes == config.encoder.layers * (4 * dim * dim + 2 * dim * hidden) // 8
    # The file holds only the tensors and a header with their names.
    stored = sum(array.nbytes for array in arrays.values())
    computed = sum(arrays[f"front_end.log_mel.{name}"].nbytes for name in ("window", "filters"))
    counted = sum(c.storage_bytes for c in cost.profile(checkpoint.load(files / path.name), []))
    assert stored - computed <= counted
    assert path.stat().st_size < stored + 150 * len(arrays) + 4096


def test_sparseformer_dn_s_in_one_bit_is_at_most_2_5_megabytes(tmp_path: Path) -> None:
    model = checkpoint.build(dataclasses.replace(preset("sparseformer_dn_s"), bits="w1a1"))
    convert.save(tmp_path / "packed.safetensors", convert.pack(model), {})
    assert (tmp_path / "packed.safetensors").stat().st_size <= 2.5e6


@pytest.mark.parametrize("name", ["sparseformer_dn_mini_w1a1", "transformer_mini_w1a8"])
@torch.no_grad()
def test_a_packed_file_is_an_upstream_like_any_other(files: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upstreams.register()
    from s3prl.nn import S3PRLUpstream

    lengths = torch.tensor([1_280, 500])
    # With it every level of every quantizer is the same, so that 8 bits need no larger tolerance than 1 bit.
    waveforms = calm_noise(checkpoint.load(files / f"{name}.safetensors"), lengths)
    monkeypatch.setattr(cost, "SUPERB_SAMPLES", (16_000,))
    monkeypatch.setenv(registry.CHECKPOINTS, str(files))
    reference, reference_lengths = S3PRLUpstream(name).eval()(waveforms, lengths)
    described = registry.describe(name)
    monkeypatch.setenv(registry.CHECKPOINTS, str(files / "packed"))
    assert registry.describe(name) == described
    path = files / "packed" / f"{name}.safetensors"
    for upstream in (S3PRLUpstream(name).eval(), S3PRLUpstream("superbit_local", str(path)).eval()):
        states, state_lengths = upstream(waveforms, lengths)
        assert upstream.num_layers == len(reference) and upstream.downsample_rates == [640] * len(reference)
        for ours, theirs, a, b in zip(states, reference, state_lengths, reference_lengths, strict=True):
            assert torch.equal(a, b)
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_model_that_has_run_can_be_copied_and_pickled(files: Path) -> None:
    model, waveforms = convert.load(files / "packed" / "sparseformer_dn_mini_w1a1.safetensors"), noise(2, 8_000)
    expected = model(waveforms)[-1]
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(waveforms)[-1], expected)


@torch.no_grad()
def test_a_loaded_model_takes_new_values(files: Path) -> None:
    """load_state_dict also replaces the weights in the kernel's layout."""
    path = files / "packed" / "sparseformer_dn_mini_w1a1.safetensors"
    model, waveforms = convert.load(path), noise(1, 8_000)
    before = model(waveforms)[-1]
    changed = {k: ~v if k.endswith("codes") else v for k, v in model.state_dict().items()}
    model.load_state_dict(changed)
    assert not torch.equal(model(waveforms)[-1], before)


def test_models_that_cannot_be_packed_are_rejected(files: Path, tmp_path: Path) -> None:
    path = tmp_path / "float.safetensors"
    checkpoint.save(path, checkpoint.build(preset("transformer_mini")), None, {})
    with pytest.raises(UserError, match="superbit quantize"):
        convert.pack_checkpoint(path, tmp_path / "out.safetensors")
    with pytest.raises(UserError, match="it was packed from"):
        convert.pack_checkpoint(files / "packed" / "transformer_mini_w1a8.safetensors", tmp_path / "out.safetensors")
    with pytest.raises(UserError, match="w32a8"):
        convert.pack(quantized("transformer_mini", "w32a8"))


@pytest.mark.parametrize("name", [name for name in preset_names() if name.endswith("_mini")])
def test_a_loaded_model_can_be_moved_as_s3prl_does(name: str, tmp_path: Path) -> None:
    convert.save(tmp_path / "packed.safetensors", convert.pack(quantized(name, "w1a1")), {})
    upstream = UpstreamExpert(tmp_path / "packed.safetensors")
    before = torch.stack(upstream([noise(1, 8000)[0]])["hidden_states"])
    assert not [key for key, tensor in upstream.state_dict().items() if tensor.is_meta]
    after = torch.stack(upstream.to("cpu").eval()([noise(1, 8000)[0]])["hidden_states"])
    torch.testing.assert_close(after, before, rtol=0, atol=0)
