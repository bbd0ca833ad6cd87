"""Registry of benchmarks: every module of this folder that defines a function ``command``.

The parameters of ``command`` are the options on the command line, and its docstring is the help text. The command is
named after the module; a module-level constant ``COMMAND`` sets another name. To add a benchmark, add one module.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from ds4sci import bench
from ds4sci.bench.measurement import Measurement
from ds4sci.bench.tables import section

JsonFile = Annotated[Path, typer.Option("--json", metavar="OUT", help="JSON file to write all figures to.")]
OutFolder = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write the JSON file to.")]
Quick = Annotated[bool, typer.Option("--quick", help="Run a short smoke test. Its figures are not a measurement.")]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
RunFile = Annotated[str, typer.Argument(metavar="CONFIG", help="Run file (TOML).")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]…", help="Settings that replace those of the run file.", show_default=False),
]


@dataclass(frozen=True)
class Benchmark:
    """``name`` of the command, dotted ``module`` that defines it, and ``help`` text."""

    name: str
    module: str
    help: str

    def load(self) -> Callable[..., None]:
        """Import the module and return its function ``command``."""
        command: Callable[..., None] = importlib.import_module(self.module).command
        return command


def find_benchmarks() -> dict[str, Benchmark]:
    """Benchmarks by command name, in alphabetical order.

    Names and help texts are read from the source, because importing a benchmark imports torch.
    """
    found = {}
    for _, module, is_package in pkgutil.iter_modules(bench.__path__):
        files = (Path(folder) / f"{module}.py" for folder in bench.__path__)
        source = "" if is_package else next(file for file in files if file.exists()).read_text(encoding="utf-8")
        if "\ndef command(" not in source:
            continue
        name, text = module.replace("_", "-"), ""
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and node.name == "command":
                text = ast.get_docstring(node) or ""
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMMAND":
                name = ast.literal_eval(node.value)
        found[name] = Benchmark(name, f"{bench.__name__}.{module}", text)
    return dict(sorted(found.items()))


def show(measurement: Measurement, *written: Path) -> None:
    """Print the table of a measurement and the paths of the files that were written."""
    typer.echo(section(asdict(measurement)))
    typer.echo("wrote " + " and ".join(map(str, written)))
