"""The run folder: creation, use of an existing one, and its lock."""

from __future__ import annotations

import json
import os
import socket
import time
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from ds4sci.config.run_file import RunConfig
from ds4sci.config.settings_difference import differences
from ds4sci.files.atomic_files import replace_text
from ds4sci.files.locks import exclusive_or_raise
from ds4sci.machine import provenance
from ds4sci.train import checkpoint, failures
from ds4sci.train.distributed import DistributedContext, may_be_restarted

LOCK_SECONDS = 30.0
"""How long a run waits for its lock: a killed rank 0 may take seconds to end."""


@dataclass(frozen=True)
class RunFolder:
    """A run folder that is ready for training.

    is_resumed  whether it has checkpoints, from the newest of which the run continues
    attempt     number of this start of the run, from 0
    """

    run: Path
    is_resumed: bool
    attempt: int


def prepare(config: RunConfig, resume: Path | None, context: DistributedContext, lock: ExitStack) -> RunFolder:
    """Create the run folder, or use the existing folder ``resume`` or that of ``train.name``.

    Rank 0 takes the lock, which ``lock`` holds, and writes the resolved config of a new run and ``machine.json``.
    Raises ValueError on every rank if a folder of that name has other settings or is used by another process.
    """
    problem, folder = "", RunFolder(Path(), False, 0)
    if context.is_main:
        try:
            folder = _prepare(config, resume, lock)
        except (OSError, ValueError) as error:
            problem = str(error)
    problem, folder = context.broadcast((problem, folder))
    if problem:
        raise ValueError(problem)
    return folder


def _prepare(config: RunConfig, resume: Path | None, lock: ExitStack) -> RunFolder:
    if resume is None and config.train.name is None and may_be_restarted():
        raise ValueError(f"{config.source}: train.name is missing; a restart finds the run folder by its name")
    run = resume or folder_of(config)
    if resume is None:
        refuse_other_settings(config, run)
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    _take_lock(run, lock)
    is_resumed = resume is not None or bool(checkpoint.checkpoint_steps(run))
    (run / "error.txt").unlink(missing_ok=True)
    if not is_resumed:
        config.save(run)
    replace_text(run / "machine.json", json.dumps(provenance.describe(), indent=2) + "\n")
    return RunFolder(run, is_resumed, failures.begin_attempt(run))


def check_fixed_inputs(run: Path, inputs: dict[str, str], context: DistributedContext, *, is_resumed: bool) -> None:
    """Record ``inputs`` (``Task.fixed_inputs``) when a run starts, and compare them when it is resumed.

    Raises ValueError on every rank if they differ.
    """
    file, problem = run / "inputs.json", ""
    if context.is_main and is_resumed:
        before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        changed = [key for key in {**before, **inputs} if before.get(key) != inputs.get(key)]
        if changed:
            key = changed[0]
            problem = (
                f"{run}: {key} has changed since the run began: it was {before.get(key, 'absent')} and is "
                f"{inputs.get(key, 'absent')}; restore it, or start a new run with another train.name"
            )
    elif context.is_main and inputs:
        replace_text(file, json.dumps(inputs, indent=1) + "\n")
    if problem := context.broadcast(problem):
        raise ValueError(problem)


def folder_of(config: RunConfig) -> Path:
    """Return the folder of a run: ``train.name``, or a new name from the run file and the time."""
    return config.train.output / (config.train.name or new_name(config))


def new_name(config: RunConfig) -> str:
    """Return a name for a run that has none: that of the run file and the time."""
    return f"{config.source.stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def refuse_other_settings(config: RunConfig, run: Path) -> None:
    """Raise ValueError, naming the keys, if ``run`` is a run that has begun with other settings than ``config``.

    A run whose start failed, for example because of a wrong setting, has not begun.
    """
    if not (run / "metrics.jsonl").exists() and not checkpoint.checkpoint_steps(run):
        return
    if config.train.name is None:
        raise ValueError(f"{run}: this run exists already; choose a train.name")
    found = differences(RunConfig.load(run / "config.json"), config)
    if found:
        more = f" and {len(found) - 6} more" if len(found) > 6 else ""
        raise ValueError(
            f"{run}: this run exists already, with other settings: {'; '.join(found[:6])}{more}. Choose another "
            f"train.name for a new run, or change settings of this one, except its model, batch size, optimizer and "
            f"schedule, with: ds4sci train --resume {run} [--deepspeed_config JSON] KEY=VALUE"
        )


def _take_lock(run: Path, lock: ExitStack) -> None:
    """Hold ``RUN/.lock``. Raises ValueError if another process still holds it after ``LOCK_SECONDS``."""
    file, end, is_told = run / ".lock", time.monotonic() + LOCK_SECONDS, False
    while True:
        try:
            lock.enter_context(exclusive_or_raise(file))
            break
        except BlockingIOError:
            owner = file.read_text(encoding="utf-8").strip()
            if time.monotonic() > end:
                raise ValueError(
                    f"{run}: another process trains this run ({owner}); stop it, or choose another train.name"
                ) from None
            if not is_told:
                print(f"Waiting up to {LOCK_SECONDS:.0f} s for {owner}, which uses {run}", flush=True)
            is_told = True
            time.sleep(0.25)
        except OSError as error:  # some network file systems have no locks
            warnings.warn(f"{file}: no lock ({error}); do not start this run twice", stacklevel=2)
            return
    file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")
