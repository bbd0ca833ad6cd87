"""Runner of the fuzz modules of this folder, in this process with a time limit or in a monitored process."""

from __future__ import annotations

import importlib
import multiprocessing
import pkgutil
import signal
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

LIMIT = 5.0
"""CPU seconds per input, after which it counts as a hang; waiting for a busy machine does not count."""


@dataclass(frozen=True)
class Failure:
    """An input ``data`` that caused a violation; ``rng(module, seed, number)`` reproduces it."""

    module: str
    seed: int
    number: int
    message: str
    data: bytes

    def save(self, folder: Path) -> Path:
        """Write the input, and the error message next to it."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.module}-{self.seed}-{self.number}"
        path.write_bytes(self.data)
        command = f"python -m tests.fuzz --only {self.module} --seed {self.seed} --first {self.number} --inputs 1"
        path.with_name(path.name + ".txt").write_text(f"{command}\n\n{self.message}\n", encoding="utf-8")
        return path


def modules(only: list[str] | None = None) -> dict[str, ModuleType]:
    """The fuzz modules of this folder, by name; with ``only``, these."""
    found = {}
    for info in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if info.name.startswith("__"):
            continue
        module = importlib.import_module(f"{__package__}.{info.name}")
        if hasattr(module, "inputs") and hasattr(module, "check"):
            found[info.name] = module
    unknown = set(only or ()) - set(found)
    if unknown:
        raise ValueError(f"no fuzz module {', '.join(sorted(unknown))}; expected one of {', '.join(found)}")
    return {name: module for name, module in found.items() if not only or name in only}


def rng(name: str, seed: int, number: int) -> np.random.Generator:
    """The random generator of input ``number`` of a module."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), number])


def attempt(
    name: str, module: Any, seed: int, number: int, *, on_input: Callable[[bytes], None] | None = None
) -> Failure | None:
    """Make and check one input within ``LIMIT`` seconds, after the module's ``prepare``, which has no time limit."""
    data = b""
    getattr(module, "prepare", lambda: None)()
    try:
        with _time_limit(LIMIT):
            data = module.inputs(rng(name, seed, number))
            if on_input is not None:
                on_input(data)
            module.check(data)
    except Exception:
        return Failure(name, seed, number, traceback.format_exc(), data)
    return None


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    def raise_timeout(signum: int, frame: Any) -> None:
        raise TimeoutError(f"took over {seconds} s")

    before = signal.signal(signal.SIGPROF, raise_timeout)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def run_isolated(
    name: str, seed: int, first: int, count: int, folder: Path, stop_after: int = 20
) -> tuple[int, list[Path]]:
    """Run ``count`` inputs of a module in a separate process; returns (inputs tried, failure files in ``folder``).

    If native code kills the process, or one input takes a minute, that input counts as a failure, and a new process
    continues with the next input. Stops after ``stop_after`` failures.
    """
    context = multiprocessing.get_context("spawn")
    folder.mkdir(parents=True, exist_ok=True)
    current = folder / f".{name}-{seed}.current"
    failed: list[Path] = []
    at, end = first, first + count
    while at < end and len(failed) < stop_after:
        progress = context.Value("q", at)
        process = context.Process(
            target=_work, args=(name, seed, at, end, progress, str(current), str(folder), stop_after - len(failed))
        )
        process.start()
        seen, since = -1, time.monotonic()
        while process.is_alive():
            process.join(0.2)
            if progress.value != seen:
                seen, since = progress.value, time.monotonic()
            # the first input includes the imports
            elif time.monotonic() - since > (12 * LIMIT if seen > at else 240):
                process.kill()
                process.join()
        failed = sorted(path for path in folder.glob(f"{name}-{seed}-*") if path.suffix != ".txt")
        if process.exitcode == 0:
            at = progress.value
            break
        message = f"the process was killed (exit code {process.exitcode}): a hang or a fault in native code"
        data = current.read_bytes() if current.exists() else b""
        failed.append(Failure(name, seed, progress.value, message, data).save(folder))
        at = progress.value + 1
    current.unlink(missing_ok=True)
    return at - first, failed


def _work(
    name: str, seed: int, first: int, end: int, progress: Any, current: str, folder: str, stop_after: int
) -> None:
    module = modules([name])[name]
    for number in range(first, end):
        progress.value = number
        failure = attempt(name, module, seed, number, on_input=Path(current).write_bytes)
        if failure is not None:
            failure.save(Path(folder))
            stop_after -= 1
            if not stop_after:
                break
    progress.value = number + 1
