"""The command `superbit`. Heavy packages are imported by the command that needs them, never for --help."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from upstreams.errors import UserError
from upstreams.files import sha256

app = typer.Typer(
    help="Pre-train, binarize and evaluate efficient audio encoders on SUPERB.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
corpus = typer.Typer(help="Build the embedded corpora.", no_args_is_help=True)
labels = typer.Typer(help="Targets of masked prediction by k-means.", no_args_is_help=True)
app.add_typer(corpus, name="corpus")
app.add_typer(labels, name="labels")

Manifest = Annotated[Path, typer.Option(help="Manifest of the training audio (.tsv, fairseq's format).")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]
Threads = Annotated[int, typer.Option(help="CPU threads of torch.", min=1)]
Workers = Annotated[int, typer.Option(help="Processes that read audio beside this one.", min=0)]
Out = Annotated[Path, typer.Option(help="Run folder: checkpoints/, logs and resumable states go there.")]


def _use_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


@corpus.command("mini")
def corpus_mini(
    out: Annotated[Path, typer.Option(help="Where the corpora are laid out.")] = Path("data/mini"),
    hours: Annotated[float | None, typer.Option(help="Hours of task data.", min=0.02)] = None,
    seed: Seed = 0,
    sources: Annotated[Path, typer.Option(help="Where the sources are kept.")] = Path("data/sources"),
    apt: Annotated[bool, typer.Option(help="Use Debian's packages of real speech.")] = True,
) -> None:
    """Lay out real speech and synthesis as each of the seven tasks expects its corpus."""
    from runners.corpora.mini.build import DEFAULT_HOURS, build_mini

    build_mini(out, DEFAULT_HOURS if hours is None else hours, seed, sources, apt)


Tasks = Annotated[list[str], typer.Argument(help="asr pr ks sid er ic sf qbe asv sd, or all for the first seven.")]
Corpora = Annotated[Path, typer.Option(help="Folder of the corpora.", envvar="SUPERBIT_CORPORA")]


@corpus.command("prepare")
def corpus_prepare(tasks: Tasks, root: Corpora) -> None:
    """Make the files that s3prl expects beside a downloaded corpus: lengths, splits, folds, names of slots."""
    from runners.corpora.prepare import prepare
    from runners.tasks import chosen_tasks, task_config

    for task in chosen_tasks(tasks):
        written = prepare(task, task_config(task, root))
        typer.echo("\n".join(f"{task}: {path}" for path in written) or f"{task}: nothing to make")


@corpus.command("check")
def corpus_check(
    tasks: Tasks,
    root: Corpora,
    any_size: Annotated[bool, typer.Option("--any-size", help="Do not compare sizes with the published ones.")] = False,
) -> None:
    """Check that a task's corpus is whole: every file that is named, and as many as are published."""
    from runners.corpora.check import check_whole
    from runners.tasks import chosen_tasks

    for task in chosen_tasks(tasks):
        check_whole(task, root, any_size, typer.echo)


@app.command("manifest")
def write_manifest(
    root: Annotated[Path, typer.Argument(help="Folder that holds flac, wav, ogg, opus or mp3 files, at any depth.")],
    out: Annotated[Path, typer.Option(help="Folder for train.tsv, valid.tsv and left_out.tsv.")],
    min_seconds: Annotated[float, typer.Option(help="Leave out shorter files.", min=0.0)] = 2.0,
    max_seconds: Annotated[float, typer.Option(help="Leave out longer files.")] = float("inf"),
    valid: Annotated[float, typer.Option(help="Part of the audio for validation; 0 for none.")] = 0.01,
    speaker: Annotated[
        str | None,
        typer.Option(
            help="Split by speakers: a regular expression whose first group finds the speaker in a path, such as "
            r"'(\d+)-\d+-\d+\.flac' for LibriSpeech, '(id\d+)/' for VoxCeleb; without it files are split."
        ),
    ] = None,
    seed: Seed = 0,
    workers: Annotated[int, typer.Option(help="Files that are looked at side by side.", min=1)] = 8,
) -> None:
    """List a folder's audio in fairseq's manifests; files that cannot be used are named and left out."""
    from pretrain.audio.scan import write_manifests

    write_manifests(root, out, min_seconds, max_seconds, valid, speaker, seed, workers, typer.echo)


@app.command()
def shards(
    manifest: Manifest,
    out: Annotated[Path, typer.Option(help="Folder for the shards and their manifest.")],
    gigabytes: Annotated[float, typer.Option(help="About how large a shard is.")] = 1.0,
) -> None:
    """Copy a manifest's files into a few large tar files: for network disks, where opening many files is slow."""
    from pretrain.audio.shards import write_shards

    if gigabytes <= 0:
        raise UserError(f"--gigabytes is {gigabytes}, but must be more than 0")
    typer.echo(f"manifest: {write_shards(manifest, out, int(gigabytes * 1e9))}")


LabelSet = Annotated[Path, typer.Option(help="Folder of the label set: train.km, dict.km.txt, summary.json.")]
Fraction = Annotated[float, typer.Option(help="Part of the utterances k-means is fitted on.", min=0.0, max=1.0)]
Starts = Annotated[int, typer.Option(help="Initialisations of k-means that are tried.", min=1)]


@labels.command("mfcc")
def labels_mfcc(
    manifest: Manifest,
    out: LabelSet,
    clusters: Annotated[int, typer.Option(help="Clusters of k-means.", min=2)] = 100,
    subsampling: Annotated[int, typer.Option(help="10 ms frames in one label.", min=1)] = 4,
    fraction: Fraction = 0.2,
    n_init: Starts = 20,
    workers: Workers = 0,
    seed: Seed = 0,
    threads: Threads = 1,
) -> None:
    """Cluster MFCC: the targets of the first iteration."""
    from pretrain.audio.manifest import Manifest as ReadManifest
    from pretrain.targets.labels import write_labels

    _use_threads(threads)
    audio = ReadManifest.read(manifest)
    path = write_labels(audio, out, clusters, seed, fraction, subsampling, n_init=n_init, workers=workers)
    typer.echo(f"labels: {path}")


@labels.command("features")
def labels_features(
    manifest: Manifest,
    out: LabelSet,
    checkpoint: Annotated[Path, typer.Option(help="The model whose hidden state is clustered.")],
    layer: Annotated[int, typer.Option(help="The hidden state: 0 is the first block's input.", min=0)],
    clusters: Annotated[int, typer.Option(help="Clusters of k-means.", min=2)] = 500,
    fraction: Fraction = 0.1,
    n_init: Starts = 20,
    workers: Workers = 0,
    seed: Seed = 0,
    threads: Threads = 1,
) -> None:
    """Cluster a model's hidden states: the targets of a later iteration."""
    import torch

    from pretrain.audio.manifest import Manifest as ReadManifest
    from pretrain.targets.labels import write_labels
    from upstreams.formats import checkpoint as checkpoints

    _use_threads(threads)
    model = checkpoints.load(checkpoint)
    if layer > model.config.encoder.layers:
        raise UserError(f"--layer is {layer}, but {checkpoint} has layers 0 to {model.config.encoder.layers}")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    audio, subsampling = ReadManifest.read(manifest), model.config.downsample_rate // 160
    path = write_labels(audio, out, clusters, seed, fraction, subsampling, model, layer, n_init, workers)
    typer.echo(f"labels: {path}")


@labels.command("purity")
def labels_purity(
    label_set: Annotated[Path, typer.Option("--labels", help="A .km file.")],
    reference: Annotated[Path, typer.Option(help="What is spoken: a line an utterance, space-separated phones.")],
) -> None:
    """Compare labels with phones that are aligned with the audio, frame by frame (HuBERT, section 4.4)."""
    import json

    from pretrain.targets.purity import purity

    typer.echo(json.dumps(purity(label_set, reference), indent=1))


@app.command()
def pretrain(
    recipe: Annotated[str, typer.Argument(help="A packaged recipe's name or a YAML file.")],
    manifest: Manifest,
    out: Out,
    label_sets: Annotated[
        Path | None,
        typer.Option("--labels", help="MFCC label sets shared between runs. [default: OUT/labels]"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="KEY=VALUE in place of the recipe's, such as iterations.0.steps=10; repeatable."),
    ] = None,
    stage: Annotated[
        str | None, typer.Option(help="Stop after this stage: labels1, iteration1, labels2 ... teacher, export.")
    ] = None,
    valid: Annotated[
        Path | None, typer.Option(help="Manifest of audio to validate on: its loss says which state is the best.")
    ] = None,
    seed: Seed = 0,
    threads: Threads = 1,
) -> None:
    """Pre-train an encoder by HuBERT's masked prediction; a finished stage is skipped, an interrupted one goes on."""
    from pretrain.pretraining import pretrain as run
    from pretrain.recipes import read_recipe

    _use_threads(threads)
    path = run(read_recipe(recipe, settings or []), manifest, out, label_sets or out / "labels", seed, stage, valid)
    typer.echo(f"{'checkpoint' if stage in (None, 'export') else stage}: {path}")


@app.command()
def quantize(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of `superbit pretrain`.")],
    bits: Annotated[str, typer.Option(help="Bits to end at, w<weights>a<activations>.")],
    manifest: Manifest,
    out: Out,
    schedule: Annotated[
        str | None, typer.Option(help="Comma-separated steps that end at BITS, each teaching the next.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML: overrides of bits, learning rates, steps (docs/quantization.md).")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Training steps of each step of the schedule; 0 only calibrates.", min=0)
    ] = None,
    seed: Seed = 0,
    threads: Threads = 1,
) -> None:
    """Quantize a checkpoint by BiT's distillation; every bit-width on the way is a checkpoint of its own."""
    import dataclasses

    from pretrain.distill import Distillation, quantize_checkpoint, read_distillation

    _use_threads(threads)
    stages = schedule.split(",") if schedule else [bits]
    if stages[-1] != bits:
        raise UserError(f"the schedule {schedule} ends at {stages[-1]}, but --bits is {bits}")
    settings = Distillation() if recipe is None else read_distillation(recipe)
    if steps is not None:
        settings = dataclasses.replace(settings, steps=steps)
    typer.echo(f"checkpoint: {quantize_checkpoint(checkpoint, stages, manifest, out, seed, settings)}")


@app.command("import")
def import_public(
    preset: Annotated[str, typer.Argument(help="Its shape: hubert_base or hubert_large.")],
    file: Annotated[Path, typer.Argument(help="A file of transformers, fairseq or s3prl.")],
    out: Out,
) -> None:
    """Turn a public HuBERT checkpoint into one of this project's: an upstream, and a teacher where it has its head."""
    from pretrain.objectives.hubert import CodewordHead
    from upstreams.config import preset as read_preset
    from upstreams.formats import checkpoint
    from upstreams.formats.public_hubert import load_public
    from upstreams.versions import versions

    model, tensors = load_public(file, read_preset(preset))
    head = None
    if tensors:
        head = CodewordHead(model.config.encoder.dim, *tensors["codewords"].shape)
        head.load_state_dict(tensors)
    path = out / "checkpoints" / f"{preset}.safetensors"
    provenance = {"imported": file.name, "sha256": sha256(file), **versions(), "stage": "pretrained"}
    checkpoint.save(path, model, head, provenance)
    typer.echo(f"checkpoint: {path} ({'with' if head else 'without'} its pre-training head)")


@app.command()
def profile(
    upstream: Annotated[list[str], typer.Argument(help="Upstream names or checkpoint files.")],
    superb: Annotated[
        bool, typer.Option("--superb", help="On the SUPERB leaderboard's 32 utterances (default).")
    ] = False,
    seconds: Annotated[float | None, typer.Option(help="On one utterance of this length instead.", min=0.01)] = None,
    modules: Annotated[bool, typer.Option("--modules", help="Also show every module (CSV: a row each).")] = False,
    json: Annotated[Path | None, typer.Option(help="Write a list of objects, with their modules.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write a row for each upstream.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Also run each on this machine.")] = False,
    batch: Annotated[int, typer.Option(help="Utterances at once when measuring.", min=1)] = 1,
    threads: Threads = 1,
    repeats: Annotated[
        int | None, typer.Option(help="Rounds of measuring. [default: about 30 calls in all]", min=1)
    ] = None,
) -> None:
    """Parameters, MACs, bit operations, storage; with --measure the real-time factor, latencies and peak memory."""
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


@app.command()
def pack(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of `superbit quantize`.")],
    out: Annotated[Path, typer.Option(help="The packed file (.safetensors).")],
) -> None:
    """Pack a quantized checkpoint: its bits become bits on disk, and it runs on them, here and without torch."""
    from upstreams.packed.convert import pack_checkpoint

    pack_checkpoint(checkpoint, out)
    typer.echo(f"packed: {out} ({checkpoint.stat().st_size / 1e6:.2f} MB -> {out.stat().st_size / 1e6:.2f} MB)")


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, not packed.")],
    onnx: Annotated[Path, typer.Option(help="The graph to write (.onnx).")],
) -> None:
    """Export a checkpoint as an ONNX graph that takes any number of waveforms of any length."""
    from upstreams.formats.onnx_export import export_checkpoint

    export_checkpoint(checkpoint, onnx)
    typer.echo(f"graph: {onnx} ({onnx.stat().st_size / 1e6:.2f} MB)")


@app.command()
def analyse(
    checkpoint: Annotated[Path, typer.Argument(help="A quantized checkpoint.")],
    out: Annotated[Path, typer.Option(help="Where tables, picture and TensorBoard page go.")],
    audio: Annotated[list[Path] | None, typer.Argument(help="Audio files, 16 kHz mono.")] = None,
    against: Annotated[
        Path | None, typer.Option(help="Float checkpoint to compare with. [default: CHECKPOINT's own weights in float]")
    ] = None,
    manifest: Annotated[Path | None, typer.Option(help="Manifest to take utterances from, instead of files.")] = None,
    seconds: Annotated[float, typer.Option(help="About how much audio of the manifest.", min=1.0)] = 60.0,
    threads: Threads = 1,
) -> None:
    """Measure where quantization error enters a model and how it travels (docs/quantization.md)."""
    from runners.analysis.errors import analyse as run
    from runners.analysis.errors import read_audio
    from runners.analysis.report import write

    _use_threads(threads)
    analysis = run(checkpoint, against, read_audio(manifest, audio or [], seconds))
    title = f"{checkpoint.stem} against {against.stem if against else 'its own weights in float'}"
    typer.echo(write(analysis, title, out))
    typer.echo(f"analysis: {out}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def downstream(context: typer.Context) -> None:
    """s3prl's run_downstream with this project's upstreams: -m train|evaluate -u NAME -d TASK --root DIR ..."""
    from runners.downstream.run import main as run

    run(context.args)


@app.command()
def evaluate(
    matrix: Annotated[str, typer.Argument(help="Name of a packaged matrix, or a YAML file.")],
    corpora: Annotated[Path, typer.Option(help="Folder that holds the corpora.")],
    out: Out,
    seed: Annotated[list[int] | None, typer.Option(help="Seeds in place of the matrix's; repeatable.")] = None,
    jobs: Annotated[int, typer.Option(help="Cells that run side by side here.", min=1)] = max(1, os.cpu_count() or 1),
    only: Annotated[list[str] | None, typer.Option(help="upstream/task, with * as wildcard; repeatable.")] = None,
    engine: Annotated[str, typer.Option(help="Where cells run: local, ray or slurm.")] = "local",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only list the cells with estimated time and disk.")
    ] = False,
    feature_store: Annotated[
        Path | None, typer.Option(help="Folder of the upstreams' features. [default: OUT/features]")
    ] = None,
    no_feature_store: Annotated[
        bool, typer.Option("--no-feature-store", help="Compute the features at every step, as s3prl does.")
    ] = False,
    max_gb: Annotated[float | None, typer.Option(help="Disk for features, in place of the matrix's.", min=0)] = None,
) -> None:
    """Train and test every upstream on every task; a finished cell is kept, an interrupted one goes on."""
    from runners.matrix.run import Options
    from runners.matrix.run import evaluate as run

    options = Options(
        engine=engine, dry_run=dry_run, store=not no_feature_store, store_folder=feature_store, store_gb=max_gb
    )
    failed = run(matrix, corpora, out, seeds=seed, jobs=jobs, only=only or (), options=options)
    if failed:
        raise typer.Exit(1)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are pooled over their seeds.")],
    out: Annotated[Path | None, typer.Option(help="Where the report goes; without it RUNS/report.")] = None,
    speeds: Annotated[
        Path | None,
        typer.Option(help="Measured real-time factors: JSON of `superbit profile --measure` or benchmarks.inference."),
    ] = None,
) -> None:
    """One page (report.html), tables (Markdown, CSV, LaTeX), plots, and everything in TensorBoard."""
    from runners.report.write import read_speeds
    from runners.report.write import report as run

    typer.echo(f"report: {run(runs, out, read_speeds(speeds) if speeds else {})}")


@app.command()
def board(
    runs: Annotated[Path, typer.Argument(help="A run folder.")],
    host: Annotated[str, typer.Option(help="The address to serve at.")] = "localhost",
    port: Annotated[int, typer.Option(help="0 for any that is free.", min=0, max=65535)] = 6006,
) -> None:
    """Show training curves, final metrics and the report's tables and pictures in TensorBoard."""
    from runners.report.board import serve

    serve(runs, host, port, typer.echo)


@app.command()
def submission(
    runs: Annotated[Path, typer.Argument(help="A run folder with cells on the real corpora.")],
    upstream: Annotated[str, typer.Option(help="The row whose predictions are to be submitted.")],
    out: Annotated[Path, typer.Option(help="Folder for predict/ and predict.zip.")],
    seed: Annotated[int | None, typer.Option(help="Of the cells, when there are several.")] = None,
) -> None:
    """Gather an upstream's predictions as the SUPERB leaderboard's upload expects them."""
    from runners.report.submission import write_submission

    typer.echo(f"submission: {write_submission(runs, upstream, out, seed, typer.echo)}")


def main() -> None:
    """Run the command line; bad input ends with one sentence and exit code 2."""
    try:
        app()
    except UserError as error:
        typer.echo(f"superbit: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
