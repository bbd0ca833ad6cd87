"""torchelastic's agent, which starts the ranks of this machine again after a failure.

``python -m ds4sci.train.agent FLAGS -m ds4sci.train --config CONFIG train.name=NAME`` takes the flags of ``torchrun``
and differs from it in what a restart is worth:

- ``--max-restarts N`` bounds the restarts without a new checkpoint in between, not those of the whole job;
- errors in settings, and too many non-finite steps, are not tried again;
- the exit code is that of the rank that failed, and 0 if SIGTERM stopped the ranks in order;
- the settings that restarts need are set, and the threads of a machine are divided among its ranks.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.distributed import run as torchrun
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher import api as launcher

from ds4sci.machine.processor import usable_cores
from ds4sci.train import __main__ as rank_program
from ds4sci.train import checkpoint, run_folder

FINAL = (rank_program.USER_ERROR, rank_program.NONFINITE)
"""Exit codes of ranks that are not started again."""

SHUTDOWN_SECONDS = 3600
"""Default of ``--shutdown-timeout``: how long the ranks may take to save after SIGTERM. torchrun allows 30 s."""


class Agent(LocalElasticAgent):
    """torchelastic's agent with the restarts counted since the newest checkpoint of the run folder ``run``.

    exit_code  of the rank that ended the run
    """

    def __init__(self, *arguments: Any, run: Path, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.run_folder, self.exit_code = run, 1
        self._newest = newest_step(run)

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.state == WorkerState.FAILED:
            self._decide(result)
        return result

    def _decide(self, result: RunResult) -> None:
        """Set the remaining restarts after a failure, and report it."""
        codes = {rank: failure.exitcode for rank, failure in result.failures.items()}
        final = [code for code in codes.values() if code in FINAL]
        self.exit_code = (final or list(codes.values()))[0]
        allowed = self._worker_group.spec.max_restarts
        newest = newest_step(self.run_folder)
        if newest > self._newest:
            self._newest, self._remaining_restarts = newest, allowed
        ends = ", ".join(f"rank {rank} {describe(code)}" for rank, code in list(codes.items())[:4])
        if final:
            self._remaining_restarts = 0
        elif self._remaining_restarts:
            where = f"the checkpoint of step {newest}" if newest >= 0 else "the beginning"
            number = allowed - self._remaining_restarts + 1
            say(f"{ends}; restarting from {where} (restart {number} of {allowed} without a new checkpoint)")
        elif allowed:
            say(f"{ends}; {allowed} restarts made no new checkpoint, giving up. See {self.run_folder}/failures.jsonl")

    def stopped_in_order(self) -> bool:
        """Whether all ranks ended with exit code 0 after a signal."""
        handlers = getattr(self._pcontext, "subprocess_handlers", {})
        return bool(handlers) and all(handler.proc.returncode == 0 for handler in handlers.values())


def newest_step(run: Path) -> int:
    """Return the step of the newest checkpoint of a run folder, or −1."""
    return max(checkpoint.checkpoint_steps(run), default=-1)


def describe(code: int) -> str:
    """Describe an exit code: ``was killed by SIGKILL`` or ``ended with exit code 1``."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def say(text: str) -> None:
    """Print ``text`` to stderr and flush."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the agent of this machine and return its exit code."""
    options = torchrun.parse_args(list(sys.argv[1:] if arguments is None else arguments))
    try:
        run = _run_folder(options.training_script_args)
    except ValueError as error:
        say(f"error: {error}")
        return rank_program.USER_ERROR
    # Otherwise the store of the first attempt serves the next one, which reads the addresses of dead ranks and waits.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_SECONDS))
    ranks = torchrun.determine_local_world_size(options.nproc_per_node)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // ranks)))
    if "LOGLEVEL" not in os.environ:
        logging.disable(logging.ERROR)  # the agent reports failures itself
    agents: list[Agent] = []

    def make(*positional: Any, **keywords: Any) -> Agent:
        agents.append(Agent(*positional, run=run, **keywords))
        return agents[0]

    launcher.LocalElasticAgent = make  # type: ignore[assignment, misc]
    try:
        torchrun.run(options)
    except SignalException as stopped:
        return 0 if agents and agents[0].stopped_in_order() else 128 + stopped.sigval
    except ChildFailedError:
        code = agents[0].exit_code
        return code if code >= 0 else 128 - code
    except RendezvousError as error:  # the agent of another machine has given up, or cannot be reached
        say(f"error: the agents of the machines cannot meet: {error}")
        return 1
    return 0 if agents[0].get_worker_group().state == WorkerState.SUCCEEDED else 1


def _run_folder(arguments: Sequence[str]) -> Path:
    """Return the run folder of the training program with ``arguments``, after checking its settings.

    Raises ValueError for an error in the settings, and for a run without a name, which a restart would not find.
    """
    options = rank_program.parse(arguments)
    config = rank_program.load(options)
    if options.resume is not None:
        return Path(options.resume)
    if config.train.name is None:
        raise ValueError(f"{config.source}: train.name is missing; a restart finds the run folder by its name")
    run = run_folder.folder_of(config)
    run_folder.refuse_other_settings(config, run)
    return run


if __name__ == "__main__":
    sys.exit(main())
