"""Scores of MLPerf HPC: time to quality of several runs, and throughput of many instances at once.

Time to quality of a run is ``run_stop − run_start``; the score is the mean without the fastest and the slowest run. A
run that failed counts as the slowest, and two failed runs void the score. Throughput is (T, S, M′, TTTa): T
accelerators of the system, S of one instance, M′ instances with different seeds that all converged, and TTTa, the time
from the first ``run_start`` to the last ``run_stop`` of them.

On a machine without accelerators T and S count machines, as upstream's scorer does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds4sci.mlperf.log_file import Event, LogFile

REQUIRED_RUNS: Mapping[str, int] = {"cosmoflow": 10, "deepcam": 5, "oc20": 5, "openfold": 10}
"""Runs of a score, by benchmark, in version 3.0 of the rules."""

DEFAULT_RUNS = 5
"""Runs of a score of a benchmark that MLPerf HPC does not have."""


def required_runs(benchmark: str) -> int:
    """Number of runs that the score of ``benchmark`` needs."""
    return REQUIRED_RUNS.get(benchmark, DEFAULT_RUNS)


@dataclass(frozen=True)
class Run:
    """What a log states about its run.

    start_ms, stop_ms  times of ``run_start`` and ``run_stop``, None if not logged
    samples            training samples at the last evaluation: the convergence point
    scale              accelerators, or machines without any
    failure            why the run did not reach the target, or empty
    """

    file: Path
    benchmark: str
    seed: str
    batch: int | None
    start_ms: float | None
    stop_ms: float | None
    samples: float | None
    scale: int | None
    failure: str

    @property
    def minutes(self) -> float | None:
        """Time to quality."""
        if self.start_ms is None or self.stop_ms is None or self.failure:
            return None
        return (self.stop_ms - self.start_ms) / 60 / 1000

    @classmethod
    def of(cls, log: LogFile) -> Run:
        """Read the run from its log. The rules on the rest of the log are those of ``ds4sci.mlperf.check``."""
        start, stop = log.first("run_start"), log.first("run_stop")
        evaluations = [event for event in log.events if event.key in ("eval_accuracy", "eval_error")]
        points = [event.metadata["epoch_num"] for event in evaluations if "epoch_num" in event.metadata]
        nodes, accelerators = log.value("number_of_nodes"), log.value("accelerators_per_node")
        return cls(
            file=log.file,
            benchmark=str(log.value("submission_benchmark")),
            seed=str(log.value("seed")),
            batch=log.value("global_batch_size"),
            start_ms=start.time_ms if start else None,
            stop_ms=stop.time_ms if stop else None,
            samples=points[-1] if points else None,
            scale=nodes * max(accelerators, 1) if nodes is not None and accelerators is not None else None,
            failure=_failure(log, start, stop),
        )


def _failure(log: LogFile, start: Event | None, stop: Event | None) -> str:
    if (resumed := log.first("resumed_from_step")) is not None:
        return f"resumed from step {resumed.value}"
    if start is None or stop is None:
        return "incomplete: no " + ("run_start" if start is None else "run_stop")
    if stop.time_ms < start.time_ms:
        return "run_stop is before run_start"
    status = stop.metadata.get("status")
    return "" if status == "success" else f"status {status}"


@dataclass(frozen=True)
class TimeToQuality:
    """Time to quality of one benchmark on one system.

    runs      all of them
    required  number of runs that the rules require
    minutes   the score, None if void
    void      why there is no score, or empty
    """

    benchmark: str
    runs: tuple[Run, ...]
    required: int
    minutes: float | None
    void: str

    @property
    def is_official(self) -> bool:
        """Whether there is a score, of exactly the number of runs that the rules require."""
        return self.minutes is not None and len(self.runs) == self.required


def time_to_quality(logs: Sequence[LogFile], failures: Mapping[Path, str] | None = None) -> TimeToQuality:
    """Score the runs of one benchmark.

    failures  log → reason, for logs that break a rule: their runs count as failed

    Raises ValueError for no log or logs of several benchmarks.
    """
    runs = tuple(_run(log, failures or {}) for log in logs)
    benchmark = _common_benchmark(runs)
    failed = [run for run in runs if run.minutes is None]
    times = sorted(run.minutes for run in runs if run.minutes is not None)
    minutes, void = None, ""
    if len(failed) > 1:
        void = f"{len(failed)} of {len(runs)} runs failed, and at most one may"
    elif len(runs) < 3:
        void = f"{len(runs)} run{'s' if len(runs) > 1 else ''}: the mean without the fastest and the slowest needs 3"
    else:
        counted = times[1:] if failed else times[1:-1]
        minutes = sum(counted) / len(counted)
    return TimeToQuality(benchmark, runs, required_runs(benchmark), minutes, void)


@dataclass(frozen=True)
class Throughput:
    """Throughput of one benchmark on one system.

    system    T, accelerators of the system
    instance  S, accelerators of an instance
    models    M′, instances that count
    minutes   TTTa
    pruned    log → reason, for instances that do not count
    void      why there is no score, or empty
    """

    benchmark: str
    system: int
    instance: int
    models: int
    minutes: float | None
    pruned: Mapping[Path, str]
    void: str

    @property
    def models_per_minute(self) -> float | None:
        """M′ / TTTa."""
        return None if not self.minutes else self.models / self.minutes


def throughput(
    logs: Sequence[LogFile], failures: Mapping[Path, str] | None = None, *, system: int | None = None
) -> Throughput:
    """Score the instances of one benchmark that ran at once.

    system  accelerators of the system; by default those of the largest number of instances that ran at the same time

    Of instances with equal seeds the one that stopped last counts. Raises ValueError for no log or logs of several
    benchmarks.
    """
    runs = [_run(log, failures or {}) for log in logs]
    benchmark = _common_benchmark(runs)
    pruned = {run.file: run.failure for run in runs if run.minutes is None}
    counted: dict[str, Run] = {}
    for run in sorted((run for run in runs if run.minutes is not None), key=_stop):
        if run.seed in counted:
            pruned[counted[run.seed].file] = f"seed {run.seed} is also that of {run.file}"
        counted[run.seed] = run
    models, required = list(counted.values()), required_runs(benchmark)
    scales = {run.scale for run in models}
    void = ""
    if len(models) < required:
        void = f"{len(models)} instances converged with different seeds; the rules require {required}"
    elif len(scales) > 1 or None in scales:
        void = f"the instances must have the same known number of accelerators; found {sorted(map(str, scales))}"
    scale = next(iter(scales), None) or 0
    minutes = None
    if models and not void:
        minutes = (max(_stop(run) for run in models) - min(_start(run) for run in models)) / 60 / 1000
    return Throughput(
        benchmark, system or scale * _most_at_once(models), scale, len(models), minutes, pruned, void
    )  # fmt: skip


def _run(log: LogFile, failures: Mapping[Path, str]) -> Run:
    run = Run.of(log)
    if run.failure or log.file not in failures:
        return run
    return Run(**(vars(run) | {"failure": failures[log.file]}))


def _common_benchmark(runs: Sequence[Run]) -> str:
    names = sorted({run.benchmark for run in runs})
    if len(names) != 1:
        found = f"logs of {', '.join(names)}" if names else "no log"
        raise ValueError(f"a score needs the logs of one benchmark; found {found}")
    return names[0]


def _start(run: Run) -> float:
    assert run.start_ms is not None
    return run.start_ms


def _stop(run: Run) -> float:
    assert run.stop_ms is not None
    return run.stop_ms


def _most_at_once(runs: Sequence[Run]) -> int:
    """Largest number of runs in progress at the same time."""
    changes = sorted([(_start(run), 1) for run in runs] + [(_stop(run), -1) for run in runs])
    running = most = 0
    for _, change in changes:
        running += change
        most = max(most, running)
    return most


def as_json(score: TimeToQuality | Throughput) -> dict[str, Any]:
    """JSON values of a score."""
    if isinstance(score, Throughput):
        pruned = {str(file): reason for file, reason in score.pruned.items()}
        return vars(score) | {"pruned": pruned, "models_per_minute": score.models_per_minute}
    runs = [
        {"log": str(run.file), "seed": run.seed, "minutes": run.minutes, "samples": run.samples, "failure": run.failure}
        for run in score.runs
    ]
    return vars(score) | {"runs": runs, "is_official": score.is_official}
