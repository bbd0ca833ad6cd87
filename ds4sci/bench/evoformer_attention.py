"""``ds4sci bench kernels``: every implementation of an operation beside what a user of torch would take instead.

One process, A B A B, medians. Time forward, and forward with all gradients; peak memory over the inputs; FLOP/s as a
share of what this machine can do at most, measured in the same run (a CPU) or known (a GPU).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ds4sci.bench.measurement import Measurement, peak_bytes, spread, synchronize, write
from ds4sci.bench.torch_baselines import Alternative, Function, alternatives
from ds4sci.kernels import KERNELS, machine_peak, native
from ds4sci.kernels.native import BuildError

OURS = ("triton", "native", "tiled")
"""The implementations that are measured; a table's line tells of the first that runs."""
LEAST, PATIENCE = 5, 10.0
"""Rounds that are always made, and seconds after which no further one begins."""
HOPELESS = 1.5
"""An alternative that takes so many times the fastest alternative's time is timed once and left out of the rounds."""
BOTH = (torch.float32, torch.bfloat16)
LARGE = 10**8
"""Scores of a case above which a CPU measures no compiled alternative: they are among the slowest, minutes each."""
FORCED = ("DS4SCI_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
"""Variables that hold one side or the other to fewer instructions: told with the result."""


@dataclass(frozen=True)
class Shape:
    """A case: [b, s, n, h, d] with a mask and, ``bias``, a pair bias."""

    name: str
    s: int
    n: int
    h: int
    d: int
    bias: bool = True
    b: int = 1
    dtypes: tuple[torch.dtype, ...] = BOTH

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
        """2 products of 2·d forward; 5 more backward."""
        return (14 if backward else 4) * self.scores * self.d

    def mandatory(self, dtype: torch.dtype, backward: bool) -> int:
        """Bytes of the output and, ``backward``, of the gradients of q, k, v and bias."""
        rows = self.b * self.s * self.n * self.h * self.d
        return dtype.itemsize * (rows + backward * (3 * rows + self.bias * self.b * self.h * self.n**2))


SHAPES = (
    Shape("MSA row", 64, 256, 8, 32),
    Shape("triangle", 128, 256, 4, 32),
    Shape("extra MSA", 64, 256, 8, 8),
    Shape("MSA column", 128, 128, 8, 32, bias=False),
    Shape("triangle, 384", 384, 384, 4, 32, dtypes=(torch.float32,)),
    Shape("extra MSA, 1024 rows", 1024, 256, 8, 8, dtypes=(torch.float32,)),
)
LONG = (
    Shape("triangle, 512", 512, 512, 4, 32),
    Shape("triangle, 1024", 1024, 1024, 4, 32, dtypes=(torch.bfloat16,)),
    Shape("triangle, 2048", 2048, 2048, 4, 32, dtypes=(torch.bfloat16,)),
    Shape("MSA row, 4096", 16, 4096, 8, 32, dtypes=(torch.bfloat16,)),
    Shape("MSA row, 512 rows", 512, 384, 8, 32, dtypes=(torch.bfloat16,)),
    Shape("extra MSA, 5120 rows", 5120, 384, 8, 8, dtypes=(torch.bfloat16,)),
)
"""On a GPU in addition."""
QUICK = (Shape("quick", 8, 64, 4, 16),)


@dataclass(frozen=True)
class Card:
    """What a GPU can do at most: FLOP/s of dense bf16, exponentials a second."""

    flops: float
    exponentials: float


CARDS = {"H100": Card(989e12, 3.87e12), "H200": Card(989e12, 3.87e12), "A100": Card(312e12, 2.44e12)}


def floor(shape: Shape, backward: bool, card: Card) -> float:
    """Seconds below which no kernel can be: 4·d FLOP and an exponential a score forward, 10·d and one more backward."""
    forward = max(4 * shape.d / card.flops, 1 / card.exponentials)
    one_pass = max(10 * shape.d / card.flops, 1 / card.exponentials)
    return shape.scores * (forward + one_pass if backward else forward)


def once(function: Function, given: dict[str, Tensor], weight: Tensor | None) -> Tensor:
    """Output, and with a ``weight`` the gradients of their product's sum."""
    if weight is None:
        with torch.no_grad():
            return function(**given)
    leaves = {name: x.detach().requires_grad_() for name, x in given.items() if x.is_floating_point()}
    out = function(**(given | leaves))
    torch.autograd.grad(out, list(leaves.values()), weight)
    return out


def peak_over_inputs(action: Callable[[], object], device: torch.device) -> float | None:
    """MB that ``action`` held at most beyond what was held before; on Linux or a GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():
        return None
    with contextlib.suppress(AttributeError):  # a C library other than glibc
        ctypes.CDLL(None).malloc_trim(0)  # what the allocator keeps for later would hide what the action takes
    clear.write_text("5")  # the peak starts anew at what is resident now
    start = peak_bytes()
    action()
    after = peak_bytes()
    return None if start is None or after is None else (after - start) / 1e6


def contenders(given: dict[str, Tensor], device: torch.device, *, compiled: bool) -> dict[str, Alternative]:
    """Ours that take ``given``, and every alternative."""
    kernel = KERNELS["evoformer_attention"]
    ours = {
        one.name: Alternative(one.run)
        for one in kernel.implementations
        if one.name in OURS and not one.why_not(**given)
    }
    return ours | alternatives(device, compiled=compiled)


def measure(
    shape: Shape, dtype: torch.dtype, device: torch.device, *, rounds: int, compiled: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of one shape and dtype (implementation, direction, seconds, spread, MB), and who was left out and why."""
    given = shape.inputs(dtype, device)
    runs = contenders(given, device, compiled=compiled)
    rows, left_out = [], []
    for backward in (False, True):
        weight = torch.ones_like(given["q"]) if backward else None
        times: dict[str, list[float]] = {}
        memory: dict[str, float | None] = {}
        want: Tensor | None = None
        for name, one in runs.items():
            if backward and not one.backward:
                continue
            try:
                if shape.scores < LARGE or want is None:
                    out = once(one.run, given, weight).detach().float()  # builds, compiles, warms
                    want = out if want is None else want
                    error = float((out - want).norm() / want.norm())
                    if not error < 0.05:
                        raise ValueError(f"its numbers differ by {error:.0%}")
                began = time.perf_counter()
                memory[name] = peak_over_inputs(lambda f=one.run, w=weight: once(f, given, w), device)  # type: ignore[misc]
                times[name] = [time.perf_counter() - began]
            except Exception as error:  # a stranger's kernel may refuse a shape: the others are still measured
                if name in OURS:
                    raise
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                first = re.sub(r"(/[\w.-]+)+/", "", first)  # folders are this machine's
                left_out.append(f"{shape.name} {_name(dtype)}: {name} left out ({first[:160]})")
        fastest = min((taken[0] for name, taken in times.items() if name not in OURS), default=0.0)
        started = time.perf_counter()
        for turn in range(rounds):
            if turn >= LEAST and time.perf_counter() - started > PATIENCE:
                break
            for name, taken in times.items():
                if taken[0] > HOPELESS * fastest and name not in OURS and (name != "naive" or turn > 1):
                    continue
                synchronize()
                began = time.perf_counter()
                once(runs[name].run, given, weight)
                synchronize()
                taken.append(time.perf_counter() - began)
        # the first, with all memory given back before it, only decides who is hopeless
        times = {name: taken[1:] or taken for name, taken in times.items()}
        rows += [
            {
                "shape": shape.name, "dtype": _name(dtype), "implementation": name, "backward": backward,
                "seconds": statistics.median(taken), "spread": spread(taken), "memory_mb": memory[name],
                "mandatory_mb": shape.mandatory(dtype, backward) / 1e6, "flops": shape.flops(backward),
            }
            for name, taken in times.items()
        ]  # fmt: skip
    return rows, left_out


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


COLUMNS = [
    "case", "dtype", "", "ms", "of the machine", "faster than the best alternative", "than naive", "MB over inputs",
    "outputs and gradients MB", "naive MB",
]  # fmt: skip


def table(rows: list[dict[str, Any]], limit: Callable[[dict[str, Any]], float | None]) -> list[list[Any]]:
    """A line for each shape, dtype and direction: ours beside the fastest alternative and beside naive torch.

    ``limit`` gives the seconds that this machine would need at its peak.
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
                ours["mandatory_mb"], None if plain is None else plain["memory_mb"],
            ]
        )  # fmt: skip
    return lines


def forced() -> list[str]:
    """Notes of the variables that hold a side to fewer instructions."""
    return [f"{name}={os.environ[name]}" for name in FORCED if os.environ.get(name)]


def machine_rates() -> dict[str, float]:
    """FLOP/s of this CPU: multiply-adds in registers, where a compiler is, and torch's large matrix products."""
    rates = {f"gemm {_name(dtype)}": machine_peak.gemm_rate(dtype) for dtype in BOTH}
    with contextlib.suppress(BuildError):  # without a compiler there is no share to tell
        rates |= {
            f"multiply-adds {_name(dtype)}": machine_peak.fma_rate(torch.get_num_threads(), dtype) for dtype in BOTH
        }
    return rates


def run(device_name: str, *, quick: bool, out: Path, cases: Sequence[str] = (), compiled: bool = True) -> Measurement:
    """Measure; the table, every figure and the machine's rates go to ``out``. ValueError for an unknown case.

    With ``cases``, those alone, and no growth with n.
    """
    device = torch.device(device_name)
    shapes = QUICK if quick else SHAPES + (LONG if device.type == "cuda" else ())
    unknown = set(cases) - {shape.name for shape in shapes}
    if unknown:
        raise ValueError(f"--case {sorted(unknown)[0]!r}: there are: {', '.join(shape.name for shape in shapes)}")
    shapes = tuple(shape for shape in shapes if not cases or shape.name in cases)
    rates = machine_rates() if device.type == "cpu" else {}
    emulated = bool(rates) and rates["gemm bfloat16"] < 0.1 * rates["gemm float32"] and not quick
    compiled = compiled and not quick
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    for shape in shapes:
        for dtype in shape.dtypes:
            if emulated and dtype == torch.bfloat16:
                continue
            print(f"ds4sci: {shape.name}, {_name(dtype)} …", file=sys.stderr, flush=True)
            torch.compiler.reset()  # or the fourth shape meets torch's limit of recompilations
            small = device.type == "cuda" or shape.scores < LARGE
            measured, refused = measure(shape, dtype, device, rounds=2 if quick else 7, compiled=compiled and small)
            rows += measured
            left_out += refused

    card = next(
        (c for name, c in CARDS.items() if device.type == "cuda" and name in torch.cuda.get_device_name()), None
    )
    by_name = {shape.name: shape for shape in shapes}

    def limit(row: dict[str, Any]) -> float | None:
        if card is not None:
            return floor(by_name[row["shape"]], row["backward"], card)
        rate = rates.get(f"multiply-adds {row['dtype']}")
        return None if rate is None else row["flops"] / rate

    where = (
        f"{native.isa().name}, {torch.get_num_threads()} threads"
        if device.type == "cpu"
        else "physical floor of the card"
    )
    measurement = Measurement(
        name=out.stem,
        title=f"Evoformer attention beside the fastest tuned torch alternative ({where})",
        command=f"ds4sci bench kernels --op evoformer_attention --device {device_name}"
        + "".join(f" --case '{x}'" for x in cases),
        columns=COLUMNS,
        rows=table(rows, limit),
        notes=[
            "b 1; (s, n, h, d) " + ", ".join(f"{x.name} {x.s}, {x.n}, {x.h}, {x.d}" for x in shapes),
            "gradients of q, k, v and pair bias; beside: "
            + ", ".join(alternatives(device, compiled=compiled))
            + (", the compiled ones not in the two large cases" if compiled and device.type == "cpu" else ""),
            "in the same run: " + ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items()),
            *forced(),
            *(["torch emulates bf16 products on this processor: bf16 left out"] if emulated else []),
            *dict.fromkeys(left_out),
        ],
    )
    everything = asdict(measurement) | {"measured": rows, "rates": rates, "quick": quick}
    if not quick and not cases:
        everything |= {"growth": growth(device), "plot": f"{out.stem}.png"}
    write(out, everything)
    return measurement


GROWTH = (128, 256, 384, 512, 768, 1024)
GROWING = ("naive", "checkpointed", "chunked SDPA 4")


def growth(device: torch.device) -> list[dict[str, Any]]:
    """Memory and seconds of forward + backward against n at s 16, h 8, d 32, fp32: ours and three alternatives."""
    rows: list[dict[str, Any]] = []
    for n in GROWTH:
        shape = Shape("growth", 16, n, 8, 32)
        given = shape.inputs(torch.float32, device)
        weight = torch.ones_like(given["q"])
        found = contenders(given, device, compiled=False)
        ours = next(name for name in OURS if name in found)
        times: dict[str, list[float]] = {}
        for name in (ours, *GROWING):
            once(found[name].run, given, weight)
            held = peak_over_inputs(lambda f=found[name].run, g=given, w=weight: once(f, g, w), device)  # type: ignore[misc]
            rows.append({"n": n, "implementation": name, "memory_mb": held})
            times[name] = []
        for _ in range(3):
            for name, taken in times.items():
                synchronize()
                began = time.perf_counter()
                once(found[name].run, given, weight)
                synchronize()
                taken.append(time.perf_counter() - began)
        for row in rows[-len(times) :]:
            row["seconds"] = statistics.median(times[row["implementation"]])
            row["mandatory_mb"] = shape.mandatory(torch.float32, True) / 1e6
    return rows
