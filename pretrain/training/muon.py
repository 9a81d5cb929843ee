"""Muon (Jordan, 2024; arXiv 2502.16982), in the gradient's own precision on a CPU.

torch.optim.Muon always orthogonalises in bfloat16. A processor without bfloat16 instructions computes that ten times
more slowly than float32. The update is equal up to rounding; matrices of equal shape are orthogonalised as one batch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """Return each matrix U S V^T approximately as U V^T (singular values 0.7 to 1.2), (n, rows, columns).

    Newton-Schulz iteration of degree five with the author's coefficients, which trade exactness for speed.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    x = x.mT if tall else x
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum with orthogonalised updates of matrices; `lr` is in units of AdamW's update size.

    params: matrices only. The root mean square of an update is 0.2 lr (arXiv 2502.16982, section 2.2).
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient.

        As in torch's fused optimizers, an attribute `found_inf`, a scalar on the device, makes it change nothing where
        it is 1: the host need not know whether the gradients are finite.
        """
        found_inf = getattr(self, "found_inf", None)
        for group in self.param_groups:
            same_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    same_shape[parameter.shape].append(parameter)
            for shape, parameters in same_shape.items():
                updates = orthogonalise(self._nesterov(parameters, group["momentum"], found_inf))
                rate = group["lr"] * 0.2 * math.sqrt(max(shape))
                kept: float | Tensor = 1 - group["lr"] * group["weight_decay"]
                if found_inf is not None:
                    updates.mul_(1 - found_inf)
                    kept = torch.where(found_inf > 0, 1.0, kept)
                torch._foreach_mul_(parameters, kept)
                torch._foreach_add_(parameters, updates.unbind(), alpha=-rate)

    def _nesterov(self, parameters: list[Tensor], momentum: float, found_inf: Tensor | None) -> Tensor:
        """Update the momenta of parameters of one shape; return their Nesterov gradients (n, rows, columns)."""
        states = [self.state[parameter] for parameter in parameters]
        for state, parameter in zip(states, parameters, strict=True):
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
        buffers = [state["momentum_buffer"] for state in states]
        gradients = torch.stack([p.grad for p in parameters if p.grad is not None])
        momenta = torch.stack(buffers)
        if found_inf is not None:
            gradients = torch.where(found_inf > 0, momenta, gradients)  # leaves the momenta as they are
        momenta.lerp_(gradients, 1 - momentum)
        torch._foreach_copy_(buffers, momenta.unbind())
        return gradients.lerp_(momenta, momentum)
