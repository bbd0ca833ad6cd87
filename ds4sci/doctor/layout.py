"""Check of a run file against the ranks that it shall run on: batch, groups of ranks, attention heads, layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ds4sci.config import deepspeed_json
from ds4sci.config.run_file import RunConfig
from ds4sci.config.task_module import ParallelUnit, import_task
from ds4sci.doctor.finding import Finding, Level, gpu_count

SECTION = "run file"
NOTABLE_IDLE = 0.05
"""Idle share of the ranks above which the report names a remedy."""
_METHODS = {"sequence": "set_parallel_groups", "pipeline": "pipeline_stage"}
"""Method of a task that each key of ``[parallel]`` needs."""


def run_file(
    file: Path | str, overrides: Sequence[str] = (), *, ranks: int, deepspeed: Path | None = None
) -> Callable[[], Iterator[Finding]]:
    """Return the check of the run file ``file`` on ``ranks`` ranks.

    overrides  dotted keys with values, as for ``ds4sci train``
    deepspeed  DeepSpeed JSON that replaces the one of the run file
    """

    def check() -> Iterator[Finding]:
        try:
            config = RunConfig.load(file, list(overrides), deepspeed=deepspeed)
        except ValueError as error:
            yield Finding(SECTION, "valid", "problem", str(error))
            return
        yield Finding(SECTION, "valid", "ok", f"{config.source}, {config.deepspeed}")
        yield deepspeed_keys(config)
        yield from layout(config, ranks)

    check.__name__ = "run_file"
    return check


def deepspeed_keys(config: RunConfig) -> Finding:
    """Whether DeepSpeed reads every key of the JSON."""
    from ds4sci.train import deepspeed_schema
    from ds4sci.train.engine import silence_deepspeed

    silence_deepspeed()  # its messages on stdout would be part of the report
    try:
        deepspeed_schema.check(config.deepspeed_config(), config.deepspeed)
    except ValueError as error:
        return Finding(SECTION, "DeepSpeed JSON", "problem", str(error))
    return Finding(SECTION, "DeepSpeed JSON", "ok", "DeepSpeed reads every key")


def layout(config: RunConfig, ranks: int) -> Iterator[Finding]:
    """Groups of ranks, batch, and what each group divides."""
    gpus = gpu_count()
    level: Level = "optional" if gpus and ranks > gpus else "ok"
    remedy = f"ds4sci train --ranks {gpus}" if level == "optional" else ""
    place = f"{gpus} GPU{'s' if gpus > 1 else ''}" if gpus else "the CPU"
    yield Finding(SECTION, "ranks", level, f"{ranks}, on {place} of this machine", remedy)
    sizes = {name: int(size) for name, size in config.parallel.model_dump().items()}
    shared = 1
    for size in sizes.values():
        shared *= size
    if ranks % shared:
        keys = " × ".join(f"parallel.{name} = {size}" for name, size in sizes.items() if size > 1)
        detail = f"{keys} does not divide {ranks} rank{'s' if ranks > 1 else ''}"
        remedy = f"start a multiple of {shared} ranks (--ranks {shared}), or change the key"
        yield Finding(SECTION, "groups", "problem", detail, remedy)
        return
    replicas = ranks // shared
    yield _batch(config, replicas)
    if shared > 1:
        yield from _units(config, sizes)


def _batch(config: RunConfig, replicas: int) -> Finding:
    try:
        total, micro, steps = deepspeed_json.batch_sizes(config.deepspeed_config(), replicas, config.deepspeed)
    except ValueError as error:
        return Finding(SECTION, "batch", "problem", str(error))
    return Finding(
        SECTION, "batch", "ok",
        f"{total} = {replicas} (ranks, or groups that share examples) × {micro} (micro-batch) × {steps} (accumulation)",
    )  # fmt: skip


def _units(config: RunConfig, sizes: dict[str, int]) -> Iterator[Finding]:
    """What the ranks of a group divide, against the size of the group."""
    try:
        units = import_task(config.task.name).parallel_units(config.settings)
    except (OSError, ValueError) as error:
        detail = f"the sizes of the model are not known: {str(error).splitlines()[0]}"
        yield Finding(SECTION, "heads", "optional", detail, "set model.path to a model on this machine")
        return
    for axis, size in sizes.items():
        if size > 1 and not any(unit.axis == axis for unit in units):
            method = _METHODS[axis]
            detail = f"the task {config.task.name} names nothing that parallel.{axis} = {size} can divide"
            remedy = f"remove the key unless the task has a method `{method}`: without it, training ends at once"
            yield Finding(SECTION, f"parallel.{axis}", "optional", detail, remedy)
    for unit in units:
        if (size := sizes.get(unit.axis, 1)) > 1:
            yield _divided(unit, size)


def _divided(unit: ParallelUnit, ranks: int) -> Finding:
    where = f"{unit.count} on {ranks} ranks (parallel.{unit.axis})"
    name = unit.name
    if unit.count < ranks and unit.axis == "pipeline":
        detail = f"{where}: a stage would have none"
        return Finding(SECTION, name, "problem", detail, f"set parallel.pipeline to at most {unit.count}")
    if unit.shared:
        copies = -(-ranks // unit.count)
        note = f": each is sent to {copies} ranks, which adds traffic and no error" if copies > 1 else ""
        return Finding(SECTION, name, "ok", where + note)
    idle = unit.idle(ranks)
    most = -(-unit.count // ranks)
    if idle < NOTABLE_IDLE:
        return Finding(SECTION, name, "ok", f"{where}: at most {most} each, {100 * idle:.0f} % of the ranks' time idle")
    fewer = f"; {ranks - unit.count} ranks have none" if unit.count < ranks else ""
    detail = f"{where}: at most {most} each{fewer}; the ranks are idle for {100 * idle:.0f} % of this part of a step"
    fitting = max(size for size in range(1, ranks + 1) if unit.idle(size) < NOTABLE_IDLE)
    remedy = f"results are right; parallel.{unit.axis} = {fitting} leaves no rank waiting" if fitting > 1 else ""
    return Finding(SECTION, name, "optional", detail, remedy)
