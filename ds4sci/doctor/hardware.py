"""Checks of the processor, its NUMA nodes, and the GPUs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from ds4sci.doctor.finding import Finding, installed
from ds4sci.machine import processor as cpu

FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16")
NUMA_NODES = Path("/sys/devices/system/node")


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


def numa(folder: Path = NUMA_NODES) -> Iterator[Finding]:
    """NUMA nodes and numactl, with which DeepSpeed's launcher binds each rank to the cores and memory of one node."""
    nodes = sorted(folder.glob("node[0-9]*"), key=lambda node: int(node.name[4:])) if folder.is_dir() else []
    if not nodes:
        yield Finding("processor", "numa", "ok", f"this system does not list NUMA nodes ({folder})")
        return
    cores = ", ".join(f"{node.name[4:]}: cores {_cores(node)}" for node in nodes)
    found = shutil.which("numactl")
    detail = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''} ({cores}); numactl {found or 'not found'}"
    if found or len(nodes) == 1:
        yield Finding("processor", "numa", "ok", detail)
        return
    remedy = (
        "sudo apt-get install -y numactl, then start ranks with `deepspeed --bind_cores_to_rank launch/train.py …`: "
        "unbound ranks use memory of other nodes, which is slower"
    )
    yield Finding("processor", "numa", "optional", detail, remedy)


def _cores(node: Path) -> str:
    try:
        return (node / "cpulist").read_text(encoding="utf-8").strip() or "none"
    except OSError:
        return "unknown"


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
