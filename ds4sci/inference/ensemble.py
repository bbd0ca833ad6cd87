"""Deep ensembles of surrogates: predictions with mean and standard deviation over runs, and their calibration.

The members are runs that differ in their seed (Lakshminarayanan et al. 2017, arXiv:1612.01474), such as those that
``ds4sci bench run FILE --instances N`` trains side by side.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ds4sci.data.parameter_file import read_parameters
from ds4sci.data.surrogate_variables import Variables
from ds4sci.files.array_files import save_arrays
from ds4sci.files.atomic_files import replace_text, replacing
from ds4sci.inference.trained_run import TrainedRun
from ds4sci.machine import provenance
from ds4sci.metrics.calibration import LEVELS, calibration_error, coverage
from ds4sci.tasks import ParameterPredictor
from ds4sci.tasks.build import default_kernels

PREDICTIONS, SCALARS, SUMMARY = "predictions.npz", "scalars.csv", "summary.json"
"""Files in the folder of predictions."""


class Ensemble:
    """Members of an ensemble: trained runs with the same variables."""

    def __init__(self, runs: Sequence[Path | str], which: str = "best") -> None:
        """Load the runs. Raises ValueError for a task without such predictions, and for other variables than those of
        the first run."""
        self.members = [TrainedRun.load(run, which) for run in runs]
        self.tasks: list[ParameterPredictor] = []
        for member in self.members:
            if not isinstance(member.task, ParameterPredictor):
                raise member.lacks("predict from parameters", "`predict_outputs`, `held_out_examples` and `variables`")
            self.tasks.append(member.task)
        for member, task in zip(self.members, self.tasks, strict=True):
            if (own := _identity(task.variables)) != (first := _identity(self.variables)):
                raise ValueError(
                    f"{member.folder}: its surrogate has the variables {own}; {self.members[0].folder} has {first}: "
                    "the members of an ensemble have the same variables"
                )

    @property
    def variables(self) -> Variables:
        """Parameters and outputs of every member."""
        return self.tasks[0].variables

    def predict(self, parameters: np.ndarray) -> np.ndarray:
        """Return the outputs of every member, float64 [k, m, t], of parameters [m, p]; both in their own units."""
        found = []
        for member, task in zip(self.members, self.tasks, strict=True):
            with default_kernels(member.config):
                found.append(task.predict_outputs(parameters, member.device))
        return np.stack(found)

    def about(self) -> dict[str, Any]:
        """Runs, checkpoints, machine and commit, for a JSON file."""
        members = [{"run": str(one.folder), "checkpoint": one.checkpoint, "step": one.step} for one in self.members]
        return {"members": members, "machine": provenance.describe(), "commit": provenance.commit()}


def spread_over_members(outputs: np.ndarray) -> np.ndarray:
    """Return the standard deviation over the members of outputs [k, …] (unbiased variance); NaN for one member."""
    if len(outputs) < 2:
        return np.full(outputs.shape[1:], np.nan)
    return np.asarray(outputs.std(axis=0, ddof=1))


def predict_parameters(
    runs: Sequence[Path | str], parameters: Path | str, out: Path | str, *, which: str = "best"
) -> dict[str, Any]:
    """Predict at the parameters of a ``.csv`` or ``.npz`` file (``ds4sci.data.parameter_file``).

    Writes into the folder ``out``: ``predictions.npz`` with ``parameters`` [m, p], ``scalars_mean``, ``scalars_std``
    [m, s], ``field_mean``, ``field_std`` [m, …], ``parameter_names`` and ``scalar_names``; ``scalars.csv`` with the
    same scalars; and ``summary.json``, which this function returns: members, files, number of predictions, and how many
    of them have a parameter outside the range of the training data. Standard deviations are those over the runs, and
    NaN for one run.

    Raises ValueError, before a file is written, for runs and files that cannot be used, and for predictions that are
    not finite.
    """
    file, folder = Path(parameters), Path(out)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; expected a folder for the predictions, or a new name")
    ensemble = Ensemble(runs, which)
    variables = ensemble.variables
    x = read_parameters(file, variables.parameters)
    outputs = ensemble.predict(x)
    if not np.isfinite(outputs).all():
        member, row = np.argwhere(~np.isfinite(outputs))[0][:2]
        raise ValueError(f"{ensemble.members[member].folder}: its prediction for row {row} of {file} is not finite")
    mean, std = (variables.split(values) for values in (outputs.mean(axis=0), spread_over_members(outputs)))
    arrays: dict[str, Any] = {"parameters": x, "scalars_mean": mean[0], "scalars_std": std[0]}
    arrays |= {"field_mean": mean[1], "field_std": std[1]} if variables.field else {}
    arrays |= {
        "parameter_names": np.array(variables.parameters),
        "scalar_names": np.array(variables.scalars, dtype=str),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / PREDICTIONS, sync=False) as handle:
        save_arrays(handle, arrays)
    replace_text(folder / SCALARS, _scalar_table(variables, x, mean[0], std[0]))
    outside = ((x < variables.low - 1e-9) | (x > variables.high + 1e-9)).any(axis=1)
    summary = ensemble.about() | {
        "parameters": str(file), "predictions": len(x), "outside_of_training_range": int(outside.sum()),
        "files": [PREDICTIONS, SCALARS],
    }  # fmt: skip
    replace_text(folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
    return summary


def evaluate_ensemble(
    runs: Sequence[Path | str], out: Path | str | None = None, *, which: str = "best", show: bool = True
) -> dict[str, Any]:
    """Evaluate the ensemble of ``runs`` on the held-out data of the first run, and write ``out`` (JSON) atomically.

    Returns what ``out`` holds: ``members``, the number of ``examples``, ``nrmse`` of the mean of the members and of
    each member (see ``ds4sci.tasks.surrogate``), ``levels`` and the empirical ``coverage`` of all outputs, scalars and
    field, and ``calibration_error``. The picture beside ``out`` (``.png``) shows coverage against nominal probability.

    Raises ValueError for fewer than two runs, and for runs that cannot be used.
    """
    if len(runs) < 2:
        raise ValueError("an ensemble has at least two runs; give --run for each")
    ensemble = Ensemble(runs, which)
    task = ensemble.tasks[0]
    parameters, true = task.held_out_examples()
    outputs = ensemble.predict(parameters)
    mean, std = outputs.mean(axis=0), spread_over_members(outputs)
    parts = {"all outputs": (mean, std, true)}
    split = [ensemble.variables.split(values) for values in (mean, std, true)]
    for number, (name, size) in enumerate(
        (("scalars", len(ensemble.variables.scalars)), ("field", ensemble.variables.cells))
    ):
        if size:
            parts[name] = (split[0][number], split[1][number], split[2][number])
    found = {name: coverage(*values) for name, values in parts.items()}
    values = ensemble.about() | {
        "examples": len(true), "nrmse": _nrmse(task, mean, true),
        "nrmse_of_members": [_nrmse(task, one, true) for one in outputs], "levels": LEVELS.tolist(),
        "coverage": {name: one.tolist() for name, one in found.items()},
        "calibration_error": {name: calibration_error(one) for name, one in found.items()},
    }  # fmt: skip
    console = Console(highlight=False, soft_wrap=True)
    if show:
        members = ", ".join(f"{error:.4f}" for error in values["nrmse_of_members"])
        console.print(f"nrmse of the ensemble {values['nrmse']:.4f}; of its members {members}")
        for name, error in values["calibration_error"].items():
            inside = found[name][list(LEVELS).index(0.9)]
            console.print(f"{name}: mean calibration error {error:.3f}; 90 % intervals hold {inside:.1%}")
    if out is not None:
        from ds4sci.tasks.evaluations.surrogate_figures import save_coverage

        path = Path(out)
        path.parent.mkdir(parents=True, exist_ok=True)
        title = f"{len(runs)} members, {len(true)} examples"
        with replacing(path.with_suffix(".png"), sync=False) as handle:
            save_coverage(LEVELS, found, handle, kind="png", title=title)
        replace_text(path, json.dumps(values, indent=1, allow_nan=False) + "\n")
        if show:
            console.print(f"wrote {path.with_suffix('.png')}\nwrote {path}", markup=False)
    return values


def _identity(variables: Variables) -> dict[str, Any]:
    """What the members of an ensemble share."""
    return {
        "parameters": variables.parameters, "scalars": variables.scalars, "field": variables.field,
        "shape": variables.field_shape,
    }  # fmt: skip


def _nrmse(task: ParameterPredictor, predicted: np.ndarray, true: np.ndarray) -> float:
    """Root of the loss of predictions [m, t] in their own units."""
    squares = np.square(task.units.normalized(predicted) - task.units.normalized(true))
    parts = dict(zip(("scalars", "field"), task.variables.split(squares), strict=True))
    return float(sum(task.weights[name] * part.mean() for name, part in parts.items() if part.size) ** 0.5)


def _scalar_table(variables: Variables, x: np.ndarray, mean: np.ndarray, std: np.ndarray) -> str:
    """Parameters and scalars as CSV: each scalar with its mean and its standard deviation."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [*variables.parameters, *(f"{name}_{kind}" for name in variables.scalars for kind in ("mean", "std"))]
    )
    for row, centre, width in zip(x.tolist(), mean.tolist(), std.tolist(), strict=True):
        writer.writerow([*row, *(value for pair in zip(centre, width, strict=True) for value in pair)])
    return text.getvalue()
