"""``[benchmark]`` of a run file: the quality that a run must reach, and what it is compared with.

A run file with this section is a benchmark: training ends at the first evaluation that reaches the target.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class SubmissionConfig(BaseModel):
    """``[benchmark.submission]``: who submits, for the log of the run. A log must not be edited afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    org: str = Field(default="unnamed", min_length=1)
    """Organization."""
    platform: str | None = Field(default=None, min_length=1)
    """Name of the system; by default the number of nodes and the model of their GPUs or processors."""
    division: Literal["closed", "open"] = "open"
    """``closed``: with the reference hyperparameters."""
    status: Literal["cloud", "onprem", "preview", "research"] = "research"
    """Availability of the system."""
    drop_caches: bool = False
    """Whether to empty the page cache of every node before the run, which requires root and slows all processes of the
    node. Otherwise the run's own data files are removed from the cache."""


class BenchmarkConfig(BaseModel):
    """``[benchmark]``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    """Name of the benchmark in logs and on the command line."""
    title: str
    """One line that says what is trained on what."""
    datasets: tuple[str, ...] = ()
    """Names of the datasets that it needs (``ds4sci data list``)."""
    metric: str
    """Metric of the evaluation that measures quality."""
    target: float
    """Value of ``metric`` to reach."""
    direction: Literal["higher", "lower"]
    """Whether a higher or a lower value is better."""
    hyperparameters: dict[str, Any] = {}
    """Reference hyperparameters, which the closed division must use: dotted key of the run file or of the DeepSpeed
    JSON → value."""
    reference: Path | None = None
    """JSON file of the reference runs: the convergence points with which other runs are compared."""
    submission: SubmissionConfig = SubmissionConfig()
    """Header of the MLPerf log."""

    @field_validator("hyperparameters", mode="before")
    @classmethod
    def _dotted(cls, value: Any) -> Any:
        """TOML reads ``optimizer.params.lr = 1e-3`` as nested tables."""
        return dict(_flatten(value)) if isinstance(value, dict) else value

    @property
    def condition(self) -> str:
        """The target as text, such as ``≥ 0.45``."""
        return f"{'≥' if self.direction == 'higher' else '≤'} {self.target:g}"

    def is_reached(self, value: float) -> bool:
        """Whether ``value`` of the metric reaches the target. NaN does not."""
        return value >= self.target if self.direction == "higher" else value <= self.target


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
