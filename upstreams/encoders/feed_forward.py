"""The position-wise feed-forward module."""

from __future__ import annotations

from torch import Tensor, nn

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "swish": nn.SiLU}


class FeedForward(nn.Module):
    """Two linear layers, dim to hidden to dim, with relu, gelu or swish between them."""

    def __init__(self, dim: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.activation = ACTIVATIONS[activation]()
        self.contract = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim) to (..., dim)."""
        return self.contract(self.activation(self.expand(x)))
