"""Start of the ranks of a run: DeepSpeed's launcher, or torchelastic's agent for runs that restart, as a child process.

Ctrl-C and SIGTERM are forwarded to the ranks as SIGTERM, so that they stop together at the end of a step, save and
exit. DeepSpeed's launcher does not get the signal: it would kill its ranks 30 s later. The agent gets and forwards it,
since it would restart ranks that a signal ends before their first step.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from ds4sci.config.run_file import RunConfig
from ds4sci.config.task_module import import_task
from ds4sci.machine.processor import usable_cores
from ds4sci.train.distributed import free_port

MODULE, AGENT = "ds4sci.train", "ds4sci.train.agent"


@dataclass(frozen=True)
class Launch:
    """A launcher process to start.

    command    its command line
    variables  its environment
    log        file of its output; None: the output of this process
    """

    command: list[str]
    variables: dict[str, str]
    log: Path | None = None


def train(
    config: Path | str | None,
    overrides: Sequence[str] = (),
    *,
    resume: Path | None = None,
    deepspeed_config: Path | None = None,
    ranks: int | None = None,
    restarts: int = 0,
) -> int:
    """Train by the run file ``config``, or resume the run folder ``resume``. Returns the exit code.

    ranks     number of ranks; by default one per GPU, or two on a CPU
    restarts  how often ranks that fail are started again without a new checkpoint in between

    The exit code is 0 if the run finished or stopped in order after saving. The configuration is validated before any
    process starts: an error in it, other settings than those of an existing run of that name, or data files that
    ``check_data`` of the task refuses, is a ValueError.
    """
    from ds4sci.train import run_folder  # imports torch

    arguments = []
    if resume is not None:
        loaded = RunConfig.load(config_of_run(resume), list(overrides), deepspeed=deepspeed_config)
        arguments += ["--resume", str(resume)]
    else:
        assert config is not None, "config or resume"
        loaded = RunConfig.load(config, list(overrides), deepspeed=deepspeed_config)
        arguments += ["--config", str(config)]
        if loaded.train.name is not None:
            run_folder.refuse_other_settings(loaded, run_folder.folder_of(loaded))
        elif restarts:
            overrides = [*overrides, f"train.name={run_folder.new_name(loaded)}"]  # every start uses the same folder
    import_task(loaded.task.name).check_data(loaded.settings)
    if deepspeed_config is not None:
        arguments += ["--deepspeed_config", str(deepspeed_config)]
    ranks, arguments = ranks or default_rank_count(), [*arguments, *overrides]
    command = agent_command(ranks, restarts, arguments) if restarts else launcher_command(ranks, arguments)
    return run_launcher(command, rank_environment(ranks), signal_child=bool(restarts))


def config_of_run(run: Path) -> Path:
    """Return the resolved configuration of a run folder. Raises ValueError if ``run`` is not a run folder."""
    file = run / "config.json"
    if (run / "manifest.json").is_file():
        owner = run.resolve().parent.parent
        raise ValueError(f"{run}: a checkpoint, not a run folder; expected the folder of its run, such as {owner}")
    if not file.is_file():
        raise ValueError(
            f"{run}: not a run folder (config.json is missing); expected one made by `ds4sci train`, such as runs/NAME"
        )
    return file


def default_rank_count() -> int:
    """Return the number of GPUs, or without a GPU 2 on a CPU with two or more cores."""
    import torch

    return torch.cuda.device_count() or min(2, usable_cores())


def launcher_command(ranks: int, arguments: Sequence[str], gpus: Sequence[int] = ()) -> list[str]:
    """Return the command that starts ``ranks`` ranks of ``python -m ds4sci.train``.

    gpus  numbers of the GPUs of this machine to use, one per rank; by default the first ones
    """
    chosen = ["--include", f"localhost:{','.join(map(str, gpus))}"] if gpus else ["--num_accelerators", str(ranks)]
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", *chosen]
    return [*launcher, "--master_port", str(free_port()), "--log_level", "error", "--module", MODULE, *arguments]


def agent_command(ranks: int, restarts: int, arguments: Sequence[str]) -> list[str]:
    """Return the command that starts and restarts ``ranks`` ranks of ``python -m ds4sci.train`` on this machine."""
    agent = [sys.executable, "-m", AGENT, "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(ranks)]
    return [*agent, "--max-restarts", str(restarts), "-m", MODULE, *arguments]


def rank_environment(ranks: int) -> dict[str, str]:
    """Return this environment with OMP_NUM_THREADS per rank and, without a GPU, DS_ACCELERATOR=cpu."""
    import torch

    variables = dict(os.environ)
    variables.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // ranks)))
    if not torch.cuda.is_available():
        variables.setdefault("DS_ACCELERATOR", "cpu")
    return variables


def run_launcher(arguments: list[str], variables: dict[str, str], *, signal_child: bool = False) -> int:
    """Run one launcher with its output in this terminal, and return its exit code. See ``run_launchers``."""
    (code,) = run_launchers([Launch(arguments, variables)], signal_children=signal_child)
    return code


def run_launchers(launches: Sequence[Launch], *, signal_children: bool = False) -> list[int]:
    """Start the launchers together, forward signals to their ranks, and return the exit codes (128 + n for signal n).

    signal_children  whether the launchers forward signals themselves
    """
    children: list[subprocess.Popen[bytes]] = []
    signals_received = 0

    def forward_signal(number: int, frame: FrameType | None) -> None:
        nonlocal signals_received
        signals_received += 1
        running = [psutil.Process(child.pid) for child in children if child.poll() is None]
        processes = [process for child in running for process in child.children(recursive=True)]
        ranks = [p for p in processes if is_rank(p)]
        if ranks and signal_children:
            ranks = running
        if signals_received == 1 and ranks:
            print("\nStopping after this step; a second Ctrl-C kills the run without saving …", flush=True)
            send_signal(ranks, signal.SIGTERM)
        else:
            send_signal([*processes, *running], signal.SIGKILL)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, forward_signal) for number in numbers}
    try:
        with ExitStack() as files:
            for launch in launches:
                output = None if launch.log is None else files.enter_context(launch.log.open("wb"))
                # In its own process group, so that Ctrl-C in the terminal reaches only this process.
                children.append(
                    subprocess.Popen(
                        launch.command, env=launch.variables, stdin=subprocess.DEVNULL, stdout=output,
                        stderr=None if output is None else subprocess.STDOUT, process_group=0,
                    )
                )  # fmt: skip
            codes = [child.wait() for child in children]
    except BaseException:  # one could not be started, such as for want of memory
        for child in children:
            child.kill()
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return [code if code >= 0 else 128 - code for code in codes]


def is_rank(process: psutil.Process) -> bool:
    """Whether ``process`` is a rank, not the launcher or a worker of a rank."""
    try:
        line = process.cmdline()
    except psutil.Error:
        return False
    return MODULE in line and not {"deepspeed.launcher.launch", "deepspeed.launcher.runner", AGENT} & set(line)


def send_signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to the processes that still run."""
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue
