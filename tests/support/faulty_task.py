"""The toy task with faults: a rank kills or stops itself, or raises, in a given step and phase."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from ds4sci.train import watchdog
from tests.support import toy_task


class Fault(BaseModel):
    """One fault. It happens once, unless ``always``: the file ``fault_N`` in the working directory marks it as done."""

    model_config = ConfigDict(extra="forbid")
    rank: int
    step: int
    phase: Literal["step", "evaluate", "save"]
    kind: Literal["kill", "raise", "stop"]
    delay: float = 0.0
    """Seconds between the beginning of the phase and the signal."""
    always: bool = False


class Config(toy_task.Config):
    faults: tuple[Fault, ...] = ()


def build(config: Config, *, seed: int, steps: int) -> toy_task.ToyTask:
    """Return a toy task, and wrap ``watchdog.beat`` of this process so that the faults happen.

    The file ``trained_PID`` holds the time at which this process began its second step.
    """
    beat, rank, now = watchdog.beat, int(os.environ["RANK"]), {"phase": "start", "step": 0}
    begun: list[int] = []

    def beat_and_fail(phase: str | None = None, step: int | None = None) -> None:
        beat(phase, step)
        if phase == "step" and step is not None:
            begun.append(step)
            if len(begun) == 2:
                Path(f"trained_{os.getpid()}").write_text(str(time.time()), encoding="utf-8")
        now.update(phase=phase or now["phase"], step=now["step"] if step is None else step)
        for number, fault in enumerate(config.faults):
            if (fault.rank, fault.phase, fault.step) == (rank, now["phase"], now["step"]):
                _fail(fault, Path(f"fault_{number}"))

    watchdog.beat = beat_and_fail
    return toy_task.build(config, seed=seed, steps=steps)


def _fail(fault: Fault, mark: Path) -> None:
    try:
        mark.touch(exist_ok=fault.always)
    except FileExistsError:
        return
    mark.write_text(f"{os.getpid()} {time.time()}", encoding="utf-8")
    if fault.kind == "raise":
        raise RuntimeError("the faulty task broke on purpose")
    number = signal.SIGKILL if fault.kind == "kill" else signal.SIGSTOP

    def send(*arguments: Any) -> None:
        os.kill(os.getpid(), number)

    if fault.delay:
        threading.Timer(fault.delay, send).start()
    else:
        send()
