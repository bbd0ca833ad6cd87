"""Checks of native builds: compiler, ninja, libaio, DeepSpeed's extensions, and locks that killed builds left."""

from __future__ import annotations

import ctypes.util
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from ds4sci.doctor.finding import Finding, first_line, installed
from ds4sci.files import locks
from ds4sci.files.cache import cache_root


def compiler() -> Iterator[Finding]:
    """The C++ compiler and ninja. They build the native kernels and DeepSpeed's extensions at first use."""
    names = [name for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name]
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        remedy = "sudo apt-get install -y g++ (without a compiler, the torch implementations run)"
        yield Finding("compiler", "c++", "optional", "not found", remedy)
    else:
        yield Finding("compiler", "c++", "ok", f"{first_line([found, '--version']) or 'unknown version'} ({found})")
    in_environment = Path(sys.executable).parent / "ninja"
    ninja = shutil.which("ninja") or (str(in_environment) if in_environment.exists() else None)
    yield Finding(
        "compiler", "ninja", "ok" if ninja else "optional", ninja or "not found", "" if ninja else "pip install ninja"
    )


def libaio() -> Iterator[Finding]:
    """libaio's library and header, which DeepSpeed needs to offload to NVMe. ds4sci does not offload there."""
    folders = {Path("/usr/include"), Path("/usr/local/include"), Path(sysconfig.get_paths()["include"]).parent}
    header = next((file for folder in sorted(folders) if (file := folder / "libaio.h").is_file()), None)
    library = ctypes.util.find_library("aio")
    detail = f"library {library or 'not found'}, header {header or 'not found'}; needed for offload to NVMe only"
    if library and header:
        yield Finding("compiler", "libaio", "ok", f"{detail}, which ds4sci refuses (offload to cpu)")
        return
    remedy = "not needed: ds4sci offloads to cpu only. Other DeepSpeed programs: sudo apt-get install -y libaio-dev"
    yield Finding("compiler", "libaio", "optional", detail, remedy)


def extensions() -> Iterator[Finding]:
    """State of DeepSpeed's extensions in the cache: built, in progress, or interrupted."""
    if installed("torch") is None or installed("deepspeed") is None:
        return
    from ds4sci.train import extension_builds

    folder = extension_builds.cache_folder()
    yield Finding("extensions", "cache", "ok", f"{folder}{'' if folder.exists() else ' (nothing built yet)'}")
    for built in sorted(path for path in folder.glob("*") if path.is_dir()):
        guard, lock = folder / f"{built.name}.flock", built / "lock"
        if locks.is_held(guard):
            yield Finding("extensions", built.name, "ok", f"another process is building it{_holders(guard)}")
        elif lock.exists() and (holders := locks.processes_with(lock)):
            # A program without ds4sci's lock: torch waits for this file itself.
            yield Finding("extensions", built.name, "ok", f"process {holders[0]} is building it ({lock})")
        elif lock.exists():
            detail = f"an interrupted build left its lock file {lock}, {age(lock)} old; no process holds it"
            remedy = f"the next build of ds4sci removes it; other DeepSpeed programs wait for it without end: rm {lock}"
            yield Finding("extensions", built.name, "optional", detail, remedy)
        elif any(built.glob("*.so")):
            yield Finding("extensions", built.name, "ok", "built")
        else:
            yield Finding(
                "extensions", built.name, "optional", "build not finished", "the next use continues the build"
            )


def native_locks(folder: Path | None = None) -> Iterator[Finding]:
    """Builds of ds4sci's own kernels that are in progress. Their locks end with the process that holds them."""
    folder = cache_root() if folder is None else folder
    for file in sorted(folder.glob("*.lock")):
        if locks.is_held(file):
            detail = f"another process is building {file.stem}{_holders(file)}, since {age(file)}"
            yield Finding("extensions", f"kernels · {file.stem}", "ok", detail)


def _holders(file: Path) -> str:
    found = locks.processes_with(file)
    return f" (process {', '.join(map(str, found))})" if found else ""


def age(file: Path) -> str:
    """Return the time since ``file`` was written, such as ``3 min`` or ``2.5 h``."""
    try:
        seconds = max(0.0, time.time() - file.stat().st_mtime)
    except OSError:  # removed in the meantime
        return "0 s"
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
