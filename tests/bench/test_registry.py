"""Registry of benchmarks: one module is one command of ``ds4sci bench``."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ds4sci import bench
from ds4sci.bench.registry import find_benchmarks
from ds4sci.cli.main import app

NEW = """
import typer

from ds4sci.bench.measurement import FOLDER, Measurement
from ds4sci.bench.registry import OutFolder, show

{command}


def command(out: OutFolder = FOLDER) -> None:
    \"\"\"Time of nothing.\"\"\"
    measurement = Measurement(
        name="nothing", title="Nothing", command="ds4sci bench nothing", columns=["seconds"], rows=[[0.0]]
    )
    show(measurement, measurement.save(out))
"""


def test_commands_keep_their_names() -> None:
    names = (
        "axial cogsim commits data data_selection data_selection_runs esmfold gpu_check kernels lm long_proteins "
        "longest_rows operators packing parse quantized ready_loader roofline scaling sequences staging step zcs"
    )
    assert list(find_benchmarks()) == names.split()
    assert all(benchmark.help for benchmark in find_benchmarks().values())


@pytest.mark.parametrize(("constant", "name"), [("", "no-op"), ('COMMAND = "nothing"', "nothing")])
def test_one_module_adds_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, constant: str, name: str) -> None:
    (tmp_path / "no_op.py").write_text(NEW.format(command=constant), encoding="utf-8")
    monkeypatch.setattr(bench, "__path__", [*bench.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, f"{bench.__name__}.no_op", raising=False)
    listed = CliRunner().invoke(app, ["bench", "--help"]).output
    assert name in listed
    assert "Time of nothing." in listed
    done = CliRunner().invoke(app, ["bench", name, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "**Nothing**" in done.output
    assert (tmp_path / "nothing.json").is_file()


@pytest.mark.parametrize("name", find_benchmarks())
def test_each_command_has_options_with_help(name: str) -> None:
    done = CliRunner().invoke(app, ["bench", name, "--help"])
    assert done.exit_code == 0, done.output
    assert ("--json" in done.output) != ("--out" in done.output), "where the result goes"
