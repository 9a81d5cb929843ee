"""`superbit corpus`: build the embedded corpora, prepare and check the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runners.cli.options import Corpora, Seed

PANEL = "Data"
app = typer.Typer(
    help="Corpora of the SUPERB tasks: build small embedded ones (mini), prepare and check the real ones.",
    no_args_is_help=True,
)
Tasks = Annotated[list[str], typer.Argument(help="asr pr ks sid er ic sf qbe asv sd, or all: the first seven.")]


@app.command()
def mini(
    out: Annotated[Path, typer.Option(help="Folder for the corpora.")] = Path("data/mini"),
    hours: Annotated[float, typer.Option(help="Hours of task audio.", min=0.02)] = 7.0,
    seed: Seed = 0,
    sources: Annotated[Path, typer.Option(help="Folder for the downloaded sources.")] = Path("data/sources"),
    apt: Annotated[bool, typer.Option(help="Use real speech from Debian packages; otherwise synthesis only.")] = True,
) -> None:
    """Build small corpora from real and synthetic speech, in the layouts that the seven tasks expect."""
    from runners.corpora.mini.build import build_mini

    build_mini(out, hours, seed, sources, apt)


@app.command()
def prepare(tasks: Tasks, corpora: Corpora) -> None:
    """Write the files that s3prl expects beside a downloaded corpus: lengths, splits, folds, slot names."""
    from runners.corpora.prepare import prepare
    from runners.tasks import chosen_tasks, task_config

    for task in chosen_tasks(tasks):
        written = prepare(task, task_config(task, corpora))
        typer.echo("\n".join(f"{task}: {path}" for path in written) or f"{task}: nothing to write")


@app.command()
def check(
    tasks: Tasks,
    corpora: Corpora,
    any_size: Annotated[
        bool, typer.Option("--any-size", help="Accept sizes that differ from the published ones.")
    ] = False,
) -> None:
    """Check that a corpus is complete: every listed file exists, and sizes equal the published ones."""
    from runners.corpora.check import check_whole
    from runners.tasks import chosen_tasks

    for task in chosen_tasks(tasks):
        check_whole(task, corpora, any_size, typer.echo)
