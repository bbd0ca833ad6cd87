"""Launches of Triton kernels, and the devices that can run them. Importing this module does not import Triton.

Planning is separate from launching, so that ahead-of-time compilation uses exactly the arguments of a launch. With
``TRITON_INTERPRET=1`` kernels run on CPU tensors in Triton's interpreter, for tests.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ds4sci.kernels.dtypes import why_not_dtype
from ds4sci.kernels.spec import assume_constant_result


@dataclass(frozen=True)
class Launch:
    """One launch: kernel name, number of programs, arguments, and compile-time constants."""

    kernel: str
    programs: int
    arguments: dict[str, Any]
    constants: dict[str, Any]
    warps: int
    stages: int


def why_not(device: torch.device, dtype: torch.dtype) -> str | None:
    """One sentence that says why Triton kernels cannot process such tensors, or None."""
    if reason := why_not_dtype(dtype):
        return reason
    if device.type == "cuda":
        return _unavailable(device.index)
    if device.type == "cpu" and _is_interpreting():
        return None
    return f"it runs on a GPU, not on {device.type}"


@assume_constant_result
def _unavailable(device: int | None) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install triton"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return f"it needs compute capability 8.0, and this GPU has {torch.cuda.get_device_capability(device)}"
    return None


@assume_constant_result
def _is_interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None


@functools.cache
def architecture(device: torch.device) -> str:
    """``sm_90``, ``gfx942``, …; ``interpreter`` for a CPU."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def run(launches: Iterable[Launch], kernels: Mapping[str, Any], device: torch.device) -> None:
    """Run the launches on ``device`` and its current stream; skip those without programs."""
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        for x in launches:
            if x.programs:
                kernels[x.kernel][(x.programs,)](
                    **x.arguments, **x.constants, num_warps=x.warps, num_stages=x.stages, enable_fp_fusion=True
                )
