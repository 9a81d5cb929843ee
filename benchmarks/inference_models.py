"""The models that benchmarks.inference compares, and how each one runs."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from upstreams.config import SAMPLE_RATE

MODELS = ("transformer_base", "conformer_s", "squeezeformer_xs", "sparseformer_dn_s", "sparseformer_sw_s")
VARIANTS = ("fp32", "int8", "onnx_int8", "w1a32", "w1a8", "w1a1")
RUNTIME = ("transformer_base/w1a1_runtime", "sparseformer_dn_s/w1a1_runtime", "sparseformer_sw_s/w1a1_runtime")
# transformers' HubertModel in the shape of HuBERT Base, and this project's model in the shape of DistilHuBERT.
PUBLIC = ("hubert/fp32", "hubert/onnx_int8", "distilhubert/fp32")
CONTENDERS = (*PUBLIC, *(f"{model}/{variant}" for model in MODELS for variant in VARIANTS), *RUNTIME)

Run = Callable[[np.ndarray], object]  # waveforms (batch, samples)


class Models:
    """The contenders as files in a folder. Each is made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Return the contender's file; write it if it does not exist."""
        model, _, variant = name.partition("/")
        path = self.folder / f"{model}_{variant.removesuffix('_runtime')}"
        if path.is_file():
            return path
        if variant == "onnx_int8":
            self._quantize_onnx(model, path)
        elif variant.startswith("w1"):
            self._pack(model, variant.removesuffix("_runtime"), path)
        else:
            import torch

            torch.save(self._float(model) if variant == "fp32" else self._dynamic(model), path)
        return path

    def load(self, name: str, threads: int) -> Run:
        """Return a function that runs the contender. It imports only the libraries that this contender needs."""
        path, variant = self.path(name), name.partition("/")[2]
        if variant.endswith("_runtime"):
            from upstreams.packed.runtime import Runtime

            runtime = Runtime(path, threads)
            return lambda waveforms: [runtime(waveform) for waveform in waveforms]
        if variant == "onnx_int8":
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(str(path), options)
            inputs = [value.name for value in session.get_inputs()]

            def run(waveforms: np.ndarray) -> object:
                lengths = np.full(len(waveforms), waveforms.shape[1], np.int64)
                return session.run(None, {k: v for k, v in zip(inputs, (waveforms, lengths), strict=False)})

            return run
        import torch

        importlib.import_module(
            "upstreams.s3prl.compat"
        )  # patches that transformers needs: its classes are in the file
        from upstreams.packed import convert

        module = convert.load(path) if variant.startswith("w1") else torch.load(path, weights_only=False)

        def run_torch(waveforms: np.ndarray) -> object:
            torch.set_num_threads(threads)
            with torch.no_grad():
                return module(torch.from_numpy(waveforms))

        return run_torch

    def _float(self, model: str) -> Any:
        import torch

        torch.manual_seed(0)
        if model == "hubert":
            importlib.import_module("upstreams.s3prl.compat")  # patches that transformers needs
            from transformers import HubertConfig, HubertModel

            module = HubertModel(HubertConfig(attn_implementation="sdpa")).eval()  # type: ignore[call-arg]
            # As in deployment: the weight of the positions is computed once, not in every call.
            convolution = module.encoder.pos_conv_embed.conv
            torch.nn.utils.parametrize.remove_parametrizations(convolution, "weight")
            convolution._load_state_dict_pre_hooks.clear()  # hooks of weight normalisation, which cannot be pickled
            return module
        return _built(model, "w32a32")

    def _dynamic(self, model: str) -> Any:
        import torch

        return torch.ao.quantization.quantize_dynamic(self._float(model), {torch.nn.Linear})

    def _pack(self, model: str, bits: str, path: Path) -> None:
        import torch

        from upstreams.packed import convert
        from upstreams.quantization.convert import calibrate

        torch.manual_seed(0)
        quantized = _built(model, bits)
        calibrate(quantized, torch.randn(1, 2 * SAMPLE_RATE) * 0.1, torch.tensor([2 * SAMPLE_RATE]))
        convert.save(path, convert.pack(quantized), {})

    def _quantize_onnx(self, model: str, path: Path) -> None:
        import torch
        from onnxruntime.quantization import QuantType, quantize_dynamic

        graph = self.folder / f"{model}.onnx"
        if model == "hubert":
            any_size = torch.export.Dim.DYNAMIC
            program = torch.onnx.export(
                self._float(model),
                (torch.zeros(2, SAMPLE_RATE),),
                dynamo=True,
                dynamic_shapes={"input_values": {0: any_size, 1: any_size}},
                verbose=False,
            )
            assert program is not None
            program.save(graph, external_data=False)
        else:
            from upstreams.formats.onnx_export import export

            export(self._float(model), graph)
        quantize_dynamic(graph, path, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])


def _built(name: str, bits: str) -> Any:
    from upstreams.config import preset
    from upstreams.formats.checkpoint import build

    return build(dataclasses.replace(preset(name), bits=bits, output_map=False)).eval()
