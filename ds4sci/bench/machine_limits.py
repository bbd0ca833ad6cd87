"""Peak rates of the machine that a kernel is measured on, for "% of peak"."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass

import torch

from ds4sci.kernels import machine_peak
from ds4sci.kernels.native import BuildError

DTYPES = (torch.float32, torch.bfloat16)
EMULATED_RATIO = 0.1
"""bf16 products slower than this fraction of the fp32 rate are emulated. They take too long to measure."""
ISA_VARIABLES = ("DS4SCI_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
"""Environment variables that restrict the instruction set of ds4sci, torch or MKL. They are part of the notes."""


@dataclass(frozen=True)
class GpuPeak:
    """Peak rates of a GPU: FLOP/s of dense bf16 products, and exponentials per second."""

    flops: float
    exponentials: float


GPU_PEAKS = {"H100": GpuPeak(989e12, 3.87e12), "H200": GpuPeak(989e12, 3.87e12), "A100": GpuPeak(312e12, 2.44e12)}


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def gpu_peak(device: torch.device) -> GpuPeak | None:
    """Peak rates of this GPU, or None for a CPU or an unknown GPU."""
    if device.type != "cuda":
        return None
    return next((peak for name, peak in GPU_PEAKS.items() if name in torch.cuda.get_device_name()), None)


def cpu_rates(device: torch.device) -> dict[str, float]:
    """FLOP/s of this CPU: multiply-adds in registers (needs a C++ compiler) and torch's large matrix products.

    Empty for a GPU.
    """
    if device.type != "cpu":
        return {}
    rates = {f"gemm {dtype_name(dtype)}": machine_peak.gemm_rate(dtype) for dtype in DTYPES}
    with contextlib.suppress(BuildError):
        rates |= {
            f"multiply-adds {dtype_name(dtype)}": machine_peak.fma_rate(torch.get_num_threads(), dtype)
            for dtype in DTYPES
        }
    return rates


def is_bf16_emulated(rates: dict[str, float]) -> bool:
    """Whether torch emulates bf16 products on the CPU that has these ``cpu_rates``."""
    return bool(rates) and rates["gemm bfloat16"] < EMULATED_RATIO * rates["gemm float32"]


def machine_notes(rates: dict[str, float]) -> list[str]:
    """Notes of a table: rates measured in the same run, and variables that restrict the instruction set."""
    measured = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items())
    overrides = [f"{name}={os.environ[name]}" for name in ISA_VARIABLES if os.environ.get(name)]
    return [f"in the same run: {measured}", *overrides]
