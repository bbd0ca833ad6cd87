"""``ds4sci bench kernels``: every implementation of an operation beside what a user of torch would take instead.

One process, A B A B, medians. Time forward, and forward with all gradients; peak memory over the inputs; FLOP/s as a
share of what register-only multiply-adds reach in the same run.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ds4sci.bench import Measurement, peak_bytes, spread, synchronize
from ds4sci.kernels import KERNELS, peak
from ds4sci.kernels.native import BuildError

Function = Callable[..., Tensor]

LEAST, PATIENCE = 5, 12.0
"""Rounds that are always made, and seconds after which no further one begins."""
HOPELESS = 6.0
"""What takes so many times the fastest's time is timed once and left out of the rounds."""


@dataclass(frozen=True)
class Shape:
    """One line of the table: [b, s, n, h, d] with a mask and, ``bias``, a pair bias."""

    name: str
    s: int
    n: int
    h: int
    d: int
    bias: bool = True
    b: int = 1

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

    def flops(self, backward: bool) -> float:
        """2 products of 2·d forward; 5 more backward."""
        return (14 if backward else 4) * self.b * self.s * self.h * self.n**2 * self.d


SHAPES = (
    Shape("MSA row", 64, 256, 8, 32),
    Shape("triangle", 128, 256, 4, 32),
    Shape("extra MSA", 64, 256, 8, 8),
    Shape("MSA column", 128, 128, 8, 32, bias=False),
)
QUICK = (Shape("quick", 8, 64, 4, 16),)


def naive(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, pair_bias: Tensor | None = None) -> Tensor:
    """What most models do: scores whole, softmax, product."""
    return KERNELS["evoformer_attention"].reference(q, k, v, mask, pair_bias)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, pair_bias: Tensor | None = None) -> Tensor:
    """torch's fused attention with mask and bias summed into one additive mask."""
    added = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, -1e4)[:, :, None, None, :]
    if pair_bias is not None:
        added = added + pair_bias.unsqueeze(1)
    summed = added.expand(*added.shape[:2], q.shape[3], q.shape[2], k.shape[2]).flatten(0, 1)
    queries, keys, values = (x.transpose(2, 3).flatten(0, 1) for x in (q, k, v))
    out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=summed)
    return out.unflatten(0, q.shape[:2]).transpose(2, 3)


def chunked(function: Function, rows: int) -> Function:
    """``function`` on ``rows`` rows at a time, as low-memory attention does."""

    def run(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, pair_bias: Tensor | None = None) -> Tensor:
        parts = zip(*(x.split(rows, dim=1) for x in (q, k, v, mask)), strict=True)
        return torch.cat([function(*part, pair_bias) for part in parts], dim=1)

    return run


def checkpointed(function: Function) -> Function:
    def run(**given: Tensor) -> Tensor:
        out: Tensor = checkpoint(lambda: function(**given), use_reentrant=False)
        return out

    return run


def alternatives(compiled: bool) -> dict[str, Function]:
    """What a user of torch would take instead."""
    found: dict[str, Function] = {"naive": naive, "SDPA": sdpa, "checkpointed": checkpointed(naive)}
    found |= {f"chunked {rows}": chunked(naive, rows) for rows in (1, 4, 16)}
    found |= {f"chunked SDPA {rows}": chunked(sdpa, rows) for rows in (1, 4, 16)}
    if compiled:
        found["compiled"] = torch.compile(naive, dynamic=False)
    return found


def once(function: Function, given: dict[str, Tensor], backward: bool) -> None:
    if not backward:
        with torch.no_grad():
            function(**given)
        return
    leaves = {name: x.detach().requires_grad_() for name, x in given.items() if x.is_floating_point()}
    out = function(**(given | leaves))
    torch.autograd.grad(out, list(leaves.values()), torch.ones_like(out))


def peak_over_inputs(action: Callable[[], None], device: torch.device) -> float | None:
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


def measure(
    shape: Shape, dtype: torch.dtype, device: torch.device, *, rounds: int, compiled: bool
) -> list[dict[str, Any]]:
    """Rows of one shape and dtype: implementation, direction, seconds (median, spread), MB."""
    given = shape.inputs(dtype, device)
    kernel = KERNELS["evoformer_attention"]
    runs: dict[str, Function] = {
        one.name: one.run for one in kernel.implementations if one.name != "reference" and not one.why_not(**given)
    }
    runs |= alternatives(compiled)
    rows = []
    for backward in (False, True):
        times: dict[str, list[float]] = {name: [] for name in runs}
        memory: dict[str, float | None] = {}
        for name, function in runs.items():
            once(function, given, backward)  # builds, compiles, warms
            began = time.perf_counter()
            memory[name] = peak_over_inputs(lambda f=function, b=backward: once(f, given, b), device)  # type: ignore[misc]
            times[name].append(time.perf_counter() - began)
        hopeless = HOPELESS * min(times[name][0] for name in runs)
        started = time.perf_counter()
        for turn in range(rounds):
            if turn >= LEAST and time.perf_counter() - started > PATIENCE:
                break
            for name, function in runs.items():
                if times[name][0] > hopeless and name != "naive":
                    continue
                synchronize()
                began = time.perf_counter()
                once(function, given, backward)
                synchronize()
                times[name].append(time.perf_counter() - began)
        # the first, with all memory given back before it, only decides who is hopeless
        times = {name: values[1:] or values for name, values in times.items()}
        rows += [
            {
                "shape": shape.name, "dtype": str(dtype).removeprefix("torch."), "implementation": name,
                "backward": backward, "seconds": statistics.median(values), "spread": spread(values),
                "memory_mb": memory[name], "flops": shape.flops(backward),
            }
            for name, values in times.items()
        ]  # fmt: skip
    return rows


def table(rows: list[dict[str, Any]], fma: float | None) -> list[list[Any]]:
    """A line for each shape, dtype and direction: ours beside the fastest alternative and beside naive torch."""
    lines = []
    keys = list(dict.fromkeys((r["shape"], r["dtype"], r["backward"]) for r in rows))
    for key in keys:
        group = {r["implementation"]: r for r in rows if (r["shape"], r["dtype"], r["backward"]) == key}
        ours = group.get("native") or group["tiled"]
        others = [r for name, r in group.items() if name not in ("native", "tiled")]
        best = min(others, key=lambda r: r["seconds"])
        plain = group["naive"]
        share = None if fma is None else ours["flops"] / ours["seconds"] / fma
        lines.append(
            [
                key[0], key[1], "forward + backward" if key[2] else "forward", 1e3 * ours["seconds"],
                "–" if share is None else f"{share:.0%}",
                f"{best['seconds'] / ours['seconds']:.2f} × ({best['implementation']})",
                f"{plain['seconds'] / ours['seconds']:.2f} ×", ours["memory_mb"], plain["memory_mb"],
            ]
        )  # fmt: skip
    return lines


def run(op: str, device_name: str, *, quick: bool, out: Path, compiled: bool = True) -> Measurement:
    """Measure; the table, every figure and the machine's rates go to ``out``. ValueError for an unknown ``op``."""
    if op != "evoformer_attention":
        raise ValueError(f"--op {op}: measured are: evoformer_attention")
    device = torch.device(device_name)
    fma: float | None = None
    rates: dict[str, float] = {}
    if device.type == "cpu":
        try:
            fma = peak.fma_rate(torch.get_num_threads())
            rates["fma"] = fma
        except BuildError:
            fma = None  # without a compiler there is no share to tell
        rates["gemm float32"] = peak.gemm_rate(torch.float32)
        rates["gemm bfloat16"] = peak.gemm_rate(torch.bfloat16)
    dtypes = [torch.float32, torch.bfloat16]
    emulated = bool(rates) and rates["gemm bfloat16"] < 0.1 * rates["gemm float32"]
    if emulated and not quick:
        dtypes.remove(torch.bfloat16)
    rows: list[dict[str, Any]] = []
    for shape in QUICK if quick else SHAPES:
        for dtype in dtypes:
            torch.compiler.reset()  # or the fourth shape meets torch's limit of recompilations
            rows += measure(shape, dtype, device, rounds=2 if quick else 7, compiled=compiled and not quick)
    rate = ", ".join(f"{name} {value / 1e9:.0f} GFLOP/s" for name, value in rates.items())
    measurement = Measurement(
        name="kernels_evoformer_attention" if device.type == "cpu" else f"kernels_evoformer_attention_{device.type}",
        title="Evoformer attention, beside the fastest tuned torch alternative",
        command=f"ds4sci bench kernels --op {op} --device {device_name}",
        columns=[
            "case",
            "dtype",
            "",
            "ms",
            "of FMA peak",
            "faster than the best alternative",
            "than naive",
            "MB over inputs",
            "naive MB",
        ],
        rows=table(rows, fma if device.type == "cpu" else None),
        notes=[
            "b 1; (s, n, h, d) "
            + ", ".join(f"{x.name} {x.s}, {x.n}, {x.h}, {x.d}" for x in (QUICK if quick else SHAPES)),
            "gradients of q, k, v and pair bias; beside: naive, SDPA, both chunked by 1, 4 and 16 rows, checkpointed"
            + (", torch.compile" if compiled and not quick else ""),
            f"{torch.get_num_threads()} threads; in the same run: {rate}",
            *(["torch emulates bf16 products on this processor: bf16 left out"] if emulated and not quick else []),
        ],
    )
    everything = asdict(measurement) | {"measured": rows, "rates": rates, "quick": quick}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return measurement
