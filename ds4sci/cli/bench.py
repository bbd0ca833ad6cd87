"""The commands ``ds4sci bench …``: those for workloads, and one per benchmark in ``ds4sci.bench``.

A benchmark is imported when it runs.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ds4sci.bench.registry import Benchmark, find_benchmarks
from ds4sci.cli import mlperf, workloads

WORKLOADS = "Workloads: whole trainings to a target"
COMPONENTS = "Kernels and components: time and memory"


class BenchmarkCommand(TyperCommand):
    """A command that lists its name and help without importing its benchmark."""

    def __init__(self, benchmark: Benchmark) -> None:
        super().__init__(benchmark.name, callback=None, params=[], help=benchmark.help, rich_help_panel=COMPONENTS)
        self.benchmark = benchmark

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Import the benchmark and parse the arguments with its own parameters."""
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command(self.benchmark.name)(self.benchmark.load())
        return typer.main.get_command(app).make_context(info_name, args, parent=parent, **extra)


class BenchmarkGroup(TyperGroup):
    """The commands for workloads, and the benchmarks of ``ds4sci.bench``, found at first use."""

    def list_commands(self, ctx: Any) -> list[str]:
        self._find()
        return list(self.commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        self._find()
        return self.commands.get(cmd_name)

    def _find(self) -> None:
        if not any(isinstance(command, BenchmarkCommand) for command in self.commands.values()):
            for name, found in find_benchmarks().items():
                self.commands.setdefault(name, BenchmarkCommand(found))


bench_app = typer.Typer(
    cls=BenchmarkGroup, no_args_is_help=True,
    help="Train workloads to a target, and measure speed and memory of kernels and components. Results are JSON files "
    "with machine, versions and commit.",
)  # fmt: skip
workloads.register(bench_app, WORKLOADS)
mlperf.register(bench_app, WORKLOADS)
