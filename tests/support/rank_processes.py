"""Ranks for tests without a launcher: processes forked from a server that has imported torch, DeepSpeed and the
transformers models under test.

A two-rank run takes about a second instead of fifteen.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path

from ds4sci.selftest import rank_processes
from ds4sci.train.distributed import free_port, rank_variables

ROOT = Path(__file__).resolve().parents[2]
_environment = dict(os.environ)  # at import, before a test changes it: the server keeps the environment it starts with
_server = multiprocessing.get_context("forkserver")
PRELOADED = [
    # deepspeed.initialize imports muon_optimizer, and with it torch's compiler, which takes four seconds; building a
    # language model imports the others, which takes four seconds as well
    "deepspeed", "ds4sci.train.run", "ds4sci.train.checkpoint_engine", "deepspeed.runtime.zero.muon.muon_optimizer",
    "ds4sci.tasks.masked_lm", "ds4sci.data.tokenizers", "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto", "transformers.models.esm.modeling_esm",
    "transformers.models.llama.modeling_llama", "Bio.Align",
]  # fmt: skip
_server.set_forkserver_preload(PRELOADED)
rank_processes.PRELOADED = PRELOADED  # the server is shared with the ranks of ds4sci.selftest


def forked_from_server(method: str = "") -> BaseContext:
    """Replacement of ``multiprocessing.get_context``: processes start in a second, with everything imported."""
    return _server


@dataclass(frozen=True)
class RankResults:
    """Exit codes of the ranks (−n: killed by signal n), and the output of each, stdout and stderr together."""

    codes: list[int | None]
    outputs: list[str]

    @property
    def output(self) -> str:
        return "".join(self.outputs)


class RankProcesses:
    """``size`` ranks running ``python -m ds4sci.train *arguments`` in ``folder``."""

    def __init__(
        self,
        size: int,
        arguments: list[str],
        folder: Path,
        environment: dict[str, str] | None = None,
        *,
        launcher: bool = True,
        target: Callable[..., None] | None = None,
    ) -> None:
        """Start the ranks.

        launcher  whether to set the environment variables that a launcher sets
        target    function to call with ``arguments`` instead of running ``ds4sci.train``
        """
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        port = free_port()
        self.logs = [folder / f".rank{rank}.log" for rank in range(size)]
        self.processes = []
        for rank in range(size):
            launched = rank_variables(rank, size, port) if launcher else {}
            variables = _environment | {"OMP_NUM_THREADS": "1"} | launched | (environment or {})
            self.environment = variables
            process = _server.Process(
                target=_rank, args=(arguments, str(folder), variables, str(self.logs[rank]), target)
            )
            process.start()
            self.processes.append(process)

    def wait_for(self, condition: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until ``condition`` holds. Fails if the ranks end first or the time is up."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "the condition did not hold in time:\n" + self._outputs_text()
            assert any(p.is_alive() for p in self.processes), "the ranks ended first:\n" + self._outputs_text()
            time.sleep(0.02)

    def join(self, seconds: float = 90) -> RankResults:
        """Wait for all ranks to end. Ranks that take longer are killed and fail the test."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        late = [p for p in self.processes if p.is_alive()]
        for process in late:
            process.kill()
            process.join()
        assert not late, f"{len(late)} ranks still ran after {seconds} s:\n" + self._outputs_text()
        return RankResults([p.exitcode for p in self.processes], [log.read_text() for log in self.logs])

    def _outputs_text(self) -> str:
        return "".join(log.read_text() for log in self.logs if log.exists())


def run(
    size: int,
    arguments: list[str],
    folder: Path,
    *,
    environment: dict[str, str] | None = None,
    launcher: bool = True,
    code: int | None = 0,
) -> RankResults:
    """Run the ranks to their end; every rank must exit with ``code``, or with any code if it is None."""
    ended = RankProcesses(size, arguments, folder, environment, launcher=launcher).join()
    if code is not None:
        assert ended.codes == [code] * size, f"exit codes {ended.codes}:\n{ended.output}"
    return ended


def call(
    size: int, target: Callable[..., None], arguments: list[str], folder: Path, *, seconds: float = 90
) -> RankResults:
    """Call ``target(*arguments)`` on every rank; all must succeed."""
    ended = RankProcesses(size, arguments, folder, target=target).join(seconds)
    assert ended.codes == [0] * size, f"exit codes {ended.codes}:\n{ended.output}"
    return ended


def _rank(
    arguments: list[str], folder: str, variables: dict[str, str], log: str, target: Callable[..., None] | None
) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from ds4sci.train.__main__ import exit_process, main

    if target is not None:
        try:
            target(*arguments)
        except BaseException:
            traceback.print_exc()
            exit_process(1)
    exit_process(main(arguments) if target is None else 0)
