"""Trainings of a workload to its target: several seeds one after another, or many instances at the same time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ds4sci.config.run_file import RunConfig
from ds4sci.machine.processor import usable_cores
from ds4sci.train import launch, run_folder
from ds4sci.workloads.registry import Workload
from ds4sci.workloads.results import RunOutcome, read_outcome

Log = Callable[[str], None]

SETTINGS_OF_THE_COMMAND = {
    "seed": "--seed", "train.output": "--out", "train.name": "--out (the run is OUT/NAME/seed_N)",
}  # fmt: skip
"""Keys that ``ds4sci bench run`` sets itself → its option."""


@dataclass(frozen=True)
class Plan:
    """The runs of a workload.

    out         folder of all workloads; a run is ``OUT/NAME/seed_N``
    seeds       one run each
    overrides   ``key=value`` over the run file
    deepspeed   DeepSpeed JSON that replaces that of the run file
    """

    workload: Workload
    out: Path
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()
    deepspeed: Path | None = None

    def __post_init__(self) -> None:
        for override in self.overrides:
            key = override.partition("=")[0].strip()
            if key in SETTINGS_OF_THE_COMMAND:
                raise ValueError(f"override {override!r}: use the option {SETTINGS_OF_THE_COMMAND[key]} instead")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"--seed: {', '.join(map(str, self.seeds))}: every run needs a seed of its own")

    @property
    def folder(self) -> Path:
        """Folder of the runs."""
        return self.out / self.workload.name

    def run(self, seed: int) -> Path:
        """Folder of the run with this seed."""
        return self.folder / f"seed_{seed}"

    def settings(self, seed: int) -> list[str]:
        """Overrides of the run with this seed."""
        names = (f"train.output={json.dumps(str(self.folder))}", f"train.name=seed_{seed}")
        return [*self.overrides, f"seed={seed}", *names]

    def config(self, seed: int) -> RunConfig:
        """Configuration of the run with this seed."""
        return RunConfig.load(self.workload.file, self.settings(seed), deepspeed=self.deepspeed)


def train_seeds(plan: Plan, *, ranks: int | None, log: Log) -> list[RunOutcome]:
    """Train the seeds one after another. A stop request, such as Ctrl-C, ends the list."""
    outcomes = []
    for seed in plan.seeds:
        log(f"{plan.workload.name}, seed {seed}: {plan.run(seed)}")
        code = launch.train(
            plan.workload.file, plan.settings(seed), deepspeed_config=plan.deepspeed, ranks=ranks
        )  # fmt: skip
        outcome = read_outcome(plan.run(seed))
        outcomes.append(outcome)
        if code == 0 and outcome.outcome == "stopped":
            break
    return outcomes


def train_instances(plan: Plan, *, ranks: int | None, log: Log) -> tuple[list[RunOutcome], float]:
    """Train all seeds at the same time, each on an equal part of the ranks. Returns also the seconds of wall time.

    ranks  ranks in all, a multiple of the number of seeds; by default one per GPU, or on a CPU one per instance, at
           least two

    The output of an instance goes to ``OUT/NAME/seed_N.log``. An instance that fails does not end the others. Raises
    ValueError, before any process starts, for settings that cannot be used and for ranks that cannot be divided.
    """
    count = len(plan.seeds)
    gpus = gpu_count()
    total = ranks or (gpus or max(launch.default_rank_count(), count))
    if total % count:
        raise ValueError(f"{total} ranks cannot be divided among {count} instances; give --ranks a multiple of {count}")
    each = total // count
    if gpus and total > gpus:
        raise ValueError(f"{count} instances of {each} ranks need {total} GPUs; this machine has {gpus}")
    for seed in plan.seeds:
        run_folder.refuse_other_settings(plan.config(seed), plan.run(seed))
    plan.folder.mkdir(parents=True, exist_ok=True)
    variables = launch.rank_environment(total)  # the cores are divided among the ranks of all instances
    launches = []
    for number, seed in enumerate(plan.seeds):
        arguments = ["--config", str(plan.workload.file)]
        arguments += ["--deepspeed_config", str(plan.deepspeed)] if plan.deepspeed is not None else []
        arguments += plan.settings(seed)
        devices = range(number * each, (number + 1) * each) if gpus else ()
        file = plan.folder / f"seed_{seed}.log"
        launches.append(launch.Launch(launch.launcher_command(each, arguments, devices), dict(variables), file))
        log(f"{plan.workload.name}, seed {seed}: {plan.run(seed)}, log {file}")
    log(f"{count} instances with {each} rank{'s' * (each > 1)} each, {usable_cores()} cores")
    began = time.monotonic()
    codes = launch.run_launchers(launches)
    seconds = time.monotonic() - began
    outcomes = []
    for seed, code, one in zip(plan.seeds, codes, launches, strict=True):
        if code:
            log(f"seed {seed} FAILED with exit code {code}: {_last_error(one.log)}")
        if (plan.run(seed) / "config.json").is_file():
            outcomes.append(read_outcome(plan.run(seed)))
    return outcomes, seconds


def gpu_count() -> int:
    """Number of GPUs that torch can use."""
    import torch

    return torch.cuda.device_count()


def _last_error(file: Path | None) -> str:
    """The last line of a log that begins with ``error:``, or its last line."""
    assert file is not None
    lines = [line for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error:")]
    return f"{(errors or lines or ['no output'])[-1].removeprefix('error: ')} (see {file})"
