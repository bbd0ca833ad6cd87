"""What this machine has, what would run on it, and how to get what is missing: ``ds4sci doctor``.

Every check looks and reports; none changes anything, builds anything or needs a network.
"""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["ok", "optional", "problem"]

REQUIRED = ("torch", "deepspeed", "transformers", "numpy", "gemmi", "biopython", "pydantic", "safetensors", "einops")
OPTIONAL = {
    "flash-attn": ("FlashAttention on NVIDIA GPUs", "pip install 'ds4sci[gpu]'"),
    "wandb": ("the wandb section of a DeepSpeed JSON", "pip install 'ds4sci[wandb]'"),
    "tensorboard": ("the tensorboard section of a DeepSpeed JSON", "pip install 'ds4sci[tensorboard]'"),
    "triton": ("Triton kernels", "comes with torch for CUDA and ROCm; pip install triton"),
    "pytest": ("the tests", "pip install -e '.[dev]'"),
}
FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16")
ROOM = 5e9
"""Bytes that an environment, its extensions and a few checkpoints want."""


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``problem`` means that training cannot work, ``optional`` that something does without."""

    section: str
    name: str
    level: Level
    detail: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Every check, in the order of the report."""
    return [*packages(), *processor(), *accelerators(), *compiler(), *extensions(), *disk(), *extras(), *kernels()]


def installed(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def packages() -> Iterator[Finding]:
    """Python and what ds4sci cannot do without."""
    recent = sys.version_info >= (3, 11)
    remedy = "" if recent else "install Python 3.11 or 3.12"
    yield Finding("packages", "python", "ok" if recent else "problem", platform.python_version(), remedy)
    yield Finding(
        "packages", "ds4sci", "ok", f"{installed('ds4sci') or 'not installed'} in {Path(__file__).parents[1]}"
    )
    for name in REQUIRED:
        version = installed(name)
        yield Finding("packages", name, "ok" if version else "problem", version or "missing", f"pip install {name}")


def processor() -> Iterator[Finding]:
    """Cores this process may use, memory, and the instruction sets that kernels choose by."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Finding("processor", "cores", "ok", f"{cores} usable, {psutil.virtual_memory().total / 2**30:.0f} GiB memory")
    flags = cpu_flags()
    present = [flag for flag in FLAGS if flag in flags]
    yield Finding("processor", "instructions", "ok", " ".join(present) or "baseline", "")


def cpu_flags() -> set[str]:
    """Instruction-set flags as Linux names them; empty where there is no ``/proc/cpuinfo``."""
    file = Path("/proc/cpuinfo")
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        if line.startswith(("flags", "Features")):
            return set(line.partition(":")[2].split())
    return set()


def accelerators() -> Iterator[Finding]:
    """GPUs that torch can use, or why it can use none."""
    if installed("torch") is None:
        return
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            arch = getattr(device, "gcnArchName", f"sm_{device.major}{device.minor}")
            detail = f"{device.name}, {arch}, {device.total_memory / 2**30:.0f} GiB"
            yield Finding("accelerators", f"gpu {index}", "ok", detail)
        return
    build = torch.version.cuda or torch.version.hip
    seen = any(shutil.which(tool) for tool in ("nvidia-smi", "rocm-smi"))
    detail = "none that torch can use; training runs on the processor"
    remedy = ""
    if seen and build is None:
        remedy = "this torch is a CPU build; delete .venv and run launch/test.sh, or install torch for your GPU"
    elif seen:
        remedy = "the driver is older than this torch wants, or the devices are hidden (CUDA_VISIBLE_DEVICES)"
    yield Finding("accelerators", "gpu", "optional", detail, remedy)


def compiler() -> Iterator[Finding]:
    """The C++ compiler and ninja, with which native kernels and DeepSpeed's extensions are built at first use."""
    names = [name for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name]
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        remedy = "sudo apt-get install -y g++ (without it the torch implementations run)"
        yield Finding("compiler", "c++", "optional", "none", remedy)
    else:
        first = subprocess.run([found, "--version"], capture_output=True, text=True).stdout.splitlines()
        yield Finding("compiler", "c++", "ok", f"{first[0] if first else 'unknown version'} ({found})")
    beside = Path(sys.executable).parent / "ninja"
    ninja = shutil.which("ninja") or (str(beside) if beside.exists() else None)
    yield Finding(
        "compiler", "ninja", "ok" if ninja else "optional", ninja or "none", "" if ninja else "pip install ninja"
    )


def extensions() -> Iterator[Finding]:
    """DeepSpeed's extensions in the cache: built, being built, or left by a killed build."""
    if installed("torch") is None or installed("deepspeed") is None:
        return
    from ds4sci.train import extension_builds

    folder = extension_builds.cache_folder()
    yield Finding("extensions", "cache", "ok", f"{folder}{'' if folder.exists() else ' (nothing built yet)'}")
    for built in sorted(path for path in folder.glob("*") if path.is_dir()):
        if is_held(folder / f"{built.name}.flock"):
            yield Finding("extensions", built.name, "ok", "being built by another process now")
        elif (built / "lock").exists():
            remedy = f"cleared at the next build, or: rm {built / 'lock'}"
            yield Finding("extensions", built.name, "optional", "a killed build left its lock", remedy)
        elif any(built.glob("*.so")):
            yield Finding("extensions", built.name, "ok", "built")
        else:
            yield Finding("extensions", built.name, "optional", "unfinished", "goes on at the next use")


def is_held(file: Path) -> bool:
    """Whether some process holds the lock ``file``."""
    if not file.exists():
        return False
    with file.open("r") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def disk() -> Iterator[Finding]:
    """Room where runs are written and where caches lie."""
    places = {"runs": Path.cwd(), "home": Path.home(), "temporary": Path(os.environ.get("TMPDIR", "/tmp"))}
    for name, place in places.items():
        if not place.exists():
            yield Finding("disk", name, "problem", f"{place} does not exist", f"mkdir -p {place}")
            continue
        free = shutil.disk_usage(place).free
        tight = free < ROOM
        remedy = f"under {ROOM / 1e9:.0f} GB; `rm -r runs/OLD` or give train.output another disk" if tight else ""
        yield Finding("disk", name, "optional" if tight else "ok", f"{free / 1e9:.1f} GB free at {place}", remedy)


def extras() -> Iterator[Finding]:
    """Packages that some feature wants and the rest does without."""
    for name, (purpose, remedy) in OPTIONAL.items():
        version = installed(name)
        detail = version or f"not installed; for {purpose}"
        yield Finding("extras", name, "ok" if version else "optional", detail, "" if version else remedy)


def kernels() -> Iterator[Finding]:
    """Each operation's implementations on this machine's best device: which one runs, and why the others refuse."""
    if installed("torch") is None:
        return
    import torch

    from ds4sci.kernels import KERNELS

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for kernel in KERNELS.values():
        if not kernel.cases:
            names = ", ".join(i.name for i in kernel.implementations)
            yield Finding("kernels", kernel.name, "ok", f"{names} (no named case to ask with)")
            continue
        case = kernel.cases[0]
        for dtype in (torch.float32, torch.bfloat16):
            inputs = case.make(torch.Generator().manual_seed(0), dtype, device)
            chosen, refusals = None, []
            for implementation in kernel.implementations:
                reason = implementation.why_not(**inputs)
                if reason is not None:
                    refusals.append(f"{implementation.name}: {reason}")
                elif chosen is None:
                    chosen = implementation.name
            label = f"{kernel.name} · {str(dtype).removeprefix('torch.')} on {device.type}"
            detail = "; ".join([f"runs {chosen}" if chosen else "nothing runs", *refusals])
            yield Finding("kernels", label, "ok" if chosen else "problem", detail)
