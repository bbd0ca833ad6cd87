"""Runs inputs through the modules of this folder: in this process with a time limit, or in a watched one."""

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
"""Processor seconds for one input, after which it counts as a hang; a busy machine is none."""


@dataclass(frozen=True)
class Failure:
    """An input that broke a rule: ``rng(module, seed, number)`` makes it again, ``data`` is it."""

    module: str
    seed: int
    number: int
    what: str
    data: bytes

    def save(self, folder: Path) -> Path:
        """Write the input and, beside it, what it did."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.module}-{self.seed}-{self.number}"
        path.write_bytes(self.data)
        told = f"python -m tests.fuzz --only {self.module} --seed {self.seed} --first {self.number} --inputs 1"
        path.with_name(path.name + ".txt").write_text(f"{told}\n\n{self.what}\n", encoding="utf-8")
        return path


def modules(only: list[str] | None = None) -> dict[str, ModuleType]:
    """The modules of this folder that make inputs and check them, by name."""
    found = {}
    for info in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if info.name.startswith("__"):
            continue
        module = importlib.import_module(f"{__package__}.{info.name}")
        if hasattr(module, "inputs") and hasattr(module, "check"):
            found[info.name] = module
    strange = set(only or ()) - set(found)
    if strange:
        raise ValueError(f"no fuzz module {', '.join(sorted(strange))}; there are {', '.join(found)}")
    return {name: module for name, module in found.items() if not only or name in only}


def rng(name: str, seed: int, number: int) -> np.random.Generator:
    """What makes input ``number`` of a module."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), number])


def attempt(
    name: str, module: Any, seed: int, number: int, *, on_input: Callable[[bytes], None] | None = None
) -> Failure | None:
    """Make and check one input within ``LIMIT`` seconds; a module's ``prepare`` comes before."""
    data = b""
    getattr(module, "prepare", lambda: None)()
    try:
        with _limited(LIMIT):
            data = module.inputs(rng(name, seed, number))
            if on_input is not None:
                on_input(data)
            module.check(data)
    except Exception:
        return Failure(name, seed, number, traceback.format_exc(), data)
    return None


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def late(signum: int, frame: Any) -> None:
        raise TimeoutError(f"took over {seconds} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def watched(name: str, seed: int, first: int, count: int, folder: Path, stop_after: int = 20) -> tuple[int, list[Path]]:
    """``count`` inputs of a module in a process of its own; how many were tried, and the failures' files in ``folder``.

    A process that native code kills, or that is at one input for a minute, costs that input; the next one goes on
    behind it. Ends after ``stop_after`` failures.
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
            # the first input waits for imports
            elif time.monotonic() - since > (12 * LIMIT if seen > at else 240):
                process.kill()
                process.join()
        failed = sorted(path for path in folder.glob(f"{name}-{seed}-*") if path.suffix != ".txt")
        if process.exitcode == 0:
            at = progress.value
            break
        what = f"killed its process (exit code {process.exitcode}): a hang or a fault in native code"
        data = current.read_bytes() if current.exists() else b""
        failed.append(Failure(name, seed, progress.value, what, data).save(folder))
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
