"""The packed model as a torch module: on a CPU it calls the compiled runtime, otherwise it computes in torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from upstreams.model import AudioEncoder, checked
from upstreams.packed import file, kernels
from upstreams.packed.contents import Layer
from upstreams.packed.derived import Derived
from upstreams.packed.library import LEVELS, Model
from upstreams.packed.modules import PackedLayer, PackedMatmul
from upstreams.packed.runtime import Runtime
from upstreams.quantization.spec import Bits


class PackedAudioEncoder(AudioEncoder):
    """A packed model. It has no gradient.

    In float32 on a CPU the runtime computes it, on `torch.get_num_threads()` threads, if there is a compiled kernel.
    """

    def __init__(self, model: AudioEncoder) -> None:
        nn.Module.__init__(self)
        self.config, self.front_end, self.encoder = model.config, model.front_end, model.encoder
        for name, buffer in model.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self._model: Derived[Model] = Derived()
        self._runtime: Derived[tuple[str, int, Runtime]] = Derived()

    @torch.no_grad()
    def forward(
        self, waveforms: Tensor, lengths: Tensor | None = None, layers: int | None = None
    ) -> tuple[Tensor, ...]:
        """Return hidden states as `AudioEncoder.forward` does."""
        level = kernels.chosen()
        if level not in LEVELS or waveforms.device.type != "cpu" or waveforms.dtype != torch.float32:
            return super().forward(waveforms, lengths, layers)
        runtime = self._runtime_at(level, torch.get_num_threads())
        waveforms, lengths = checked(waveforms, lengths)
        count = self.config.encoder.blocks_to_run(layers)
        frames = self.frame_count(lengths).tolist()
        longest = int(self.frame_count(torch.tensor(waveforms.shape[1])))
        states = torch.empty(len(waveforms), count + 1, longest, self.config.encoder.dim)
        samples = [
            waveform[:length].contiguous().numpy() for waveform, length in zip(waveforms, lengths.tolist(), strict=True)
        ]
        # A shorter utterance is computed elsewhere, because the runtime's states have no frames of padding.
        own = [
            states[n] if number == longest else states.new_empty(count + 1, number, self.config.encoder.dim)
            for n, number in enumerate(frames)
        ]
        runtime.run(samples, count, [state.numpy() for state in own])
        for whole, state, number in zip(states, own, frames, strict=True):
            if number != longest:
                whole[:, :number] = state
                whole[:, number:] = 0
        return states.unbind(1)

    def _runtime_at(self, level: str, threads: int) -> Runtime:
        """Return the runtime at a level with a number of threads; the model in it is made once."""

        def compute() -> tuple[str, int, Runtime]:
            return level, threads, Runtime(self._model.of(self, self._as_model), threads)

        kept = self._runtime.of(self, compute)
        if kept[:2] != (level, threads):
            self._runtime = Derived()
            kept = self._runtime.of(self, compute)
        return kept[2]

    def _as_model(self) -> Model:
        tensors = {name: t.detach().contiguous().numpy() for name, t in stored_tensors(self).items()}
        return Model(file.to_bytes(self.config, layer_table(self), tensors, {}))


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a packed file: parameters and buffers, without the batch counters of BatchNorm.

    This includes constants that the front-end computes, because other libraries would round them differently.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}


def layer_table(model: nn.Module) -> dict[str, Layer]:
    """Return how to read each packed module of a model."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, PackedLayer):
            found[name] = Layer(module.bits, module.signed)
        elif isinstance(module, PackedMatmul):
            found[name] = Layer(Bits(module.bits, module.bits), True)
    return found
