"""Memory that features of a model's layer need, checked before they are computed."""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain.audio.manifest import Manifest
from upstreams.config import SAMPLE_RATE, ModelConfig
from upstreams.errors import UserError
from upstreams.model import AudioEncoder, without_values


def check_features(config: ModelConfig, manifest: Manifest, seconds: float, device: torch.device) -> None:
    """Raise UserError if a batch of `seconds` of audio, or the longest utterance alone, exceeds the free memory."""
    longest = max(manifest.samples) / SAMPLE_RATE
    required, free = feature_bytes(config, longest), free_bytes(device)
    if required > free:
        name = manifest.paths[manifest.samples.index(max(manifest.samples))]
        raise UserError(
            f"{name} is {longest:.0f} s long, and {config.name} needs about {required / 1e9:.1f} GB to compute its "
            f"features for labels, but {free / 1e9:.1f} GB are free on {device}: leave out long files "
            "(superbit manifest --max-seconds)"
        )
    # As many utterances of the longest kind as fit into a batch; shorter ones need less attention for each second.
    required *= max(1.0, seconds / longest)
    if required > free:
        raise UserError(
            f"{config.name} needs about {required / 1e9:.1f} GB to compute features of {seconds:g} s of audio at once, "
            f"but {free / 1e9:.1f} GB are free on {device}: use smaller batches"
        )


def feature_bytes(config: ModelConfig, seconds: float) -> float:
    """Return the most bytes that tensors take while the model computes its hidden states of one utterance, in fp32.

    It is measured on the meta device, where tensors have sizes and no values.
    """
    with without_values():
        model = AudioEncoder(config).eval()
    waveforms = torch.empty(1, int(seconds * SAMPLE_RATE), device="meta")
    with torch.no_grad(), _Live() as live:
        model.encoder(*model.embed(waveforms, torch.empty(1, dtype=torch.long, device="meta")))
    return float(live.most + 4 * sum(p.numel() for p in model.parameters()))


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.users: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                key = tensor.untyped_storage()._cdata
                if key not in self.users:
                    self.sizes[key] = tensor.untyped_storage().nbytes()
                    self.now += self.sizes[key]
                self.users[key] = self.users.get(key, 0) + 1
                weakref.finalize(tensor, self._free, key)
        self.most = max(self.most, self.now)
        return made

    def _free(self, key: int) -> None:
        self.users[key] -= 1
        if not self.users[key]:
            del self.users[key]
            self.now -= self.sizes.pop(key)


def free_bytes(device: torch.device) -> float:
    """Return the free memory of a GPU, or this rank's share of the machine's available memory."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024 / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return float("inf")
