"""Comparison of a run with the reference, and the place of the first difference: rank, micro-batch or parameter."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ds4sci.selftest.layouts import Layout
from ds4sci.selftest.rank_program import MicroBatch

LIMIT = 1e-5
"""Relative error of losses and gradient norms in fp32 against fp64. Rounding gives up to about 1e-6."""
UPDATE_LIMIT = 1e-4
"""Error of a parameter's first update, relative to the norm of the whole update. Weights in fp32 round it."""
OWN_PRECISION_LIMIT = 0.2
"""Relative error of the gradient norm in 16 bits: rounding gives up to 0.08, a factor of two ranks 0.5."""


@dataclass(frozen=True)
class Curve:
    """What a run left behind.

    losses, norms  by step, from 1
    first          weights after the first step
    micro_batches  of all ranks
    seconds        of the slowest rank
    """

    losses: dict[int, float]
    norms: dict[int, float]
    first: dict[str, Tensor]
    micro_batches: list[MicroBatch]
    seconds: float

    @classmethod
    def read(cls, run: Path, ranks: int) -> Curve:
        """Read the run folder ``run``."""
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        lines = [line for line in lines if line["kind"] == "train"]
        file = run / "checkpoints/step_000001/model.safetensors"
        records = [json.loads((run / f"selftest_rank{rank}.json").read_text(encoding="utf-8")) for rank in range(ranks)]
        return cls(
            {line["step"]: float(line["loss"]) for line in lines},
            {line["step"]: float(line["grad_norm"]) for line in lines},
            safetensors.torch.load_file(file) if file.exists() else {},
            [MicroBatch(**one) for record in records for one in record["micro_batches"]],
            max(float(record["seconds"]) for record in records),
        )


@dataclass(frozen=True)
class Result:
    """One line of the report.

    check    what was checked
    layout   on which layout
    error    largest relative error, and ``limit``, what it may be; None for a check that was left out
    seconds  of the run
    fault    what is wrong and where; empty if nothing is
    note     why the check was left out
    """

    check: str
    layout: str
    error: float | None = None
    limit: float = LIMIT
    seconds: float = 0.0
    fault: str = ""
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong; true for a check that was left out."""
        return not self.fault


def compare(check: str, layout: Layout, run: Curve, reference: dict[str, Any], initial: dict[str, Tensor]) -> Result:
    """Compare losses, gradient norms and first updates of ``run`` with the reference in fp64."""
    steps = sorted(run.losses)
    losses = {step: relative(run.losses[step], reference["losses"][step - 1]) for step in steps}
    norms = {step: relative(run.norms[step], reference["norms"][step - 1]) for step in steps}
    if layout.own_precision:
        error = norms[1]  # later steps start from rounded weights
        fault = _factor(run, reference, error, OWN_PRECISION_LIMIT)
        return Result(check, layout.describe(), error, OWN_PRECISION_LIMIT, run.seconds, fault)
    updates = update_errors(run.first, reference["first"], initial)
    worst = max([*losses.values(), *norms.values()])
    wrong_update = max(updates.values(), default=0.0)
    fault = ""
    if not (worst <= LIMIT and wrong_update <= UPDATE_LIMIT):
        fault = (
            micro_batch_fault(run.micro_batches, reference["micro"][layout.micro], layout)
            or _parameter_fault(run, reference, initial, updates)
            or _factor(run, reference, norms[1], LIMIT)
            or _step_fault(losses, norms)
        )
    error = worst if worst > LIMIT or wrong_update <= UPDATE_LIMIT else wrong_update
    return Result(check, layout.describe(), error, LIMIT, run.seconds, fault)


def compare_resumed(check: str, layout: Layout, run: Curve, undisturbed: Curve, saved: int) -> Result:
    """Compare the steps after a resume with those of the run that was not interrupted."""
    steps = [step for step in sorted(undisturbed.losses) if step > saved]
    missing = [step for step in steps if step not in run.losses]
    if missing:
        fault = f"step {missing[0]} was not trained after the resume from step {saved}"
        return Result(check, layout.describe(), math.inf, LIMIT, run.seconds, fault)
    errors = {
        step: max(
            relative(run.losses[step], undisturbed.losses[step]), relative(run.norms[step], undisturbed.norms[step])
        )
        for step in steps
    }
    fault = ""
    if bad := [step for step in steps if not errors[step] <= LIMIT]:
        if bad[0] == saved + 1:
            cause = "the first step after the resume differs: weights or data position are not those saved"
        else:
            cause = (
                f"step {bad[0]} differs, {bad[0] - saved - 1} step(s) after the resume agreed: weights were restored, "
                "the state of the optimizer (moments, number of steps) or its rate was not"
            )
        fault = f"{cause} (error {errors[bad[0]]:.1e})"
    return Result(check, layout.describe(), max(errors.values()), LIMIT, run.seconds, fault)


def relative(value: float, wanted: float) -> float:
    """Relative error; infinite if ``value`` is not a number."""
    error = abs(value - wanted) / max(abs(wanted), 1e-12)
    return error if math.isfinite(error) else math.inf


def update_errors(first: dict[str, Tensor], wanted: dict[str, Tensor], initial: dict[str, Tensor]) -> dict[str, float]:
    """Return ‖Δ − Δ'‖ / ‖Δ' of all parameters‖ of each parameter, for first updates Δ of the run and Δ' in fp64."""
    total = math.sqrt(sum(float((wanted[n] - initial[n].double()).square().sum()) for n in wanted))
    found = {}
    for name, weights in wanted.items():
        error = float((first[name].double() - weights).norm()) / max(total, 1e-30) if name in first else math.inf
        found[name] = error if math.isfinite(error) else math.inf
    return found


def micro_batch_fault(seen: list[MicroBatch], wanted: list[list[tuple[float, float]]], layout: Layout) -> str:
    """Return the first micro-batch with another share or loss than the reference; empty if there is none."""
    size = layout.micro
    rows: dict[tuple[int, int], list[MicroBatch]] = {}
    for one in seen:
        rows.setdefault((one.step, one.place), []).append(one)
    for place, (share, loss) in enumerate(wanted[0]):  # later steps start from other weights if the first is wrong
        where = f"step 1, micro-batch {place + 1} of {len(wanted[0])} ({size} sample{'s' if size > 1 else ''})"
        parts = rows.get((0, place), [])
        if not parts:
            return f"{where}: no rank computed it"
        for one in parts:
            if relative(one.share, share) > LIMIT and abs(one.share - share) > 1e-9:
                return f"rank {one.rank}, {where}: its share of the loss is {one.share:.6g} instead of {share:.6g}"
        total = sum(one.loss for one in parts)
        if relative(total, loss) > 10 * LIMIT and abs(total - loss) > 1e-6:
            ranks = ", ".join(str(one.rank) for one in parts)
            return f"rank {ranks}, {where}: its loss is {total:.7g} instead of {loss:.7g}"
    return ""


def _parameter_fault(
    run: Curve, reference: dict[str, Any], initial: dict[str, Tensor], updates: dict[str, float]
) -> str:
    """Return the parameters whose gradient differs while that of others agrees; empty if all or none differ."""
    bad = [name for name, error in sorted(updates.items(), key=lambda one: -one[1]) if not error <= UPDATE_LIMIT]
    if not bad or len(bad) > max(1, len(updates) // 2):
        return ""
    name = bad[0]
    wanted = reference["first"][name] - initial[name].double()
    found = run.first[name].double() - initial[name].double()
    size = float(wanted.square().sum())
    ratio = f", {float((found * wanted).sum()) / size:.3g} times the reference along it" if size > 0 else ""
    others = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
    return f"step 1: the gradient of parameter {name} is wrong{ratio}{others}"


def _factor(run: Curve, reference: dict[str, Any], error: float, limit: float) -> str:
    """Return the factor of the gradient norm at the first step if it is wrong."""
    if error <= limit:
        return ""
    wanted = reference["norms"][0]
    ratio = run.norms[1] / max(wanted, 1e-30)
    return (
        f"step 1: the gradient norm is {run.norms[1]:.6g} instead of {wanted:.6g}, a factor of {ratio:.4g}; "
        "losses and shares of the micro-batches agree: gradients of ranks are summed or averaged wrongly"
    )


def _step_fault(losses: dict[int, float], norms: dict[int, float]) -> str:
    """Return the first step whose loss or norm differs."""
    for step in losses:
        for name, errors in (("loss", losses), ("gradient norm", norms)):
            if not errors[step] <= LIMIT:
                return f"step {step}: the {name} differs by {errors[step]:.1e}; earlier steps agree"
    return "step 1: the update of most parameters differs while the gradient norm agrees"


def initial_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return weights with added noise: layers initialised to zero would hide errors in the layers before them."""
    noise = torch.Generator().manual_seed(1)
    weights = {name: p.detach() + 0.1 * torch.randn(p.shape, generator=noise) for name, p in model.named_parameters()}
    persistent = model.state_dict().keys()
    return weights | {name: b for name, b in model.named_buffers() if name in persistent}
