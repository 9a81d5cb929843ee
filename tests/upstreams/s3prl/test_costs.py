"""Costs of other people's upstreams: complete where all weights are linear, convolution and attention, else None."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from upstreams import cost
from upstreams.config import preset
from upstreams.formats import checkpoint
from upstreams.s3prl import costs

SAMPLES = [16_000, 41_000]


class Foreign(nn.Module):
    """A convolution to 8 channels, 160 samples a frame, and any layers behind it."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(1, 8, 400, 160)
        self.layers = nn.ModuleList(layers)

    def forward(self, wavs: list[Tensor]) -> dict[str, list[Tensor]]:
        x = self.convolution(torch.stack(wavs)[:, None]).transpose(1, 2)
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return {"hidden_states": states}


class WithOwnMatrix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


class OnlyFirst(nn.Module):
    """The first result of a module that has several."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        inputs = (x, x, x) if isinstance(self.module, nn.MultiheadAttention) else (x,)
        return self.module(*inputs)[0]


class UnusedMatrix(nn.Linear):
    """A linear layer with a matrix that only pre-training uses."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.codebook = nn.Parameter(torch.ones(8, 8))


def frames() -> list[int]:
    return [(samples - 400) // 160 + 1 for samples in SAMPLES]


def attention(n: int) -> int:
    return 4 * n * 8 * 8 + 2 * n * n * 8  # four projections, two products of all heads


@pytest.mark.parametrize(
    ("layers", "macs"),
    [
        (lambda: (), lambda n: 0),
        (lambda: (nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8), nn.LayerNorm(8)), lambda n: 2 * n * 8 * 16),
        (lambda: (OnlyFirst(nn.MultiheadAttention(8, 2, batch_first=True)),), attention),
        (lambda: (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),), lambda n: attention(n) + 2 * n * 8 * 16),
        (lambda: (UnusedMatrix(),), lambda n: n * 8 * 8),
    ],
)
def test_macs_of_linear_layers_convolutions_and_attention(
    layers: Callable[[], tuple[nn.Module, ...]], macs: Callable[[int], int]
) -> None:
    upstream = Foreign(*layers())
    found = costs.describe(upstream, "cpu", SAMPLES)
    assert found["macs"] == sum(n * 8 * 400 + macs(n) for n in frames())
    assert found["parameters"] == sum(p.numel() for p in upstream.parameters())
    assert found["storage_bytes"] == 4 * found["parameters"]


@pytest.mark.parametrize(
    ("layer", "named"),
    [(lambda: OnlyFirst(nn.LSTM(8, 8, batch_first=True)), "LSTM"), (WithOwnMatrix, "WithOwnMatrix")],
)
def test_macs_are_not_known_if_another_module_has_a_matrix_in_use(
    layer: Callable[[], nn.Module], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    upstream = Foreign(layer())
    found = costs.describe(upstream, "cpu", SAMPLES)
    assert found["macs"] is None and named in capsys.readouterr().out
    assert found["parameters"] == sum(p.numel() for p in upstream.parameters())


def test_an_upstream_that_fails_has_no_known_macs(capsys: pytest.CaptureFixture[str]) -> None:
    found = costs.describe(Foreign(nn.Linear(9, 8)), "cpu", SAMPLES)
    assert found["macs"] is None and "fails on silence" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["transformer_mini", "sparseformer_dn_mini", "conformer_mini"])
def test_counted_operations_agree_with_the_formulas_for_our_models(name: str) -> None:
    model = checkpoint.build(preset(name)).eval()
    of_modules = cost.profile(model, SAMPLES)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, wavs: list[Tensor]) -> tuple[Tensor, ...]:
            states: tuple[Tensor, ...] = self.model(torch.stack(wavs))
            return states

    assert costs.describe(Wrapped(), "cpu", SAMPLES) == {
        "parameters": sum(c.parameters for c in of_modules),
        "macs": sum(c.macs for c in of_modules),
        "storage_bytes": sum(c.storage_bytes for c in of_modules),
    }
