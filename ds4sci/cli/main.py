"""The ``ds4sci`` application: its commands, its global options and its error handling.

A command imports what it needs when it runs, so that ``--help`` is fast.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ds4sci.cli import data, doctor, inference, plan, selftest
from ds4sci.cli import train as training
from ds4sci.cli.bench import bench_app
from ds4sci.cli.scaling import scaling_app
from ds4sci.cli.select import select_app
from ds4sci.cli.weights import weights_app

app = typer.Typer(
    help="Train, evaluate and benchmark protein-structure models, protein and genome language models, and neural "
    "operators for partial differential equations, on DeepSpeed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")] = False,
) -> None:
    """Declare the global options. ``main`` reads ``--debug`` itself, because parsing can fail before this runs."""


app.command("train")(training.train)
app.command("plan")(plan.plan)
app.command("eval")(inference.evaluate)
app.command("embed")(inference.embed)
app.command("export")(inference.export)
app.command("predict")(inference.predict)
app.command("report")(inference.report)
app.command("doctor")(doctor.doctor)
app.command("selftest")(selftest.selftest)
app.add_typer(data.data_app, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(select_app, name="select")
app.add_typer(scaling_app, name="scaling")
app.add_typer(weights_app, name="weights")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. An error that the user can fix prints one message and exits with code 2."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    try:
        app(args=[a for a in given if a != "--debug"], prog_name="ds4sci")
    except (ValueError, OSError) as error:
        if debug:
            raise
        typer.secho(f"ds4sci: {message(error)}", fg="red", err=True)
        raise SystemExit(2) from None


def message(error: Exception) -> str:
    """Text of an error. A pydantic error becomes one line per key."""
    problems = getattr(error, "errors", None)
    if not callable(problems):
        return str(error)
    lines = []
    for problem in problems(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        lines.append(f"{key} = {problem['input']!r}: {problem['msg']}")
    return "\n".join(lines)
