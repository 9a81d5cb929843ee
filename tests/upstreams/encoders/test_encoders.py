"""Each encoder against an independent reading of its paper or another library's implementation."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from upstreams import cost
from upstreams.config import EncoderConfig, FrontEndConfig, ModelConfig, preset
from upstreams.encoders import build_encoder
from upstreams.encoders.attention import Attention
from upstreams.encoders.convolution import BatchNorm, DepthwiseConvolution
from upstreams.encoders.positions import RelativePositions, Rotary
from upstreams.encoders.sparseformer import LocalAttention
from upstreams.encoders.squeezeformer import ScaleAndBias
from upstreams.formats.checkpoint import build
from upstreams.model import AudioEncoder

SMALL = {"layers": 4, "dim": 16, "heads": 2, "feed_forward_dim": 32, "kernel": 5, "position_kernel": 4}
KINDS = {
    "transformer": {},
    "sparseformer": {"radius": 3},
    "conformer": {},
    "squeezeformer": {"reduce": 1, "recover": 3},
}


def small(kind: str, **changes: object) -> EncoderConfig:
    values = {"kind": kind, **SMALL, "position_groups": 2, **KINDS[kind], **changes}
    return EncoderConfig(**values)  # type: ignore[arg-type]


def scramble(module: nn.Module) -> None:
    """Give every parameter and running statistic a value that is not its initial one."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_()
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)


@pytest.mark.parametrize("positions", ["conv", "relative", "rotary", "none"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_padding_does_not_leak(kind: str, positions: str) -> None:
    encoder = build_encoder(small(kind, positions=positions)).double()
    scramble(encoder)
    encoder.eval()
    lengths = torch.tensor([1, 2, 7, 12, 13])
    x = torch.randn(5, 13, 16, dtype=torch.float64)
    batch = encoder(x, lengths)
    assert len(batch) == 5
    for row, length in enumerate(lengths.tolist()):
        for ours, alone in zip(batch, encoder(x[row : row + 1, :length], lengths[row : row + 1]), strict=True):
            torch.testing.assert_close(ours[row, :length], alone[0], atol=1e-9, rtol=1e-9)
            assert not ours[row, length:].any()


@pytest.mark.parametrize("radius", [None, 1, 3, 20])
@torch.no_grad()
def test_relative_positions_against_loops(radius: int | None) -> None:
    """Transformer-XL's four terms, one pair of frames at a time, in float64."""
    dim, heads, frames = 8, 2, 11
    relative = RelativePositions(dim, heads)
    attention = Attention(dim, heads, relative) if radius is None else LocalAttention(dim, heads, radius, relative)
    scramble(attention.double())
    x = torch.randn(1, frames, dim, dtype=torch.float64)
    q, k, v = (linear(x)[0].view(frames, heads, -1) for linear in (attention.query, attention.key, attention.value))
    u, w = relative.content_bias.view(heads, -1), relative.position_bias.view(heads, -1)
    out = torch.zeros(frames, heads, dim // heads, dtype=torch.float64)
    for h in range(heads):
        for i in range(frames):
            seen = [j for j in range(frames) if radius is None or abs(i - j) <= radius]
            scores = []
            for j in seen:
                sinusoid = []
                for pair in range(dim // 2):
                    angle = (i - j) * 10_000.0 ** (-2 * pair / dim)
                    sinusoid += [math.sin(angle), math.cos(angle)]
                position = relative.projection(torch.tensor(sinusoid, dtype=torch.float64)).view(heads, -1)[h]
                scores.append(((q[i, h] + u[h]) @ k[j, h] + (q[i, h] + w[h]) @ position) / math.sqrt(dim // heads))
            weights = torch.stack(scores).softmax(0)
            out[i, h] = sum(weight * v[j, h] for weight, j in zip(weights, seen, strict=True))
    wanted = attention.output(out.flatten(1))
    # float32 angles inside: 1e-6.
    torch.testing.assert_close(attention(x, torch.tensor([frames]))[0], wanted, atol=1e-5, rtol=0)


@torch.no_grad()
def test_rotary_scores_depend_on_the_offset_only() -> None:
    rotary = Rotary()
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    turned_q, turned_k = rotary(query.expand(1, 9, 1, 8)), rotary(key.expand(1, 9, 1, 8))
    scores = turned_q[0, :, 0] @ turned_k[0, :, 0].T
    for offset in range(-8, 9):
        diagonal = torch.diagonal(scores, offset)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=0)
    torch.testing.assert_close(turned_q.norm(dim=-1), query.norm().expand(1, 9, 1), atol=1e-6, rtol=0)


@torch.no_grad()
def test_conformer_block_equals_torchaudios() -> None:
    from upstreams.s3prl import compat as s3prl_compat  # noqa: F401  (makes torchaudio importable)

    conformer = pytest.importorskip("torchaudio.models.conformer")
    config = small("conformer", positions="none", layers=1, activation="swish")
    ours = build_encoder(config)
    scramble(ours)
    ours.eval()
    block = ours.blocks[0]
    theirs = conformer.ConformerLayer(16, 32, 2, 5, dropout=0.0).eval()
    attention = theirs.self_attn
    for norm, reference in (
        (block.first_norm, theirs.ffn1.sequential[0]),
        (block.attention_norm, theirs.self_attn_layer_norm),
        (block.convolution_norm, theirs.conv_module.layer_norm),
        (block.second_norm, theirs.ffn2.sequential[0]),
        (block.norm, theirs.final_layer_norm),
        (block.first.expand, theirs.ffn1.sequential[1]),
        (block.first.contract, theirs.ffn1.sequential[4]),
        (block.second.expand, theirs.ffn2.sequential[1]),
        (block.second.contract, theirs.ffn2.sequential[4]),
        (block.attention.output, attention.out_proj),
        (block.convolution.norm, theirs.conv_module.sequential[3]),
    ):
        reference.load_state_dict(norm.state_dict())
    attention.in_proj_weight.copy_(
        torch.cat([getattr(block.attention, part).weight for part in ("query", "key", "value")])
    )
    attention.in_proj_bias.copy_(torch.cat([getattr(block.attention, part).bias for part in ("query", "key", "value")]))
    expand, _, depthwise, _, _, contract, *_ = theirs.conv_module.sequential
    for target, source in ((expand, block.convolution.expand), (contract, block.convolution.contract)):
        target.weight.copy_(source.weight[..., None])
        target.bias.copy_(source.bias)
    depthwise.weight.copy_(block.convolution.depthwise.convolution.weight.squeeze(-1))
    depthwise.bias.copy_(block.convolution.depthwise.convolution.bias)
    x = torch.randn(1, 23, 16)
    torch.testing.assert_close(
        ours(x, torch.tensor([23]))[1], theirs(x.transpose(0, 1), None).transpose(0, 1), atol=1e-5, rtol=0
    )


def slow_squeezeformer(encoder: nn.Module, x: Tensor, heads: int, reduce: int, recover: int) -> list[Tensor]:
    """The paper's block and U-Net over (frames, dim), frame by frame, without positions."""

    def layer_norm(norm: nn.LayerNorm, row: Tensor) -> Tensor:
        centred = row - row.mean()
        return centred / (centred.square().mean() + norm.eps).sqrt() * norm.weight + norm.bias

    def linear(module: nn.Linear, row: Tensor) -> Tensor:
        return module.weight @ row + module.bias

    def swish(row: Tensor) -> Tensor:
        return row / (1 + (-row).exp())

    def depthwise(module: DepthwiseConvolution, rows: list[Tensor], stride: int) -> list[Tensor]:
        weight, bias = module.convolution.weight[:, 0, :, 0], module.convolution.bias
        half = weight.shape[1] // 2
        out = []
        for centre in range(0, len(rows), stride):
            total = bias.clone()
            for tap in range(weight.shape[1]):
                if 0 <= centre + tap - half < len(rows):
                    total = total + weight[:, tap] * rows[centre + tap - half]
            out.append(total)
        return out

    def scaled(module: ScaleAndBias, rows: list[Tensor]) -> list[Tensor]:
        return [row * module.scale + module.bias for row in rows]

    def attend(module: Attention, rows: list[Tensor]) -> list[Tensor]:
        q, k, v = ([linear(part, r).view(heads, -1) for r in rows] for part in (module.query, module.key, module.value))
        out = []
        for i in range(len(rows)):
            context = []
            for h in range(heads):
                scores = torch.stack([q[i][h] @ k[j][h] for j in range(len(rows))]) / math.sqrt(q[i].shape[1])
                weights = scores.exp() / scores.exp().sum()
                context.append(sum(weights[j] * v[j][h] for j in range(len(rows))))
            out.append(linear(module.output, torch.cat(context)))
        return out

    def convolve(module: nn.Module, rows: list[Tensor]) -> list[Tensor]:
        rows = depthwise(module.depthwise, [swish(linear(module.expand, row)) for row in rows], 1)
        norm = module.norm
        rows = [(r - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias for r in rows]
        return [linear(module.contract, swish(row)) for row in rows]

    def feed(module: nn.Module, rows: list[Tensor]) -> list[Tensor]:
        return [linear(module.contract, swish(linear(module.expand, row))) for row in rows]

    rows = list(x)
    states, skip = [torch.stack(rows)], rows
    for number, block in enumerate(encoder.blocks):
        if number == reduce:
            skip = rows
            rows = [linear(encoder.reduce_pointwise, r) for r in depthwise(encoder.reduce_depthwise, rows, 2)]
        if number == recover:
            rows = [skip[i] + linear(encoder.recover, rows[i // 2]) for i in range(len(skip))]
        steps = ((attend, block.attention), (feed, block.first), (convolve, block.convolution), (feed, block.second))
        for step, (function, module) in enumerate(steps):
            new = function(module, scaled(block.scales[step], rows))
            rows = [layer_norm(block.norms[step], row + change) for row, change in zip(rows, new, strict=True)]
        states.append(torch.stack([rows[i // 2] if reduce <= number < recover else rows[i] for i in range(len(x))]))
    return states


@pytest.mark.parametrize("frames", [1, 2, 9, 12])
@torch.no_grad()
def test_squeezeformer_against_a_slow_reading_of_the_paper(frames: int) -> None:
    encoder = build_encoder(small("squeezeformer", positions="none", activation="swish")).double()
    scramble(encoder)
    encoder.eval()
    x = torch.randn(frames, 16, dtype=torch.float64)
    ours = encoder(x[None], torch.tensor([frames]))
    for state, wanted in zip(ours, slow_squeezeformer(encoder, x, 2, 1, 3), strict=True):
        torch.testing.assert_close(state[0], wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "millions", "gflops"), [("squeezeformer_xs", 9.0, 18.2), ("squeezeformer_s", 18.6, 33.7)]
)
def test_squeezeformers_published_size(name: str, millions: float, gflops: float) -> None:
    model = AudioEncoder(preset(name))
    assert cost.parameters(model) / 1e6 == pytest.approx(millions, rel=0.01)
    assert 2 * cost.macs(model, 30 * 16_000) / 1e9 == pytest.approx(gflops, rel=0.03)


@pytest.mark.parametrize(("name", "gmacs", "millions"), [("hubert_base", 1669, 94.7), ("distilhubert", 785, 23.49)])
def test_huberts_published_cost(name: str, gmacs: float, millions: float) -> None:
    with torch.device("meta"):
        model = AudioEncoder(preset(name))
    assert sum(c.macs for c in cost.profile(model, cost.SUPERB_SAMPLES)) / 1e9 == pytest.approx(gmacs, rel=0.005)
    assert cost.parameters(model) / 1e6 == pytest.approx(millions, rel=0.005)


def test_sparseformers_are_within_three_percent_of_conformer_s() -> None:
    sizes = {
        name: cost.parameters(build_encoder(preset(name).encoder))
        for name in ("conformer_s", "sparseformer_dn_s", "sparseformer_sw_s")
    }
    for one in sizes.values():
        for other in sizes.values():
            assert one == pytest.approx(other, rel=0.03)
    for name in ("conformer_mini", "squeezeformer_mini", "sparseformer_dn_mini", "sparseformer_sw_mini"):
        assert 1e6 < cost.parameters(AudioEncoder(preset(name))) < 2e6


def test_batch_norm_counts_valid_frames_only() -> None:
    norm = BatchNorm(4)
    x = torch.randn(3, 6, 4, requires_grad=True)
    padded = torch.arange(6) >= torch.tensor([6, 2, 4])[:, None]
    output = norm(x, padded[..., None])
    valid = x[~padded]
    reference = nn.BatchNorm1d(4)
    torch.testing.assert_close(output[~padded], reference(valid))
    torch.testing.assert_close(norm.running_var, reference.running_var)
    assert not output[padded].any()
    output.square().sum().backward()
    assert not x.grad[padded].any()


@torch.no_grad()
def test_depthwise_convolution_equals_conv1d() -> None:
    for frames, stride in ((1, 1), (9, 1), (9, 2), (10, 2), (1, 2)):
        ours = DepthwiseConvolution(6, 5, stride)
        theirs = nn.Conv1d(6, 6, 5, stride, padding=2, groups=6)
        theirs.weight.copy_(ours.convolution.weight.squeeze(-1))
        theirs.bias.copy_(ours.convolution.bias)
        x = torch.randn(2, frames, 6)
        torch.testing.assert_close(ours(x), theirs(x.transpose(1, 2)).transpose(1, 2))


FRONT_ENDS = {
    "stack at 40 ms": FrontEndConfig(),
    "stack at 20 ms": FrontEndConfig(subsampling=2),
    "convolution at 40 ms": FrontEndConfig(stem="convolution", width=8),
    "convolution at 20 ms": FrontEndConfig(stem="convolution", width=8, subsampling=2, normalisation="utterance"),
    "waveform": FrontEndConfig(kind="waveform", normalisation="none", width=16),
    "normalised waveform": FrontEndConfig(kind="waveform", normalisation="utterance", width=16, feature_norm="layer"),
}


def small_model(kind: str, front_end: str, **changes: object) -> AudioEncoder:
    return AudioEncoder(ModelConfig("small", FRONT_ENDS[front_end], small(kind, **changes), output_map=False))


@pytest.mark.parametrize("front_end", FRONT_ENDS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_encoder_on_every_front_end_keeps_utterances_apart(kind: str, front_end: str) -> None:
    model = small_model(kind, front_end).eval()
    lengths = torch.tensor([1, 399, 400, 719, 720, 1601, 8000, 8001])
    waveforms = torch.randn(8, 8001) * 0.1
    batch = model(waveforms, lengths)
    for row, length in enumerate(lengths.tolist()):
        frames = int(model.frame_count(torch.tensor(length)))
        alone = model(waveforms[row, :length])
        assert alone[0].shape == (1, frames, 16)
        assert abs(frames - round(length / model.config.downsample_rate)) < 5  # s3prl's tolerance
        for ours, reference in zip(batch, alone, strict=True):
            torch.testing.assert_close(ours[row, :frames], reference[0], atol=1e-4, rtol=0)
    for unusual in (torch.zeros(1, 800), torch.zeros(1, 1), torch.randn(1, 60 * 16_000) * 0.1):  # silence, a minute
        assert all(torch.isfinite(state).all() for state in model(unusual))


@pytest.mark.parametrize("front_end", ["convolution at 40 ms", "normalised waveform", "waveform"])
@pytest.mark.parametrize("positions", ["conv", "relative", "rotary"])
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(kind: str, positions: str, front_end: str) -> None:
    """Under autocast and with bf16 weights, features are those of fp32 but for rounding, and gradients are finite."""
    torch.manual_seed(0)
    model = small_model(kind, front_end, positions=positions).eval()
    waveforms, lengths = torch.randn(2, 16_000) * 0.1, torch.tensor([16_000, 9_000])
    with torch.no_grad():
        wanted = model(waveforms, lengths)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = model(waveforms, lengths)
        loss = model.train()(waveforms, lengths)[-1].float().square().mean()
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        in_half = model.eval().bfloat16()(waveforms, lengths)
    assert in_half[-1].dtype == torch.bfloat16
    for states in (under_autocast, in_half):
        for state, reference in zip(states, wanted, strict=True):
            error = (state.float() - reference).square().mean() / reference.square().mean()
            assert error < 0.03**2
            assert not state[1, model.frame_count(lengths)[1] :].any()


PEAK = """
import sys, torch
from upstreams.config import EncoderConfig, FrontEndConfig, ModelConfig
from upstreams.model import AudioEncoder
from runners.analysis.costs import peak_memory

waveform = {"kind": "waveform", "normalisation": "none", "width": 32}
front_end = FrontEndConfig(**(waveform if sys.argv[1] == "waveform" else {"stem": "convolution", "width": 32}))
encoder = EncoderConfig("sparseformer", 4, 128, 8, 256, positions=sys.argv[2], radius=32)
model = AudioEncoder(ModelConfig("m", front_end, encoder, output_map=False)).eval()
with torch.inference_mode():
    model(torch.randn(1, 16_000))
    before = peak_memory()
    model(torch.randn(1, int(sys.argv[3]) * 16_000))
print(peak_memory() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel does not tell the peak of memory")
@pytest.mark.parametrize("positions", ["conv", "relative"])
@pytest.mark.parametrize("front_end", ["log_mel", "waveform"])
def test_local_attentions_memory_is_linear_in_length(front_end: str, positions: str) -> None:
    """The third minute takes what the second took, where a matrix of frames by frames would take 5/3 of it."""

    def peak(seconds: int) -> int:
        command = [sys.executable, "-c", PEAK, front_end, positions, str(seconds)]
        # Freed tensors go back to the system at once, so that the peak is of what lives and not of what lies around.
        at_once = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
        return int(subprocess.run(command, capture_output=True, text=True, check=True, env=at_once).stdout)

    one, two, three = peak(60), peak(120), peak(180)
    assert 1e6 < three - two < 1.1 * (two - one)


@pytest.mark.parametrize("kind", KINDS)
def test_training_with_layerdrop_and_checkpointing(kind: str) -> None:
    """Checkpointed gradients are the plain ones; layerdrop leaves out about its share of blocks."""
    encoder = build_encoder(small(kind))
    x, lengths = torch.randn(2, 9, 16), torch.tensor([9, 4])
    gradients = []
    for checkpointing in (False, True):
        encoder.checkpointing = checkpointing
        encoder.zero_grad()
        encoder(x, lengths)[-1].square().sum().backward()
        gradients.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)
    encoder.layerdrop = 0.5
    torch.manual_seed(0)
    left_out = 0
    for _ in range(50):
        states = encoder(x, lengths)
        left_out += sum(torch.equal(a, b) for a, b in itertools.pairwise(states))
    if kind != "squeezeformer":  # whose U-Net changes the state between blocks
        assert 60 < left_out < 140  # of 200


@pytest.mark.parametrize("front_end", ["stack at 40 ms", "convolution at 40 ms", "waveform"])
@pytest.mark.parametrize("kind", KINDS)
def test_exports(kind: str, front_end: str) -> None:
    model = small_model(kind, front_end).eval()
    example = (torch.randn(2, 16_000), torch.tensor([16_000, 9_000]))
    exported = torch.export.export(model, example)
    with torch.no_grad():
        for ours, wanted in zip(exported.module()(*example), model(*example), strict=True):
            torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("bits", ["w1a32", "w1a1"])
@pytest.mark.parametrize("name", ["conformer_mini", "squeezeformer_mini"])
@torch.no_grad()
def test_mixed_encoders_quantize(name: str, bits: str) -> None:
    import dataclasses

    from upstreams.quantization.convert import calibrating

    model = build(dataclasses.replace(preset(name), bits=bits)).eval()
    waveform = torch.randn(1, 16_000) * 0.1
    with calibrating(model):
        model(waveform)
    assert all(torch.isfinite(state).all() for state in model(waveform))
    float_bits, bits_now = cost.profile(AudioEncoder(preset(name)), [16_000]), cost.profile(model, [16_000])
    assert sum(c.macs for c in bits_now) == sum(c.macs for c in float_bits)
    assert sum(c.bops for c in bits_now) < 0.5 * sum(c.bops for c in float_bits)
