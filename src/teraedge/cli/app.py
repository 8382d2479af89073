"""The Typer application: which commands there are."""

from typing import Annotated

import typer

from teraedge.cli.advise import advise
from teraedge.cli.challenge import challenge
from teraedge.cli.convert import convert
from teraedge.cli.doctor import doctor
from teraedge.cli.export_challenge import export_challenge
from teraedge.cli.info import info
from teraedge.cli.run import run
from teraedge.cli.verify import verify

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # joins the lines of a docstring's paragraph
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (challenge, run, verify, info, advise, convert, export_challenge, doctor):
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        from teraedge import __version__

        typer.echo(f"teraedge {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_version, is_eager=True
        ),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say on stderr what each phase does.")
    ] = False,
) -> None:
    """Run sparse deep neural networks, exactly and as fast as the machine allows.

    Try: teraedge challenge
    """
    if verbose:
        from teraedge.cli.console import log_to_stderr

        log_to_stderr()
