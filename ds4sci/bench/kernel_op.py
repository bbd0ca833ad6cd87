"""``ds4sci bench kernels --op NAME``: one operation of the block at AlphaFold 2's widths, ours beside its reference.

The reference is readable torch. One process, A B A B, medians; peak memory over the inputs.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ds4sci.bench.evoformer_attention import BOTH, OURS, forced, machine_rates, peak_over_inputs
from ds4sci.bench.measurement import Measurement, spread, synchronize, write
from ds4sci.kernels import KERNELS
from ds4sci.kernels.gated_self_attention import Weights as AttentionWeights
from ds4sci.kernels.spec import Kernel
from ds4sci.kernels.triangle_multiplication import Weights as TriangleWeights

ROUNDS = 7
Make = Callable[[int, Callable[..., Tensor]], dict[str, Any]]


@dataclass(frozen=True)
class Problem:
    """An operation at one size; ``make(n, normal)`` gives its arguments."""

    operation: str
    name: str
    make: Make


def _layer(normal: Callable[..., Tensor], outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    return normal(outputs, inputs, scale=inputs**-0.5), normal(outputs)


def _transition(n: int, normal: Callable[..., Tensor]) -> dict[str, Any]:
    (weight_1, bias_1), (weight_2, bias_2) = _layer(normal, 512, 128), _layer(normal, 128, 512)
    return {
        "x": normal(1, n, n, 128), "norm_weight": normal(128), "norm_bias": normal(128), "weight_1": weight_1,
        "bias_1": bias_1, "weight_2": weight_2, "bias_2": bias_2,
    }  # fmt: skip


def _swiglu(n: int, normal: Callable[..., Tensor]) -> dict[str, Any]:
    return {
        "x": normal(1, n, n, 128), "norm_weight": normal(128), "norm_bias": normal(128),
        "weight_1": _layer(normal, 1024, 128)[0], "bias_1": None, "weight_2": _layer(normal, 128, 512)[0],
        "bias_2": None, "activation": "swiglu",
    }  # fmt: skip


def _triangle(direction: str) -> Make:
    def make(n: int, normal: Callable[..., Tensor]) -> dict[str, Any]:
        norms = (normal(128), normal(128)), (normal(128), normal(128))
        a, b, c, d, z, g = (_layer(normal, 128, 128) for _ in range(6))
        mask = torch.ones(1, n, n, dtype=torch.bool, device=z[0].device)
        weights = TriangleWeights(norms[0], a, b, c, d, norms[1], z, g)
        return {"z": normal(1, n, n, 128), "mask": mask, "weights": weights, "direction": direction}

    return make


def _outer(n: int, normal: Callable[..., Tensor]) -> dict[str, Any]:
    weight, bias = _layer(normal, 128, 1024)
    mask = torch.ones(1, 64, n, dtype=torch.bool, device=weight.device)
    return {"a": normal(1, 64, n, 32), "b": normal(1, 64, n, 32), "mask": mask, "weight": weight, "bias": bias}


def _attention(rows: int, c: int, heads: int, *, bias: bool = True) -> Make:
    def make(n: int, normal: Callable[..., Tensor]) -> dict[str, Any]:
        q, k, v, g, o = (_layer(normal, c, c) for _ in range(5))
        weights = AttentionWeights((normal(c), normal(c)), (q[0], None), (k[0], None), (v[0], None), g, o)
        s = rows or n
        return {
            "x": normal(1, s, n, c), "mask": torch.ones(1, s, n, dtype=torch.bool, device=q[0].device),
            "pair_bias": normal(1, heads, n, n) if bias else None, "weights": weights, "heads": heads,
        }  # fmt: skip

    return make


def _bias(n: int, normal: Callable[..., Tensor]) -> dict[str, Any]:
    return {
        "z": normal(1, n, n, 128), "norm_weight": normal(128), "norm_bias": normal(128),
        "weight": _layer(normal, 8, 128)[0],
    }  # fmt: skip


def _norm(n: int, normal: Callable[..., Tensor]) -> dict[str, Any]:
    return {"x": normal(1, n, n, 128), "weight": normal(128), "bias": normal(128)}


PROBLEMS = (
    Problem("gated_self_attention", "triangle attention, c 128, h 4", _attention(0, 128, 4)),
    Problem("gated_self_attention", "MSA row, 64 rows, c 256, h 8", _attention(64, 256, 8)),
    Problem("pair_bias", "c 128, h 8", _bias),
    Problem("triangle_multiplication", "outgoing, c 128", _triangle("outgoing")),
    Problem("triangle_multiplication", "incoming, c 128", _triangle("incoming")),
    Problem("outer_product_mean", "64 rows, c 32, c_z 128", _outer),
    Problem("transition", "ReLU, c 128, 4 ×", _transition),
    Problem("transition", "SwiGLU, c 128, 4 ×", _swiglu),
    Problem("layer_norm", "c 128", _norm),
)


def _leaves(given: Any, found: list[Tensor]) -> Any:
    """``given`` with its floating tensors as leaves that want gradients, which are added to ``found``."""
    if isinstance(given, dict):
        return {name: _leaves(x, found) for name, x in given.items()}
    if isinstance(given, tuple):
        parts = [_leaves(x, found) for x in given]
        return type(given)(*parts) if hasattr(given, "_fields") else tuple(parts)
    if isinstance(given, Tensor) and given.is_floating_point():
        found.append(given.detach().requires_grad_())
        return found[-1]
    return given


def measure(problem: Problem, n: int, dtype: torch.dtype, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Rows (implementation, direction, seconds, spread, MB) of one problem."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*size, generator=generator)).to(device, dtype)

    given = problem.make(n, normal)
    kernel: Kernel = KERNELS[problem.operation]
    ways = {i.name: i.run for i in kernel.implementations if i.name in OURS and not i.why_not(**given)}
    ways["reference"] = kernel.reference
    rows = []
    for backward in (False, True):
        weight: Tensor | None = None

        def once(way: str, backward: bool = backward) -> None:
            nonlocal weight
            if not backward:
                with torch.no_grad():
                    ways[way](**given)
                return
            asked: list[Tensor] = []
            out = ways[way](**_leaves(given, asked))
            weight = torch.ones_like(out) if weight is None else weight
            torch.autograd.grad(out, asked, weight)

        times: dict[str, list[float]] = {way: [] for way in ways}
        memory = {}
        for way in ways:
            once(way)
            memory[way] = peak_over_inputs(lambda w=way: once(w), device)  # type: ignore[misc]
        for _ in range(rounds):
            for way, own in times.items():
                synchronize()
                began = time.perf_counter()
                once(way)
                synchronize()
                own.append(time.perf_counter() - began)
        rows += [
            {
                "operation": problem.operation, "case": problem.name, "n": n,
                "dtype": str(dtype).removeprefix("torch."), "backward": backward, "implementation": way,
                "seconds": statistics.median(own), "spread": spread(own), "memory_mb": memory[way],
            }
            for way, own in times.items()
        ]  # fmt: skip
    return rows


def table(rows: list[dict[str, Any]]) -> list[list[Any]]:
    """A line for each case, dtype and direction: ours, and how much faster and leaner than the reference."""
    keys = ("operation", "case", "n", "dtype", "backward")
    lines = []
    for key in dict.fromkeys(tuple(r[k] for k in keys) for r in rows):
        group = {r["implementation"]: r for r in rows if tuple(r[k] for k in keys) == key}
        ours = next(group[name] for name in OURS if name in group)
        plain = group["reference"]
        lines.append(
            [
                key[0].replace("_", " "), f"{key[1]}, n {key[2]}", key[3],
                "forward + backward" if key[4] else "forward", ours["implementation"], 1e3 * ours["seconds"],
                f"{plain['seconds'] / ours['seconds']:.2f} ×", ours["memory_mb"], plain["memory_mb"],
            ]
        )  # fmt: skip
    return lines


def run(op: str, device_name: str, *, quick: bool, out: Path) -> Measurement:
    """Measure one operation, or all of the block's with ``op`` ``all``; the table and every figure go to ``out``."""
    chosen = [p for p in PROBLEMS if op in ("all", p.operation)]
    device = torch.device(device_name)
    rates = machine_rates() if device.type == "cpu" else {}
    rows = []
    for problem in chosen:
        for dtype in BOTH:
            print(f"ds4sci: {problem.operation}, {problem.name}, {dtype} …", file=sys.stderr, flush=True)
            n, rounds = (16, 1) if quick else (256, ROUNDS)
            rows += measure(problem, n, dtype, device, rounds)
    measurement = Measurement(
        name=out.stem,
        title="Operations of the Evoformer block beside readable torch",
        command=f"ds4sci bench kernels --op {op} --device {device_name}",
        columns=[
            "operation", "case", "dtype", "", "by", "ms", "faster than the reference", "MB over inputs",
            "reference's MB",
        ],
        rows=table(rows),
        notes=[
            "b 1; gradients of all inputs and parameters",
            "in the same run: " + ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items()),
            *forced(),
        ],
    )  # fmt: skip
    everything = asdict(measurement) | {"measured": rows, "rates": rates, "quick": quick}
    write(out, everything)
    return measurement
