"""``[benchmark]`` of a run file: the quality that a run must reach, and what it is compared with.

A run file with this section is a benchmark: training ends at the first evaluation that reaches the target.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


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

    def is_reached(self, value: float) -> bool:
        """Whether ``value`` of the metric reaches the target. NaN does not."""
        return value >= self.target if self.direction == "higher" else value <= self.target
