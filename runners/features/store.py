"""Hidden states of a frozen upstream, computed once for each utterance and stored on disk.

Training a SUPERB head reads the same waveforms many times, and the frozen upstream returns the same hidden states each
time. For most tasks, computing them takes nearly all of a step.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runners.features.code import code_version
from runners.features.encoding import Encoded, decode, encode
from runners.features.fingerprint import fingerprint, numerics
from runners.features.settings import StoreSettings
from runners.features.shards import Shards
from upstreams.files import write_json


class FeatureStore(nn.Module):
    """Replaces a frozen s3prl upstream; a waveform that was seen before costs a read instead of a forward pass.

    Returns what the upstream returns for the batch, rounded to `dtype`, whether it was stored or computed: numbers do
    not depend on the content of the store. The key of an utterance is a digest of its samples and of the precision that
    torch computes with, such as autocast's dtype. Utterances are computed with others of the same length, so without
    padding, and are padded with zeros to the longest of the batch. This is right for upstreams whose features of an
    utterance do not depend on the rest of the batch and are zero after its end, such as this project's and s3prl's
    Kaldi baselines. `depends_on_batch` detects others.

    space: folder name that identifies the upstream (`fingerprint`); crop_samples: waveforms of exactly this length are
    random crops of longer ones, which are computed each time and never stored; means: return and store, in fp32, one
    frame for each utterance instead, the mean over the frames that s3prl's featurizer would give to the head. For heads
    that use nothing else (`averages_over_time`), it makes a step and the store many times smaller.
    """

    def __init__(
        self,
        upstream: nn.Module,
        settings: StoreSettings,
        space: str,
        crop_samples: int | None = None,
        *,
        means: bool = False,
    ) -> None:
        super().__init__()
        self.upstream = upstream
        self.dtype = "fp32" if means else settings.dtype
        self.means = means
        self.crop_samples = crop_samples
        self.shards = Shards(settings.folder, f"{space}-mean" if means else f"{space}-{self.dtype}", settings.max_bytes)
        self.hits = 0
        self.misses = 0

    def print_usage(self) -> None:
        """Print how many utterances were read and computed; of several ranks, the first prints its own."""
        if os.environ.get("RANK", "0") == "0":
            share = 100 * self.hits / max(1, self.hits + self.misses)
            counts = f"{self.hits} utterances read (hits), {self.misses} computed (misses)"
            print(f"[superbit] feature store: {counts}; {share:.1f} % read", flush=True)

    def log_usage(self, logger: Any, step: int) -> None:
        """Write `feature_store/hits` and `feature_store/misses`, counted since the start, to a TensorBoard writer."""
        logger.add_scalar("feature_store/hits", self.hits, global_step=step)
        logger.add_scalar("feature_store/misses", self.misses, global_step=step)

    def get_downsample_rates(self, key: str) -> int:
        """Return the upstream's samples per frame."""
        return self.upstream.get_downsample_rates(key)  # type: ignore[operator]

    @torch.no_grad()
    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """List of (samples,) waveforms -> {"hidden_states": [(batch, frames, dim), ...], "last_hidden_state": ...}.

        The hidden states are views of one tensor (layers, batch, frames, dim), as `weighted_sum` needs. Raises
        RuntimeError in train mode: the features of an upstream that learns or has dropout must not be stored.
        """
        if self.training:
            raise RuntimeError("a feature store needs a frozen upstream in eval mode; it cannot be fine-tuned")
        mode = numerics(wavs[0].device)
        keys = [_key(wav, mode) for wav in wavs]
        by_key = dict(zip(keys, wavs, strict=True))
        states = self._stored(by_key)
        missing = {key: wav for key, wav in by_key.items() if key not in states}
        self.hits += sum(key in states for key in keys)
        self.misses += len(missing)
        if missing:
            states |= self._compute_missing(missing)

        device = wavs[0].device
        frames = max(state.shape[1] for state in states.values())
        layers, _, dim = states[keys[0]].shape
        # fp16 halves the bytes that are copied to a GPU; on the CPU, copying out of the files converts to fp32.
        narrow = device.type != "cpu" and all(state.dtype == torch.float16 for state in states.values())
        batch = torch.empty(layers, len(keys), frames, dim, dtype=torch.float16 if narrow else torch.float32)
        for row, key in enumerate(keys):
            state = states[key]
            batch[:, row, : state.shape[1]] = state
            batch[:, row, state.shape[1] :] = 0
        hidden_states = list(batch.to(device).float().unbind(0))
        return {"hidden_states": hidden_states, "last_hidden_state": hidden_states[-1]}

    def _stored(self, keys: Iterable[bytes]) -> dict[bytes, Tensor]:
        """Return the stored hidden states by key: (layers, frames, dim), fp16 or fp32."""
        return {key: decode(Encoded(*found)) for key in keys if (found := self.shards.read(key)) is not None}

    def _compute_missing(self, missing: Mapping[bytes, Tensor]) -> dict[bytes, Tensor]:
        """Compute and store hidden states, or wait for them if another process is computing them."""
        crops = {key: wav for key, wav in missing.items() if len(wav) == self.crop_samples}
        states = {key: decode(encoded) for key, encoded in self._compute(crops)}
        wanted = {key: wav for key, wav in missing.items() if key not in crops}
        while wanted:
            with self.shards.claim(wanted) as mine:
                self.shards.refresh()
                states |= self._stored(wanted)
                todo = {key: wav for key, wav in wanted.items() if key in mine and key not in states}
                for key, encoded in self._compute(todo):
                    self.shards.append(key, encoded.kind, encoded.shape, encoded.payload.numpy().data)
                    states[key] = decode(encoded)
            wanted = {key: wav for key, wav in wanted.items() if key not in states}
            for key in wanted:
                self.shards.wait_for(key)
        return states

    def _compute(self, waveforms: Mapping[bytes, Tensor]) -> Iterator[tuple[bytes, Encoded]]:
        """Yield encoded hidden states by key; utterances of the same length are one batch of the upstream."""
        by_length: dict[int, list[bytes]] = defaultdict(list)
        for key, wav in waveforms.items():
            by_length[len(wav)].append(key)
        for keys in by_length.values():
            layers = self.upstream([waveforms[key] for key in keys])["hidden_states"]
            stacked = torch.stack([layer.float().cpu() for layer in layers], dim=1)  # (batch, layers, frames, dim)
            if self.means:
                frames = round(len(waveforms[keys[0]]) / self.get_downsample_rates("hidden_states"))
                stacked = stacked[:, :, : max(1, frames)].mean(2, keepdim=True)
            for key, state in zip(keys, stacked, strict=True):
                yield key, encode(state, self.dtype)


def _key(wav: Tensor, mode: str) -> bytes:
    digest = hashlib.sha256(mode.encode())
    digest.update(wav.detach().cpu().contiguous().numpy().data)
    return digest.digest()


def weighted_sum(weights: Tensor, hidden_states: Sequence[Tensor]) -> Tensor:
    """Return s3prl's softmax-weighted sum over layers, as one matrix-vector product: on a CPU, six times as fast.

    weights: (layers,) before the softmax; hidden_states: one (batch, frames, dim) for each layer, views of one tensor
    as a FeatureStore returns them. Tensors that are not such views are copied. Autocast does not apply: s3prl
    multiplies in fp32, where autocast would make this product one in fp16.
    """
    stacked = hidden_states[0]._base
    if stacked is None or stacked.shape != (len(hidden_states), *hidden_states[0].shape):
        stacked = torch.stack(list(hidden_states))
    flat = stacked.view(len(hidden_states), -1)
    with torch.autocast(flat.device.type, enabled=False):
        return (torch.softmax(weights, dim=-1) @ flat).view(hidden_states[0].shape)


@torch.no_grad()
def depends_on_batch(upstream: nn.Module, device: str) -> bool:
    """True if the features of an utterance change by more than rounding when a longer one is in its batch.

    Each layer is compared with its own largest value: their scales may differ by orders of magnitude. This happens if
    padding is not masked everywhere, as in s3prl's own wav2vec 2.0 and HuBERT. Such features cannot be stored by
    utterance.
    """
    generator = torch.Generator().manual_seed(0)
    long, short = (0.1 * torch.randn(samples, generator=generator).to(device) for samples in (9600, 5000))
    frames = round(len(short) / upstream.get_downsample_rates("hidden_states"))  # type: ignore[operator]
    together = torch.stack(list(upstream([long, short])["hidden_states"]))[:, 1, :frames]
    alone = torch.stack(list(upstream([short])["hidden_states"]))[:, 0, :frames]
    common = min(alone.shape[1], together.shape[1])
    beyond = together[:, common:].abs().sum((1, 2))
    change = (alone[:, :common] - together[:, :common]).abs().amax((1, 2)) + beyond
    return not bool((change <= 1e-3 * alone.abs().amax((1, 2))).all())  # NaN is not equal either


def open_store(
    upstream: nn.Module,
    settings: StoreSettings,
    *,
    name: str,
    files: Sequence[str | Path | None],
    device: str,
    crop_samples: int | None,
    means: bool,
) -> nn.Module:
    """Return a store in place of the upstream, or the upstream itself if its features cannot be stored.

    name: of the upstream; files: its checkpoint and its configuration, if it has them; crop_samples, means: see
    FeatureStore.
    Prints the reason if features cannot be stored.
    """
    upstream.eval()
    with torch.no_grad():
        features = upstream([torch.zeros(16000, device=device)])
    reason = None
    if "hidden_states" not in features:
        reason = f"{name} returns no hidden_states"
    elif depends_on_batch(upstream, device):
        reason = f"the features of an utterance depend on the rest of its batch in {name}"
    if reason is not None:
        print(f"[superbit] {reason}: they are computed at every step")
        return upstream
    store = FeatureStore(upstream, settings, fingerprint(name, files, upstream, device), crop_samples, means=means)
    description = store.shards.folder / "about.json"
    if not description.exists():
        used = [str(file) for file in files if file]
        write_json(description, {"upstream": name, "files": used, "code": code_version()})
    return store.eval()
