"""The quality target of a benchmark during training: the check of an evaluation, and its text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ds4sci.config.benchmark import BenchmarkConfig
from ds4sci.config.run_file import RunConfig


def quality(config: RunConfig, summary: Mapping[str, float]) -> float:
    """Return the benchmark's metric in the ``summary`` of an evaluation. Raises ValueError if it is not there."""
    assert config.benchmark is not None
    metric = config.benchmark.metric
    if metric not in summary:
        raise ValueError(
            f"{config.source}: benchmark.metric = {metric!r}: evaluations of the task {config.task.name} have no such "
            f"metric; choose one of: {', '.join(summary)}"
        )
    return summary[metric]


def reached_by(config: RunConfig, summary: Mapping[str, float], *, step: int, seconds: float) -> dict[str, Any] | None:
    """Return ``{"step", "metric", "value", "seconds"}`` if the evaluation reaches the target, otherwise None.

    seconds  training time of the run so far

    Raises ValueError if the summary lacks the metric.
    """
    if config.benchmark is None:
        return None
    value = quality(config, summary)
    if not config.benchmark.is_reached(value):
        return None
    return {"step": step, "metric": config.benchmark.metric, "value": value, "seconds": seconds}


def still_reached(config: RunConfig, reached: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return ``reached`` of a checkpoint if it reaches the target of ``config``, which may have changed since."""
    benchmark = config.benchmark
    if reached is None or benchmark is None or reached["metric"] != benchmark.metric:
        return None
    return reached if benchmark.is_reached(reached["value"]) else None


def describe(benchmark: BenchmarkConfig, reached: Mapping[str, Any]) -> str:
    """Text such as ``lddt_ca 0.4512 (target ≥ 0.45) at step 935 after 2.1 min``."""
    return (
        f"{reached['metric']} {reached['value']:.4g} (target {benchmark.condition}) at step {reached['step']:,} after "
        f"{reached['seconds'] / 60:.1f} min"
    )
