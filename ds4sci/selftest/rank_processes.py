"""Ranks without a launcher: processes of this machine that call a function, with a time limit.

Without a GPU they are forked from a server that has imported torch and DeepSpeed once. A process that CUDA has been
initialised in cannot be forked, so that with GPUs every rank starts as a new interpreter.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ds4sci.train.distributed import free_port, rank_variables

PRELOADED = [
    "ds4sci.train.run", "deepspeed", "deepspeed.runtime.zero.muon.muon_optimizer",
    "ds4sci.tasks.masked_lm", "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto",
]  # fmt: skip
"""Modules that the server imports; otherwise every rank would. ``deepspeed.initialize`` imports the third, and with it
torch's compiler; building a language model imports the last ones."""


class RankFailure(RuntimeError):
    """A rank raised an error, died, or did not end in time."""


def call(
    size: int,
    target: Callable[..., None],
    arguments: Sequence[str],
    folder: Path,
    *,
    seconds: float,
    gpus: bool = False,
) -> None:
    """Call ``target(*arguments)`` on ``size`` ranks, and wait for them. No process is left behind.

    folder   where their output is written
    seconds  time limit
    gpus     whether the ranks use GPUs

    Raises RankFailure with the rank, its exit code and the end of its output.
    """
    context: Any = multiprocessing.get_context("spawn" if gpus else "forkserver")
    if not gpus:
        context.set_forkserver_preload(PRELOADED)
    port, logs = free_port(), [folder / f"rank{rank}.log" for rank in range(size)]
    processes: list[Any] = []
    try:
        for rank in range(size):
            without_gpu = {} if gpus else {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
            variables = dict(os.environ) | rank_variables(rank, size, port) | without_gpu
            process = context.Process(target=_rank, args=(target, tuple(arguments), variables, str(logs[rank])))
            process.start()
            processes.append(process)
        end = time.monotonic() + seconds
        failed: float | None = None
        while any(p.is_alive() for p in processes):
            now = time.monotonic()
            if failed is None and any(p.exitcode for p in processes):
                failed = now + 2.0  # the others notice the lost connection, or wait for it without end
            if now > end or (failed is not None and now > failed):
                break
            time.sleep(0.02)
        codes = [p.exitcode for p in processes]
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
    if any(code != 0 for code in codes):
        raise RankFailure(_describe(codes, logs, seconds))


def _describe(codes: list[int | None], logs: list[Path], seconds: float) -> str:
    """Return which rank failed first, and the end of its output: an error before a death, a death before a wait."""
    order = {True: 0, False: 1}
    rank = min(
        (r for r, code in enumerate(codes) if code != 0),
        key=lambda r: 2 if codes[r] is None else order[(codes[r] or 0) > 0],
    )
    code = codes[rank]
    happened = f"did not end within {seconds:.0f} s" if code is None else f"ended with exit code {code}"
    text = logs[rank].read_text(encoding="utf-8", errors="replace") if logs[rank].exists() else ""
    last = "\n".join(text.strip().splitlines()[-12:])
    return f"rank {rank} {happened}: {last or 'no output'}"


def _rank(target: Callable[..., None], arguments: tuple[str, ...], variables: dict[str, str], log: str) -> None:
    """Program of one rank."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.clear()
    os.environ.update(variables)
    from ds4sci.train.__main__ import exit_process

    code = 0
    try:
        target(*arguments)
    except BaseException:
        traceback.print_exc()
        code = 1
    exit_process(code)
