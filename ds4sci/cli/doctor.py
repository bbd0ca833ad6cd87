"""Checks of this machine and this installation: ``ds4sci doctor``.

Every check is read-only: it builds nothing, changes nothing and needs no network.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from ds4sci.files import locks
from ds4sci.machine import processor as cpu

Level = Literal["ok", "optional", "problem"]

REQUIRED = ("torch", "deepspeed", "transformers", "numpy", "gemmi", "biopython", "pydantic", "safetensors", "einops")
OPTIONAL = {
    "flash-attn": ("FlashAttention on NVIDIA GPUs", "pip install 'ds4sci[gpu]'"),
    "wandb": ("the wandb section of a DeepSpeed JSON", "pip install 'ds4sci[wandb]'"),
    "tensorboard": ("the tensorboard section of a DeepSpeed JSON", "pip install 'ds4sci[tensorboard]'"),
    "triton": ("Triton kernels", "pip install triton (included in torch for CUDA and ROCm)"),
    "pytest": ("the tests", "pip install -e '.[dev]'"),
}
FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16")
MIN_FREE_BYTES = 5e9
"""Disk space for an environment, its extensions and a few checkpoints."""


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``problem``: training cannot work. ``optional``: a feature is off or a fallback runs."""

    section: str
    name: str
    level: Level
    detail: str
    remedy: str = ""


def run_checks() -> list[Finding]:
    """Results of all checks, in the order of the report."""
    return [*packages(), *processor(), *accelerators(), *compiler(), *extensions(), *disk(), *extras(), *kernels()]


def installed(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def packages() -> Iterator[Finding]:
    """Python and the required packages."""
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
    """Cores available to this process, memory, and the instruction sets that select a kernel."""
    import psutil

    cores = cpu.usable_cores()
    yield Finding(
        "processor", "cores", "ok", f"{cores} available, {psutil.virtual_memory().total / 2**30:.0f} GiB memory"
    )
    flags = cpu.instruction_flags()
    present = [flag for flag in FLAGS if flag in flags]
    yield Finding("processor", "instructions", "ok", " ".join(present) or "baseline", "")


def accelerators() -> Iterator[Finding]:
    """GPUs that torch can use, or the reason why it can use none."""
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
    detail = "torch finds no GPU; training runs on the CPU"
    remedy = ""
    if seen and build is None:
        remedy = (
            "the installed torch is a CPU build: delete .venv and run launch/test.sh, or install torch for your GPU"
        )
    elif seen:
        remedy = "the driver is too old for the installed torch, or CUDA_VISIBLE_DEVICES hides the devices"
    yield Finding("accelerators", "gpu", "optional", detail, remedy)


def compiler() -> Iterator[Finding]:
    """The C++ compiler and ninja. They build the native kernels and DeepSpeed's extensions at first use."""
    names = [name for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name]
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        remedy = "sudo apt-get install -y g++ (without a compiler, the torch implementations run)"
        yield Finding("compiler", "c++", "optional", "not found", remedy)
    else:
        first = subprocess.run([found, "--version"], capture_output=True, text=True).stdout.splitlines()
        yield Finding("compiler", "c++", "ok", f"{first[0] if first else 'unknown version'} ({found})")
    in_environment = Path(sys.executable).parent / "ninja"
    ninja = shutil.which("ninja") or (str(in_environment) if in_environment.exists() else None)
    yield Finding(
        "compiler", "ninja", "ok" if ninja else "optional", ninja or "not found", "" if ninja else "pip install ninja"
    )


def extensions() -> Iterator[Finding]:
    """State of DeepSpeed's extensions in the cache: built, in progress, or interrupted."""
    if installed("torch") is None or installed("deepspeed") is None:
        return
    from ds4sci.train import extension_builds

    folder = extension_builds.cache_folder()
    yield Finding("extensions", "cache", "ok", f"{folder}{'' if folder.exists() else ' (nothing built yet)'}")
    for built in sorted(path for path in folder.glob("*") if path.is_dir()):
        if locks.is_held(folder / f"{built.name}.flock"):
            yield Finding("extensions", built.name, "ok", "another process is building it")
        elif (built / "lock").exists():
            remedy = f"the next build removes it; to remove it now: rm {built / 'lock'}"
            yield Finding("extensions", built.name, "optional", "an interrupted build left its lock file", remedy)
        elif any(built.glob("*.so")):
            yield Finding("extensions", built.name, "ok", "built")
        else:
            yield Finding(
                "extensions", built.name, "optional", "build not finished", "the next use continues the build"
            )


def disk() -> Iterator[Finding]:
    """Free space for runs, caches and temporary files."""
    places = {"runs": Path.cwd(), "home": Path.home(), "temporary": Path(os.environ.get("TMPDIR", "/tmp"))}
    for name, place in places.items():
        if not place.exists():
            yield Finding("disk", name, "problem", f"{place} does not exist", f"mkdir -p {place}")
            continue
        free = shutil.disk_usage(place).free
        tight = free < MIN_FREE_BYTES
        remedy = (
            f"less than {MIN_FREE_BYTES / 1e9:.0f} GB: delete old runs, or set train.output to another disk"
            if tight
            else ""
        )
        yield Finding("disk", name, "optional" if tight else "ok", f"{free / 1e9:.1f} GB free at {place}", remedy)


def extras() -> Iterator[Finding]:
    """Packages that are required by one feature only."""
    for name, (purpose, remedy) in OPTIONAL.items():
        version = installed(name)
        detail = version or f"not installed; needed for {purpose}"
        yield Finding("extras", name, "ok" if version else "optional", detail, "" if version else remedy)


def kernels() -> Iterator[Finding]:
    """Implementation that runs for each kernel on this machine, and the reasons why the others cannot run."""
    if installed("torch") is None:
        return
    import torch

    from ds4sci.kernels import KERNELS

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for kernel in KERNELS.values():
        if not kernel.cases:
            names = ", ".join(i.name for i in kernel.implementations)
            yield Finding("kernels", kernel.name, "ok", f"{names} (has no test case to check with)")
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
            detail = "; ".join([f"{chosen} runs" if chosen else "no implementation runs", *refusals])
            yield Finding("kernels", label, "ok" if chosen else "problem", detail)


def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Check this machine: packages, devices, compiler, disk space, and the kernel implementations that run here.

    Each problem is listed with its fix. Exit code 1 if training cannot work.
    """
    findings = run_checks()
    if json:
        from json import dumps

        typer.echo(dumps([asdict(finding) for finding in findings], indent=1))
    else:
        show_findings(findings)
    raise typer.Exit(1 if any(finding.level == "problem" for finding in findings) else 0)


def show_findings(findings: list[Finding]) -> None:
    """Print the findings as tables, one per section."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = 140
    marks = {"ok": Text("ok", "green"), "optional": Text("–", "yellow"), "problem": Text("!!", "bold red")}
    for section in dict.fromkeys(finding.section for finding in findings):
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        table.add_column(no_wrap=True, min_width=2)
        table.add_column(no_wrap=True, min_width=26)
        table.add_column(overflow="fold")
        for finding in (f for f in findings if f.section == section):
            table.add_row(marks[finding.level], finding.name, Text(finding.detail))
            if finding.level != "ok" and finding.remedy:
                table.add_row("", "", Text(f"→ {finding.remedy}", "cyan"))
        console.print(Text(section, "bold"))
        console.print(table)
