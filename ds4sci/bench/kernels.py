"""Benchmark of the kernels: each operation of an Evoformer block at AlphaFold 2's widths, baseline: its reference.

The reference is plain torch. One process, A B A B, medians; peak memory minus the inputs. The command also runs the
benchmarks of ``evoformer_attention``, ``varlen_attention`` and ``evoformer_block``.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ds4sci.bench import evoformer_attention, evoformer_block, varlen_attention
from ds4sci.bench.evoformer_attention import OURS
from ds4sci.bench.machine_limits import DTYPES, cpu_rates, dtype_name, machine_notes
from ds4sci.bench.measurement import Measurement, spread, time_alternately, write
from ds4sci.bench.memory import peak_memory_mb
from ds4sci.bench.registry import Device, JsonFile, Quick, show
from ds4sci.config import renamed
from ds4sci.kernels import KERNELS
from ds4sci.kernels.flop_formulas import FORMULAS
from ds4sci.kernels.gated_self_attention import Weights as AttentionWeights
from ds4sci.kernels.spec import Kernel
from ds4sci.kernels.triangle_multiplication import Weights as TriangleWeights

ROUNDS = 7
MakeInputs = Callable[[int, Callable[..., Tensor]], dict[str, Any]]


@dataclass(frozen=True)
class OperationCase:
    """An operation with fixed widths. ``make(n, normal)`` returns its arguments; ``normal`` draws random tensors."""

    operation: str
    name: str
    make: MakeInputs


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


def _triangle(direction: str) -> MakeInputs:
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


def _attention(rows: int, c: int, heads: int, *, bias: bool = True) -> MakeInputs:
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


OPERATION_CASES = (
    OperationCase("gated_self_attention", "triangle attention, c 128, h 4", _attention(0, 128, 4)),
    OperationCase("gated_self_attention", "MSA row, 64 rows, c 256, h 8", _attention(64, 256, 8)),
    OperationCase("pair_bias", "c 128, h 8", _bias),
    OperationCase("triangle_multiplication", "outgoing, c 128", _triangle("outgoing")),
    OperationCase("triangle_multiplication", "incoming, c 128", _triangle("incoming")),
    OperationCase("outer_product_mean", "64 rows, c 32, c_z 128", _outer),
    OperationCase("transition", "ReLU, c 128, 4 ×", _transition),
    OperationCase("transition", "SwiGLU, c 128, 4 ×", _swiglu),
    OperationCase("layer_norm", "c 128", _norm),
)


def with_grad(given: Any, leaves: list[Tensor]) -> Any:
    """``given`` with floating-point tensors replaced by leaves that require gradients, also added to ``leaves``."""
    if isinstance(given, dict):
        return {name: with_grad(x, leaves) for name, x in given.items()}
    if isinstance(given, tuple):
        parts = [with_grad(x, leaves) for x in given]
        return type(given)(*parts) if hasattr(given, "_fields") else tuple(parts)
    if isinstance(given, Tensor) and given.is_floating_point():
        leaves.append(given.detach().requires_grad_())
        return leaves[-1]
    return given


def least_bytes(given: dict[str, Any], operation: str, backward: bool) -> int:
    """Bytes that must cross the memory bus: inputs and output, and if ``backward`` their gradients."""
    with torch.no_grad():
        out: Tensor = KERNELS[operation].reference(**given)
    leaves: list[Tensor] = []
    with_grad(given, leaves)
    mask = given["mask"].nbytes if isinstance(given.get("mask"), Tensor) else 0
    return (1 + backward) * (sum(x.nbytes for x in leaves) + out.nbytes) + mask


def measure(case: OperationCase, n: int, dtype: torch.dtype, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Rows of one case: implementation, direction, seconds, spread, MB."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(*size, generator=generator)).to(device, dtype)

    given = case.make(n, normal)
    kernel: Kernel = KERNELS[case.operation]
    methods = {i.name: i.run for i in kernel.implementations if i.name in OURS and not i.why_not(**given)}
    methods["reference"] = kernel.reference
    rows = []
    for backward in (False, True):
        weight: Tensor | None = None

        def run_once(method: str, backward: bool = backward) -> None:
            nonlocal weight
            if not backward:
                with torch.no_grad():
                    methods[method](**given)
                return
            leaves: list[Tensor] = []
            out = methods[method](**with_grad(given, leaves))
            weight = torch.ones_like(out) if weight is None else weight
            torch.autograd.grad(out, leaves, weight)

        actions = {method: partial(run_once, method) for method in methods}
        with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
            run_once("reference")
        moved = least_bytes(given, case.operation, backward)
        memory = {}
        for method, action in actions.items():
            action()  # builds, warms up
            memory[method] = peak_memory_mb(action, device)
        rows += [
            {
                "operation": case.operation, "case": case.name, "n": n, "dtype": dtype_name(dtype),
                "backward": backward, "implementation": method, "seconds": statistics.median(times),
                "spread": spread(times), "memory_mb": memory[method],
                "flops": counter.get_total_flops(), "bytes": moved,
            }
            for method, times in time_alternately(actions, rounds).items()
        ]  # fmt: skip
    return rows


def table(rows: list[dict[str, Any]]) -> list[list[Any]]:
    """One line per case, dtype and direction: ds4sci, and its speed-up over the reference."""
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


def run(op: str, device_name: str, *, quick: bool, out: Path, rounds: int = ROUNDS) -> Measurement:
    """Measure one operation, or with ``all`` every operation of the block; write table and figures to ``out``."""
    chosen = [case for case in OPERATION_CASES if op in ("all", case.operation)]
    device = torch.device(device_name)
    rates = cpu_rates(device)
    rows = []
    for case in chosen:
        for dtype in DTYPES:
            print(f"ds4sci: {case.operation}, {case.name}, {dtype} …", file=sys.stderr, flush=True)
            rows += measure(case, 16 if quick else 256, dtype, device, 1 if quick else rounds)
    measurement = Measurement(
        name=out.stem,
        title="Operations of the Evoformer block, baseline: plain torch",
        command=f"ds4sci bench kernels --op {op} --device {device_name} --json {out.name}",
        columns=[
            "operation", "case", "dtype", "direction", "implementation", "ms", "speed-up", "peak memory (MB)",
            "peak memory of the baseline (MB)",
        ],
        rows=table(rows),
        notes=["b 1; gradients of all inputs and parameters", *machine_notes(rates)],
    )  # fmt: skip
    write(out, asdict(measurement) | {"measured": rows, "rates": rates, "quick": quick})
    return measurement


def command(
    json: JsonFile,
    op: Annotated[
        str, typer.Option("--op", metavar="NAME", help="Operation of ds4sci.kernels, all, or evoformer_block.")
    ] = "evoformer_attention",
    device: Device = "cpu",
    case: Annotated[
        list[str] | None,
        typer.Option(
            "--case", metavar="NAME", help="Case of evoformer_attention to measure. Repeatable. Default: all."
        ),
    ] = None,
    quick: Quick = False,
) -> None:
    """Kernels: time, peak memory and % of peak of each implementation, and speed-up over torch baselines."""
    operations = dict.fromkeys(case.operation for case in OPERATION_CASES)
    if (new_name := renamed.new_value("--op", op)) is not None:
        raise ValueError(renamed.value_message("--op", op, new_name))
    known = ("evoformer_attention", "varlen_attention", *operations, "all", "evoformer_block")
    if op not in known:
        raise ValueError(f"--op {op}: unknown operation; expected one of: {', '.join(known)}")
    if op == "evoformer_block":
        measured = evoformer_block.run(device, quick=quick, out=json)
    elif op == "evoformer_attention":
        measured = evoformer_attention.run(device, quick=quick, out=json, cases=case or ())
    elif op == "varlen_attention":
        measured = varlen_attention.run(device, quick=quick, out=json)
    else:
        measured = run(op, device, quick=quick, out=json)
    if quick or case or not op.startswith("evoformer"):
        show(measured, json)
        return
    from ds4sci.bench.plot import plot

    show(measured, json, plot(json))
