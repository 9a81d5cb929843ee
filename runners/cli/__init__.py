"""The command `superbit`: options only. Each command imports what it runs, so that --help imports nothing heavy."""

from __future__ import annotations

import sys
import traceback
from importlib.metadata import version
from typing import Annotated

import typer

from runners.cli import corpus, evaluation, models, pretraining
from runners.cli.console import show_tracebacks, verbosity
from upstreams.errors import UserError

app = typer.Typer(
    help="Pre-train, binarize and evaluate efficient audio encoders on SUPERB.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(corpus.app, name="corpus", rich_help_panel=corpus.PANEL)
app.add_typer(pretraining.labels, name="labels", rich_help_panel=pretraining.PANEL)
for group in (pretraining, models, evaluation):
    app.add_typer(group.app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"superbit {version('superbit')}")
        raise typer.Exit


@app.callback()
def global_options(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars; only results and warnings.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Debug messages, and a traceback where an error has one.")
    ] = False,
) -> None:
    """Set what every command prints."""
    verbosity(quiet, verbose)


def main() -> None:
    """Run the command line. Bad input ends with one sentence and exit code 2."""
    try:
        app(prog_name="superbit")
    except UserError as error:
        if show_tracebacks():
            traceback.print_exc()
        typer.echo(f"superbit: {error}", err=True)
        sys.exit(2)
