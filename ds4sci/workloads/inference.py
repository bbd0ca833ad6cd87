"""Inference of a trained workload: examples per second, and the metric on the held-out data."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ds4sci.files.atomic_files import replace_text
from ds4sci.files.json_values import to_plain
from ds4sci.inference.trained_run import TrainedRun
from ds4sci.machine import provenance
from ds4sci.tasks.build import default_kernels
from ds4sci.train import rng_state
from ds4sci.workloads.results import INFERENCE

PASSES = 3
"""Timed passes over the held-out data, after one that is not timed."""


@dataclass(frozen=True)
class InferenceResult:
    """Result of the inference mode.

    run       the run folder
    seed      its seed
    step      step of the weights
    examples  held-out examples
    seconds   median time of a pass over them: data, model and metric, on one device
    spread    (slowest − fastest) / median of the passes
    metric    name of the metric
    value     its value
    reached   whether it reaches the target
    """

    run: str
    seed: int
    step: int
    examples: int
    seconds: float
    spread: float
    metric: str
    value: float
    reached: bool

    @property
    def examples_per_second(self) -> float:
        return self.examples / self.seconds


def measure(run: Path, passes: int = PASSES) -> InferenceResult:
    """Evaluate the newest checkpoint of ``run`` on its held-out data, ``1 + passes`` times; write RUN/inference.json.

    The newest checkpoint of a run that reached its target is the one that reached it. The first pass is not timed: it
    reads files, computes reference solutions and compiles kernels. Raises ValueError if there is no trained run.
    """
    if not (run / "checkpoints").is_dir():
        raise ValueError(
            f"{run}: no trained run; train it first with: ds4sci bench run NAME, and the same --seed and --out"
        )
    loaded = TrainedRun.load(run, "latest")
    benchmark, task = loaded.config.benchmark, loaded.task
    if benchmark is None:
        raise ValueError(f"{run}: not the run of a benchmark (its config.json has no [benchmark])")
    seconds, rows = [], []
    with torch.no_grad(), default_kernels(loaded.config):
        for _ in range(1 + passes):
            rng_state.seed_all(loaded.config.seed, rng_state.EVALUATION, loaded.step, 0)
            began = time.perf_counter()
            rows = task.evaluate(task.model, rank=0, world_size=1, device=loaded.device)
            seconds.append(time.perf_counter() - began)
    summary = task.summarize(rows)
    if benchmark.metric not in summary:
        raise ValueError(f"{run}: evaluations have no metric {benchmark.metric!r}, only: {', '.join(summary)}")
    timed = seconds[1:] or seconds
    median, value = statistics.median(timed), float(summary[benchmark.metric])
    result = InferenceResult(
        str(run), loaded.config.seed, loaded.step, len({str(row.get("id", i)) for i, row in enumerate(rows)}), median,
        (max(timed) - min(timed)) / median, benchmark.metric, value, benchmark.is_reached(value),
    )  # fmt: skip
    values: dict[str, Any] = asdict(result) | {
        "examples_per_second": result.examples_per_second, "passes": passes, "device": str(loaded.device),
        "machine": provenance.describe(), "commit": provenance.commit(),
    }  # fmt: skip
    replace_text(run / INFERENCE, json.dumps(to_plain(values), indent=1) + "\n")
    return result
