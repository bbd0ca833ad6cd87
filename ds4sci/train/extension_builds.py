"""Builds of DeepSpeed's C++ extensions, done once before the ranks need them, with visible progress.

DeepSpeed compiles C++ silently at first use, which takes minutes. A killed build leaves torch's ``lock`` file, on which
every later run waits forever, and may leave an orphaned compiler that keeps writing into the files of the next build.
Here every build holds a ``flock``, which the kernel releases when its holder dies, and the holder removes such
leftovers first.

Only extensions that the JSON requires are built. ``deepspeed_shm_comm`` (77 s on two cores) serves only
``inference_all_reduce`` of DeepSpeed's tensor parallelism. Without tensor parallelism it is disabled instead of built,
and all communication uses torch's gloo, as it would anyway.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ds4sci.config import deepspeed_json
from ds4sci.files import locks
from ds4sci.files.cache import cache_root

SHM = "deepspeed_shm_comm"
BUILDERS = {
    SHM: "ShareMemCommBuilder",
    "cpu_adam": "CPUAdamBuilder",
    "cpu_adagrad": "CPUAdagradBuilder",
    "cpu_lion": "CPULionBuilder",
    "fused_adam": "FusedAdamBuilder",
    "fused_lion": "FusedLionBuilder",
}
"""Extension → name of its builder in DeepSpeed's accelerator."""


def required_extensions(config: dict[str, Any], *, accelerator: str) -> dict[str, str]:
    """Return extension → reason why the JSON ``config`` requires it on ``accelerator`` (``cpu``, ``cuda``, …)."""
    required: dict[str, str] = {}
    optimizer = config.get("optimizer", {})
    name = str(optimizer.get("type", "")).lower()
    parameters = optimizer.get("params") or {}
    offloads = deepspeed_json.offloads(config)
    if name in ("adam", "adamw") and not parameters.get("torch_adam", False):
        if offloads:
            required["cpu_adam"] = "zero_optimization.offload_optimizer runs Adam on the host"
        else:
            required["fused_adam"] = 'optimizer.params has no "torch_adam": true'
    elif name in ("adagrad", "lion") and offloads:
        required[f"cpu_{name}"] = f"zero_optimization.offload_optimizer runs {name} on the host"
    elif name == "lion":
        required["fused_lion"] = "optimizer.type is Lion"
    parallel = config.get("tensor_parallel") or {}
    if accelerator == "cpu" and int(parallel.get("autotp_size") or 0) > 1:
        required[SHM] = "tensor_parallel.autotp_size enables DeepSpeed's tensor parallelism"
    return required


def cache_folder() -> Path:
    """Return the folder of the extensions: ``TORCH_EXTENSIONS_DIR`` if set, else a folder in the cache of ds4sci.

    Its name contains the versions of Python, torch and DeepSpeed, so that an upgrade rebuilds them.
    """
    if own := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(own)
    versions = "-".join(
        [f"py{sys.version_info.major}{sys.version_info.minor}"]
        + [f"{package}{importlib.metadata.version(package)}" for package in ("torch", "deepspeed")]
    )
    prefix = hashlib.sha256(sys.prefix.encode()).hexdigest()[:8]
    return cache_root() / "torch_extensions" / f"{versions}-{prefix}"


def why_no_build() -> str | None:
    """Return why extensions cannot be compiled here, with the remedy, or None if a compiler and ninja exist."""
    if not any(shutil.which(compiler) for compiler in (os.environ.get("CXX") or "c++", "g++", "clang++")):
        return "no C++ compiler; install one with `sudo apt-get install g++`"
    if shutil.which("ninja") is None:
        return "no ninja; install it with `pip install ninja`"
    return None


def build_required(config: dict[str, Any], *, log: Callable[[str], None] = print, verbose: bool = True) -> None:
    """Build the extensions that ``config`` requires, disable the shared-memory one otherwise, and set
    ``TORCH_EXTENSIONS_DIR``.

    Every rank calls this. The first one builds and reports it; the others wait for the lock and find the extension
    built. A waiting rank reports that it waits if it is ``verbose``.

    Raises ValueError if a required extension cannot be built here, and BuildError if its build fails; both messages
    name the key of the JSON that avoids it.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    folder = cache_folder()
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    add_environment_to_path()
    accelerator = get_accelerator()
    required = required_extensions(config, accelerator=accelerator.device_name())
    if SHM not in required:
        with suppress_stdout():
            deepspeed.ops.__compatible_ops__[SHM] = False
    obstacle = why_no_build()
    for name, reason in required.items():
        if obstacle is not None:
            raise ValueError(
                f"DeepSpeed's {name} is required ({reason}) but cannot be built: {obstacle}. {workaround(name)}"
            )
        builder = accelerator.create_op_builder(BUILDERS[name])
        build(folder, name, builder.load, reason=reason, log=log, verbose=verbose)


class BuildError(RuntimeError):
    """An extension of DeepSpeed failed to compile."""


def remove_stale_build(folder: Path) -> None:
    """Kill the compilers of a killed build in ``folder`` and remove its files. Called while holding the lock.

    If a process still has the ``lock`` file open, another program is building: this function waits for it.
    """
    lock = folder / "lock"
    while lock.exists() and locks.processes_with(lock):
        time.sleep(0.5)
    if not lock.exists():
        return
    orphans = [p for p in psutil.process_iter() if _runs_in(p, folder)]
    for orphan in orphans:
        with contextlib.suppress(psutil.NoSuchProcess):
            orphan.kill()
    psutil.wait_procs(orphans, timeout=10)
    shutil.rmtree(folder)


def _runs_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return Path(process.cwd()) == folder.resolve()
    except psutil.Error:
        return False


def workaround(name: str) -> str:
    """Return how to avoid the extension ``name``."""
    if name == SHM:
        return "Or remove tensor_parallel from the DeepSpeed JSON"
    if name in ("cpu_adam", "fused_adam"):
        return 'Or set "torch_adam": true in optimizer.params of the DeepSpeed JSON'
    return 'Or use another optimizer, such as AdamW with "torch_adam": true'


def build(
    folder: Path,
    name: str,
    load: Callable[[], Any],
    *,
    reason: str,
    log: Callable[[str], None] = print,
    verbose: bool = True,
) -> None:
    """Call ``load``, which builds into ``folder / name`` if necessary, while holding a lock; report progress by
    ``log``.

    Raises BuildError if the build fails.
    """
    wait = f"Waiting for another process to build DeepSpeed's {name} …"
    with locks.exclusive(folder / f"{name}.flock", on_wait=lambda: log(wait) if verbose else None):
        remove_stale_build(folder / name)
        fresh = not any((folder / name).glob("*.so"))
        start = time.monotonic()
        if fresh:
            log(f"Building DeepSpeed's {name} once, 1–3 minutes: {reason}. It is kept in {folder}")
        try:
            with _elapsed_time(f"building {name}") if fresh else contextlib.nullcontext(), suppress_stdout():
                load()
        except Exception as error:
            raise BuildError(
                f"DeepSpeed's {name} failed to build in {folder / name}: {error}. {workaround(name)}"
            ) from error
        if fresh:
            log(f"Built {name} in {time.monotonic() - start:.0f} s")


@contextlib.contextmanager
def _elapsed_time(what: str) -> Iterator[None]:
    """Show a line with the elapsed time on a terminal."""
    console = Console(file=sys.stdout)
    bar = Progress(SpinnerColumn(), TextColumn(what), TimeElapsedColumn(), console=console, transient=True)
    with bar if console.is_terminal else contextlib.nullcontext():
        bar.add_task(what, total=None)
        yield


@contextlib.contextmanager
def suppress_stdout() -> Iterator[None]:
    """Discard what DeepSpeed and torch print to stdout, without a logger, during their setup."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def add_environment_to_path() -> None:
    """Add the environment's scripts to PATH, so that torch finds ``ninja`` if the environment is not activated."""
    scripts = str(Path(sys.executable).parent)
    if scripts not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join(filter(None, [scripts, os.environ.get("PATH", "")]))
