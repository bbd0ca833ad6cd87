"""Benchmark of the neural operators: train each equation to the end and score functions that training does not draw."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ds4sci.bench.measurement import FOLDER, Measurement
from ds4sci.bench.registry import OutFolder, show
from ds4sci.inference.evaluate import evaluate_run
from ds4sci.machine.processor import usable_cores
from ds4sci.physics.pdes import PDES
from ds4sci.train import launch

COMMAND = "operators"


def command(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[EQUATION]…", help="Equations to train. Default: all.", show_default=False),
    ] = None,
    folder: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder for runs, scores and figures.")] = Path(
        "runs/operators"
    ),
    out: OutFolder = FOLDER,
) -> None:
    """Neural operators: train the equations of configs/operator to the end and score unseen functions."""
    measurement = measure(names or (), folder=folder, out=out / "operators.json")
    show(measurement, measurement.save(out))


def measure(
    names: Sequence[str] = (),
    overrides: Sequence[str] = (),
    *,
    folder: Path,
    out: Path,
    ranks: int | None = None,
) -> Measurement:
    """One row per equation. Runs, scores and figures go to ``folder``; rows of other equations in ``out`` are kept.

    Raises RuntimeError if a run fails.
    """
    saved = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.is_file() else []
    rows = [row for row in saved if row[0] not in (names or PDES)]
    for name in names or PDES:
        start = time.monotonic()
        own = [f"train.output={folder}", f"train.name={name}", *overrides]
        if (folder / name / "metrics.jsonl").exists():
            raise RuntimeError(f"{folder / name}: exists already, and a resumed run measures no time; remove it")
        if launch.train(f"configs/operator/{name}.toml", own, ranks=ranks):
            raise RuntimeError(f"{folder / name}: training failed, see the log above")
        minutes = (time.monotonic() - start) / 60
        found = evaluate_run(folder / name, folder / f"{name}.json")
        line = json.loads((folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
        parts = found["components"]
        by_component = ", ".join(f"{c} {x:.1%}" for c, x in parts.items()) if len(parts) > 1 else None
        rows.append(
            [
                name, found["step"], minutes, f"{found['relative_l2']:.2%}", f"{found['median']:.2%}",
                f"{found['worst']:.1%}", by_component, line["ranks"],
            ]
        )  # fmt: skip
    rows.sort(key=lambda row: PDES.index(row[0]) if row[0] in PDES else len(PDES))
    return Measurement(
        name="operators",
        title="Neural operators trained from the equation only: relative L2 error on 100 unseen functions",
        command="ds4sci bench operators",
        columns=["equation", "steps", "minutes", "mean", "median", "worst", "by component", "ranks"],
        rows=rows,
        notes=[
            "minutes of the whole training command, evaluations included; a step has 64 functions; "
            f"training uses no reference solution; {usable_cores()} cores",
        ],
    )
