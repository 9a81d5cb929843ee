"""The faster implementations for training on a CPU against PyTorch's: outputs and all gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from upstreams.config import preset
from upstreams.cpu_training import fast_training, products
from upstreams.cpu_training.fast_training import FastTraining
from upstreams.cpu_training.grouped import GroupedConvolution
from upstreams.cpu_training.strided import StridedConvolution
from upstreams.formats import checkpoint

functional = nn.functional


@pytest.fixture(params=["this processor", "oneDNN"])
def always_fast(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the faster implementations for every size, with the products of this processor and with oneDNN's."""
    if request.param == "oneDNN":
        if not torch.backends.mkldnn.is_available():
            pytest.skip("PyTorch was built without oneDNN")
        monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "SMALLEST", 0)
    monkeypatch.setattr(fast_training, "runs_on_onednn", lambda x, weight: weight.ndim == 2)
    monkeypatch.setattr(fast_training, "SHORTEST_ATTENTION", 1)


def gradients(function: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """Return the output, and the gradient of each input for an output gradient whose entries all differ."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    output = function(*leaves)
    output.backward(torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output).cos())
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def assert_same(ours: list[Tensor], reference: list[Tensor]) -> None:
    assert len(ours) == len(reference)
    for got, wanted in zip(ours, reference, strict=True):
        assert got.shape == wanted.shape
        assert (got - wanted).abs().max() <= 2e-5 * wanted.abs().max()


@pytest.mark.usefixtures("always_fast")
@pytest.mark.parametrize("shape", [(7, 12), (2, 5, 12), (1, 1, 12), (3, 2, 4, 12)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(shape), torch.randn(9, 12), *([torch.randn(9)] if bias else [])]
    with FastTraining():
        ours = gradients(functional.linear, *inputs)
    assert_same(ours, gradients(functional.linear, *inputs))


@pytest.mark.usefixtures("always_fast")
def test_linear_of_a_transposed_input() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 12, 5), torch.randn(9, 12), torch.randn(9)]

    def transposed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return functional.linear(x.transpose(1, 2), weight, bias)

    with FastTraining():
        ours = gradients(transposed, *inputs)
    assert_same(ours, gradients(transposed, *inputs))


@pytest.mark.usefixtures("always_fast")
@pytest.mark.parametrize(
    ("batch", "frames", "channels", "outputs", "kernel", "groups", "padding"),
    [
        (2, 70, 12, 12, 32, 3, 16),
        (1, 65, 8, 8, 31, 2, 15),  # odd: the last run of taps is not full
        (3, 40, 6, 4, 5, 2, 0),  # fewer outputs than inputs, no padding
        (2, 300, 32, 32, 128, 16, 64),  # HuBERT's positions, with fewer channels
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_grouped_convolution(
    batch: int, frames: int, channels: int, outputs: int, kernel: int, groups: int, padding: int, bias: bool
) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(batch, channels, frames), torch.randn(outputs, channels // groups, kernel)]
    inputs += [torch.randn(outputs)] if bias else []

    def ours(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return GroupedConvolution.apply(x, weight, bias, padding, groups)

    def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return functional.conv1d(x, weight, bias, 1, padding, groups=groups)

    assert_same(gradients(ours, *inputs), gradients(reference, *inputs))
    with FastTraining():
        inside = gradients(reference, *inputs)
    assert_same(inside, gradients(reference, *inputs))


@pytest.mark.usefixtures("always_fast")
@pytest.mark.parametrize(("kernel", "stride"), [(10, 5), (3, 2), (2, 2), (4, 1)])
def test_strided_convolution(kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(53, 6), torch.randn(7, 6, kernel)]

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return StridedConvolution.apply(x, weight, stride)

    def reference(x: Tensor, weight: Tensor) -> Tensor:
        return functional.conv1d(x.T[None], weight, stride=stride)[0].T

    assert_same(gradients(ours, *inputs), gradients(reference, *inputs))


@pytest.mark.usefixtures("always_fast")
@pytest.mark.parametrize("lengths", [[20, 20], [20, 7, 1]])
def test_attention(lengths: list[int]) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(len(lengths), 20, 3, 8) for _ in range(3)]
    visible = (torch.arange(20) < torch.tensor(lengths)[:, None])[:, None, None]

    def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads = (x.transpose(1, 2) for x in (query, key, value))
        return functional.scaled_dot_product_attention(*heads, attn_mask=visible)

    with FastTraining():
        ours = gradients(attention, *inputs)
    assert_same(ours, gradients(attention, *inputs))


@pytest.mark.usefixtures("always_fast")
@pytest.mark.parametrize("mask", ["a hole", "a window", "scores"])
def test_attention_with_other_masks_is_pytorchs(mask: str) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 20, 8) for _ in range(3))
    seen = torch.ones(2, 1, 1, 20, dtype=torch.bool)
    if mask == "a hole":
        seen[1, :, :, 4] = False
    elif mask == "a window":
        seen = (torch.arange(20) - torch.arange(20)[:, None]).abs()[None, None].expand(2, 1, 20, 20) < 5
    else:
        seen = torch.randn(2, 1, 1, 20)
    wanted = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    with FastTraining():
        assert torch.equal(functional.scaled_dot_product_attention(query, key, value, attn_mask=seen), wanted)


@pytest.mark.usefixtures("always_fast")
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(8, 6, 5, groups=2, padding=2),  # its call passes all arguments, in tuples
        nn.Conv1d(8, 6, 5, groups=2, padding="same"),
        nn.Conv1d(8, 6, 5, groups=2, dilation=2),
        nn.Conv1d(8, 6, 5, groups=2, stride=2),
        nn.Conv1d(8, 8, 5, groups=8),
        nn.Conv1d(8, 6, 5),
        nn.Linear(40, 5, bias=False),
    ],
    ids=str,
)
def test_layers_of_other_libraries(layer: nn.Module) -> None:
    """The models of teachers run inside `FastTraining` as well."""
    x = torch.randn(2, 8, 40)
    with FastTraining():
        ours = gradients(layer, x)
    assert_same(ours, gradients(layer, x))


@pytest.mark.usefixtures("always_fast")
def test_attention_of_other_libraries() -> None:
    module = nn.MultiheadAttention(16, 2, batch_first=True)
    query = torch.randn(2, 20, 16)
    beyond = torch.arange(20) >= torch.tensor([20, 13])[:, None]

    def attend(x: Tensor) -> Tensor:
        output: Tensor = module(x, x, x, key_padding_mask=beyond, need_weights=False)[0]
        return output

    with FastTraining():
        ours = gradients(attend, query)
    assert_same(ours, gradients(attend, query))
    alone = torch.randn(20, 16)
    with FastTraining():
        assert module(alone, alone, alone, need_weights=False)[0].shape == (20, 16)


@pytest.mark.usefixtures("always_fast")
@pytest.mark.parametrize("name", ["transformer_mini", "sparseformer_dn_mini", "conformer_mini", "squeezeformer_mini"])
def test_gradients_of_a_model(name: str) -> None:
    """Compare the gradients of all parameters for a batch of different lengths."""
    torch.manual_seed(0)
    model = checkpoint.build(preset(name)).eval()  # no dropout, which is random
    lengths = torch.tensor([24_000, 15_000, 9_000])
    waveforms = torch.randn(3, 24_000) * (torch.arange(24_000) < lengths[:, None])

    def gradients_by_name() -> dict[str, Tensor]:
        model.zero_grad()
        states = model(waveforms, lengths)
        (states[-1] * torch.linspace(-1, 1, states[-1].shape[-1])).square().sum().backward()
        return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}

    reference = gradients_by_name()
    with FastTraining():
        ours = gradients_by_name()
    largest = max(float(gradient.abs().max()) for gradient in reference.values())
    assert ours.keys() == reference.keys() and len(ours) > 20
    for key, gradient in reference.items():
        assert (ours[key] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + 1e-6 * largest, key


@pytest.mark.usefixtures("always_fast")
def test_compiled_code_is_not_changed() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 16))
    x = torch.randn(3, 40, 64)
    reference = gradients(module, x)
    module.compile(dynamic=True)
    with FastTraining():
        ours = gradients(module, x)
    assert_same(ours, reference)


@pytest.mark.usefixtures("always_fast")
@pytest.mark.parametrize("kind", ["linear", "attention", "convolution", "strided"])
def test_a_second_derivative_is_an_error_and_not_a_wrong_number(kind: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, 64, 32, requires_grad=True)
    with FastTraining():
        if kind == "linear":
            y = functional.linear(x, torch.randn(48, 32))
        elif kind == "attention":
            y = functional.scaled_dot_product_attention(x, x, x, torch.ones(2, 1, 1, 64, dtype=torch.bool))
        elif kind == "convolution":
            y = functional.conv1d(x[:, 0].transpose(1, 2), torch.randn(32, 8, 9), groups=4, padding=4)
        else:
            y = StridedConvolution.apply(x[0, 0].contiguous(), torch.randn(16, 32, 3), 2)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.square().sum().backward()
