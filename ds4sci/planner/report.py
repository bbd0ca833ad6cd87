"""Text and JSON of a plan."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ds4sci.planner.layouts import GB, Estimate, Machine, Planner


def as_text(planner: Planner, estimates: list[Estimate]) -> str:
    """Return the tables of a plan: the candidates, the memory of the choice by term, its communication."""
    machine, sizes = planner.machine, planner.sizes
    lines = [
        f"{planner.config.task.name}: {sizes.total:,} parameters, {sizes.trained:,} trained; batch {planner.batch}; "
        f"{machine.gpus} GPUs with {machine.gpu_bytes / GB:g} GB",
        "",
        f"{'layout':<64}{'GB per GPU':>11}  ",
    ]
    for one in estimates:
        peak = f"{one.peak / GB:.1f}" if one.device else "–"
        lines.append(f"{one.layout.describe():<64}{peak:>11}  {'fits' if one.fits else one.problem}")
    chosen = estimates[-1]
    if not chosen.fits:
        return "\n".join(lines)
    lines += ["", f"Choice: {chosen.layout.describe()}", ""]
    lines += [f"  {name:<40}{size / GB:>9.2f} GB" for name, size in chosen.device.items()]
    lines += [f"  {'peak, in ' + chosen.phase:<40}{chosen.peak / GB:>9.2f} GB of {machine.gpu_bytes / GB:g} GB"]
    lines += [f"  {'host memory of the machine':<40}{chosen.host / GB:>9.2f} GB"]
    if chosen.traffic:
        lines += ["", f"Sent by a rank per optimizer step ({chosen.accumulation} micro-batches):"]
        lines += [f"  {name:<40}{size / GB:>9.3f} GB" for name, size in chosen.traffic.items()]
    if len(estimates) > 1:
        before = estimates[-2]
        lines += ["", f"The next cheaper layout ({before.layout.describe()}) fails: {before.problem}"]
    return "\n".join(lines)


def as_json(planner: Planner, estimates: list[Estimate]) -> dict[str, Any]:
    """Return a plan as JSON values; sizes are in bytes."""
    chosen = estimates[-1] if estimates[-1].fits else None
    machine: Machine = planner.machine
    return {
        "machine": asdict(machine) | {"reserve": machine.reserve},
        "parameters": asdict(planner.sizes),
        "train_batch_size": planner.batch,
        "candidates": [asdict(one) | {"fits": one.fits} for one in estimates],
        "overrides": planner.overrides(chosen.layout) if chosen else None,
        "deepspeed": planner.deepspeed_config(chosen.layout) if chosen else None,
    }
