"""Time of a HuBERT pre-training step, compared with transformers and torchaudio: `python -m benchmarks.pretraining`.

HuBERT Base with its waveform convolutions, and the same encoder over log-mel at 40 ms, on the same audio in the same
precision: masking, encoder, head, loss, backward pass, fused AdamW. All have dropout 0.1 in the residual branches, no
dropout of attention weights, and no layerdrop. They alternate in one process; the figures are medians.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.timing import interleaved
from pretrain.audio.data import Batch
from pretrain.objectives.hubert import CodewordHead, HubertPretraining, Objective, with_mask
from pretrain.objectives.masking import span_mask
from pretrain.training.optimizers import build_optimizers, compile_blocks
from pretrain.training.settings import TrainingSettings
from pretrain.training.throughput import matmul_peak, step_flops
from upstreams.config import SAMPLE_RATE, ModelConfig, preset
from upstreams.cpu_training import products
from upstreams.cpu_training.fast_training import FastTraining
from upstreams.files import json_text
from upstreams.formats import checkpoint
from upstreams.frontend import padding_mask
from upstreams.machine import processor
from upstreams.s3prl import compat as s3prl_compat  # noqa: F401  (lets transformers import)

CLUSTERS = 500
SECONDS = (15.6, 15.2)  # crops as long as HuBERT's; of similar length, as in batches sorted by length


def audio(seconds: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return noise (batch, samples), padded with zeros, and its lengths (batch,) in samples."""
    lengths = torch.tensor([int(s * SAMPLE_RATE) for s in seconds], device=device)
    waveforms = 0.1 * torch.randn(len(seconds), int(lengths.max()), device=device)
    return waveforms.masked_fill(padding_mask(lengths, waveforms.shape[1]), 0.0), lengths


def superbit_step(
    config: ModelConfig, waveforms: Tensor, lengths: Tensor, half: bool, compiled: bool = False
) -> tuple[Callable[[], None], float]:
    """Return a superbit pre-training step, and its FLOPs. compiled: compile the encoder's blocks."""
    model = checkpoint.build(replace(config, encoder=replace(config.encoder, layerdrop=0.0)))
    length = 10 if config.front_end.kind == "waveform" else 5
    objective = Objective(
        mask_prob=0.8, mask_length=length, code_dim=256, unmasked_weight=0.0, utterance_weight=0.0, utterance_layer=1
    )
    module = HubertPretraining(model, CLUSTERS, objective).to(waveforms.device).train()
    optimizers = build_optimizers(module, TrainingSettings(optimizer="adamw", lr=1e-4), model.encoder.blocks)
    frames = model.frame_count(lengths.cpu())
    labels = torch.randint(0, CLUSTERS, (len(lengths), int(frames.max())))
    mask = span_mask(frames.tolist(), 0.8, length, seed=0)
    batch = with_mask(Batch(waveforms.cpu(), lengths.cpu(), labels), mask, frames, False).to(waveforms.device)
    compile_blocks(model.encoder.blocks, TrainingSettings(compile=compiled))
    fast = contextlib.nullcontext if compiled or waveforms.is_cuda else FastTraining  # as in training

    def step() -> None:
        with torch.autocast(waveforms.device.type, torch.bfloat16, enabled=half), fast():
            loss, _ = module(batch)
        _update(loss, module, optimizers)

    return step, step_flops(model, int(lengths.max()))(lengths.tolist())


def transformers_step(waveforms: Tensor, lengths: Tensor, half: bool) -> Callable[[], None]:
    """Return a step of transformers' HubertModel, with the head, loss and feature penalty of HuBERT that it lacks."""
    from transformers import HubertConfig, HubertModel

    config = HubertConfig(
        attn_implementation="sdpa",  # type: ignore[call-arg]
        layerdrop=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
        feat_proj_dropout=0.1,
        mask_time_prob=0.8,
        mask_time_length=10,
    )
    model = HubertModel(config).train()
    nn.Module.to(model, waveforms.device)
    head = CodewordHead(768, CLUSTERS, 256).to(waveforms.device)
    module = nn.ModuleList([model, head])
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-6, fused=True)
    valid = (~padding_mask(lengths, waveforms.shape[1])).long()
    features: list[Tensor] = []
    model.feature_extractor.register_forward_hook(lambda *call: features.append(call[2]))
    frames = model._get_feat_extract_output_lengths(lengths).tolist()
    mask = span_mask(frames, 0.8, 10, seed=0).to(waveforms.device)
    labels = torch.randint(0, CLUSTERS, mask.shape, device=waveforms.device)

    def step() -> None:
        with torch.autocast(waveforms.device.type, torch.bfloat16, enabled=half):
            states = model(waveforms, attention_mask=valid, mask_time_indices=mask).last_hidden_state
            logits = head(states[mask])
            loss = nn.functional.cross_entropy(logits, labels[mask])
            loss = loss + 10 * features.pop().float().square().mean()
        _update(loss, module, [optimizer])

    return step


def torchaudio_step(waveforms: Tensor, lengths: Tensor, half: bool) -> Callable[[], None]:
    """Return a step of torchaudio's hubert_pretrain_base, which masks and returns logits and the feature penalty."""
    from torchaudio.models import hubert_pretrain_base

    module = (
        hubert_pretrain_base(encoder_attention_dropout=0.0, encoder_layer_drop=0.0, num_classes=CLUSTERS)
        .to(waveforms.device)
        .train()
    )
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-6, fused=True)
    with torch.no_grad():
        _, frames = module.wav2vec2.feature_extractor(waveforms, lengths)
    labels = torch.randint(0, CLUSTERS, (len(lengths), int(frames.max())), device=waveforms.device)

    def step() -> None:
        with torch.autocast(waveforms.device.type, torch.bfloat16, enabled=half):
            logits, _, penalty = module(waveforms, labels, lengths)
            # The first logit is the cosine with the true codeword, as in hubert_loss of torchaudio's recipe.
            loss = nn.functional.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))
            loss = loss + 10 * penalty
        _update(loss, module, [optimizer])

    return step


def _update(loss: Tensor, module: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), 10.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if loss.is_cuda:
        torch.cuda.synchronize()


def main() -> None:
    """Measure, print a table, and write --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, nargs="+", default=list(SECONDS), help="lengths of the utterances")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--bfloat16", action="store_true", help="bfloat16 autocast for all of them")
    parser.add_argument("--mkl", action="store_true", help="use PyTorch's MKL matrix products for superbit as well")
    parser.add_argument("--out", type=Path, help="JSON file to write the figures to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.mkl:
        products.onednn_is_faster = lambda: False  # type: ignore[assignment]
    torch.manual_seed(0)
    device, half = torch.device(arguments.device), arguments.bfloat16
    waveforms, lengths = audio(tuple(arguments.seconds), device)
    seconds = float(lengths.sum()) / SAMPLE_RATE
    steps, flops = {}, {}
    for name in ("hubert_base", "transformer_base"):
        steps[name], flops[name] = superbit_step(preset(name), waveforms, lengths, half)
    steps["transformers"] = transformers_step(waveforms, lengths, half)
    steps["torchaudio"] = torchaudio_step(waveforms, lengths, half)
    peak = matmul_peak(device, torch.bfloat16 if half else torch.float32)
    times = interleaved(steps, arguments.repeats, warm_up=1)
    print(
        f"{processor() if device.type == 'cpu' else torch.cuda.get_device_name(device)}, {arguments.threads} threads,"
    )
    print(f"{len(lengths)} utterances, {seconds:.1f} s; peak of a matrix product {peak / 1e9:.0f} GFLOPS")
    print("| | seconds a step | seconds of audio a second | MFU | times transformers | times torchaudio |")
    print("|---|---|---|---|---|---|")
    for name, time in times.items():
        # transformers and torchaudio compute the same model as hubert_base.
        mfu = flops.get(name, flops["hubert_base"]) / time / peak
        ratios = " | ".join(f"{times[rival] / time:.2f}" for rival in ("transformers", "torchaudio"))
        print(f"| {name} | {time:.2f} | {seconds / time:.1f} | {100 * mfu:.0f} % | {ratios} |")
    if arguments.out:
        content = {"seconds_of_audio": seconds, "peak_flops": peak, "step_seconds": times, "step_flops": flops}
        arguments.out.write_text(json_text(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
