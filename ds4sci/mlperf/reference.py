"""Reference runs of a benchmark, and the test that other runs do not converge suspiciously fast.

``configs/benchmarks/reference/NAME.json``::

    {"benchmark": "cosmo", "metric": "mae", "direction": "lower", "target": 0.3,
     "runs": [{"seed": 1, "batch": 16, "steps": 480, "samples": 7680, "seconds": 311.2,
               "machine": "2 cores, AMD EPYC 7B13", "commit": "0a1b2c…"}]}

``ds4sci bench score LOGS… --write-reference FILE`` writes it from the logs of runs. ``steps`` and ``samples`` are those
of the evaluation that reached the target, ``seconds`` the time to quality there.

The test is that of ``mlperf_logging.rcp_checker``: with N runs to compare and R reference runs of the same batch size,
μ the mean of the reference without its extremes and σ the standard deviation of all of it, the mean of the runs without
their extremes must be at least μ + t σ √(1/(R−2) + 1/(N−2)), where t is the 5 % quantile of Student's distribution
with R + N − 6 degrees of freedom. A mean above that limit but below μ is accepted, and the score is multiplied by
μ / mean. The rules require R ≥ 2 N; with fewer the result is provisional.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ds4sci.files import atomic_files
from ds4sci.mlperf.log_file import LogFile
from ds4sci.mlperf.score import Run

ALPHA = 0.05
"""Probability of refusing runs that converge like the reference."""


class ReferenceRun(BaseModel):
    """A reference run that reached the target."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int
    batch: int = Field(gt=0)
    steps: int = Field(gt=0)
    samples: int = Field(gt=0)
    seconds: float = Field(gt=0)
    machine: str
    commit: str

    @classmethod
    def of(cls, log: LogFile) -> ReferenceRun:
        """The run of a log that reached the target. Raises ValueError for another log."""
        run = Run.of(log)
        if run.minutes is None or not run.samples or not run.batch:
            reason = run.failure or "no evaluation or no batch size in the log"
            raise ValueError(f"{log.file}: not a reference run: {reason}")
        commit = log.file.parents[1] / "commit.txt"  # in the run folder
        return cls(
            seed=int(run.seed),
            batch=run.batch,
            steps=round(run.samples / run.batch),
            samples=round(run.samples),
            seconds=round(run.minutes * 60, 3),
            machine=str(log.value("submission_platform")),
            commit=commit.read_text(encoding="utf-8").strip() if commit.is_file() else "unknown",
        )


class Reference(BaseModel):
    """The reference runs of a benchmark."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    benchmark: str
    metric: str
    direction: str
    target: float
    runs: tuple[ReferenceRun, ...]

    @classmethod
    def read(cls, file: Path) -> Reference:
        """Read ``file``. Raises ValueError with the key for a file of another form or a seed that occurs twice."""
        try:
            reference = cls.model_validate_json(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"{file}: {error.strerror}; expected the JSON of reference runs") from None
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            key = ".".join(map(str, problem["loc"])) or "the file"
            raise ValueError(f"{file}: {key}: {problem['msg']}; see ds4sci.mlperf.reference for the format") from None
        seen = [(run.seed, run.batch) for run in reference.runs]
        if len(set(seen)) < len(seen):
            raise ValueError(f"{file}: two runs have the same seed and batch size; every reference run needs its own")
        return reference

    @classmethod
    def of(cls, logs: Sequence[LogFile]) -> Reference:
        """The reference runs of logs of one benchmark, in the order of their seeds."""
        target = logs[0].first("quality_target")
        if target is None:
            raise ValueError(f"{logs[0].file}: the log states no quality_target")
        return cls(
            benchmark=str(logs[0].value("submission_benchmark")),
            metric=target.metadata["metric"],
            direction=target.metadata["direction"],
            target=target.value,
            runs=tuple(sorted(map(ReferenceRun.of, logs), key=lambda run: run.seed)),
        )

    def write(self, file: Path) -> None:
        """Write the JSON, one run per line. Creates the folder if needed."""
        file.parent.mkdir(parents=True, exist_ok=True)
        head = self.model_dump(exclude={"runs"})
        runs = ",\n  ".join(json.dumps(run.model_dump()) for run in self.runs)
        atomic_files.replace_text(file, json.dumps(head, indent=1)[:-2] + f',\n "runs": [\n  {runs}\n ]\n}}\n')

    def samples(self, batch: int) -> list[int]:
        """Samples to the target of the runs with this batch size."""
        return [run.samples for run in self.runs if run.batch == batch]


@dataclass(frozen=True)
class Convergence:
    """Result of the test.

    reference_runs  R, reference runs of the same batch size
    required        2 N
    mean, limit     samples to the target: mean of the reference, and smallest mean that is accepted
    own             mean of the runs
    p_value         probability of a mean as small as ``own``, if the runs converge like the reference
    passed          whether own ≥ limit
    scale           factor of the score: max(1, mean / own)
    """

    reference_runs: int
    required: int
    mean: float
    limit: float
    own: float
    p_value: float
    passed: bool
    scale: float

    @property
    def is_provisional(self) -> bool:
        """Whether there are fewer reference runs than the rules require."""
        return self.reference_runs < self.required


def convergence(own: Sequence[float], reference: Sequence[float], required_runs: int) -> Convergence:
    """Compare samples to the target of N runs with those of the reference.

    own        one per run; infinity for at most one failed run
    reference  of the same batch size

    Raises ValueError if one of both has fewer than 3 values, of which the extremes are left out.
    """
    for name, values in (("runs", own), ("reference runs", reference)):
        if len(values) < 3:
            raise ValueError(
                f"the convergence test needs at least 3 {name} of the same batch size; found {len(values)}"
            )
    mean = _mean_without_extremes(reference)
    everything = sum(reference) / len(reference)
    deviation = math.sqrt(sum((value - everything) ** 2 for value in reference) / len(reference))
    n, r = len(own) - 2, len(reference) - 2
    spread = deviation * math.sqrt(1 / r + 1 / n)
    freedom = r + n - 2
    own_mean = _mean_without_extremes(own)
    if spread == 0 or freedom < 1:
        limit, p_value = mean, 1.0 if own_mean >= mean else 0.0
    else:
        from scipy.stats import t as student

        limit = max(0.0, mean + float(student.ppf(ALPHA, freedom)) * spread)
        p_value = float(student.cdf((own_mean - mean) / spread, freedom))
    return Convergence(
        reference_runs=len(reference), required=2 * required_runs, mean=mean, limit=limit, own=own_mean,
        p_value=p_value, passed=own_mean >= limit, scale=max(1.0, mean / own_mean),
    )  # fmt: skip


def _mean_without_extremes(values: Sequence[float]) -> float:
    inner = sorted(values)[1:-1]
    return sum(inner) / len(inner)
