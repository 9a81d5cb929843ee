"""Commands on models: import, profile, pack, export, analyse, probe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runners.cli.options import Corpora, Out, Seed, Threads, use_threads

PANEL = "Models"
app = typer.Typer()


@app.command("import", rich_help_panel=PANEL)
def import_public(
    preset: Annotated[str, typer.Argument(help="Architecture: hubert_base, hubert_large or distilhubert.")],
    file: Annotated[
        Path, typer.Argument(help="Checkpoint of transformers (file or folder), fairseq, torchaudio or s3prl.")
    ],
    out: Out,
    name: Annotated[
        str | None, typer.Option(help="Name of the new checkpoint, for several in one folder.", show_default="PRESET")
    ] = None,
) -> None:
    """Convert a public HuBERT checkpoint. With its pre-training head, it can also be the teacher of `quantize`."""
    from pretrain.public import import_checkpoint

    path, has_head = import_checkpoint(preset, file, out, name)
    typer.echo(f"checkpoint: {path} ({'with' if has_head else 'without'} its pre-training head)")


@app.command(rich_help_panel=PANEL)
def profile(
    upstream: Annotated[list[str], typer.Argument(help="Upstream names or checkpoint files.")],
    superb: Annotated[
        bool, typer.Option("--superb", help="Use the SUPERB leaderboard's 32 utterances; this is the default.")
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(help="Use one utterance of this length instead, in seconds.", min=0.01)
    ] = None,
    modules: Annotated[bool, typer.Option("--modules", help="Also show every module; in the CSV file, a row.")] = False,
    json: Annotated[Path | None, typer.Option(help="JSON file to write: upstreams with their modules.")] = None,
    csv: Annotated[Path | None, typer.Option(help="CSV file to write: one row for each upstream.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Also run each upstream on this machine.")] = False,
    batch: Annotated[int, typer.Option(help="Batch size of --measure, in utterances.", min=1)] = 1,
    threads: Threads = 1,
    repeats: Annotated[
        int | None, typer.Option(help="Rounds of --measure.", min=1, show_default="about 30 calls in total")
    ] = None,
) -> None:
    """Compute parameters, MACs, bit operations and storage; --measure adds real-time factor, latency, peak memory."""
    from runners.analysis.costs import run

    run(
        upstream,
        superb=superb,
        seconds=seconds,
        by_module=modules,
        json_file=json,
        csv_file=csv,
        measured=measure,
        batch=batch,
        threads=threads,
        repeats=repeats,
    )


@app.command(rich_help_panel=PANEL)
def pack(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of `superbit quantize`, or a packed file for a head.")],
    out: Annotated[Path, typer.Option(help="Packed file to write (.safetensors).")],
    with_head: Annotated[
        Path | None,
        typer.Option(help="Trained head of KS, IC, SID or ER to put into the file: s3prl's dev-best.ckpt."),
    ] = None,
    corpora: Annotated[
        Path | None,
        typer.Option(help="Folder of the corpora, if that of an IC head has moved.", envvar="SUPERBIT_CORPORA"),
    ] = None,
) -> None:
    """Pack a quantized checkpoint into bits on disk. A packed file is computed on its bits, with or without torch.

    With a head, the runtime gives the decision: one file is a keyword spotter.
    """
    from upstreams.packed.convert import pack_checkpoint

    head = None
    if with_head is not None:
        from runners.downstream.head import read_head

        head = read_head(with_head, checkpoint, corpora)
    pack_checkpoint(checkpoint, out, head)
    typer.echo(f"packed: {out} ({checkpoint.stat().st_size / 1e6:.2f} MB -> {out.stat().st_size / 1e6:.2f} MB)")


@app.command(rich_help_panel=PANEL)
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint, not packed.")],
    onnx: Annotated[Path, typer.Option(help="ONNX file to write.")],
) -> None:
    """Export a checkpoint as an ONNX graph for any number of waveforms of any length."""
    from upstreams.formats.onnx_export import export_checkpoint

    export_checkpoint(checkpoint, onnx)
    typer.echo(f"graph: {onnx} ({onnx.stat().st_size / 1e6:.2f} MB)")


@app.command(rich_help_panel=PANEL)
def analyse(
    checkpoint: Annotated[Path, typer.Argument(help="Quantized checkpoint.")],
    out: Annotated[Path, typer.Option(help="Folder for the tables, the figure and the TensorBoard files.")],
    audio: Annotated[list[Path] | None, typer.Argument(help="Audio files, 16 kHz mono.")] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="Float checkpoint to compare with.", show_default="CHECKPOINT's own weights in float"),
    ] = None,
    manifest: Annotated[Path | None, typer.Option(help="Manifest of utterances to use instead of AUDIO.")] = None,
    seconds: Annotated[float, typer.Option(help="Approximate audio to take from the manifest, in s.", min=1.0)] = 60.0,
    threads: Threads = 1,
) -> None:
    """Measure where quantization error enters a model and how it propagates (docs/quantization.md)."""
    from runners.analysis.errors import analyse as run
    from runners.analysis.errors import read_audio
    from runners.analysis.report import write

    use_threads(threads)
    analysis = run(checkpoint, against, read_audio(manifest, audio or [], seconds))
    title = f"{checkpoint.stem} against {against.stem if against else 'its own weights in float'}"
    typer.echo(write(analysis, title, out))
    typer.echo(f"analysis: {out}")


@app.command(rich_help_panel=PANEL)
def probe(
    checkpoint: Annotated[list[str], typer.Argument(help="Checkpoint files or upstream names, compared side by side.")],
    corpora: Corpora,
    task: Annotated[
        list[str] | None, typer.Option(help="Task: ks, sid, ic or pr. Repeatable.", show_default="all four")
    ] = None,
    items: Annotated[
        int, typer.Option(help="Most items of train, and of dev; of pr, ten moments for each.", min=20)
    ] = 600,
    pooling: Annotated[str, typer.Option(help="Over the frames of ks, sid and ic: mean or max.")] = "mean",
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for probe.csv and the picture probe.png.")] = None,
    threads: Threads = 1,
) -> None:
    """Classify each layer's features on dev by logistic regression, in seconds (docs/pretraining.md)."""
    from runners.analysis.probe.run import probe as run
    from runners.analysis.probe.write import show, write

    use_threads(threads)
    results = run(checkpoint, corpora, task or ["ks", "sid", "ic", "pr"], count=items, seed=seed, pooling=pooling)
    show(results)
    if out:
        write(results, out)
        typer.echo(f"probe: {out}")
