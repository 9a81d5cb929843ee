"""The position-wise feed-forward module."""

from __future__ import annotations

from torch import Tensor, nn


class FeedForward(nn.Module):
    """dim -> hidden -> dim with ReLU or GELU between."""

    def __init__(self, dim: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, hidden)
        self.activation = nn.ReLU() if activation == "relu" else nn.GELU()
        self.contract = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        return self.contract(self.activation(self.expand(x)))
