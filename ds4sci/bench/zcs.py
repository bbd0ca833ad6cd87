"""Benchmark of zero coordinate shift: a physics-informed training step with each method for derivatives, and DeepXDE's.

One step computes the residuals of all point sets, their mean squares and the gradient of every parameter; DeepONet,
fp32, CPU. Each (equation, functions, points, order) has its own process, in which the methods take turns, A B C D.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ds4sci.bench.measurement import Measurement, spread, write
from ds4sci.bench.memory import limit_memory, peak_memory_mb
from ds4sci.bench.registry import JsonFile, Quick, show
from ds4sci.machine.processor import usable_cores
from ds4sci.physics import Fields, differentiate
from ds4sci.physics.fields import sum_terms
from ds4sci.tasks import neural_operator

METHODS = ("func_loop", "data_vect", "zcs_reverse", "zcs_forward")
DEEPXDE = "DeepXDE's ZCS"
BASELINES = METHODS[:2]
FUNCTIONS = (4, 16, 64, 256)
POINTS = 1000
"""Number of points when functions or orders vary."""
MEMORY_LIMIT = 8e9
"""Bytes that a method may allocate."""
TIME_BUDGET_S = 8.0
"""Seconds. A method whose first two steps take longer is not timed again."""
WARM_UP_BELOW = 500e6
"""Peak bytes. A method that needs less is warmed up before every timed step."""
ORDERS = {"reaction_diffusion": 2, "burgers": 2, "stokes": 2, "plate": 4}


@dataclass(frozen=True)
class Case:
    """Problem to measure: an equation, or ``derivative``: the mean square of the field ∂ᵏu/∂xᵏ, k = ``order``."""

    pde: str
    functions: int
    points: int
    order: int


def cases(quick: bool) -> list[Case]:
    """All cases of the benchmark."""
    if quick:
        return [Case("burgers", 4, 32, 2), Case("derivative", 4, 32, 3)]
    by_functions = [Case(pde, m, POINTS, order) for pde, order in ORDERS.items() for m in FUNCTIONS]
    by_points = [Case("burgers", 64, n, 2) for n in (250, 4000)]
    by_order = [Case("derivative", 64, POINTS, k) for k in (1, 2, 3, 4)]
    return [*by_functions, *by_points, *by_order]


def step_of(case: Case, method: str) -> Callable[[], Tensor]:
    """One training step, which returns its loss. Weights, functions and points are the same for all methods."""
    name = "burgers" if case.pde == "derivative" else case.pde
    config = neural_operator.Config.model_validate(
        {
            "pde": {"name": name},
            "model": {"branch": [128] * 3, "trunk": [128] * 3, "latent": 128},
            "data": {"points": case.points, "boundary_points": max(2, case.points // 10)},
            "loss": {"derivatives": "zcs" if method == DEEPXDE else method},
        }
    )
    task = neural_operator.build(config, seed=0, steps=1)
    batch = next(
        task.batches(start_step=0, rank=0, world_size=1, micro_batch_size=case.functions, accumulation_steps=1)
    )
    if method == DEEPXDE:
        task.model = _with_deepxde(task.model)
    network: Any = task.model.network

    def equation() -> Tensor:
        return task.loss(task.model(batch), batch)[0]

    def derivative() -> Tensor:
        u = differentiate(
            network, batch.functions, batch.points["interior"], names="xt", orders=("x" * case.order,), method=method
        )
        return u("x" * case.order).square().mean()

    loss_of = derivative if case.pde == "derivative" else equation

    def step() -> Tensor:
        for parameter in task.model.parameters():
            parameter.grad = None
        loss = loss_of()
        loss.backward()
        return loss.detach()

    step.loss_of = loss_of  # type: ignore[attr-defined]
    step.parameters = list(task.model.parameters())  # type: ignore[attr-defined]
    return step


def _with_deepxde(model: Any) -> neural_operator.ResidualModel:
    """``model`` with the derivatives of ``deepxde.zcs.LazyGrad``. The other parts of the step are the same."""
    os.environ["DDE_BACKEND"] = "pytorch"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from deepxde.zcs import LazyGrad

    class Lazy(Fields):
        def __init__(self, network: Any, functions: Tensor, points: Tensor, names: str) -> None:
            super().__init__(points, names)
            leaves = [torch.zeros((), requires_grad=True) for _ in names]
            self.value = network(functions, points + torch.stack(leaves))
            self.lazy = LazyGrad({"leaves": leaves}, self.value)

        def _linear_combination(self, terms: list[Any]) -> Tensor:
            return sum_terms(terms, lambda order, component: self.lazy.compute(order))

    class Model(neural_operator.ResidualModel):
        def fields(self, functions: Tensor, points: Tensor, orders: tuple[str, ...]) -> Fields:
            return Lazy(self.network, functions, points, self.pde.names)

    return Model(model.network, model.pde, "zcs")


def _has_deepxde() -> bool:
    return importlib.util.find_spec("deepxde") is not None


def saved_bytes(step: Any) -> int:
    """Bytes of the tensors that the graph of one loss saves for the backward pass, without the parameters.

    They are read from the nodes of the graph, because hooks on saved tensors do not see through ``torch.func.jvp``.
    """
    own = {parameter.untyped_storage().data_ptr() for parameter in step.parameters}
    loss = step.loss_of()
    saved: dict[int, int] = {}
    seen, waiting = {loss.grad_fn}, [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        for name in dir(node):
            if not name.startswith("_saved_") and name != "saved_tensors":  # of a torch.autograd.Function
                continue
            value = getattr(node, name)
            for tensor in value if isinstance(value, tuple | list) else (value,):
                if not isinstance(tensor, Tensor) or tensor._is_zerotensor():  # a zero tensor holds no memory
                    continue
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in own:
                    saved[storage.data_ptr()] = storage.nbytes()
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                waiting.append(below)
    return sum(saved.values())


def measure(case: Case, methods: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """One row per method, measured in this process."""
    for method in methods:
        step_of(case, method)  # imports before memory is limited
    limit_memory(MEMORY_LIMIT)
    steps: dict[str, Any] = {}
    rows: dict[str, dict[str, Any]] = {}
    times: dict[str, list[float]] = {}
    losses: dict[str, float] = {}
    for method in reversed(methods):  # methods that run out of memory come last, so that they affect no other
        row: dict[str, Any] = {**asdict(case), "method": method, "saved_bytes": None, "peak_bytes": None}
        rows[method] = row
        try:
            step = step_of(case, method)
            start = time.perf_counter()
            row["saved_bytes"] = saved_bytes(step)
            once = _TimedStep(step)
            peak = peak_memory_mb(once, torch.device("cpu"))
            losses[method] = once.loss
            row["peak_bytes"] = None if peak is None else int(peak * 1e6)
            if time.perf_counter() - start < TIME_BUDGET_S:
                steps[method], times[method] = step, []
            else:
                times[method] = [once.seconds]
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "alloc" not in str(error):  # "can't allocate", "std::bad_alloc"
                raise
            row["failed"] = f"more than {MEMORY_LIMIT / 1e9:.0f} GB"
            error.__traceback__ = None
            gc.collect()
    for _ in range(rounds):
        for method, step in reversed(steps.items()):
            if rows[method]["peak_bytes"] is None or rows[method]["peak_bytes"] < WARM_UP_BELOW:
                step()  # touches the pages that the previous method returned to the system, outside the timing
            start = time.perf_counter()
            step()
            times[method].append(time.perf_counter() - start)
    for method, own in times.items():
        rows[method]["seconds"] = statistics.median(own)
        rows[method]["spread"] = spread(own) if len(own) > 1 else None
        rows[method]["loss"] = losses[method]
    for row in rows.values():
        row.setdefault("seconds", None)
        row.setdefault("spread", None)
    return [rows[method] for method in methods]


class _TimedStep:
    """A step that stores its loss and its time."""

    def __init__(self, step: Callable[[], Tensor]) -> None:
        self.step, self.loss, self.seconds = step, float("nan"), float("nan")

    def __call__(self) -> None:
        start = time.perf_counter()
        self.loss = float(self.step())
        self.seconds = time.perf_counter() - start


def run(*, out: Path, quick: bool = False) -> Measurement:
    """Measure every case with every method; write ``out`` after each case."""
    rows: list[dict[str, Any]] = []
    measurement: Measurement | None = None
    methods = [*METHODS, DEEPXDE] if _has_deepxde() else list(METHODS)
    for case in cases(quick):
        own = [
            m for m in methods if m != DEEPXDE or case.pde not in ("stokes", "derivative")
        ]  # DeepXDE supports one component only
        print(f"ds4sci: {case.pde}, {case.functions} functions, {case.points} points …", file=sys.stderr, flush=True)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            rows += pool.submit(measure, case, own, 2 if quick else 7).result()
        measurement = _summary(rows, out)
        saved = asdict(measurement)
        saved["table"] = {"columns": saved.pop("columns"), "rows": saved["rows"]}
        write(out, saved | {"rows": rows, "plot": out.with_suffix(".png").name})
    assert measurement is not None
    return measurement


COLUMNS = [
    "equation", "order", "method", "saved (MB), M = 4", "saved (MB), M = 64", "growth", "peak memory (MB), M = 64",
    "seconds, M = 64", "memory reduction", "speed-up",
]  # fmt: skip


def _summary(rows: list[dict[str, Any]], out: Path) -> Measurement:
    """The results table: growth from 4 to 64 functions at ``POINTS`` points; baseline: the better older method."""
    table = []
    known = {(r["pde"], r["functions"], r["points"], r["order"], r["method"]): r for r in rows}
    for pde, order in ORDERS.items():
        best = {
            key: min(
                (v for m in BASELINES if (v := known.get((pde, 64, POINTS, order, m), {}).get(key)) is not None),
                default=None,
            )
            for key in ("peak_bytes", "seconds")
        }
        for method in (*METHODS, DEEPXDE):
            few, many = (known.get((pde, m, POINTS, order, method)) for m in (4, 64))
            if few is None or many is None:
                continue
            first, last = few["saved_bytes"], many["saved_bytes"]
            failed = many.get("failed")
            table.append(
                [
                    pde, order, method, _mb(first), failed or _mb(last), last / first if last and first else None,
                    failed or _mb(many["peak_bytes"]), many["seconds"],
                    *(
                        None if many[key] is None or best[key] is None or method in BASELINES else best[key] / many[key]
                        for key in ("peak_bytes", "seconds")
                    ),
                ]
            )  # fmt: skip
    return Measurement(
        name="zcs",
        title=f"A physics-informed training step with each method for derivatives, {POINTS} points",
        command=f"ds4sci bench zcs --json {out.name}",
        columns=COLUMNS,
        rows=table,
        notes=[
            "residuals of all point sets, loss, gradients of all parameters; DeepONet (branch and trunk: three "
            "layers of 128; 128 products), fp32; M functions; baseline: the better of func_loop and data_vect",
            "saved: tensors that the graph of the loss saves for the backward pass, without parameters; peak memory of "
            "a whole step, minus the memory of the process before it",
            f"methods alternate; medians of 7 steps after two warm-up steps, a single step where it takes seconds; "
            f"{MEMORY_LIMIT / 1e9:.0f} GB is the limit; {usable_cores()} threads",
        ],
    )


def _mb(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def command(json: JsonFile, quick: Quick = False) -> None:
    """Zero coordinate shift for PDE derivatives: saved tensors, peak memory and time of a step, with baselines."""
    measurement = run(out=json, quick=quick)
    from ds4sci.bench.plot import plot

    show(measurement, json, plot(json))
