"""Check of a workload before it is run, and its datasets."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ds4sci.config import hyperparameters
from ds4sci.config.run_file import RunConfig, find_file
from ds4sci.datasets import store
from ds4sci.train import launch
from ds4sci.train.distributed import free_port, rank_variables
from ds4sci.workloads.registry import Workload

Log = Callable[[str], None]


@dataclass(frozen=True)
class Check:
    """One check: its name, and the problems that it found (none: passed)."""

    name: str
    problems: tuple[str, ...] = ()


def obtain_datasets(workload: Workload, log: Log) -> None:
    """Read and compare the datasets of ``workload`` with their sums, and make those that are absent or damaged.

    Raises ValueError if one cannot be obtained.
    """
    for name in workload.benchmark.datasets:
        store.get(name, log=lambda text, name=name: log(f"dataset {name}: {text}"))  # type: ignore[misc]


def verify(workload: Workload) -> Iterator[Check]:
    """Yield the checks of ``workload``; the last one trains one step and evaluates, if the others have passed."""
    passed = True
    for check in (
        Check("run file", tuple(_run_file(workload))),
        *(Check(f"dataset {name}", tuple(_dataset(name))) for name in workload.benchmark.datasets),
    ):
        passed = passed and not check.problems
        yield check
    if passed:
        yield Check("one training step and one evaluation", tuple(_one_step(workload)))


def _run_file(workload: Workload) -> Iterator[str]:
    """Problems of the run file: invalid keys, values that differ from its own reference hyperparameters."""
    try:
        config = RunConfig.load(workload.file)
    except ValueError as error:
        yield str(error)
        return
    for text in hyperparameters.differences(config):
        yield f"{workload.file}: its own setting differs from benchmark.hyperparameters: {text}"
    reference = workload.benchmark.reference
    if reference is not None:
        try:
            find_file(reference, near=workload.file, what="file of reference runs", option="benchmark.reference")
        except ValueError as error:
            yield str(error)


def _dataset(name: str) -> Iterator[str]:
    """Problems of a dataset, all of whose files are read."""
    try:
        state, folder = store.state(name)
        if state == "absent":
            yield f"not in {folder}; get it with: ds4sci data get {name}"
            return
        yield from (f"{text}; get it again with: ds4sci data get {name}" for text in store.verify(name))
    except (ValueError, OSError) as error:
        yield str(error)


def _one_step(workload: Workload) -> Iterator[str]:
    """Train one step on one rank in a temporary folder. The evaluation must have the metric and miss the target."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = (
            "train.steps=1", "train.evaluate_every=0", "train.save_every=0", f'train.output="{scratch}"',
            "train.name=verify",
        )  # fmt: skip
        command = [sys.executable, "-m", launch.MODULE, "--config", str(workload.file), *settings]
        variables = launch.rank_environment(1) | rank_variables(0, 1, free_port())
        done = subprocess.run(
            command, env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )  # fmt: skip
        if done.returncode:
            lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            errors = [line.removeprefix("error: ") for line in lines if line.startswith("error:")]
            yield "\n".join(errors or lines[-20:] or [f"exit code {done.returncode}"])
            return
        if "target reached" in done.stdout:
            benchmark = workload.benchmark
            yield (
                f"{workload.file}: the target {benchmark.metric} {benchmark.condition} is reached after one step; "
                "choose a target that needs training"
            )
        elif not Path(scratch, "verify", "checkpoints").is_dir():
            yield f"the run wrote no checkpoint; its output was:{os.linesep}{done.stdout}"
