"""``ds4sci bench kernels --op evoformer_block``: one Evoformer block at AlphaFold 2's widths, ours beside plain torch.

Plain is the same block with every operation's ``reference``: compiled too, and checkpointed. One process, A B A B,
medians; where the time goes, from torch's profiler; how memory and time grow with n; the longest n in 8 GB.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ds4sci.bench.evoformer_attention import BOTH, forced, machine_rates, peak_over_inputs
from ds4sci.bench.measurement import Measurement, spread, synchronize, write
from ds4sci.kernels import KERNELS
from ds4sci.kernels.spec import prefer
from ds4sci.models.fold import EvoformerConfig
from ds4sci.nn.evoformer import BlockConfig, EvoformerBlock

ROWS = 64
LENGTHS = (128, 256)
GROWTH = (64, 128, 192, 256, 384, 512)
LIMIT_MB = 8e3
STEP = 32
"""Lengths that are tried for the longest are multiples of it."""
PLAIN = dict.fromkeys(KERNELS, "reference")
PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm", "aten::mkldnn_linear", "mkl::_mkl")


class Step:
    """One forward and backward of a block; ``choices`` are the kernels' implementations."""

    def __init__(self, config: BlockConfig, n: int, dtype: torch.dtype, device: torch.device, rows: int = ROWS) -> None:
        torch.manual_seed(0)
        block = EvoformerBlock(config)
        for parameter in block.parameters():
            if parameter.dim() == 2:  # the last layers begin at 0: then half the backward multiplies zeros
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        self.block = block.to(device, dtype).train()
        self.m = torch.randn(1, rows, n, config.c_m).to(device, dtype).requires_grad_()
        self.z = torch.randn(1, n, n, config.c_z).to(device, dtype).requires_grad_()
        msa_mask, pair_mask = torch.ones(1, rows, n, dtype=torch.bool), torch.ones(1, n, n, dtype=torch.bool)
        self.masks = msa_mask.to(device), pair_mask.to(device)
        self.weights = torch.randn_like(self.m), torch.randn_like(self.z)

    def __call__(self, how: str, choices: dict[str, str]) -> tuple[Tensor, Tensor]:
        """``how``: as it is, ``compiled`` or ``checkpointed``."""
        prefer(choices, KERNELS)
        torch.manual_seed(0)
        block: Callable[..., tuple[Tensor, Tensor]] = self.block
        if how == "compiled":
            block = self.compiled()
        if how == "checkpointed":
            out = checkpoint(self.block, self.m, self.z, *self.masks, use_reentrant=False)
        else:
            out = block(self.m, self.z, *self.masks)
        torch.autograd.backward(out, self.weights)
        grads = self.m.grad, self.z.grad
        self.m.grad = self.z.grad = None
        self.block.zero_grad(set_to_none=True)
        prefer({}, KERNELS)
        assert grads[0] is not None
        assert grads[1] is not None
        return grads[0], grads[1]

    def compiled(self) -> Callable[..., tuple[Tensor, Tensor]]:
        if not hasattr(self, "_compiled"):
            self._compiled = torch.compile(self.block, dynamic=False)
        return self._compiled


WAYS: dict[str, tuple[str, dict[str, str]]] = {
    "ds4sci": ("", {}),
    "plain": ("", PLAIN),
    "plain, checkpointed": ("checkpointed", PLAIN),
    "plain, compiled": ("compiled", PLAIN),
}


def shares(step: Step, choices: dict[str, str]) -> dict[str, Any]:
    """Parts of a CPU's time in a step: matrix products, fused attention, everything else; and the longest events."""
    from torch.profiler import ProfilerActivity, profile

    attention = [0.0]
    with profile(activities=[ProfilerActivity.CPU]) as seen, timed_attention(attention):
        step("", choices)
    events = sorted(seen.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events) / 1e6
    products = sum(e.self_cpu_time_total for e in events if e.key.startswith(PRODUCTS)) / 1e6
    return {
        "matrix products": products / total,
        "fused attention": attention[0] / total,
        "outside": 1 - (products + attention[0]) / total,
        "longest": [[e.key, e.self_cpu_time_total / 1e6, e.count] for e in events[:15]],
    }


class timed_attention:
    """While it lasts, the seconds in the native attention, which the profiler does not see into, are added up."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        from ds4sci.kernels.evoformer_attention import native

        self.kept = native._run

        def run(problem: native.Problem, backward: bool) -> None:
            began = time.perf_counter()
            self.kept(problem, backward)
            self.seconds[0] += time.perf_counter() - began

        native._run = run

    def __exit__(self, *_: object) -> None:
        from ds4sci.kernels.evoformer_attention import native

        native._run = self.kept


def compare(step: Step, ways: list[str], rounds: int) -> list[dict[str, Any]]:
    """Seconds (median, spread) and MB of each way, in turn."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    memory: dict[str, float | None] = {}
    want: tuple[Tensor, Tensor] | None = None
    for name in ways:
        grads = step(*WAYS[name])  # compiles, builds, warms
        want = want or grads
        apart = max(float((g - w).norm() / w.norm()) for g, w in zip(grads, want, strict=True))
        if not apart < 0.05:
            raise ValueError(f"{name}: its gradients differ from ds4sci's by {apart:.1%}")
        memory[name] = peak_over_inputs(lambda n=name: step(*WAYS[n]), step.m.device)  # type: ignore[misc]
    for _ in range(rounds):
        for name in ways:
            synchronize()
            began = time.perf_counter()
            step(*WAYS[name])
            synchronize()
            times[name].append(time.perf_counter() - began)
    return [
        {"way": name, "seconds": statistics.median(own), "spread": spread(own), "memory_mb": memory[name]}
        for name, own in times.items()
    ]


def growth(config: BlockConfig, device: torch.device, limit_mb: float) -> list[dict[str, Any]]:
    """Memory and seconds against n, fp32, plain and ours, up to the longest n within the limit and the next one."""
    rows: list[dict[str, Any]] = []
    for name in ("plain", "ds4sci"):
        known: dict[int, dict[str, Any]] = {}

        def fits(n: int, known: dict[int, dict[str, Any]] = known, name: str = name) -> bool:
            if n not in known:
                known[n] = _one(config, device, n, name)
            return bool(known[n]["memory_mb"] <= limit_mb)

        for n in GROWTH:
            mine = list(known.values())
            if len(mine) > 1 and _extrapolate(mine, "memory_mb", n) > limit_mb:
                break
            fits(n)
        mine = list(known.values())
        # as n² at least: the pairs grow so in the end, whatever the last two lengths show
        power = max(2.0, slope(mine, "memory_mb"))
        expected = mine[-1]["n"] * (limit_mb / mine[-1]["memory_mb"]) ** (1 / power)
        n = max(STEP, STEP * int(expected / STEP))
        while fits(n):
            n += STEP
        while not fits(n):
            n -= STEP
        rows += [known[n] for n in sorted(known)]
    return rows


def _one(config: BlockConfig, device: torch.device, n: int, name: str) -> dict[str, Any]:
    """One step, the process warm from shorter ones."""
    print(f"ds4sci: n = {n}, {name} …", file=sys.stderr, flush=True)
    step = Step(config, n, torch.float32, device)
    seconds = [0.0]

    def timed() -> None:
        began = time.perf_counter()
        step(*WAYS[name])
        synchronize()
        seconds[0] = time.perf_counter() - began

    if n == GROWTH[0]:
        timed()
    memory = peak_over_inputs(timed, device)
    return {"way": name, "n": n, "seconds": seconds[0], "memory_mb": memory}


def slope(rows: list[dict[str, Any]], what: str) -> float:
    """Exponent of the power of n that the last two lengths show."""
    a, b = rows[-2:]
    return math.log(b[what] / a[what]) / math.log(b["n"] / a["n"])


def _extrapolate(rows: list[dict[str, Any]], what: str, n: int) -> float:
    return float(rows[-1][what] * (n / rows[-1]["n"]) ** slope(rows, what))


def run(device_name: str, *, quick: bool, out: Path, compiled: bool = True) -> Measurement:
    """Measure; the table and every figure go to ``out``."""
    device = torch.device(device_name)
    # without dropout: what is compiled would draw other masks, and could not be compared
    sizes = EvoformerConfig(dropout_msa=0.0, dropout_pair=0.0).model_dump(exclude={"blocks"})
    config = BlockConfig(c_m=256, c_z=128, **sizes)
    rates = machine_rates() if device.type == "cpu" else {}
    measured: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    for n in (16,) if quick else LENGTHS:
        for dtype in BOTH:
            kind = str(dtype).removeprefix("torch.")
            print(f"ds4sci: one block, n = {n}, {kind} …", file=sys.stderr, flush=True)
            step = Step(config, n, dtype, device, rows=4 if quick else ROWS)
            torch.compiler.reset()
            ways = [name for name in WAYS if (compiled and not quick) or name != "plain, compiled"]
            for row in compare(step, ways, rounds=1 if quick else 5 if n < 256 else 3):
                measured.append({"n": n, "dtype": kind} | row)
            for name in ("plain", "ds4sci") if device.type == "cpu" else ():
                parts.append({"n": n, "dtype": kind, "way": name} | shares(step, WAYS[name][1]))
    grown = [] if quick else growth(config, device, LIMIT_MB)
    measurement = Measurement(
        name=out.stem,
        title=f"One Evoformer block at AlphaFold 2's widths, {ROWS} rows, forward + backward",
        command=f"ds4sci bench kernels --op evoformer_block --device {device_name}",
        columns=[
            "n", "dtype", "", "seconds", "spread", "MB over inputs", "ds4sci is faster", "leaner",
            "outside products and attention",
        ],
        rows=[_line(row, measured, parts) for row in measured],
        notes=[
            "plain: every operation's reference, readable torch; gradients of both representations and all parameters",
            *_longest_notes(grown),
            "in the same run: " + ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items()),
            *forced(),
        ],
    )  # fmt: skip
    everything = asdict(measurement) | {
        "measured": measured, "shares": parts, "growth": grown, "rates": rates, "quick": quick,
    }  # fmt: skip
    if not quick:
        everything["plot"] = f"{out.stem}.png"
    write(out, everything)
    return measurement


def _line(row: dict[str, Any], measured: list[dict[str, Any]], parts: list[dict[str, Any]]) -> list[Any]:
    same = {r["way"]: r for r in measured if (r["n"], r["dtype"]) == (row["n"], row["dtype"])}
    ours = same["ds4sci"]
    share = [p["outside"] for p in parts if all(p[key] == row[key] for key in ("n", "dtype", "way"))]
    leaner = None if row["memory_mb"] is None else row["memory_mb"] / ours["memory_mb"]
    return [
        row["n"], row["dtype"], row["way"], row["seconds"], f"{row['spread']:.0%}", row["memory_mb"],
        "" if row is ours else f"{row['seconds'] / ours['seconds']:.2f} ×",
        "" if row is ours or leaner is None else f"{leaner:.2f} ×", f"{share[0]:.0%}" if share else "–",
    ]  # fmt: skip


def _longest_notes(grown: list[dict[str, Any]]) -> list[str]:
    found = []
    for name in dict.fromkeys(r["way"] for r in grown):
        mine = [r for r in grown if r["way"] == name]
        fits = [r for r in mine if r["memory_mb"] <= LIMIT_MB]
        found.append(
            f"{name}: the longest n in {LIMIT_MB / 1e3:.0f} GB is {fits[-1]['n']} ({fits[-1]['seconds']:.0f} s); "
            f"at the end memory grows as n^{slope(mine, 'memory_mb'):.2f} and time as n^{slope(mine, 'seconds'):.2f}"
        )
    return found
