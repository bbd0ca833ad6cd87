"""DeepSpeed's extensions, built once before the ranks need them, in sight of the user.

DeepSpeed compiles C++ at first use, for minutes, in silence, and a build that was killed leaves torch's ``lock`` file
behind, on which every later run waits for ever, and a compiler without a parent, which goes on writing into the next
build's files. Here every build runs under ``flock``, which the kernel releases when its holder dies, and whoever holds
it clears such leftovers away.

What is built is what the JSON asks for. ``deepspeed_shm_comm`` (77 s on two cores) serves only
``inference_all_reduce`` of DeepSpeed's tensor parallelism: without that it is switched off instead of built, and all
traffic goes through torch's own gloo, as it does anyway.
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
    "async_io": "AsyncIOBuilder",
}
"""Extension → the name of its builder in DeepSpeed's accelerator."""


def required_extensions(config: dict[str, Any], *, accelerator: str) -> dict[str, str]:
    """Extension → why the JSON ``config`` needs it on ``accelerator`` (``cpu``, ``cuda``, …)."""
    wanted: dict[str, str] = {}
    optimizer = config.get("optimizer", {})
    name = str(optimizer.get("type", "")).lower()
    parameters = optimizer.get("params") or {}
    offloads = deepspeed_json.offload_devices(config)
    if name in ("adam", "adamw") and not parameters.get("torch_adam", False):
        if offloads:
            wanted["cpu_adam"] = "zero_optimization.offload_optimizer steps Adam on the host"
        else:
            wanted["fused_adam"] = 'optimizer.params has no "torch_adam": true'
    elif name in ("adagrad", "lion") and offloads:
        wanted[f"cpu_{name}"] = f"zero_optimization.offload_optimizer steps {name} on the host"
    elif name == "lion":
        wanted["fused_lion"] = "optimizer.type is Lion"
    if "nvme" in offloads:
        wanted["async_io"] = "zero_optimization offloads to NVMe"
    parallel = config.get("tensor_parallel") or {}
    if accelerator == "cpu" and int(parallel.get("autotp_size") or 0) > 1:
        wanted[SHM] = "tensor_parallel.autotp_size asks for DeepSpeed's tensor parallelism"
    return wanted


def cache_folder() -> Path:
    """Where the extensions lie: ``TORCH_EXTENSIONS_DIR`` if set, else a folder of our own in the user's cache.

    The folder's name holds the versions of Python, torch and DeepSpeed, so that an upgrade builds anew.
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
    """Why nothing can be compiled here, with the remedy; None if a compiler and ninja are there."""
    if not any(shutil.which(compiler) for compiler in (os.environ.get("CXX") or "c++", "g++", "clang++")):
        return "no C++ compiler; `sudo apt-get install g++` gives one"
    if shutil.which("ninja") is None:
        return "no ninja; `pip install ninja` gives it"
    return None


def build_required(config: dict[str, Any], *, say: Callable[[str], None] = print, verbose: bool = True) -> None:
    """Build what ``config`` needs and switch off what it does not; sets ``TORCH_EXTENSIONS_DIR``.

    Every rank calls this: the first one builds and says so, the others wait for the lock and find the work done;
    of those only the one that ``verbose`` says that it waits.
    Raises ValueError where nothing can be built but the JSON needs it, and BuildError where building fails; both name
    the key of the JSON that avoids it.
    """
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    folder = cache_folder()
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    add_environment_to_path()
    accelerator = get_accelerator()
    wanted = required_extensions(config, accelerator=accelerator.device_name())
    if SHM not in wanted:
        with suppress_stdout():
            deepspeed.ops.__compatible_ops__[SHM] = False
    obstacle = why_no_build()
    for name, reason in wanted.items():
        if obstacle is not None:
            raise ValueError(
                f"DeepSpeed's {name} is needed ({reason}) but cannot be built: {obstacle}. {workaround(name)}"
            )
        builder = accelerator.create_op_builder(BUILDERS[name])
        build(folder, name, builder.load, reason=reason, say=say, verbose=verbose)


class BuildError(RuntimeError):
    """The compiler failed on one of DeepSpeed's extensions."""


def remove_stale_build(folder: Path) -> None:
    """If a build in ``folder`` was killed, end its orphaned compilers and remove what it left; called under our lock.

    A ``lock`` file whose maker still has it open belongs to a build by another program: that one is waited for.
    """
    lock = folder / "lock"
    while lock.exists() and any(_has_open(p, lock) for p in psutil.process_iter()):
        time.sleep(0.5)
    if not lock.exists():
        return
    orphans = [p for p in psutil.process_iter() if _runs_in(p, folder)]
    for orphan in orphans:
        with contextlib.suppress(psutil.NoSuchProcess):
            orphan.kill()
    psutil.wait_procs(orphans, timeout=10)
    shutil.rmtree(folder)


def _has_open(process: psutil.Process, file: Path) -> bool:
    try:
        return any(Path(opened.path) == file.resolve() for opened in process.open_files())
    except psutil.Error:
        return False  # another user's process, or one that has just ended


def _runs_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return Path(process.cwd()) == folder.resolve()
    except psutil.Error:
        return False


def workaround(name: str) -> str:
    """How to do without the extension ``name``."""
    if name == SHM:
        return "Or take tensor_parallel out of the DeepSpeed JSON"
    if name == "async_io":
        return "Or offload to the cpu instead of nvme in the DeepSpeed JSON"
    if name in ("cpu_adam", "fused_adam"):
        return 'Or set "torch_adam": true in optimizer.params of the DeepSpeed JSON'
    return 'Or take another optimizer, such as AdamW with "torch_adam": true'


def build(
    folder: Path,
    name: str,
    load: Callable[[], Any],
    *,
    reason: str,
    say: Callable[[str], None] = print,
    verbose: bool = True,
) -> None:
    """Call ``load`` (which builds into ``folder / name`` if need be) alone among all processes, saying what goes on."""
    wait = f"Waiting for another process to build DeepSpeed's {name} …"
    with locks.exclusive(folder / f"{name}.flock", on_wait=lambda: say(wait) if verbose else None):
        remove_stale_build(folder / name)
        fresh = not any((folder / name).glob("*.so"))
        start = time.monotonic()
        if fresh:
            say(f"Building DeepSpeed's {name} once, 1–3 minutes: {reason}. It stays in {folder}")
        try:
            with _elapsed_time(f"building {name}") if fresh else contextlib.nullcontext(), suppress_stdout():
                load()
        except Exception as error:
            raise BuildError(
                f"DeepSpeed's {name} failed to build in {folder / name}: {error}. {workaround(name)}"
            ) from error
        if fresh:
            say(f"Built {name} in {time.monotonic() - start:.0f} s")


@contextlib.contextmanager
def _elapsed_time(what: str) -> Iterator[None]:
    """On a terminal, a line with the time gone by."""
    console = Console(file=sys.stdout)
    bar = Progress(SpinnerColumn(), TextColumn(what), TimeElapsedColumn(), console=console, transient=True)
    with bar if console.is_terminal else contextlib.nullcontext():
        bar.add_task(what, total=None)
        yield


@contextlib.contextmanager
def suppress_stdout() -> Iterator[None]:
    """Swallow what DeepSpeed and torch print bare, past any logger, while they set themselves up."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def add_environment_to_path() -> None:
    """Let torch find the ``ninja`` that pip put beside this Python, when the environment is not activated."""
    scripts = str(Path(sys.executable).parent)
    if scripts not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join(filter(None, [scripts, os.environ.get("PATH", "")]))
