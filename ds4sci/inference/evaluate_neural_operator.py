"""Score a run of the task ``operator`` on functions that it never saw, and draw prediction beside reference."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ds4sci.files.atomic_files import replace_text
from ds4sci.machine import provenance
from ds4sci.tasks.neural_operator import TEST, OperatorTask
from ds4sci.train import checkpoint


def evaluate_operator(
    run: Path | str,
    out: Path | str,
    *,
    which: str = "best",
    functions: int = 100,
    overrides: Sequence[str] = (),
    show: bool = True,
) -> dict[str, Any]:
    """Relative L2 error of ``functions`` unseen functions, drawn from the seed, against the reference solution.

    Neither training nor the evaluations within it draw these functions. Writes ``out`` (JSON): ``run, checkpoint,
    step, pde, functions, relative_l2`` (mean), ``median, worst, components`` (mean of each), ``errors`` (of each
    function), ``seconds, reference_seconds``, ``machine, commit``; and beside it the picture ``OUT.png``: the best, the
    median and the worst function. Raises ValueError for a run of another task and for a checkpoint that is not there.
    """
    run, out = Path(run), Path(out)
    _, task = checkpoint.load_run(run, which=which, overrides=overrides)
    if not isinstance(task, OperatorTask):
        raise ValueError(
            f"{run}: only `operator` runs are scored without a file; --chains is for `fold` runs, --fasta and "
            "--contacts are for language models"
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = task.model.to(device).eval()
    coefficients = task.coefficients(TEST, list(range(functions)))
    began = time.perf_counter()
    reference = task.pde.solve(coefficients)
    solved = time.perf_counter()
    predicted = np.concatenate(
        [task.predict(model, part, device) for part in np.array_split(coefficients, max(1, functions // 20))]
    )
    took = time.perf_counter() - solved
    errors = task.errors(predicted, reference)
    each = errors.mean(1)
    result: dict[str, Any] = {
        "run": str(run),
        "checkpoint": which,
        "step": int(checkpoint.chosen(run, which).name.removeprefix("step_")),
        "pde": dict(task.config.pde),
        "functions": functions,
        "relative_l2": float(each.mean()),
        "median": float(np.median(each)),
        "worst": float(each.max()),
        "components": {name: float(x) for name, x in zip(task.pde.components, errors.mean(0), strict=True)},
        "errors": [[float(x) for x in row] for row in errors],
        "seconds": took,
        "reference_seconds": solved - began,
        "machine": provenance.describe(),
        "commit": provenance.commit(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_text(out, json.dumps(result, indent=1, allow_nan=False) + "\n")
    from ds4sci.inference.neural_operator_figures import save_picture

    order = np.argsort(each)
    save_picture(task, coefficients, predicted, reference, each, [order[0], order[len(order) // 2], order[-1]], out)
    if show:
        Console().print(_table(result))
    return result


def _table(result: dict[str, Any]) -> Table:
    table = Table(
        title=f"{result['pde']['name']}: relative L2, {result['functions']} unseen functions", title_justify="left"
    )
    for column in ("", "mean", "median", "worst"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("all", *(f"{result[key]:.2%}" for key in ("relative_l2", "median", "worst")))
    if len(result["components"]) > 1:
        for number, (name, mean) in enumerate(result["components"].items()):
            own = [row[number] for row in result["errors"]]
            table.add_row(name, f"{mean:.2%}", f"{np.median(own):.2%}", f"{max(own):.2%}")
    return table
