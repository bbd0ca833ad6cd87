"""Benchmark of a training step of a structure model: seconds and peak memory by crop length, in plain torch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ds4sci.bench.measurement import FOLDER, Measurement, spread, synchronize, timed
from ds4sci.bench.memory import peak_bytes
from ds4sci.bench.registry import OutFolder, Overrides, RunFile, show
from ds4sci.config.number_lists import whole_numbers
from ds4sci.config.run_file import RunConfig
from ds4sci.data.structures.synthetic import synthetic_chain

COMMAND = "step"
REPEATS = 3


def command(
    config: RunFile = "configs/fold/small.toml",
    overrides: Overrides = None,
    crops: Annotated[
        str, typer.Option("--crops", help="Crop lengths in residues, separated by commas.")
    ] = "64,128,192,256",
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="KEY=VALUE",
            help="Also measure the step with this setting, or with `reference` for every kernel. Needs a single crop.",
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, help="Timed steps per crop length, after one that is not timed.")
    ] = REPEATS,
    out: OutFolder = FOLDER,
) -> None:
    """Structure-model training step: seconds and peak memory by crop length."""
    lengths = list(whole_numbers("--crops", crops))
    if against and len(lengths) > 1:
        raise ValueError(f"--against needs one crop, but --crops has {len(lengths)}; use for example --crops 128")
    measurement = (
        compare(config, overrides or [], against, lengths[0])
        if against
        else measure(config, overrides or [], lengths, repeats=repeats)
    )
    show(measurement, measurement.save(out))


def training_step(config: RunConfig) -> Callable[[Any], float]:
    """Function that takes a batch, runs one training step and returns the loss.

    The step is plain torch, without DeepSpeed: forward, loss, backward, AdamW.
    """
    import torch

    from ds4sci.tasks.build import build_task, default_kernels

    task = build_task(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = task.model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(batch: Any) -> float:
        moved = batch.to(device)
        with default_kernels(config):
            loss, _ = task.loss(model(moved), moved)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def measure(config_path: str, overrides: list[str], crops: list[int], *, repeats: int = REPEATS) -> Measurement:
    """Seconds and peak memory of a training step at each crop length, each in a new process."""
    rows = []
    for crop in crops:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            times, peak = pool.submit(_measure_crop, config_path, overrides, crop, repeats).result()
        rows.append([crop, statistics.median(times), f"{spread(times):.0%}", None if peak is None else peak / 1e6])
    return Measurement(
        name=f"step_{Path(config_path).stem}",
        title=f"A training step of `{Path(config_path).stem}` by crop length",
        command=" ".join(
            ["ds4sci bench step", config_path, *overrides, "--crops", ",".join(map(str, crops))]
            + ([] if repeats == REPEATS else ["--repeats", str(repeats)])
        ),
        columns=["crop", "seconds", "spread", "peak memory (MB)"],
        rows=rows,
        notes=[
            f"one chain, no recycling, plain torch (forward, loss, backward, AdamW), median of {repeats}; peak memory "
            "minus the memory of the process before the model is built"
        ],
    )


def compare(config_path: str, overrides: list[str], against: list[str], crop: int) -> Measurement:
    """A training step as configured, and with the overrides ``against`` (``reference``: every kernel's reference).

    The two alternate in one process; peak memory is measured in a process each. The notes list the losses of the same
    steps from the same weights.
    """
    from ds4sci.kernels import KERNELS

    changes = [f"kernels.{name}=reference" for name in KERNELS] if against == ["reference"] else against
    runs = {"as configured": overrides, " ".join(against): [*overrides, *changes]}
    peaks = []
    for own in runs.values():
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            peaks.append(pool.submit(_measure_crop, config_path, own, crop, 1).result()[1])
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        times, losses = pool.submit(_alternate, config_path, list(runs.values()), crop, 6).result()
    medians = [statistics.median(own) for own in times]
    difference = max(abs(x - y) / abs(y) for x, y in zip(*losses, strict=True))
    return Measurement(
        name=f"step_{Path(config_path).stem}_{crop}_against",
        title=f"A training step of `{Path(config_path).stem}` at crop {crop}, baseline `{' '.join(against)}`",
        command=" ".join(
            ["ds4sci bench step", config_path, *overrides, "--crops", str(crop), *(f"--against {x}" for x in against)]
        ),
        columns=["kernels", "seconds", "spread", "peak memory (MB)", "speed-up"],
        rows=[
            [name, median, f"{spread(own):.0%}", None if peak is None else peak / 1e6, medians[-1] / median]
            for name, own, peak, median in zip(runs, times, peaks, medians, strict=True)
        ],
        notes=[
            "one chain, no recycling, plain torch (forward, loss, backward, AdamW), A B A B",
            f"losses of {len(losses[0])} steps from the same weights: "
            + ", ".join(f"{x:.5g}" for x in losses[0])
            + f"; largest relative difference {difference:.1e}",
        ],
    )


def synthetic_batch(config: RunConfig, crop: int, *, recycling: int = 0) -> Any:
    """A batch of one ``synthetic_chain`` of ``crop`` residues."""
    from ds4sci.data.loader import make_pass_rng
    from ds4sci.data.structures.batch import collate
    from ds4sci.data.structures.features import featurize

    features: Any = config.settings.data.features  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    record = synthetic_chain(crop, features.max_clusters + features.max_extra, rng)
    made = featurize(record, features, rng, earlier_passes=recycling, pass_rng=make_pass_rng(0))
    return collate([made], recycling=recycling)


def _alternate(
    config_path: str, choices: list[list[str]], crop: int, repeats: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Seconds and losses of ``repeats`` steps with each list of overrides. The first step of each is not timed."""
    import torch

    configs = [RunConfig.load(config_path, own) for own in choices]
    batch = synthetic_batch(configs[0], crop)
    steppers = []
    for config in configs:
        torch.manual_seed(config.seed)
        steppers.append(training_step(config))
    times: list[list[float]] = [[] for _ in configs]
    losses: list[list[float]] = [[] for _ in configs]
    for turn in range(repeats + 1):
        for i, step in enumerate(steppers):
            torch.manual_seed(turn)
            start = time.perf_counter()
            losses[i].append(step(batch))
            synchronize()
            if turn:
                times[i].append(time.perf_counter() - start)
    return times, losses


def _measure_crop(config_path: str, overrides: list[str], crop: int, repeats: int) -> tuple[list[float], int | None]:
    import torch

    config = RunConfig.load(config_path, overrides)
    batch = synthetic_batch(config, crop)
    before = peak_bytes()
    step = training_step(config)
    step(batch)
    times = [timed(lambda: step(batch)) for _ in range(repeats)]
    if torch.cuda.is_available():
        return times, torch.cuda.max_memory_allocated()
    after = peak_bytes()
    return times, None if before is None or after is None else after - before
