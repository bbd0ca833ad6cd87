"""Checks of Python, the required packages, and the packages that one feature needs."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from ds4sci.doctor.finding import Finding, installed

REQUIRED = ("torch", "deepspeed", "transformers", "numpy", "gemmi", "biopython", "pydantic", "safetensors", "einops")
OPTIONAL = {
    "flash-attn": ("FlashAttention on NVIDIA GPUs", "pip install 'ds4sci[gpu]'"),
    "wandb": ("the wandb section of a DeepSpeed JSON", "pip install 'ds4sci[wandb]'"),
    "tensorboard": ("the tensorboard section of a DeepSpeed JSON", "pip install 'ds4sci[tensorboard]'"),
    "triton": ("Triton kernels", "pip install triton (included in torch for CUDA and ROCm)"),
    "pytest": ("the tests", "pip install -e '.[dev]'"),
}


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


def extras() -> Iterator[Finding]:
    """Packages that are required by one feature only."""
    for name, (purpose, remedy) in OPTIONAL.items():
        version = installed(name)
        detail = version or f"not installed; needed for {purpose}"
        yield Finding("extras", name, "ok" if version else "optional", detail, "" if version else remedy)
