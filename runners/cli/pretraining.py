"""Commands from a folder of audio to checkpoints: manifest, shards, labels, pretrain, quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runners.cli.options import Manifest, Out, Seed, Threads, Workers, use_threads

PANEL = "Pre-training"
app = typer.Typer()
labels = typer.Typer(help="k-means targets for masked prediction: make them, measure them.", no_args_is_help=True)

LabelSet = Annotated[Path, typer.Option(help="Folder for the label set: train.km, dict.km.txt, summary.json.")]
Fraction = Annotated[float, typer.Option(help="Fraction of the utterances to fit k-means to.", min=0.0, max=1.0)]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Change a value of the recipe: KEY=VALUE, dotted keys. Repeatable.")
]
Starts = Annotated[int, typer.Option(help="Initialisations of k-means to try.", min=1)]


@app.command(rich_help_panel=PANEL)
def manifest(
    folder: Annotated[Path, typer.Argument(help="Folder with flac, wav, ogg, opus or mp3 files at any depth.")],
    out: Annotated[Path, typer.Option(help="Folder for train.tsv, valid.tsv and left_out.tsv.")],
    min_seconds: Annotated[float, typer.Option(help="Leave out shorter files.", min=0.0)] = 2.0,
    max_seconds: Annotated[float, typer.Option(help="Leave out longer files.")] = float("inf"),
    valid: Annotated[float, typer.Option(help="Fraction of the audio for validation; 0: none.")] = 0.01,
    speaker: Annotated[
        str | None,
        typer.Option(
            help="Split by speaker: a regular expression whose first group matches the speaker in a path, such as "
            r"'(\d+)-\d+-\d+\.flac' for LibriSpeech or '(id\d+)/' for VoxCeleb. Without it, split by file."
        ),
    ] = None,
    match: Annotated[
        str | None,
        typer.Option(
            help="Only files in whose path this regular expression is found, such as '^train-' for LibriSpeech.",
            show_default="all files",
        ),
    ] = None,
    seed: Seed = 0,
    workers: Annotated[int, typer.Option(help="Files inspected in parallel.", min=1)] = 8,
) -> None:
    """List a folder's audio files in fairseq manifests; list unusable files, with the reason, in left_out.tsv."""
    from pretrain.audio.scan import write_manifests

    write_manifests(folder, out, min_seconds, max_seconds, valid, speaker, seed, workers, typer.echo, match or "")


@app.command(rich_help_panel=PANEL)
def shards(
    manifest: Manifest,
    out: Annotated[Path, typer.Option(help="Folder for the shards and their manifest.")],
    gigabytes: Annotated[float, typer.Option(help="Approximate size of a shard in GB.", min=0.0001)] = 1.0,
) -> None:
    """Copy a manifest's files into a few large tar files, for network disks that open files slowly."""
    from pretrain.audio.shards import write_shards

    typer.echo(f"manifest: {write_shards(manifest, out, int(gigabytes * 1e9))}")


@labels.command()
def mfcc(
    manifest: Manifest,
    out: LabelSet,
    clusters: Annotated[int, typer.Option(help="Clusters of k-means.", min=2)] = 100,
    subsampling: Annotated[int, typer.Option(help="10 ms frames for each label.", min=1)] = 4,
    first: Annotated[
        int | None,
        typer.Option(
            help="MFCC frame of the first label; 0 for convolutional and waveform front-ends.",
            show_default="that of a front-end that stacks frames",
            min=0,
        ),
    ] = None,
    window: Annotated[
        float,
        typer.Option(
            help="Seconds that a label describes, normalised over the utterance; 0: one MFCC frame with differences.",
            min=0.0,
            max=2.0,
        ),
    ] = 0.0,
    fraction: Fraction = 0.2,
    n_init: Starts = 20,
    workers: Workers = 0,
    seed: Seed = 0,
    threads: Threads = 1,
) -> None:
    """Cluster MFCC features: the targets of the first iteration."""
    from pretrain.audio.manifest import Manifest as ReadManifest
    from pretrain.targets.labels import write_labels

    use_threads(threads)
    audio = ReadManifest.read(manifest)
    path = write_labels(
        audio,
        out,
        clusters=clusters,
        seed=seed,
        fraction=fraction,
        subsampling=subsampling,
        first=first,
        window=window,
        n_init=n_init,
        workers=workers,
    )
    typer.echo(f"labels: {path}")


@labels.command()
def features(
    manifest: Manifest,
    out: LabelSet,
    checkpoint: Annotated[Path, typer.Option(help="Checkpoint of the model whose hidden states are clustered.")],
    layer: Annotated[int, typer.Option(help="Index of the hidden state; 0 is the input of the first block.", min=0)],
    clusters: Annotated[int, typer.Option(help="Clusters of k-means.", min=2)] = 500,
    fraction: Fraction = 0.1,
    n_init: Starts = 20,
    workers: Workers = 0,
    seed: Seed = 0,
    threads: Threads = 1,
) -> None:
    """Cluster a model's hidden states: the targets of a later iteration."""
    from pretrain.audio.manifest import Manifest as ReadManifest
    from pretrain.targets.labels import write_hidden_state_labels

    use_threads(threads)
    path = write_hidden_state_labels(
        ReadManifest.read(manifest),
        out,
        checkpoint,
        layer,
        clusters=clusters,
        seed=seed,
        fraction=fraction,
        n_init=n_init,
        workers=workers,
    )
    typer.echo(f"labels: {path}")


@labels.command()
def purity(
    label_set: Annotated[Path, typer.Option("--labels", help="Labels: a .km file.")],
    reference: Annotated[Path, typer.Option(help="Phone of every frame: one utterance a line, separated by spaces.")],
) -> None:
    """Compare labels with aligned phones, frame by frame (HuBERT, section 4.4)."""
    from pretrain.targets.purity import purity
    from upstreams.files import json_text

    typer.echo(json_text(purity(label_set, reference)))


@app.command(rich_help_panel=PANEL)
def pretrain(
    recipe: Annotated[str, typer.Argument(help="Name of a packaged recipe, or a YAML file.")],
    manifest: Annotated[
        Path | None, typer.Option(help="Manifest of the training audio: a .tsv file in fairseq's format.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder for checkpoints, logs and results.")] = None,
    label_sets: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            help="Folder of MFCC label sets shared between runs, and of existing ones (recipe: label_rate).",
            show_default="OUT/labels",
        ),
    ] = None,
    settings: Settings = None,
    stage: Annotated[
        str | None, typer.Option(help="Stop after this stage: labels1, iteration1, labels2, ..., teacher, export.")
    ] = None,
    valid: Annotated[
        Path | None,
        typer.Option(help="Validation manifest, whose loss and accuracy are logged with every saved state."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only estimate FLOPs, GPU hours and memory. Needs neither --manifest nor --out."
        ),
    ] = False,
    utilisation: Annotated[
        float, typer.Option(help="Fraction of a GPU's peak that --dry-run assumes.", min=0.01, max=1.0)
    ] = 0.1,
    seed: Seed = 0,
    threads: Threads = 1,
) -> None:
    """Pre-train an encoder by HuBERT's masked prediction. Finished stages are skipped, an interrupted one resumes."""
    from pretrain.recipes import read_recipe

    chosen = read_recipe(recipe, settings or [])
    if dry_run:
        from pretrain.audio.manifest import Manifest as Listed
        from pretrain.estimate import describe

        typer.echo(describe(chosen, utilisation, Listed.read(manifest).hours if manifest is not None else None))
        return
    if manifest is None or out is None:
        raise typer.BadParameter("a training needs --manifest and --out; only --dry-run needs neither")
    from pretrain.pretraining import pretrain as run

    use_threads(threads)
    path = run(
        chosen,
        manifest_path=manifest,
        out=out,
        labels=label_sets or out / "labels",
        seed=seed,
        stage=stage,
        valid_path=valid,
    )
    typer.echo(f"{'checkpoint' if stage in (None, 'export') else stage}: {path}")


@app.command(rich_help_panel=PANEL)
def quantize(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint of `superbit pretrain`.")],
    bits: Annotated[str, typer.Option(help="Final bit widths, w<weights>a<activations>, such as w1a1.")],
    manifest: Manifest,
    out: Out,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="Bit widths of all distillation steps, separated by commas; each student teaches the next one.",
            show_default="BITS",
        ),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML file: bit-width overrides, learning rates, steps (docs/quantization.md).")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Training steps of each distillation step; 0: calibrate only.", show_default="the recipe's", min=0
        ),
    ] = None,
    settings: Settings = None,
    seed: Seed = 0,
    threads: Threads = 1,
) -> None:
    """Quantize a checkpoint by BiT's distillation. Each bit width of the schedule gets a checkpoint."""
    from pretrain.distill import quantize_checkpoint, read_distillation_settings, read_schedule

    use_threads(threads)
    path = quantize_checkpoint(
        checkpoint,
        read_schedule(schedule, bits),
        manifest_path=manifest,
        out=out,
        seed=seed,
        settings=read_distillation_settings(recipe, steps, settings or []),
    )
    typer.echo(f"checkpoint: {path}")
