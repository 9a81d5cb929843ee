"""Hidden states of a frozen upstream, computed once an utterance and kept on disk; decoded audio kept in memory.

Training a SUPERB head passes over the same waveforms many times, and the frozen upstream gives the same hidden states
each time: for most tasks they are nearly all of a step's cost.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from runners.features.settings import DTYPES, StoreSettings
from runners.features.shards import Shards
from upstreams.files import atomic_write, sha256

FORMAT = 1
LARGEST_FP16 = torch.finfo(torch.float16).max
DECODED_BYTES = 1 << 29  # of audio that a process keeps: 2.3 hours


class FeatureStore(nn.Module):
    """Stands in for a frozen s3prl upstream; a waveform that was seen before costs a read instead of a forward.

    What it returns is what the upstream returns for the batch, rounded to `dtype`, whether it was kept or computed:
    a run's numbers do not depend on what the store held. Utterances are keyed by their samples, computed among
    utterances of their own length alone, so without padding, and padded with zeros to the batch's longest. That is
    right for upstreams whose features of an utterance do not depend on its batch and are zero behind its end: this
    project's, and s3prl's Kaldi baselines. `depends_on_batch` tells the others.

    space: a folder's name that says what computes the features (`fingerprint`). Waveforms of exactly `crop_samples`
    samples are random crops of longer ones: they are computed each time and never kept.
    """

    def __init__(
        self, upstream: nn.Module, settings: StoreSettings, space: str, crop_samples: int | None = None
    ) -> None:
        super().__init__()
        self.upstream = upstream
        self.dtype = settings.dtype
        self.crop_samples = crop_samples
        self.shards = Shards(settings.folder, f"{space}-{settings.dtype}", settings.max_bytes)
        self.hits = 0
        self.misses = 0

    def get_downsample_rates(self, key: str) -> int:
        """Samples a frame, as the upstream says."""
        return self.upstream.get_downsample_rates(key)  # type: ignore[operator]

    @torch.no_grad()
    def forward(self, wavs: Sequence[Tensor]) -> dict[str, Tensor | list[Tensor]]:
        """List of (samples,) waveforms -> {"hidden_states": [(batch, frames, dim), ...], "last_hidden_state": ...}.

        The hidden states are views of one tensor (layers, batch, frames, dim), for `weighted_sum`. Raises RuntimeError
        in train mode: features of an upstream that learns or drops out must not be kept.
        """
        if self.training:
            raise RuntimeError("a feature store serves a frozen upstream in eval mode, never fine-tuning")
        keys = [_key(wav) for wav in wavs]
        by_key = dict(zip(keys, wavs, strict=True))
        states = self._kept(by_key)
        missing = {key: wav for key, wav in by_key.items() if key not in states}
        self.hits += sum(key in states for key in keys)
        self.misses += len(missing)
        if missing:
            states |= self._fill(missing)

        device = wavs[0].device
        frames = max(state.shape[1] for state in states.values())
        layers, _, dim = states[keys[0]].shape
        # To a GPU go half as many bytes as fp16; on the CPU they are widened as they are copied out of the files.
        narrow = device.type != "cpu" and all(state.dtype == torch.float16 for state in states.values())
        batch = torch.empty(layers, len(keys), frames, dim, dtype=torch.float16 if narrow else torch.float32)
        for row, key in enumerate(keys):
            state = states[key]
            batch[:, row, : state.shape[1]] = state
            batch[:, row, state.shape[1] :] = 0
        hidden_states = list(batch.to(device).float().unbind(0))
        return {"hidden_states": hidden_states, "last_hidden_state": hidden_states[-1]}

    def _kept(self, keys: Any) -> dict[bytes, Tensor]:
        """Those of the keys that are kept: (layers, frames, dim), fp16 or fp32."""
        return {key: decode(*found) for key in keys if (found := self.shards.read(key)) is not None}

    def _fill(self, missing: dict[bytes, Tensor]) -> dict[bytes, Tensor]:
        """Hidden states that are not kept yet: computed here, or waited for where another process computes them."""
        crops = {key: wav for key, wav in missing.items() if len(wav) == self.crop_samples}
        states = {key: decode(*encoded) for key, encoded in self._compute(crops)}
        wanted = {key: wav for key, wav in missing.items() if key not in crops}
        while wanted:
            with self.shards.claim(wanted) as mine:
                self.shards.refresh()
                states |= self._kept(wanted)
                todo = {key: wav for key, wav in wanted.items() if key in mine and key not in states}
                for key, encoded in self._compute(todo):
                    kind, shape, payload = encoded
                    self.shards.append(key, kind, shape, payload.numpy().data)
                    states[key] = decode(*encoded)
            wanted = {key: wav for key, wav in wanted.items() if key not in states}
            for key in wanted:
                self.shards.wait_for(key)
        return states

    def _compute(
        self, waveforms: dict[bytes, Tensor]
    ) -> Iterator[tuple[bytes, tuple[int, tuple[int, int, int], Tensor]]]:
        """Hidden states by key, encoded; utterances of one length go through the upstream together."""
        by_length: dict[int, list[bytes]] = defaultdict(list)
        for key, wav in waveforms.items():
            by_length[len(wav)].append(key)
        for keys in by_length.values():
            layers = self.upstream([waveforms[key] for key in keys])["hidden_states"]
            stacked = torch.stack([layer.float().cpu() for layer in layers], dim=1)  # (batch, layers, frames, dim)
            for key, state in zip(keys, stacked, strict=True):
                yield key, encode(state, self.dtype)


def _key(wav: Tensor) -> bytes:
    return hashlib.sha256(wav.detach().cpu().contiguous().numpy().data).digest()


def encode(state: Tensor, dtype: str) -> tuple[int, tuple[int, int, int], Tensor]:
    """A hidden state (layers, frames, dim) in fp32 -> kind, shape and bytes (uint8) that are kept.

    int8 has a scale for each layer and frame. What fp16 cannot hold is kept in fp32.
    """
    layers, frames, dim = state.shape
    kind = DTYPES.index(dtype)
    if dtype == "int8":
        scale = (state.abs().amax(2, keepdim=True) / 127).clamp_min(torch.finfo(torch.float32).tiny)
        codes = (state / scale).round().to(torch.int8)
        payload = torch.cat([scale.reshape(-1).view(torch.uint8), codes.reshape(-1).view(torch.uint8)])
    elif dtype == "fp16" and bool(state.abs().max() <= LARGEST_FP16):
        payload = state.half().reshape(-1).view(torch.uint8)
    else:
        kind = DTYPES.index("fp32")
        payload = state.reshape(-1).view(torch.uint8)
    return kind, (layers, frames, dim), payload.contiguous()


def decode(kind: int, shape: tuple[int, int, int], payload: Tensor) -> Tensor:
    """The hidden state (layers, frames, dim), fp16 or fp32, of what `encode` gave; a view of it where it can be."""
    if DTYPES[kind] == "fp16":
        return payload.view(torch.float16).view(shape)
    if DTYPES[kind] == "fp32":
        return payload.view(torch.float32).view(shape)
    layers, frames, _ = shape
    scales = payload[: 4 * layers * frames].view(torch.float32).view(layers, frames, 1)
    return payload[4 * layers * frames :].view(torch.int8).view(shape) * scales


def weighted_sum(weights: Tensor, hidden_states: Sequence[Tensor]) -> Tensor:
    """s3prl's softmax-weighted sum over layers, in one matrix-vector product: a sixth of its time on a CPU.

    weights: (layers,) before the softmax; hidden_states: (batch, frames, dim) each, views of one tensor as a
    FeatureStore gives them.
    """
    stacked = hidden_states[0]._base
    if stacked is None or stacked.shape != (len(hidden_states), *hidden_states[0].shape):
        stacked = torch.stack(list(hidden_states))
    flat = stacked.view(len(hidden_states), -1)
    return (torch.softmax(weights, dim=-1) @ flat).view(hidden_states[0].shape)


@torch.no_grad()
def depends_on_batch(upstream: nn.Module, device: str) -> bool:
    """Whether the features of an utterance change by more than rounding when a longer one is in its batch.

    They do where padding is not masked everywhere, as in s3prl's own wav2vec 2.0 and HuBERT: such features cannot be
    kept by utterance.
    """
    generator = torch.Generator().manual_seed(0)
    long, short = (0.1 * torch.randn(samples, generator=generator).to(device) for samples in (9600, 5000))
    frames = round(len(short) / upstream.get_downsample_rates("hidden_states"))  # type: ignore[operator]
    together = torch.stack(list(upstream([long, short])["hidden_states"]))[:, 1, :frames]
    alone = torch.stack(list(upstream([short])["hidden_states"]))[:, 0, :frames]
    common = min(alone.shape[1], together.shape[1])
    beyond = together[:, common:].abs().sum()
    return bool((alone[:, :common] - together[:, :common]).abs().max() + beyond > 1e-3 * alone.abs().max())


def fingerprint(name: str, files: Sequence[str | Path | None], upstream: nn.Module, device: str) -> str:
    """What the features of a waveform depend on, as a folder's name.

    The upstream's name, its checkpoint's and configuration's bytes (`files`), its weights where there is no file, the
    code that computes features, torch's version and the kind of device.
    """
    digest = hashlib.sha256()
    for file in files:
        if not file or not Path(file).is_file():
            continue  # a URL: the weights below stand for it
        digest.update(sha256(Path(file)).encode())
    for key, tensor in sorted(upstream.state_dict().items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    digest.update(f"{FORMAT} {code_version()} {torch.device(device).type}".encode())
    return f"{name}-{digest.hexdigest()[:24]}"


@functools.cache
def code_version() -> str:
    """A digest of all that turns waveforms into features: this project's upstreams, torch and s3prl."""
    import upstreams
    from upstreams.versions import versions

    found = versions()
    digest = hashlib.sha256(f"{found['torch']} {found['s3prl']}".encode())
    folder = Path(upstreams.__file__).parent
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".cpp", ".h")):
        digest.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def open_store(
    upstream: nn.Module,
    settings: StoreSettings,
    name: str,
    files: Sequence[str | Path | None],
    device: str,
    crop_samples: int | None,
) -> nn.Module:
    """The store that stands in for the upstream; the upstream itself, after a line on why, where it cannot."""
    upstream.eval()
    with torch.no_grad():
        features = upstream([torch.zeros(16000, device=device)])
    why_not = None
    if "hidden_states" not in features:
        why_not = f"{name} gives no hidden_states"
    elif depends_on_batch(upstream, device):
        why_not = f"features of {name} depend on what else is in a batch"
    if why_not is not None:
        print(f"[superbit] {why_not}: they are computed at every step")
        return upstream
    space = fingerprint(name, files, upstream, device)
    store = FeatureStore(upstream, settings, space, crop_samples)
    about = store.shards.folder / "about.json"
    if not about.exists():
        text = json.dumps({"upstream": name, "files": [str(file) for file in files if file], "code": code_version()})
        with atomic_write(about) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    return store.eval()


@contextlib.contextmanager
def waveforms_kept(max_bytes: int = DECODED_BYTES) -> Iterator[None]:
    """Inside the block, soundfile.read decodes a whole file once and then copies it, for up to `max_bytes` of samples.

    When the hidden states come from a store, decoding the audio anew for every batch is a third of a step. Not in a
    data loader's workers, which end with the epoch.
    """
    import soundfile

    read = soundfile.read
    kept: dict[tuple[str, str], tuple[np.ndarray, int]] = {}
    room = max_bytes

    def read_once(file: Any, frames: int = -1, start: int = 0, dtype: str = "float64", **options: Any) -> Any:
        nonlocal room
        in_worker = torch.utils.data.get_worker_info() is not None
        if in_worker or frames != -1 or start != 0 or not isinstance(file, str | Path):
            return read(file, frames, start, dtype=dtype, **options)
        key = (str(file), f"{dtype} {sorted(options.items())}")
        if key not in kept:
            samples, rate = read(file, dtype=dtype, **options)
            if samples.nbytes > room:
                return samples, rate
            kept[key] = samples, rate
            room -= samples.nbytes
        samples, rate = kept[key]
        return samples.copy(), rate

    soundfile.read = read_once
    try:
        yield
    finally:
        soundfile.read = read
