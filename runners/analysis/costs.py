"""`superbit profile`: the cost of upstreams, counted by upstreams/cost.py and measured on this machine."""

from __future__ import annotations

import csv
import io
import multiprocessing
import platform
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from upstreams import cost, registry
from upstreams.config import SAMPLE_RATE
from upstreams.errors import UserError
from upstreams.files import atomic_write, write_json
from upstreams.formats import checkpoint
from upstreams.machine import machine
from upstreams.packed import convert

KINDS = ("linear", "convolution", "attention")
CALLS = 30  # approximate number of measured calls if no number of repeats is given


def profile(
    targets: Sequence[str], *, seconds: float | None, measured: bool, batch: int, threads: int, repeats: int | None
) -> list[dict[str, Any]]:
    """Return one record for each upstream, with its name, parameters, macs, bops, storage_bytes and more.

    The record's `modules` lists the same costs for each module.

    targets: upstream names, whose checkpoints need not exist, or checkpoint files. seconds: length of one utterance;
    None for the 32 utterances of the SUPERB leaderboard. measured: also run each upstream in its own process, `repeats`
    times on every utterance, with batches of `batch` and this many CPU threads. Raises UserError for an unknown name
    and for a file that is not a checkpoint.
    """
    samples = list(cost.SUPERB_SAMPLES) if seconds is None else [round(seconds * SAMPLE_RATE)]
    records = []
    for target in targets:
        model = (
            registry.cost_model(Path(target))
            if registry.is_file(target)
            else checkpoint.build(registry.model_config(target))
        )
        modules = cost.profile(model, samples)
        by_kind = {kind: sum(m.macs for m in modules if m.kind == kind) for kind in KINDS}
        macs = sum(m.macs for m in modules)
        record: dict[str, Any] = {
            "name": target,
            "audio_seconds": sum(samples) / SAMPLE_RATE,
            "parameters": sum(m.parameters for m in modules),
            "macs": macs,
            **{f"macs_{kind}": count for kind, count in by_kind.items()},
            "macs_other": macs - sum(by_kind.values()),
            "bops": sum(m.bops for m in modules),
            "storage_bytes": sum(m.storage_bytes for m in modules),
            "estimated_runtime": cost.estimated_runtime(modules),
        }
        if measured:
            rounds = repeats or max(1, CALLS // len(samples))
            # In its own process: peak memory and threads are those of this model alone.
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                record |= pool.submit(measure, target, samples, batch=batch, threads=threads, repeats=rounds).result()
        record["modules"] = [
            {
                "name": m.name or "(output map)",
                "kind": m.kind,
                "parameters": m.parameters,
                "macs": m.macs,
                "bops": m.bops,
                "storage_bytes": m.storage_bytes,
                "weight_bits": m.weight_bits,
                "activation_bits": m.activation_bits,
            }
            for m in modules
        ]
        records.append(record)
    return records


def measure(target: str, samples: Sequence[int], *, batch: int, threads: int, repeats: int) -> dict[str, Any]:
    """Run a model on noise; return latencies in ms for each call and the peak memory of this process in bytes.

    An upstream's name is run with random weights, a file as it is, packed or not. samples: lengths at 16 kHz.
    real_time_factor: seconds of computation for one second of audio, counting all utterances of the batch.
    """
    torch.set_num_threads(threads)
    model = (
        convert.load(Path(target))
        if registry.is_file(target)
        else checkpoint.build(registry.model_config(target)).eval()
    )
    calls = [count for _ in range(repeats) for count in samples]
    times = []
    with torch.inference_mode():
        model(torch.randn(batch, max(samples)) * 0.1)  # warm-up: allocates memory and selects kernels
        for count in tqdm(calls, desc=target, unit="call", leave=False):
            waveforms = torch.randn(batch, count) * 0.1
            started = time.perf_counter()
            model(waveforms)
            times.append(time.perf_counter() - started)
    percentiles = torch.quantile(torch.tensor(times), torch.tensor([0.5, 0.9, 0.99]))
    return {
        "real_time_factor": sum(times) / (sum(calls) * batch / SAMPLE_RATE),
        **{f"latency_ms_p{p}": 1000 * float(v) for p, v in zip((50, 90, 99), percentiles, strict=True)},
        "peak_memory_bytes": peak_memory(),
        "calls": len(times),
        "batch": batch,
        "threads": threads,
        "machine": machine(),
    }


def peak_memory() -> int:
    """Return the peak memory of this process, in bytes."""
    try:
        # Unlike the peak of getrusage, this one is reset when the process executes a new program.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        import resource

        unit = 1 if platform.system() == "Darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def show(records: list[dict[str, Any]], by_module: bool, console: Console) -> None:
    """Print a table of the records; by_module: before it, a table of the modules of each record."""
    if by_module:
        for record in records:
            table = _table(record["name"], ("module", "kind", "bits", "parameters", "MACs", "BOPs", "bytes"))
            for m in record["modules"]:
                bits = f"w{m['weight_bits']}a{m['activation_bits']}"
                counts = (f"{m[key]:,}" for key in ("parameters", "macs", "bops", "storage_bytes"))
                table.add_row(m["name"], m["kind"], bits, *counts)
            console.print(table)
    seconds = records[0]["audio_seconds"]
    heads = ["upstream", "parameters", "GMACs", *KINDS, "other", "TBOPs", "weights", "est. runtime"]
    measured = "real_time_factor" in records[0]
    if measured:
        heads += ["real-time factor", "ms p50", "p90", "p99", "peak memory"]
    table = _table(f"{seconds:g} s of audio; MB: 10^6 bytes", heads)
    for r in records:
        row = [r["name"], f"{r['parameters'] / 1e6:.2f} M"]
        row += [f"{r[key] / 1e9:.2f}" for key in ("macs", *(f"macs_{k}" for k in (*KINDS, "other")))]
        row += [f"{r['bops'] / 1e12:.2f}", f"{r['storage_bytes'] / 1e6:.2f} MB", f"{r['estimated_runtime']:.3f}"]
        if measured:
            row += [f"{r['real_time_factor']:.4f}", *(f"{r[f'latency_ms_p{p}']:.1f}" for p in (50, 90, 99))]
            row += [f"{r['peak_memory_bytes'] / 1e6:.0f} MB"]
        table.add_row(*row)
    console.print(table)
    if measured:
        first = records[0]
        run = f"{first['machine']}; {first['threads']} threads, batch {first['batch']}, input: noise"
        console.print(run, highlight=False)


def _table(title: str, heads: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def write_csv(records: list[dict[str, Any]], by_module: bool, path: Path) -> None:
    """Write one CSV line for each upstream, or for each module with its upstream in the first column."""
    if by_module:
        rows = [{"upstream": record["name"], **module} for record in records for module in record["modules"]]
    else:
        rows = [{key: value for key, value in record.items() if key != "modules"} for record in records]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_write(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def run(
    targets: Sequence[str],
    *,
    superb: bool,
    seconds: float | None,
    by_module: bool,
    json_file: Path | None,
    csv_file: Path | None,
    measured: bool,
    batch: int,
    threads: int,
    repeats: int | None,
) -> None:
    """Profile, print and write. Raises UserError if both the 32 utterances and a duration are given."""
    if superb and seconds is not None:
        raise UserError("--superb and --seconds exclude each other: give only one of them")
    records = profile(targets, seconds=seconds, measured=measured, batch=batch, threads=threads, repeats=repeats)
    # Wide enough for every column if the output is a file or a pipe.
    console = Console()
    show(records, by_module, console if console.is_terminal else Console(width=200))
    if json_file:
        write_json(json_file, records)  # with the modules of each
    if csv_file:
        write_csv(records, by_module, csv_file)
