"""Measured peak rates of this machine: fused multiply-adds in registers, and torch's large matrix product."""

from __future__ import annotations

import ctypes
import threading
import time

import torch

from ds4sci.kernels import native

ACCUMULATORS = 12


def fma_rate(threads: int, dtype: torch.dtype = torch.float32, seconds: float = 0.1) -> float:
    """FLOP/s of register-only multiply-adds on ``threads`` cores: of bf16 if the processor has such an instruction,
    else of fp32. Raises BuildError."""
    pairs = dtype == torch.bfloat16 and native.isa().name == "avx512bf16"
    function = getattr(native.load("machine"), f"ds4sci_{'bf16' if pairs else 'fma'}_{native.isa().name}")
    per_step = (4 if pairs else 2) * ACCUMULATORS * native.isa().lanes

    def run(steps: int) -> float:
        sink = [ctypes.c_float() for _ in range(threads)]
        workers = [
            threading.Thread(target=function, args=(ctypes.c_int64(steps), ctypes.byref(one))) for one in sink[1:]
        ]
        began = time.perf_counter()
        for worker in workers:
            worker.start()
        function(ctypes.c_int64(steps), ctypes.byref(sink[0]))
        for worker in workers:
            worker.join()
        return time.perf_counter() - began

    steps = 1 << 16
    steps = max(steps, int(steps * seconds / run(steps)))
    return max(threads * steps * per_step / run(steps) for _ in range(3))


def peak_rate(device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak FLOP/s of ``device``: multiply-adds on torch's threads on a CPU, a large matrix product elsewhere.

    None on a CPU without a compiler."""
    if device.type == "cpu":
        try:
            return fma_rate(torch.get_num_threads(), dtype)
        except native.BuildError:
            return None
    a, b = (torch.randn(8192, 8192, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        a @ b
        torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * 8192**3 / best


def gemm_rate(dtype: torch.dtype, largest: int = 1024) -> float:
    """FLOP/s of torch's square matrix product, best of five, of size ``largest`` or the largest within 0.1 s."""
    size, best = 128, 0.0
    while True:
        a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
        a @ b
        took = []
        for _ in range(5):
            began = time.perf_counter()
            a @ b
            took.append(time.perf_counter() - began)
        best = 2 * size**3 / min(took)
        if 2 * size > largest or sum(took) > 0.1:
            return best
        size *= 2
