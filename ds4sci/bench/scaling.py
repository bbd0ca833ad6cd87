"""Predicted against measured scaling: trainings on this machine, and published trainings on thousands of GPUs.

On this machine, the compute rate and the α and β of the links come from a short calibration without DeepSpeed and
without a training step, before and after each training. No figure is fitted to the point that it predicts.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

from ds4sci.bench.measurement import Measurement, write
from ds4sci.bench.registry import JsonFile, Quick, show
from ds4sci.config.number_lists import whole_numbers
from ds4sci.config.run_file import RunConfig
from ds4sci.machine.processor import usable_cores
from ds4sci.planner.states import Sizes, zero_traffic
from ds4sci.scaling import calibration, measure, published
from ds4sci.scaling.batch_plan import BatchPlan, deepspeed_tree, plan
from ds4sci.scaling.calibration import Calibration
from ds4sci.scaling.cluster import ClusterConfig
from ds4sci.scaling.logs import ScalingLog
from ds4sci.scaling.step_time import StepTime, Workload, step_time
from ds4sci.scaling.workload import zero_exchanges
from ds4sci.tasks.build import build_task

CONFIG = "configs/lm/protein_tiny.toml"
COLUMNS = ["point", "figure", "unit", "measured or published", "predicted", "range", "error", "basis"]


def command(
    out: JsonFile,
    configs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG]… [KEY=VALUE]…", help=f"Run files to train here, by default {CONFIG}; settings."
        ),
    ] = None,
    ranks: Annotated[str, typer.Option("--ranks", metavar="N,N,…", help="Numbers of ranks to train on.")] = "1,2,4",
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Calibrations and trainings of each.")] = 3,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps to time in each training.")] = 8,
    only_published: Annotated[bool, typer.Option("--only-published", help="Train nothing here.")] = False,
    quick: Quick = False,
) -> None:
    """Predicted against measured scaling: on this machine by a short calibration, and on published points."""
    given = configs or []
    files, overrides = [x for x in given if "=" not in x], [x for x in given if "=" in x]
    counts = whole_numbers("--ranks", ranks)
    rows: list[list[Any]] = []
    notes, details = [], []
    if not only_published:
        for file in files or [CONFIG]:
            for one in compare_here(file, overrides, counts, 1 if quick else repeats, 2 if quick else steps):
                rows.append(one["row"])
                details.append({key: value for key, value in one.items() if key != "row"})
        loads = [load for one in details for load in one["load"]]
        notes.append(
            f"this machine: {', '.join([*(files or [CONFIG]), *overrides, 'strong scaling'])}, one thread per rank "
            f"where the cores suffice; 1-minute load of {usable_cores()} cores before the trainings "
            f"{min(loads):.1f}–{max(loads):.1f}"
        )
    points = published.read_points()
    rows += [_row(one) for one in published.compare_all(points)]
    notes += [
        "error: predicted / measured or published − 1; no parameter is fitted to the point that it predicts",
        f"range: over the layouts that are assumed. GPT: {points['language_models']['assumptions']}. "
        f"ViT: {points['vision_transformer']['assumptions']}",
    ]
    arguments = " ".join([*given, *(["--only-published"] if only_published else [])])
    measurement = Measurement(
        name=out.stem, title="Scaling: predicted against measured and published",
        command=f"ds4sci bench scaling {arguments} --json {out.name}".replace("  ", " "), columns=COLUMNS, rows=rows,
        notes=notes,
    )  # fmt: skip
    write(out, asdict(measurement) | {"here": details})
    show(measurement, out)


def compare_here(
    file: str, overrides: Sequence[str], counts: Sequence[int], repeats: int, steps: int
) -> list[dict[str, Any]]:
    """Calibrate, train and calibrate again for each number of ranks, ``repeats`` times in turn."""
    found: dict[int, ScalingLog] = {}
    calibrations: dict[int, list[Calibration]] = {one: [] for one in counts}
    with tempfile.TemporaryDirectory() as folder:
        what = measure.MeasurementPlan(
            file, tuple(overrides), tuple(counts), Path(folder), ("strong",), steps=steps, repeats=1
        )
        config = what.load()
        repeated: dict[int, list[Any]] = {one: [] for one in counts}
        for _ in range(repeats):
            for ranks in counts:
                batches = plan(config, "strong", ranks)

                def calibrate(batches: BatchPlan = batches, ranks: int = ranks) -> Calibration:
                    return calibration.calibrate(file, overrides, batches.micro, ranks, what.threads)

                before = calibrate()
                (log,) = measure.measure(measure.MeasurementPlan(
                    file, tuple(overrides), (ranks,), Path(folder), ("strong",), steps=steps, repeats=1,
                    threads_per_rank=what.threads,
                ), typer.echo)  # fmt: skip
                calibrations[ranks] += [before, calibrate()]
                repeated[ranks] += log.repeats
                found[ranks] = log
    made = []
    for ranks in counts:
        log = found[ranks]
        measured = median(median(one.step_seconds) for one in repeated[ranks])
        predicted = predict_here(config, plan(config, "strong", ranks), calibrations[ranks])
        label = ", oversubscribed" if log.is_oversubscribed else ""
        row = published.Comparison(
            f"this machine, {Path(file).stem}, {ranks} rank{'s' * (ranks > 1)}{label}", "step", "s", measured,
            predicted.seconds, note="calibrated compute rate, α and β",
        )  # fmt: skip
        made.append({
            "row": _row(row), "ranks": ranks, "step_seconds": [one.step_seconds for one in repeated[ranks]],
            "load": [one.load for one in repeated[ranks]], "communication_seconds": log.communication,
            "terms": predicted.terms, "calibrations": [asdict(one) for one in calibrations[ranks]],
        })  # fmt: skip
    return made


def predict_here(config: RunConfig, batches: BatchPlan, measured: Sequence[Calibration]) -> StepTime:
    """Predict a step from calibrations with as many ranks: their medians."""
    tree, ranks = deepspeed_tree(config, batches), batches.ranks
    sizes = Sizes.of(build_task(config).model)
    link = {
        "alpha": median(one.link.alpha for one in measured), "bandwidth": median(one.link.bandwidth for one in measured)
    }  # fmt: skip
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cluster = ClusterConfig.model_validate({
        "name": "this machine", "nodes": 1, "gpus_per_node": ranks, "peak": {"fp32": 1.0, "bf16": 1.0, "fp16": 1.0},
        "achievable": 1.0, "memory_gb": memory / ranks, "memory_bandwidth": 1e9, "intra_node": link, "inter_node": link,
        "storage": {"bandwidth": 1e9, "node_bandwidth": 1e9}, "step_noise": median(one.noise for one in measured),
    })  # fmt: skip
    return step_time(
        Workload(
            ranks, batches.batch, 0.0, 0.0, "fp32", micro_batches=batches.accumulation,
            exchanges=zero_exchanges(zero_traffic(sizes, tree, ranks, batches.accumulation), tree, ranks),
            compute_seconds=batches.accumulation * median(one.micro_seconds for one in measured),
            update_seconds=median(one.update_seconds for one in measured),
        ), cluster,
    )  # fmt: skip


def _row(one: published.Comparison) -> list[Any]:
    span = None if one.low is None or one.high is None else f"{one.low:.3g}–{one.high:.3g}"
    return [one.point, one.figure, one.unit, one.published, one.predicted, span, f"{one.error:+.1%}", one.note]
