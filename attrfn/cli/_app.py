"""The commands as one program."""

from typing import Annotated

import typer

import attrfn
from attrfn.cli._check import check
from attrfn.cli._compare import compare
from attrfn.cli._explain import explain
from attrfn.cli._layers import layers
from attrfn.cli._methods import methods
from attrfn.cli._report import report

app = typer.Typer(
    name="attrfn",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # --debug shows Python's own traceback
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"attrfn {attrfn.__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Explain what a model says: attributions of data sets, layers, checks and reports.

    Exit codes: 0 fine; 1 an error of the model or the data; 2 a wrong command line;
    130 interrupted.
    """


app.command()(explain)
app.command()(layers)
app.command()(check)
app.command()(compare)
app.command()(report)
app.command()(methods)
