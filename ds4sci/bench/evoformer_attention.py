"""Benchmark of ``evoformer_attention``: each implementation, and the torch baselines.

One process, A B A B, medians. Figures: time of forward and of forward + backward (all gradients), peak memory minus the
inputs, and FLOP/s in % of peak. The peak of a CPU is measured in the same run; that of a GPU is a constant.
"""

from __future__ import annotations

import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ds4sci.bench.machine_limits import (
    DTYPES,
    GpuPeak,
    cpu_rates,
    dtype_name,
    gpu_peak,
    is_bf16_emulated,
    machine_notes,
)  # fmt: skip
from ds4sci.bench.measurement import Measurement, spread, time_alternately, timed, write
from ds4sci.bench.memory import peak_memory_mb
from ds4sci.bench.torch_baselines import Baseline, Function, torch_baselines
from ds4sci.kernels import KERNELS, native

OURS = ("triton", "native", "tiled")
"""Implementations that are measured. A row of the table shows the first of them that runs."""
MIN_ROUNDS, TIME_BUDGET_S = 5, 10.0
"""Minimum number of rounds, and seconds after which no further round begins."""
SKIP_RATIO = 1.5
"""A baseline slower than the fastest baseline by this factor is timed once and left out of the rounds."""
MAX_COMPILED_SCORES = 10**8
"""On a CPU, compiled baselines are measured up to this number of scores. They are slow there: minutes each."""


@dataclass(frozen=True)
class Shape:
    """Inputs [b, s, n, h, d] with a mask and, if ``bias``, a pair bias."""

    name: str
    s: int
    n: int
    h: int
    d: int
    bias: bool = True
    b: int = 1
    dtypes: tuple[torch.dtype, ...] = DTYPES

    def inputs(self, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        given = {
            name: torch.randn(self.b, self.s, self.n, self.h, self.d, generator=generator).to(device, dtype)
            for name in ("q", "k", "v")
        }
        given["mask"] = torch.ones(self.b, self.s, self.n, dtype=torch.bool, device=device)
        given["mask"][..., -1] = False
        if self.bias:
            given["pair_bias"] = torch.randn(self.b, self.h, self.n, self.n, generator=generator).to(device, dtype)
        return given

    @property
    def scores(self) -> int:
        return self.b * self.s * self.h * self.n**2

    def flops(self, backward: bool) -> float:
        """Two products of 2·d FLOP per score forward, and five more backward."""
        return (14 if backward else 4) * self.scores * self.d

    def result_bytes(self, dtype: torch.dtype, backward: bool) -> int:
        """Bytes of the output and, if ``backward``, of the gradients of q, k, v and pair bias."""
        rows = self.b * self.s * self.n * self.h * self.d
        return dtype.itemsize * (rows + backward * (3 * rows + self.bias * self.b * self.h * self.n**2))

    def least_bytes(self, dtype: torch.dtype, backward: bool) -> int:
        """Bytes that must cross the memory bus: inputs and results, and if ``backward`` the gradient of the output."""
        rows = self.b * self.s * self.n * self.h * self.d
        bias = self.bias * self.b * self.h * self.n**2
        inputs = dtype.itemsize * (3 * rows + bias + backward * rows) + self.b * self.s * self.n
        return inputs + self.result_bytes(dtype, backward)


SHAPES = (
    Shape("MSA row", 64, 256, 8, 32),
    Shape("triangle", 128, 256, 4, 32),
    Shape("extra MSA", 64, 256, 8, 8),
    Shape("MSA column", 128, 128, 8, 32, bias=False),
    Shape("triangle, 384", 384, 384, 4, 32, dtypes=(torch.float32,)),
    Shape("extra MSA, 1024 rows", 1024, 256, 8, 8, dtypes=(torch.float32,)),
)
GPU_SHAPES = (
    Shape("triangle, 512", 512, 512, 4, 32),
    Shape("triangle, 1024", 1024, 1024, 4, 32, dtypes=(torch.bfloat16,)),
    Shape("triangle, 2048", 2048, 2048, 4, 32, dtypes=(torch.bfloat16,)),
    Shape("MSA row, 4096", 16, 4096, 8, 32, dtypes=(torch.bfloat16,)),
    Shape("MSA row, 512 rows", 512, 384, 8, 32, dtypes=(torch.bfloat16,)),
    Shape("extra MSA, 5120 rows", 5120, 384, 8, 8, dtypes=(torch.bfloat16,)),
)
"""Additional shapes that are measured on a GPU."""
QUICK = (Shape("quick", 8, 64, 4, 16),)


def lower_bound_s(shape: Shape, backward: bool, peak: GpuPeak) -> float:
    """Seconds that no kernel can beat: 4·d FLOP and one exponential per score forward, 10·d and one more backward."""
    forward = max(4 * shape.d / peak.flops, 1 / peak.exponentials)
    one_pass = max(10 * shape.d / peak.flops, 1 / peak.exponentials)
    return shape.scores * (forward + one_pass if backward else forward)


def run_once(function: Function, given: dict[str, Tensor], weight: Tensor | None) -> Tensor:
    """Output of ``function``. With ``weight``, the gradients of sum(output · weight) are computed too."""
    if weight is None:
        with torch.no_grad():
            return function(**given)
    leaves = {name: x.detach().requires_grad_() for name, x in given.items() if x.is_floating_point()}
    out = function(**(given | leaves))
    torch.autograd.grad(out, list(leaves.values()), weight)
    return out


def candidates(given: dict[str, Tensor], device: torch.device, *, compiled: bool) -> dict[str, Baseline]:
    """Implementations of ds4sci that accept ``given``, and all baselines."""
    kernel = KERNELS["evoformer_attention"]
    ours = {
        one.name: Baseline(one.run) for one in kernel.implementations if one.name in OURS and not one.why_not(**given)
    }
    return ours | torch_baselines(device, compiled=compiled)


def measure(
    shape: Shape, dtype: torch.dtype, device: torch.device, *, rounds: int, compiled: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of one shape and dtype (implementation, direction, seconds, spread, MB), and notes on skipped baselines."""
    given = shape.inputs(dtype, device)
    runs = candidates(given, device, compiled=compiled)
    rows, skipped = [], []
    for backward in (False, True):
        weight = torch.ones_like(given["q"]) if backward else None
        times: dict[str, list[float]] = {}
        memory: dict[str, float | None] = {}
        want: Tensor | None = None
        for name, one in runs.items():
            if backward and not one.has_backward:
                continue
            try:
                if shape.scores < MAX_COMPILED_SCORES or want is None:
                    out = run_once(one.run, given, weight).detach().float()  # builds, compiles, warms up
                    want = out if want is None else want
                    error = float((out - want).norm() / want.norm())
                    if not error < 0.05:
                        raise ValueError(f"its output differs by {error:.0%}")
                began = time.perf_counter()
                memory[name] = peak_memory_mb(lambda f=one.run, w=weight: run_once(f, given, w), device)  # type: ignore[misc]
                times[name] = [time.perf_counter() - began]
            except Exception as error:  # a third-party kernel may reject a shape; the others are still measured
                if name in OURS:
                    raise
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                first = re.sub(r"(/[\w.-]+)+/", "", first)  # drops folders of this machine
                skipped.append(f"{shape.name} {dtype_name(dtype)}: {name} skipped ({first[:160]})")
        fastest = min((taken[0] for name, taken in times.items() if name not in OURS), default=0.0)
        started = time.perf_counter()
        for turn in range(rounds):
            if turn >= MIN_ROUNDS and time.perf_counter() - started > TIME_BUDGET_S:
                break
            for name, taken in times.items():
                if taken[0] > SKIP_RATIO * fastest and name not in OURS and (name != "naive" or turn > 1):
                    continue
                taken.append(timed(lambda f=runs[name].run, w=weight: run_once(f, given, w)))  # type: ignore[misc]
        # the first time, taken after the allocator returned all memory, only decides which baselines are skipped
        times = {name: taken[1:] or taken for name, taken in times.items()}
        rows += [
            {
                "shape": shape.name, "dtype": dtype_name(dtype), "implementation": name, "backward": backward,
                "seconds": statistics.median(taken), "spread": spread(taken), "memory_mb": memory[name],
                "result_mb": shape.result_bytes(dtype, backward) / 1e6, "flops": shape.flops(backward),
                "bytes": shape.least_bytes(dtype, backward),
            }
            for name, taken in times.items()
        ]  # fmt: skip
    return rows, skipped


COLUMNS = [
    "case", "dtype", "direction", "ms", "% of peak", "speed-up (baseline)", "speed-up over naive", "peak memory (MB)",
    "outputs and gradients (MB)", "peak memory of naive (MB)",
]  # fmt: skip


def table(rows: list[dict[str, Any]], limit: Callable[[dict[str, Any]], float | None]) -> list[list[Any]]:
    """One line per shape, dtype and direction: ds4sci, the fastest baseline, and naive torch.

    ``limit`` returns the seconds of a row at the peak of this machine.
    """
    lines = []
    for key in dict.fromkeys((r["shape"], r["dtype"], r["backward"]) for r in rows):
        group = {r["implementation"]: r for r in rows if (r["shape"], r["dtype"], r["backward"]) == key}
        ours = next(group[name] for name in OURS if name in group)
        best = min((r for name, r in group.items() if name not in OURS), key=lambda r: r["seconds"])
        plain, least = group.get("naive"), limit(ours)
        lines.append(
            [
                key[0], key[1], "forward + backward" if key[2] else "forward", 1e3 * ours["seconds"],
                "–" if least is None else f"{least / ours['seconds']:.0%}",
                f"{best['seconds'] / ours['seconds']:.2f} × ({best['implementation']})",
                "–" if plain is None else f"{plain['seconds'] / ours['seconds']:.2f} ×", ours["memory_mb"],
                ours["result_mb"], None if plain is None else plain["memory_mb"],
            ]
        )  # fmt: skip
    return lines


def run(
    device_name: str, *, quick: bool, out: Path, cases: Sequence[str] = (), compiled: bool = True, rounds: int = 7
) -> Measurement:
    """Measure all shapes, and how memory and time scale with n; write table, figures and machine rates to ``out``.

    ``cases`` restricts the shapes, and leaves out the scaling. Raises ValueError for an unknown case.
    """
    device = torch.device(device_name)
    shapes = QUICK if quick else SHAPES + (GPU_SHAPES if device.type == "cuda" else ())
    unknown = set(cases) - {shape.name for shape in shapes}
    if unknown:
        known = ", ".join(shape.name for shape in shapes)
        raise ValueError(f"--case {sorted(unknown)[0]!r}: unknown case; expected one of: {known}")
    shapes = tuple(shape for shape in shapes if not cases or shape.name in cases)
    rates = cpu_rates(device)
    emulated = is_bf16_emulated(rates) and not quick
    compiled = compiled and not quick
    rows: list[dict[str, Any]] = []
    skipped: list[str] = []
    for shape in shapes:
        for dtype in shape.dtypes:
            if emulated and dtype == torch.bfloat16:
                continue
            print(f"ds4sci: {shape.name}, {dtype_name(dtype)} …", file=sys.stderr, flush=True)
            torch.compiler.reset()  # otherwise the fourth shape exceeds torch's recompilation limit
            small = device.type == "cuda" or shape.scores < MAX_COMPILED_SCORES
            measured, notes = measure(shape, dtype, device, rounds=2 if quick else rounds, compiled=compiled and small)
            rows += measured
            skipped += notes

    peak = gpu_peak(device)
    by_name = {shape.name: shape for shape in shapes}

    def limit(row: dict[str, Any]) -> float | None:
        if peak is not None:
            return lower_bound_s(by_name[row["shape"]], row["backward"], peak)
        rate = rates.get(f"multiply-adds {row['dtype']}")
        return None if rate is None else row["flops"] / rate

    where = (
        f"{native.isa().name}, {torch.get_num_threads()} threads"
        if device.type == "cpu"
        else "% of peak: physical lower bound of the GPU"
    )
    measurement = Measurement(
        name=out.stem,
        title=f"Evoformer attention, baseline: the fastest torch method ({where})",
        command=f"ds4sci bench kernels --op evoformer_attention --device {device_name}"
        + "".join(f" --case '{x}'" for x in cases)
        + f" --json {out.name}",
        columns=COLUMNS,
        rows=table(rows, limit),
        notes=[
            "b 1; (s, n, h, d) " + ", ".join(f"{x.name} {x.s}, {x.n}, {x.h}, {x.d}" for x in shapes),
            "gradients of q, k, v and pair bias; baselines: "
            + ", ".join(torch_baselines(device, compiled=compiled))
            + (", the compiled ones not in the two large cases" if compiled and device.type == "cpu" else ""),
            *machine_notes(rates),
            *(["torch emulates bf16 products on this CPU: bf16 not measured"] if emulated else []),
            *dict.fromkeys(skipped),
        ],
    )
    everything = asdict(measurement) | {"measured": rows, "rates": rates, "quick": quick}
    if not quick and not cases:
        everything |= {"growth": growth(device), "plot": f"{out.stem}.png"}
    write(out, everything)
    return measurement


GROWTH_LENGTHS = (128, 256, 384, 512, 768, 1024)
GROWTH_BASELINES = ("naive", "checkpointed", "chunked SDPA 4")


def growth(device: torch.device) -> list[dict[str, Any]]:
    """Memory and seconds of forward + backward for growing n at s 16, h 8, d 32, fp32: ds4sci and three baselines."""
    rows: list[dict[str, Any]] = []
    for n in GROWTH_LENGTHS:
        shape = Shape("growth", 16, n, 8, 32)
        given = shape.inputs(torch.float32, device)
        weight = torch.ones_like(given["q"])
        found = candidates(given, device, compiled=False)
        ours = next(name for name in OURS if name in found)
        actions = {name: partial(run_once, found[name].run, given, weight) for name in (ours, *GROWTH_BASELINES)}
        memory: dict[str, float | None] = {}
        for name, action in actions.items():
            action()
            memory[name] = peak_memory_mb(action, device)
        times = time_alternately(actions, 3)
        rows += [
            {
                "n": n, "implementation": name, "memory_mb": memory[name], "seconds": statistics.median(taken),
                "result_mb": shape.result_bytes(torch.float32, True) / 1e6,
            }
            for name, taken in times.items()
        ]  # fmt: skip
    return rows
