"""Faster implementations of linear layers, grouped convolutions and attention, for training on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from upstreams.cpu_training.grouped import GroupedConvolution
from upstreams.cpu_training.products import product, runs_on_onednn

SHORTEST_ATTENTION = 192  # keys from which one product per head is faster than PyTorch's attention
SHORTEST_CONVOLUTION = 2  # input length, in kernel lengths, from which `GroupedConvolution` is faster than PyTorch


class FastTraining(TorchFunctionMode):
    """Inside this context, functions that PyTorch computes slowly on this processor run in a faster implementation.

    Results are equal up to rounding. Code that torch.compile compiles is not changed.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if (
            args
            and func in _IMPLEMENTATIONS
            and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled("cpu")
        ):
            result = _IMPLEMENTATIONS[func](*args, **kwargs)
            if result is not None:
                return result
        return func(*args, **kwargs)


class _Linear(torch.autograd.Function):
    """nn.functional.linear, with `product` in the forward and the backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        grad_x = product(flat, weight.T).view_as(x) if ctx.needs_input_grad[0] else None
        grad_weight = product(flat.T, x.reshape(-1, x.shape[-1]).T) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, flat.sum(0) if ctx.needs_input_grad[2] else None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    if not runs_on_onednn(x, weight):
        return None
    return _Linear.apply(x if x.ndim == 2 else x.contiguous(), weight, bias)


class _Attention(torch.autograd.Function):
    """softmax(Q K^T / sqrt(d)) V of each head in turn; the probabilities are kept for the backward pass.

    query: (batch, heads, queries, d). key, value: (batch, heads, keys, d). keys: number of visible keys of each
    utterance; the others are padding.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, keys: list[int]) -> Tensor:
        scale = query.shape[-1] ** -0.5
        query, key, value = (query * scale).contiguous(), key.contiguous(), value.contiguous()
        output = torch.empty_like(query)
        kept = []
        for b, h in _heads(query):
            probabilities = product(query[b, h], key[b, h, : keys[b]]).softmax(-1)
            output[b, h] = product(probabilities, value[b, h, : keys[b]].T)
            kept.append(probabilities)
        ctx.save_for_backward(query, key, value, output, *kept)
        ctx.keys, ctx.scale = keys, scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, output, *kept = ctx.saved_tensors
        gradient = gradient.contiguous()
        weighted = (gradient * output).sum(-1, keepdim=True)  # sum over the keys of P dP, in the softmax's gradient
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for (b, h), probabilities in zip(_heads(query), kept, strict=True):
            n = ctx.keys[b]
            grad_value[b, h, :n] = product(probabilities.T, gradient[b, h].T)
            grad_scores = product(gradient[b, h], value[b, h, :n]).sub_(weighted[b, h]).mul_(probabilities)
            grad_query[b, h] = product(grad_scores, key[b, h, :n].T)
            grad_key[b, h, :n] = product(grad_scores.T, query[b, h].T)
        return grad_query.mul_(ctx.scale), grad_key, grad_value, None


def _heads(x: Tensor) -> list[tuple[int, int]]:
    return [(b, h) for b in range(x.shape[0]) for h in range(x.shape[1])]


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *others: Any, **more: Any
) -> Tensor | None:
    """Return None unless the mask is a pure padding mask and the sequence is long enough."""
    if others or more or attn_mask is None or attn_mask.dtype != torch.bool or query.ndim != 4:
        return None
    if (
        attn_mask.shape != (len(key), 1, 1, key.shape[2])
        or key.shape[2] < SHORTEST_ATTENTION
        or not runs_on_onednn(query[0, 0], key[0, 0])
    ):
        return None
    keys = attn_mask.sum(-1).flatten().tolist()
    if min(keys) == 0 or not all(bool(row[:n].all()) for row, n in zip(attn_mask[:, 0, 0], keys, strict=True)):
        return None
    return _Attention.apply(query, key, value, keys)


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """Return None unless this is a grouped convolution of stride 1 over many more frames than its kernel has taps."""
    if stride not in (1, (1,)) or dilation not in (1, (1,)) or isinstance(padding, str) or x.ndim != 3:
        return None
    if (
        groups == 1
        or weight.shape[1] == 1
        or x.shape[2] < SHORTEST_CONVOLUTION * weight.shape[2]
        or not runs_on_onednn(x[0], weight[0])
    ):
        return None
    return GroupedConvolution.apply(x, weight, bias, padding if isinstance(padding, int) else padding[0], groups)


_IMPLEMENTATIONS: dict[Any, Any] = {
    torch.nn.functional.linear: _linear,
    torch.nn.functional.scaled_dot_product_attention: _attention,
    torch.nn.functional.conv1d: _convolution,
}
