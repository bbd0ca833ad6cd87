"""Start the ranks of a run: DeepSpeed's launcher as a child process, one rank for each GPU, or a few on a CPU.

Ctrl-C and SIGTERM reach the ranks as SIGTERM, so that they stop together at the end of a step, save, and leave; the
launcher itself is told nothing, for it would give a rank 30 s and then kill it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import psutil

from ds4sci.config.run_file import RunConfig
from ds4sci.machine.processor import usable_cores
from ds4sci.train.distributed import free_port

MODULE = "ds4sci.train"


def train(
    config: Path | str | None,
    overrides: Sequence[str] = (),
    *,
    resume: Path | None = None,
    deepspeed_config: Path | None = None,
    ranks: int | None = None,
) -> int:
    """Train what the run file ``config`` says, or go on with the run ``resume``; returns the exit code.

    0: finished, or stopped in order after saving. The config is checked here first: what is wrong with it is a
    ValueError before anything starts.
    """
    arguments = []
    if resume is not None:
        RunConfig.load(config_of_run(resume), list(overrides), deepspeed=deepspeed_config)
        arguments += ["--resume", str(resume)]
    else:
        assert config is not None, "config or resume"
        RunConfig.load(config, list(overrides), deepspeed=deepspeed_config)
        arguments += ["--config", str(config)]
    if deepspeed_config is not None:
        arguments += ["--deepspeed_config", str(deepspeed_config)]
    return run_launcher(
        launcher_command(ranks or default_rank_count(), [*arguments, *overrides]),
        rank_environment(ranks or default_rank_count()),
    )


def config_of_run(run: Path) -> Path:
    """The resolved config of a run folder. Raises ValueError when it is no run folder."""
    file = run / "config.json"
    if not file.is_file():
        raise ValueError(f"{run}: no run folder (it has no config.json); a run is what `ds4sci train` made in runs/")
    return file


def default_rank_count() -> int:
    """One for each GPU; two on a CPU with two cores or more."""
    import torch

    return torch.cuda.device_count() or min(2, usable_cores())


def launcher_command(ranks: int, arguments: Sequence[str]) -> list[str]:
    """The command line that starts ``ranks`` ranks of ``python -m ds4sci.train``."""
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(ranks)]
    return [*launcher, "--master_port", str(free_port()), "--log_level", "error", "--module", MODULE, *arguments]


def rank_environment(ranks: int) -> dict[str, str]:
    """This environment, with each rank's share of the cores, and DeepSpeed told of a CPU instead of warning of it."""
    import torch

    variables = dict(os.environ)
    variables.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // ranks)))
    if not torch.cuda.is_available():
        variables.setdefault("DS_ACCELERATOR", "cpu")
    return variables


def run_launcher(arguments: list[str], variables: dict[str, str]) -> int:
    """Run the launcher to its end, passing signals on to the ranks; returns its exit code (128 + n for signal n)."""
    # A process group of its own: the terminal's Ctrl-C comes to us alone.
    child = subprocess.Popen(arguments, env=variables, stdin=subprocess.DEVNULL, process_group=0)
    asked = 0

    def forward_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        processes = psutil.Process(child.pid).children(recursive=True) if child.poll() is None else []
        ranks = [p for p in processes if is_rank(p)]
        if asked == 1 and ranks:
            print("\nStopping after this step; a second Ctrl-C ends it without saving …", flush=True)
            send_signal(ranks, signal.SIGTERM)
        else:
            send_signal([*processes, psutil.Process(child.pid)] if child.poll() is None else [], signal.SIGKILL)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, forward_signal) for number in numbers}
    try:
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def is_rank(process: psutil.Process) -> bool:
    """Whether ``process`` is a rank, and not the launcher or a worker of a rank."""
    try:
        line = process.cmdline()
    except psutil.Error:
        return False
    return MODULE in line and "deepspeed.launcher.launch" not in line and any("local_rank" in a for a in line)


def send_signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to those that are still there."""
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue
