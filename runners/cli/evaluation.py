"""Commands from upstreams to results: downstream, evaluate, report, board, submission."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from runners.cli.options import Corpora, Out

PANEL = "Evaluation"
app = typer.Typer()


@app.command(
    rich_help_panel=PANEL,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def downstream(context: typer.Context) -> None:
    """Train or test one task by s3prl's run_downstream: -m train|evaluate -u NAME -d TASK --corpora DIR ..."""
    from runners.downstream.run import main as run

    run(context.args)


@app.command(rich_help_panel=PANEL)
def evaluate(
    matrix: Annotated[str, typer.Argument(help="Name of a packaged matrix, or a YAML file.")],
    corpora: Corpora,
    out: Out,
    seed: Annotated[
        list[int] | None, typer.Option(help="Seed of the heads. Repeatable.", show_default="the matrix's")
    ] = None,
    jobs: Annotated[
        int, typer.Option(help="Processes in parallel on this machine.", min=1, show_default="number of CPU cores")
    ] = os.cpu_count() or 1,
    only: Annotated[
        list[str] | None, typer.Option(help="Only these cells: UPSTREAM/TASK, * matches anything. Repeatable.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a value of the matrix, such as training.processes=4. Repeatable."),
    ] = None,
    engine: Annotated[str, typer.Option(help="Where stages run: local, ray or slurm.")] = "local",
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Only list the stages with their commands, time, GPU hours, memory and disk."),
    ] = False,
    rerun_stale: Annotated[
        bool, typer.Option("--rerun-stale", help="Compute results of other code or versions again.")
    ] = False,
    feature_store: Annotated[
        Path | None, typer.Option(help="Folder for the upstreams' features.", show_default="OUT/features")
    ] = None,
    no_feature_store: Annotated[
        bool, typer.Option("--no-feature-store", help="Compute features at every step, as s3prl does.")
    ] = False,
    feature_store_gb: Annotated[
        float | None, typer.Option(help="Largest size of the feature store in GiB.", min=0, show_default="the matrix's")
    ] = None,
    feature_store_dtype: Annotated[
        str | None, typer.Option(help="Numbers kept on disk: fp16, int8 or fp32.", show_default="the matrix's")
    ] = None,
) -> None:
    """Make the checkpoints that a matrix lacks, train and test every upstream on every task, write the report.

    What is finished is skipped, what was interrupted resumes.
    """
    from runners.matrix.run import Options
    from runners.matrix.run import evaluate as run

    options = Options(
        engine=engine,
        dry_run=dry_run,
        store=not no_feature_store,
        store_folder=feature_store,
        store_gb=feature_store_gb,
        store_dtype=feature_store_dtype,
        rerun_stale=rerun_stale,
    )
    failed = run(matrix, corpora, out, seeds=seed, jobs=jobs, only=only or (), settings=settings or (), options=options)
    if not dry_run:
        from runners.report.write import report_of_run

        report_of_run(out, typer.echo)
    if failed:
        raise typer.Exit(1)


@app.command(rich_help_panel=PANEL)
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; seeds of several folders are pooled.")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the report.", show_default="RUNS/report; of several folders report_A_B beside A"),
    ] = None,
    speeds: Annotated[
        Path | None,
        typer.Option(
            help="Real-time factors: JSON file of `superbit profile --measure` or of benchmarks.inference.",
            show_default="those that `evaluate` has measured",
        ),
    ] = None,
) -> None:
    """Write the results as one HTML page, as Markdown, CSV and LaTeX tables, as figures and for TensorBoard."""
    from runners.report.write import measured_speeds, read_speeds
    from runners.report.write import report as run

    typer.echo(f"report: {run(runs, out, read_speeds(speeds) if speeds else measured_speeds(runs))}")


@app.command(rich_help_panel=PANEL)
def board(
    runs: Annotated[Path, typer.Argument(help="Run folder.")],
    host: Annotated[str, typer.Option(help="Address to serve at.")] = "localhost",
    port: Annotated[int, typer.Option(help="Port to serve at; 0: any free port.", min=0, max=65535)] = 6006,
) -> None:
    """Show training curves, final metrics, tables and figures in TensorBoard."""
    from runners.report.board import serve

    serve(runs, host, port, typer.echo)


@app.command(rich_help_panel=PANEL)
def submission(
    runs: Annotated[Path, typer.Argument(help="Run folder with cells of the real corpora.")],
    upstream: Annotated[str, typer.Option(help="Upstream whose predictions to submit.")],
    out: Annotated[Path, typer.Option(help="Folder for predict/ and predict.zip.")],
    seed: Annotated[int | None, typer.Option(help="Seed to submit, if the runs have several.")] = None,
) -> None:
    """Collect an upstream's predictions in the format of the SUPERB leaderboard."""
    from runners.report.submission import write_submission

    typer.echo(f"submission: {write_submission(runs, upstream, out, seed, typer.echo)}")
