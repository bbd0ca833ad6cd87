"""The command ``ds4sci doctor``: prints the findings of ``ds4sci.doctor``."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from ds4sci.cli.train import DeepSpeedConfig, Overrides

if TYPE_CHECKING:
    from ds4sci.doctor import Finding


def doctor(
    config: Annotated[
        str | None, typer.Argument(metavar="[CONFIG]", help="Run file to check as well.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    ranks: Annotated[
        int | None, typer.Option("--ranks", min=1, help="Ranks for CONFIG. Default: one per GPU, two on a CPU.")
    ] = None,
    deepspeed_config: DeepSpeedConfig = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine: packages, devices, memory, compiler, locks, connections between ranks, and the kernel
    implementations that run here. With CONFIG, check also whether its batch, heads and layers fit the ranks.

    Each problem is listed with its fix. Exit code 1 if training cannot work.
    """
    from ds4sci.doctor import CHECKS, run_checks

    checks = CHECKS
    if config is not None:
        from ds4sci.doctor.layout import run_file
        from ds4sci.train.launch import default_rank_count

        ranks = default_rank_count() if ranks is None else ranks
        checks = (run_file(config, overrides or (), ranks=ranks, deepspeed=deepspeed_config), *checks)
    elif ranks is not None or deepspeed_config is not None:
        raise ValueError("--ranks and --deepspeed_config belong to a run file: ds4sci doctor CONFIG --ranks N")
    findings = run_checks(checks)
    if json:
        from json import dumps

        typer.echo(dumps([asdict(finding) for finding in findings], indent=1))
    else:
        show_findings(findings)
    raise typer.Exit(1 if any(finding.level == "problem" for finding in findings) else 0)


def show_findings(findings: list[Finding]) -> None:
    """Print the findings as tables, one per section."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = 140
    marks = {"ok": Text("ok", "green"), "optional": Text("–", "yellow"), "problem": Text("!!", "bold red")}
    for section in dict.fromkeys(finding.section for finding in findings):
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(no_wrap=True, min_width=2)
        table.add_column(no_wrap=True, min_width=26)
        table.add_column(overflow="fold")
        for finding in (f for f in findings if f.section == section):
            table.add_row(marks[finding.level], finding.name, Text(finding.detail))
            if finding.level != "ok" and finding.remedy:
                table.add_row("", "", Text(f"→ {finding.remedy}", "cyan"))
        console.print(Text(section, "bold"))
        console.print(table)
