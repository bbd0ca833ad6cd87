"""Results of the runs of a workload, read from their folders."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.config.benchmark import BenchmarkConfig
from ds4sci.report.run_artifacts import RunArtifacts, read_artifacts
from ds4sci.train import checkpoint

INFERENCE = "inference.json"
"""File in a run folder with the result of ``ds4sci bench run NAME --mode inference``."""


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of a run: its step, the training time so far in seconds, and the value of the metric."""

    step: int
    seconds: float
    value: float


@dataclass(frozen=True)
class RunOutcome:
    """Result of one run of a workload.

    run          its folder
    seed         its seed
    outcome      ``reached``, ``missed`` (the last step came first), ``stopped`` (can be resumed) or ``failed``
    steps        steps of the whole schedule
    step         last step of the saved state
    value        metric of the evaluation that reached the target, or of the last one; None without an evaluation
    seconds      time to quality if the target is reached, otherwise the training time so far
    evaluations  all evaluations, in order
    error        last line of the traceback of a failed run: the error itself
    artifacts    the files of the run folder
    """

    run: Path
    seed: int
    outcome: str
    steps: int
    step: int
    value: float | None
    seconds: float | None
    evaluations: tuple[Evaluation, ...]
    error: str
    artifacts: RunArtifacts = field(repr=False)

    @property
    def is_reached(self) -> bool:
        """Whether the run reached the target."""
        return self.outcome == "reached"

    @property
    def inference(self) -> dict[str, Any] | None:
        """Result of the inference mode, or None."""
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads((self.run / INFERENCE).read_text(encoding="utf-8"))
            return found
        return None


def read_outcome(run: Path) -> RunOutcome:
    """Read a run folder. Raises ValueError if it is not the run of a workload."""
    artifacts = read_artifacts(run)
    benchmark = benchmark_of(artifacts)
    if benchmark is None:
        raise ValueError(f"{run}: not the run of a benchmark (its config.json has no [benchmark])")
    config: dict[str, Any] = artifacts.config or {}
    steps = int(config["train"]["steps"])
    state = _newest_state(run)
    step, reached = int(state.get("step", 0)), state.get("reached")
    evaluations = tuple(_evaluations(artifacts, benchmark.metric))
    error = _last_line(run / "error.txt")
    if reached is not None:
        return RunOutcome(
            run, config["seed"], "reached", steps, step, float(reached["value"]), float(reached["seconds"]),
            evaluations, "", artifacts,
        )  # fmt: skip
    outcome = "failed" if error or not state else "missed" if step >= steps else "stopped"
    return RunOutcome(
        run, config["seed"], outcome, steps, step, evaluations[-1].value if evaluations else None,
        state.get("seconds"), evaluations, error, artifacts,
    )  # fmt: skip


def find_outcomes(folder: Path) -> list[RunOutcome]:
    """Read the runs of a workload in ``folder``, by seed.

    Raises ValueError if it holds none, or runs of several benchmarks.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected the folder of a benchmark, such as runs/benchmarks/NAME")
    runs = [path.parent for path in sorted(folder.glob("*/config.json"))]
    found = [outcome for run in runs if (outcome := _outcome_or_none(run)) is not None]
    if not found:
        inside = sorted(path.name for path in folder.iterdir() if any(path.glob("*/config.json")))
        hint = f"; give one of its folders: {', '.join(inside)}" if inside else ""
        raise ValueError(f"{folder}: no runs of a benchmark{hint}. They are made by: ds4sci bench run NAME")
    names = sorted({benchmark.name for one in found if (benchmark := benchmark_of(one.artifacts)) is not None})
    if len(names) > 1:
        raise ValueError(f"{folder}: runs of several benchmarks ({', '.join(names)}); use one folder for each")
    return sorted(found, key=lambda one: (one.seed, one.run.name))


def benchmark_of(artifacts: RunArtifacts) -> BenchmarkConfig | None:
    """``[benchmark]`` of a run, or None."""
    section = (artifacts.config or {}).get("benchmark")
    return None if section is None else BenchmarkConfig.model_validate(section)


def _outcome_or_none(run: Path) -> RunOutcome | None:
    try:
        return read_outcome(run)
    except ValueError:
        return None


def _newest_state(run: Path) -> dict[str, Any]:
    """State of the newest checkpoint; empty without one."""
    for step in reversed(checkpoint.checkpoint_steps(run)):
        with contextlib.suppress(OSError, ValueError):
            return checkpoint.read_state(checkpoint.checkpoint_folder(run, step))
    return {}


def _evaluations(artifacts: RunArtifacts, metric: str) -> list[Evaluation]:
    """Evaluations with ``metric``. Runs of early versions have no elapsed time: it is interpolated by step."""
    steps = [0.0, *(float(line["step"]) for line in artifacts.train)]
    seconds = [0.0, *(float(line["seconds"]) for line in artifacts.train)]
    return [
        Evaluation(
            int(line["step"]),
            float(line["elapsed"] if "elapsed" in line else np.interp(line["step"], steps, seconds)),
            float(line[metric]),
        )
        for line in artifacts.evaluations
        if line.get(metric) is not None
    ]


def _last_line(file: Path) -> str:
    """Last line of a traceback that was written to ``file``: the error itself. Empty without the file."""
    with contextlib.suppress(OSError):
        lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""
    return ""
