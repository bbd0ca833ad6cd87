"""Extended roofline: time of a training step against what compute, memory, disk and network of this machine allow.

A step that computes F operations, moves M bytes to and from memory, reads D bytes from the disk and sends N bytes to
other ranks takes at least t ≥ max(F / peak, M / bandwidth, D / disk rate, N / network rate). The largest of the four
names the limiter. All rates are measured in the same run; M is modelled (``ds4sci.bench.roofline_counts``).
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ds4sci.bench.measurement import Measurement, synchronize, write
from ds4sci.bench.registry import JsonFile, Quick, show
from ds4sci.bench.roofline_ceilings import QUICK, Case, Ceilings, full_sizes, limiter, measure
from ds4sci.bench.roofline_counts import DiskReads, StepCounter, cache_bytes
from ds4sci.config.run_file import RunConfig
from ds4sci.machine import page_cache
from ds4sci.tasks.build import build_task, default_kernels
from ds4sci.train import listeners

WARMUP, COUNTED, TIMED = 2, 4, 5
"""Steps before a measurement; steps over which disk bytes are counted; steps that are timed."""


def command(
    out: JsonFile,
    configs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG]… [KEY=VALUE]…", help="Run files to measure, and settings for all of them."),
    ] = None,
    quick: Quick = False,
) -> None:
    """Roofline of training steps: what limits them, and how far they are from it. Also four cases with known limits."""
    from ds4sci.bench.plot import plot

    given = configs or []
    files, overrides = [x for x in given if "=" not in x], [x for x in given if "=" in x]
    measurement = run(out, files, overrides, quick=quick)
    show(measurement, out, plot(out))


def run(out: Path, files: list[str], overrides: list[str], *, quick: bool = False) -> Measurement:
    """Measure the ceilings, the four cases and a step of each run file, and write everything to ``out``."""
    loaded = [RunConfig.load(file, overrides) for file in files]  # before minutes of measurements
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        ceilings, cases = measure(Path(folder), QUICK if quick else full_sizes())
    steps = [step_of(config, timed=1 if quick else TIMED) for config in loaded]
    points = [point(case, ceilings) for case in (*cases, *steps)]
    flops = ", ".join(f"{name} products {rate / 1e9:.3g} GFLOP/s" for name, rate in ceilings.flops.items())
    rates = [f"memory {ceilings.memory / 1e9:.1f} GB/s"]
    rates += [f"{name} {rate / 1e9:.2f} GB/s" for name in ("disk", "network") if (rate := getattr(ceilings, name))]
    measurement = Measurement(
        name=out.stem,
        title="Roofline: lower bound of the time by compute, memory, disk and network",
        command=f"ds4sci bench roofline {' '.join([*files, *overrides])} --json {out.name}".replace("  ", " "),
        columns=[
            "step", "GFLOP", "operands (MB)", "memory, modelled (MB)", "disk (MB)", "network (MB)",
            "limiter", "bound (ms)", "measured (ms)", "measured / bound",
        ],
        rows=[
            [
                one["name"], one["flops"] / 1e9, *(one[key] / 1e6 for key in ("operands", "memory", "disk", "network")),
                one["limiter"], 1e3 * one["bound"], 1e3 * one["seconds"], one["seconds"] / max(one["bound"], 1e-12),
            ]
            for one in points
        ],
        notes=[
            f"ceilings, measured in the same run: {flops}; {', '.join(rates)}",
            "FLOP: matrix products, convolutions and attention, with recomputation; operands: inputs and outputs of "
            f"every operator; memory: what remains of them behind a cache of {cache_bytes(torch.device('cpu')) >> 20} "
            "MB that holds whole tensors, a model; disk: counted, with a cold page cache",
            f"steps of run files: one process, one micro-batch, forward, backward and AdamW in plain torch, with data "
            f"loading; median of {TIMED}",
        ],
    )  # fmt: skip
    missing = [name for name in ("disk", "network") if getattr(ceilings, name) is None]
    if missing:
        measurement.notes.append(f"not measured: {', '.join(missing)} (the files of {out.parent} are in memory)")
    figures = {"ceilings": asdict(ceilings), "points": points, "plot": out.with_suffix(".png").name, "quick": quick}
    write(out, asdict(measurement) | figures)
    return measurement


def point(case: Case, ceilings: Ceilings) -> dict[str, Any]:
    """Work, lower bounds, limiter and measured time of a case as JSON values; bytes and seconds."""
    bounds = ceilings.seconds(case.work)
    name, bound = limiter(bounds)
    return {
        "name": case.name, "flops": case.work.total_flops, "flops_by_dtype": case.work.flops,
        "operands": case.work.operands, "memory": case.work.memory, "disk": case.work.disk,
        "network": case.work.network, "bounds": bounds, "limiter": name, "bound": bound, "seconds": case.seconds,
    }  # fmt: skip


def step_of(config: RunConfig, *, timed: int = TIMED) -> Case:
    """Work and time of a training step of a run file: one micro-batch on this process, without DeepSpeed."""
    settings = config.deepspeed_config()
    micro = int(settings.get("train_micro_batch_size_per_gpu", settings.get("train_batch_size", 1)))
    is_bf16 = bool((settings.get("bf16") or {}).get("enabled"))
    disk = _cold_disk_bytes(config, micro)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = build_task(config)
    model = task.model.to(device, torch.bfloat16 if is_bf16 else None).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    stream = _batches(task, micro)

    def step() -> None:
        batch = next(stream).to(device)
        with default_kernels(config):
            loss, _ = task.loss(model(batch), batch)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize()

    for _ in range(WARMUP):
        step()
    counter = StepCounter(cache_bytes(device))
    with counter:
        step()
        counter.reset()
        step()
    times = []
    for _ in range(timed):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    _close(stream)
    name = config.benchmark.name if config.benchmark is not None else config.source.stem
    return Case(name, counter.work(disk), statistics.median(times))


def _cold_disk_bytes(config: RunConfig, micro: int) -> int:
    """Bytes per micro-batch read from disks if none of the data is in memory. Data that a task reads once, when it is
    built, is not part of a step.

    A loader that reads ahead counts its reads too, so that this is an upper estimate.
    """
    for is_cold in (False, True):
        if is_cold:
            page_cache.drop(listeners.data_files(config))
        task = build_task(config)
        stream, disk = _batches(task, micro), DiskReads()
        for _ in islice(stream, COUNTED):
            pass
        read = disk.read() or 0
        _close(stream)
        del task, stream
        gc.collect()  # unmaps the files, whose pages could not be dropped otherwise
    return read // COUNTED


def _batches(task: Any, micro: int) -> Iterator[Any]:
    stream: Iterator[Any] = task.batches(
        start_step=0, rank=0, world_size=1, micro_batch_size=micro, accumulation_steps=1
    )
    return stream


def _close(stream: Iterator[Any]) -> None:
    if hasattr(stream, "close"):  # a generator, which may own threads
        stream.close()
