"""The command ``ds4sci selftest``: prints the results of ``ds4sci.selftest``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ds4sci.cli.train import DeepSpeedConfig, Overrides

if TYPE_CHECKING:
    from ds4sci.selftest import Result


def selftest(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Run file (TOML).", show_default=False)],
    overrides: Overrides = None,
    ranks: Annotated[int, typer.Option("--ranks", min=1, help="Number of processes on this machine.")] = 2,
    deepspeed_config: DeepSpeedConfig = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Train the model of a run file at tiny width on its layout, and compare with one process in fp64.

    Checks the scale of gradients, the split of a batch, examples that ranks share, and a resume on other ranks and
    another ZeRO stage. The optimizer is plain SGD, or AdamW for the resume, and precision is fp32, so that differences
    are faults and not rounding. Exit code 1 if a check fails.
    """
    import os
    import signal
    import sys

    import torch

    from ds4sci.config.run_file import RunConfig
    from ds4sci.selftest import selftest as run

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed prints that it finds no GPU
    # as for Ctrl-C: ranks are ended and the temporary folder is removed
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    loaded = RunConfig.load(config, list(overrides or []), deepspeed=deepspeed_config)
    results, seconds = run(loaded, ranks, on_start=lambda text: None if json else typer.echo(text))
    failed = [one for one in results if not one.passed]
    if json:
        from json import dumps

        typer.echo(dumps({"seconds": seconds, "results": [asdict(one) for one in results]}, indent=1))
    else:
        show(results)
        typer.echo(f"{len(failed)} of {len(results)} checks failed; {seconds:.0f} s")
    raise typer.Exit(1 if failed else 0)


def show(results: list[Result]) -> None:
    """Print the results as a table, and the faults below it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = 140
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title, justify in (("check", "left"), ("layout", "left"), ("result", "left"), ("largest error", "right"),
                           ("limit", "right"), ("seconds", "right")):  # fmt: skip
        table.add_column(title, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for one in results:
        mark = Text("left out", "yellow") if one.note else Text("ok", "green") if one.passed else Text("FAILED", "red")
        numbers = ("", "", "") if one.error is None else (f"{one.error:.1e}", f"{one.limit:.0e}", f"{one.seconds:.1f}")
        table.add_row(one.check, one.layout, mark, *numbers)
    console.print(table)
    for one in results:
        if text := one.fault or one.note:
            console.print(Text(f"{one.check}: {text}", "red" if one.fault else "yellow"), soft_wrap=True)
