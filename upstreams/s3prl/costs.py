"""Costs of an upstream that is not this project's: parameters, storage, and multiply-accumulates where all are known.

Matrix products and convolutions are counted where torch computes them, whichever module calls them, so attention
counts, too. The count is complete if every weight matrix in use belongs to a linear layer, a convolution or attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from upstreams.cost import SUPERB_SAMPLES
from upstreams.registry import Description

# Modules whose weight matrices take part in nothing but counted products, or in none.
KNOWN = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.MultiheadAttention),
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.Embedding, ParametrizationList),
)
# Products that torch computes without counting them.
UNCOUNTED = ("mv", "addmv", "dot", "vdot", "addbmm", "rnn", "lstm", "gru", "cdist", "linear", "native_multi_head")


def describe(upstream: nn.Module, device: str, samples: Sequence[int] = SUPERB_SAMPLES) -> Description:
    """Return parameters, bytes of the weights, and MACs over utterances of these lengths; None where not known.

    upstream: takes a list of waveforms, as s3prl's do; each utterance is run alone, on `device`.
    """
    tensors = dict(upstream.state_dict(keep_vars=True))
    parameters = list(upstream.parameters())
    stored = {id(t): t for t in [*parameters, *tensors.values()] if isinstance(t, Tensor) and t.is_floating_point()}
    return Description(
        parameters=sum(p.numel() for p in parameters),
        macs=_macs(upstream.to(device).eval(), device, samples),
        storage_bytes=sum(t.numel() * t.element_size() for t in stored.values()),
    )


@torch.no_grad()
def _macs(upstream: nn.Module, device: str, samples: Sequence[int]) -> int | None:
    counter = _Counter(upstream)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operation for a whole layer
    try:
        with sdpa_kernel(SDPBackend.MATH):  # attention as two products
            for count in samples:
                waveform = torch.zeros(count, device=device)
                with counter:
                    upstream([waveform])
    except Exception as error:
        print(f"[superbit] multiply-accumulates are not known: the upstream fails on silence ({error})")
        return None
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    if counter.unknown:
        print(f"[superbit] multiply-accumulates are not known: not counted are {', '.join(sorted(counter.unknown))}")
        return None
    return counter.macs


class _Counter(TorchDispatchMode):
    """Counts the multiply-accumulates of torch's operations, and collects what it cannot count."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.macs = 0
        self.unknown: set[str] = set()
        self.unknown_matrices = {
            id(parameter): type(module).__name__
            for module in model.modules()
            if not isinstance(module, KNOWN)
            for parameter in module.parameters(recurse=False)
            if sum(size > 1 for size in parameter.shape) > 1
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet not in flop_registry:
            with self:  # an operation that consists of others is counted as those
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if packet in flop_registry:
            self.macs += flop_registry[packet](*args, **kwargs, out_val=result) // 2
        elif any(name in packet.__name__.split("_") or name == packet.__name__ for name in UNCOUNTED):
            self.unknown.add(packet.__name__)
        self.unknown |= {
            self.unknown_matrices[id(leaf)] for leaf in tree_leaves((args, kwargs)) if id(leaf) in self.unknown_matrices
        }
        return result
