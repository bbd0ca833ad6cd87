"""Benchmark of one Evoformer block at AlphaFold 2's widths, baseline: plain torch.

Plain torch is the same block with the ``reference`` of every kernel; it is measured as is, compiled, and with
activation checkpointing. One process, A B A B, medians. Further figures: the share of the processor's multiply-adds,
memory and time for growing n, and the longest n in 8 GB.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from ds4sci.bench.machine_limits import DTYPES, cpu_rates, dtype_name, is_bf16_emulated, machine_notes
from ds4sci.bench.measurement import Measurement, spread, synchronize, time_alternately, write
from ds4sci.bench.memory import peak_memory_mb
from ds4sci.kernels import KERNELS
from ds4sci.kernels.spec import set_default_implementations
from ds4sci.models.fold import EvoformerConfig
from ds4sci.nn.evoformer import BlockConfig, EvoformerBlock

ROWS = 64
LENGTHS = (128, 256)
GROWTH_LENGTHS = (64, 128, 192, 256, 384, 512)
LIMIT_MB = 8e3
LENGTH_STEP = 32
"""The search for the longest n tries multiples of this."""
PLAIN = dict.fromkeys(KERNELS, "reference")


class BlockStep:
    """Forward and backward of one block with given kernel implementations."""

    def __init__(self, config: BlockConfig, n: int, dtype: torch.dtype, device: torch.device, rows: int = ROWS) -> None:
        torch.manual_seed(0)
        block = EvoformerBlock(config)
        # the last layers are initialized with 0, so that half of the backward pass would multiply zeros
        for parameter in block.parameters():
            if parameter.dim() == 2:
                torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        self.block = block.to(device, dtype).train()
        self.m = torch.randn(1, rows, n, config.c_m).to(device, dtype).requires_grad_()
        self.z = torch.randn(1, n, n, config.c_z).to(device, dtype).requires_grad_()
        msa_mask, pair_mask = torch.ones(1, rows, n, dtype=torch.bool), torch.ones(1, n, n, dtype=torch.bool)
        self.masks = msa_mask.to(device), pair_mask.to(device)
        self.weights = torch.randn_like(self.m), torch.randn_like(self.z)

    def __call__(self, mode: str, implementations: dict[str, str]) -> tuple[Tensor, Tensor]:
        """Gradients of both inputs. ``mode``: empty, ``compiled`` or ``checkpointed``."""
        with set_default_implementations(implementations, KERNELS):
            torch.manual_seed(0)
            block: Callable[..., tuple[Tensor, Tensor]] = self.block
            if mode == "compiled":
                block = self.compiled()
            if mode == "checkpointed":
                out = checkpoint(self.block, self.m, self.z, *self.masks, use_reentrant=False)
            else:
                out = block(self.m, self.z, *self.masks)
            torch.autograd.backward(out, self.weights)
        grads = self.m.grad, self.z.grad
        self.m.grad = self.z.grad = None
        self.block.zero_grad(set_to_none=True)
        assert grads[0] is not None
        assert grads[1] is not None
        return grads[0], grads[1]

    def compiled(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """The block compiled by torch.compile, once."""
        if not hasattr(self, "_compiled"):
            self._compiled = torch.compile(self.block, dynamic=False)
        return self._compiled


METHODS: dict[str, tuple[str, dict[str, str]]] = {
    "ds4sci": ("", {}),
    "plain": ("", PLAIN),
    "plain, checkpointed": ("checkpointed", PLAIN),
    "plain, compiled": ("compiled", PLAIN),
}


def product_flops(config: BlockConfig, n: int, rows: int) -> int:
    """Operations of the matrix products of plain torch, forward and backward, where nothing is computed twice."""
    step = BlockStep(config, n, torch.float32, torch.device("meta"), rows)
    with FlopCounterMode(display=False) as counter:
        step("", PLAIN)
    return int(counter.get_total_flops())


def compare(step: BlockStep, methods: list[str], rounds: int) -> list[dict[str, Any]]:
    """Seconds (median, spread) and MB of each method, A B A B."""
    actions = {name: partial(step, *METHODS[name]) for name in methods}
    memory: dict[str, float | None] = {}
    want: tuple[Tensor, Tensor] | None = None
    for name, action in actions.items():
        grads = action()  # compiles, builds, warms up
        want = want or grads
        difference = max(float((g - w).norm() / w.norm()) for g, w in zip(grads, want, strict=True))
        if not difference < 0.05:
            raise ValueError(f"{name}: its gradients differ from ds4sci's by {difference:.1%}")
        memory[name] = peak_memory_mb(action, step.m.device)
    return [
        {"method": name, "seconds": statistics.median(own), "spread": spread(own), "memory_mb": memory[name]}
        for name, own in time_alternately(actions, rounds).items()
    ]


def growth(config: BlockConfig, device: torch.device, limit_mb: float) -> list[dict[str, Any]]:
    """Memory and seconds of plain torch and ds4sci for growing n, fp32, up to the first n beyond the limit."""
    rows: list[dict[str, Any]] = []
    for name in ("plain", "ds4sci"):
        known: dict[int, dict[str, Any]] = {}

        def fits(n: int, known: dict[int, dict[str, Any]] = known, name: str = name) -> bool:
            if n not in known:
                known[n] = _measure_length(config, device, n, name)
            return bool(known[n]["memory_mb"] <= limit_mb)

        for n in GROWTH_LENGTHS:
            measured = list(known.values())
            if len(measured) > 1 and _extrapolate(measured, "memory_mb", n) > limit_mb:
                break
            fits(n)
        measured = list(known.values())
        # at least n², the growth of the pair representation for large n
        power = max(2.0, slope(measured, "memory_mb"))
        expected = measured[-1]["n"] * (limit_mb / measured[-1]["memory_mb"]) ** (1 / power)
        n = max(LENGTH_STEP, LENGTH_STEP * int(expected / LENGTH_STEP))
        while fits(n):
            n += LENGTH_STEP
        while not fits(n):
            n -= LENGTH_STEP
        rows += [known[n] for n in sorted(known)]
    return rows


def _measure_length(config: BlockConfig, device: torch.device, n: int, name: str) -> dict[str, Any]:
    """Figures of one step. The process is warm from shorter steps."""
    print(f"ds4sci: n = {n}, {name} …", file=sys.stderr, flush=True)
    step = BlockStep(config, n, torch.float32, device)
    seconds = [0.0]

    def timed() -> None:
        start = time.perf_counter()
        step(*METHODS[name])
        synchronize()
        seconds[0] = time.perf_counter() - start

    if n == GROWTH_LENGTHS[0]:
        timed()
    memory = peak_memory_mb(timed, device)
    return {"method": name, "n": n, "seconds": seconds[0], "memory_mb": memory}


def slope(rows: list[dict[str, Any]], what: str) -> float:
    """Exponent p of n^p between the last two lengths."""
    a, b = rows[-2:]
    return math.log(b[what] / a[what]) / math.log(b["n"] / a["n"])


def _extrapolate(rows: list[dict[str, Any]], what: str, n: int) -> float:
    return float(rows[-1][what] * (n / rows[-1]["n"]) ** slope(rows, what))


def run(
    device_name: str, *, quick: bool, out: Path, compiled: bool = True, lengths: Sequence[int] = LENGTHS,
    grows: bool = True,
) -> Measurement:  # fmt: skip
    """Measure the block and, if ``grows``, its growth with n; write table and figures to ``out``."""
    device = torch.device(device_name)
    # no dropout: a compiled block draws different masks, which could not be compared
    sizes = EvoformerConfig(dropout_msa=0.0, dropout_pair=0.0).model_dump(exclude={"blocks"})
    config = BlockConfig(c_m=256, c_z=128, **sizes)
    rates = cpu_rates(device)
    emulated = is_bf16_emulated(rates) and not quick
    measured: list[dict[str, Any]] = []
    for n in (16,) if quick else lengths:
        rows = 4 if quick else ROWS
        flops = product_flops(config, n, rows)
        for dtype in DTYPES[:1] if emulated else DTYPES:
            kind = dtype_name(dtype)
            print(f"ds4sci: one block, n = {n}, {kind} …", file=sys.stderr, flush=True)
            step = BlockStep(config, n, dtype, device, rows)
            torch.compiler.reset()
            methods = [name for name in METHODS if (compiled and not quick) or name != "plain, compiled"]
            for row in compare(step, methods, rounds=1 if quick else 5 if n < 256 else 3):
                measured.append({"n": n, "dtype": kind, "flops": flops} | row)
    grown = [] if quick or not grows else growth(config, device, LIMIT_MB)
    measurement = Measurement(
        name=out.stem,
        title=f"One Evoformer block at AlphaFold 2's widths, {ROWS} MSA rows, forward + backward",
        command=f"ds4sci bench kernels --op evoformer_block --device {device_name} --json {out.name}",
        columns=[
            "n", "dtype", "method", "seconds", "spread", "peak memory (MB)", "speed-up of ds4sci",
            "memory reduction by ds4sci", "share of the multiply-adds",
        ],
        rows=[_line(row, measured, rates) for row in measured],
        notes=[
            "plain: plain torch, the reference of every kernel; gradients of both representations and all parameters; "
            "memory minus the inputs",
            "share of the multiply-adds: the operations of plain torch's matrix products, without what a method "
            f"computes again ({', '.join(_flops_notes(measured))}), by the processor's rate",
            *(["torch emulates bf16 products on this CPU: bf16 not measured"] if emulated else []),
            *_longest_notes(grown),
            *machine_notes(rates),
        ],
    )  # fmt: skip
    everything = asdict(measurement) | {
        "measured": measured, "growth": grown, "rates": rates, "quick": quick,
    }  # fmt: skip
    if grown:
        everything["plot"] = f"{out.stem}.png"
    write(out, everything)
    return measurement


def _flops_notes(measured: list[dict[str, Any]]) -> list[str]:
    return [f"n {n}: {flops / 1e9:.0f} GFLOP" for n, flops in {row["n"]: row["flops"] for row in measured}.items()]


def _line(row: dict[str, Any], measured: list[dict[str, Any]], rates: dict[str, float]) -> list[Any]:
    same = {r["method"]: r for r in measured if (r["n"], r["dtype"]) == (row["n"], row["dtype"])}
    ours = same["ds4sci"]
    rate = rates.get(f"multiply-adds {row['dtype']}")
    reduction = None if row["memory_mb"] is None else row["memory_mb"] / ours["memory_mb"]
    return [
        row["n"], row["dtype"], row["method"], row["seconds"], f"{row['spread']:.0%}", row["memory_mb"],
        "" if row is ours else f"{row['seconds'] / ours['seconds']:.2f} ×",
        "" if row is ours or reduction is None else f"{reduction:.2f} ×",
        f"{row['flops'] / (row['seconds'] * rate):.0%}" if rate else "–",
    ]  # fmt: skip


def _longest_notes(grown: list[dict[str, Any]]) -> list[str]:
    found = []
    for name in dict.fromkeys(r["method"] for r in grown):
        mine = [r for r in grown if r["method"] == name]
        fits = [r for r in mine if r["memory_mb"] <= LIMIT_MB]
        found.append(
            f"{name}: the longest n in {LIMIT_MB / 1e3:.0f} GB is {fits[-1]['n']} ({fits[-1]['seconds']:.0f} s); "
            f"there memory grows as n^{slope(mine, 'memory_mb'):.2f} and time as n^{slope(mine, 'seconds'):.2f}"
        )
    return found
