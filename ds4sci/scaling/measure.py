"""Measurement of scaling: trainings of a run file on several numbers of ranks, started by the ordinary launcher.

The trainings alternate: in each repeat every mode and number of ranks runs once. Every rank has the same number of
threads in all of them. The first steps are left out; a figure is the median over the repeats of the median step.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ds4sci.config.run_file import RunConfig
from ds4sci.machine import provenance
from ds4sci.machine.processor import usable_cores
from ds4sci.report.run_artifacts import read_artifacts
from ds4sci.scaling import logs, model_flops
from ds4sci.scaling.batch_plan import MODES, BatchPlan, Mode, plan, write_deepspeed
from ds4sci.scaling.logs import Repeat, ScalingLog
from ds4sci.scaling.workload import dtype
from ds4sci.train import launch

Log = Callable[[str], None]
SET_BY_THE_COMMAND = (
    "train.steps", "train.name", "train.output", "train.log_every", "train.evaluate_every", "train.save_every",
    "train.time_collectives", "train.monitor_seconds",
)  # fmt: skip
"""Keys that a measurement sets itself."""


@dataclass(frozen=True)
class MeasurementPlan:
    """What to measure.

    config      path of the run file
    overrides   ``key=value`` over it
    ranks       numbers of ranks
    out         folder of logs and runs
    modes       ``strong``, ``weak``
    steps       steps to time in each training, after ``warmup`` steps
    repeats     trainings of each mode and number of ranks
    batch       global batch of strong scaling, None for that of the DeepSpeed JSON
    per_rank    batch of a data-parallel rank in weak scaling, None for one micro-batch
    threads_per_rank  threads of a rank, None for the cores divided by the largest number of ranks with a core each
    """

    config: Path | str
    overrides: tuple[str, ...]
    ranks: tuple[int, ...]
    out: Path
    modes: tuple[Mode, ...] = MODES
    steps: int = 10
    warmup: int = logs.WARMUP
    repeats: int = 3
    batch: int | None = None
    per_rank: int | None = None
    threads_per_rank: int | None = None

    def __post_init__(self) -> None:
        if not self.ranks or min(self.ranks) < 1 or len(set(self.ranks)) < len(self.ranks):
            raise ValueError(
                f"--ranks {','.join(map(str, self.ranks))}: expected different numbers above 0, such as 1,2,4"
            )
        for override in self.overrides:
            key = override.partition("=")[0].strip()
            if key in SET_BY_THE_COMMAND:
                raise ValueError(f"override {override!r}: a measurement sets {key} itself; remove it")

    def load(self) -> RunConfig:
        """The run file with the overrides."""
        return RunConfig.load(self.config, self.overrides)

    def batches(self) -> list[BatchPlan]:
        """The trainings of one repeat. Raises ValueError for batches that do not divide."""
        config = self.load()
        given = {"strong": self.batch, "weak": self.per_rank}
        return [plan(config, mode, ranks, batch=given[mode]) for mode in self.modes for ranks in self.ranks]

    @property
    def threads(self) -> int:
        """Threads of a rank, the same in all trainings."""
        if self.threads_per_rank is not None:
            return self.threads_per_rank
        fitting = [ranks for ranks in self.ranks if ranks <= usable_cores()]
        return max(1, usable_cores() // max(fitting, default=usable_cores()))


def slots() -> int:
    """Ranks that this machine runs without sharing: its GPUs, or its cores."""
    import torch

    return torch.cuda.device_count() or usable_cores()


def measure(what: MeasurementPlan, log: Log, *, command: str = "") -> list[ScalingLog]:
    """Run the trainings, and write ``OUT/MODE_RANKS.json`` for each mode and number of ranks after every repeat.

    Raises ValueError before anything starts for settings that cannot run, and RuntimeError with the log file of a
    training that failed. Logs in OUT of an earlier measurement are replaced.
    """
    config, batches = what.load(), what.batches()
    found: dict[str, ScalingLog] = {}
    flops = model_flops.count(config, batches[0].micro)
    per_sample, peak = flops / batches[0].micro, _peak(what.threads, config)
    log(
        f"{config.task.name}: {per_sample / 1e9:.4g} GFLOP per sample, peak of a rank "
        + ("unknown" if peak is None else f"{peak / 1e9:.3g} GFLOP/s")
    )
    for turn in range(what.repeats):
        for one in batches:
            repeat, memory = _train(what, config, one, turn)
            before = found.get(one.name)
            if before is None:
                before = ScalingLog(
                    one.mode, Path(what.config).stem, logs.fingerprint(config.resolved()), one.ranks, one.batch,
                    one.micro, one.accumulation, [], 0.0, what.threads, slots(), min(one.ranks, slots()),
                    per_sample * one.batch, peak, dtype(config.deepspeed_config()), provenance.describe(),
                    time.strftime("%Y-%m-%d"), command,
                )  # fmt: skip
            made = replace(
                before, repeats=[*before.repeats, repeat], memory_mb=max(before.memory_mb, memory),
                file=str(what.out / f"{one.name}.json"),
            )  # fmt: skip
            found[one.name] = made
            made.save(Path(made.file))
            label = ", oversubscribed" if made.is_oversubscribed else ""
            log(
                f"repeat {turn + 1}/{what.repeats}, {one.mode} scaling on {one.ranks} ranks{label}: "
                f"{made.seconds:.4g} s per step"
            )
    return list(found.values())


def _train(what: MeasurementPlan, config: RunConfig, one: BatchPlan, turn: int) -> tuple[Repeat, float]:
    """Train once. Returns the step times and the largest peak memory of a rank in MB."""
    name = f"{one.name}_{turn}"
    runs = what.out / "runs"
    run = runs / name
    if run.exists():  # of an earlier measurement: it would be resumed, and do no steps
        shutil.rmtree(run)
    json_file = write_deepspeed(config, one, what.out / "deepspeed")
    settings = [
        *what.overrides, f"train.steps={what.warmup + what.steps}", f"train.output={json.dumps(str(runs))}",
        f"train.name={name}", "train.log_every=1", "train.evaluate_every=0", "train.save_every=0",
        "train.time_collectives=true", "train.monitor_seconds=0.0",
    ]  # fmt: skip
    arguments = ["--config", str(what.config), "--deepspeed_config", str(json_file), *settings]
    variables = launch.rank_environment(one.ranks) | {"OMP_NUM_THREADS": str(what.threads)}
    output = what.out / "runs" / f"{name}.log"
    output.parent.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    (code,) = launch.run_launchers([launch.Launch(launch.launcher_command(one.ranks, arguments), variables, output)])
    if code:
        lines = [line for line in output.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        raise RuntimeError(
            f"the training on {one.ranks} ranks ended with code {code}: {(lines or ['no output'])[-1]} (see {output})"
        )
    artifacts = read_artifacts(run)
    seconds, communication = logs.step_seconds(artifacts.train, artifacts.evaluations, what.warmup)
    if not seconds:
        raise RuntimeError(f"{run}: no step was timed; see {output}")
    shutil.rmtree(run / "checkpoints", ignore_errors=True)  # of no use, and large
    return Repeat(seconds, communication, load), max(float(line["memory_mb"]) for line in artifacts.train)


def _peak(threads: int, config: RunConfig) -> float | None:
    """Peak FLOP/s of a rank in the dtype of the run: on a CPU the register-only rate of its threads."""
    import torch

    from ds4sci.kernels import machine_peak
    from ds4sci.kernels.native import BuildError

    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    kind = kinds.get(dtype(config.deepspeed_config()), torch.float32)
    if torch.cuda.is_available():
        return machine_peak.peak_rate(torch.device("cuda"), kind)
    try:
        return machine_peak.fma_rate(threads, kind)
    except BuildError:
        return None
