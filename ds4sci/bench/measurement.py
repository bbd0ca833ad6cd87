"""Measurements as JSON with machine and commit, from which the README's tables are made: ``ds4sci bench``.

Two things that are compared are measured side by side, A B A B, in one process. Figures are medians; spreads are
(largest - smallest) / median.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.config.run_file import RunConfig
from ds4sci.machine import memory, provenance
from ds4sci.types import Msa, Record

FOLDER = Path("benchmarks")
CA_STEP = 3.8  # Å from one Cα to the next


@dataclass(frozen=True)
class Measurement:
    """One JSON of ``benchmarks/``.

    name     of the file
    title    of the table
    command  that measures it again
    columns  of the table
    rows     of the table, as long as ``columns``; numbers are kept as measured and rounded when shown
    notes    what a reader must know to judge the figures
    machine  ``ds4sci.machine.provenance.describe()``, commit included
    """

    name: str
    title: str
    command: str
    columns: list[str]
    rows: list[list[Any]]
    notes: list[str] = field(default_factory=list)
    machine: dict[str, Any] = field(default_factory=provenance.describe)
    date: str = field(default_factory=lambda: time.strftime("%Y-%m-%d"))

    def save(self, folder: Path = FOLDER) -> Path:
        """Write ``folder/NAME.json``; the path."""
        path = folder / f"{self.name}.json"
        write(path, asdict(self))
        return path


def write(path: Path, figures: dict[str, Any]) -> None:
    """A benchmark's JSON, its folder with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def spread(values: Iterable[float]) -> float:
    """(largest - smallest) / median."""
    listed = list(values)
    return (max(listed) - min(listed)) / statistics.median(listed)


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def chain(length: int, rows: int, rng: np.random.Generator) -> Record:
    """A made-up chain of ``length`` residues, complete backbone, with a profile and an alignment of ``rows`` rows:
    its shapes cost what a real one's cost."""
    letters = rng.integers(0, 20, length)
    alignment = np.where(rng.random((rows, length)) < 0.5, letters, rng.integers(0, 22, (rows, length)))
    alignment[0] = letters
    steps = rng.normal(size=(length, 3))
    trace = np.cumsum(CA_STEP * steps / np.linalg.norm(steps, axis=1, keepdims=True), axis=0)
    positions = np.zeros((length, 37, 3), np.float32)
    mask = np.zeros((length, 37), bool)
    for atom, offset in ((0, (-1.4, 0.3, 0)), (1, (0, 0, 0)), (2, (1.5, 0, 0.2)), (4, (1.9, 1.0, 0.4))):
        positions[:, atom], mask[:, atom] = trace + np.array(offset), True
    return Record(
        id=f"made_{length}",
        sequence="".join("ARNDCQEGHILKMFPSTWYV"[i] for i in letters),
        atom_positions=positions,
        atom_mask=mask,
        residue_index=np.arange(length, dtype=np.int32),
        dssp="C" * length,
        profile=np.eye(20, dtype=np.float32)[letters],
        msa=Msa(alignment.astype(np.uint8), np.zeros((rows, length), np.int32), tuple(map(str, range(rows)))),
    )


def trainer(config: RunConfig) -> Callable[[Any], float]:
    """One step of plain torch on a batch: forward, loss, backward, AdamW; the loss. No DeepSpeed around it."""
    import torch

    from ds4sci.train.build import build_task

    task = build_task(config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = task.model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(batch: Any) -> float:
        moved = batch.to(device)
        loss, _ = task.loss(model(moved), moved)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def parsing(folder: Path, *, rounds: int = 5) -> Measurement:
    """Entries/s of both mmCIF readers on the files of ``folder``. Raises ValueError when it has none."""
    from ds4sci.bench.loader import parsers

    files = sorted([*folder.glob("*.cif"), *folder.glob("*.cif.gz")])
    if not files:
        raise ValueError(f"{folder}: no *.cif or *.cif.gz in it; name a folder of mmCIF files")
    found = parsers(files, rounds)["entries_per_second"]
    slowest = min(rates["median"] for rates in found.values())
    return Measurement(
        name="parsing",
        title="mmCIF readers",
        command=f"ds4sci bench parse {folder}",
        columns=["reader", "entries/s", "least", "most", "times the slower"],
        rows=[
            [n, rates["median"], rates["min"], rates["max"], rates["median"] / slowest] for n, rates in found.items()
        ],
        notes=[
            f"{len(files)} entries, {rounds} rounds, A B A B; gemmi to records (entity sequence, modified residues "
            "and alternate locations sorted out), Biopython (FastMMCIFParser) to bare atoms"
        ],
    )


def loading(config_path: str, overrides: list[str], *, batches: int = 8, rounds: int = 3) -> Measurement:
    """Samples/s of the loader alone against those of the training step, on the chains and crops of the run's end.

    The end, because a model may begin with a part of itself and with short crops.
    """
    from ds4sci.train.build import build_task

    config = RunConfig.load(config_path, overrides)
    task = build_task(config)
    micro = int(config.deepspeed_config().get("train_micro_batch_size_per_gpu", 1))
    start = max(0, config.train.steps - rounds * batches - 1)
    stream = task.batches(start_step=start, rank=0, world_size=1, micro_batch_size=micro, accumulation_steps=1)
    step = trainer(config)
    step(next(stream))  # warm both
    rates: dict[str, list[float]] = {"loader": [], "step": []}
    for _ in range(rounds):
        began = time.perf_counter()
        held = list(islice(stream, batches))
        loaded = time.perf_counter()
        for batch in held:
            step(batch)
        synchronize()
        rates["loader"].append(batches * micro / (loaded - began))
        rates["step"].append(batches * micro / (time.perf_counter() - loaded))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return Measurement(
        name="loading" if config.task.name == "fold" else f"loading_{Path(config_path).stem}",
        title="Loader alone against the training step",
        command=f"ds4sci bench data {config_path}",
        columns=["", "samples/s", "spread", "times the step"],
        rows=[
            [name, medians[name], f"{spread(values):.0%}", medians[name] / medians["step"]]
            for name, values in rates.items()
        ],
        notes=[
            f"one process, micro batch {micro}, {rounds} rounds of {batches} batches, A B A B; at the end of the run"
        ],
    )


def steps(config_path: str, overrides: list[str], crops: list[int], *, repeats: int = 3) -> Measurement:
    """Seconds and peak memory of a training step by crop length, each crop in a fresh process."""
    rows = []
    for crop in crops:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            times, peak = pool.submit(_steps_of_crop, config_path, overrides, crop, repeats).result()
        rows.append([crop, statistics.median(times), f"{spread(times):.0%}", None if peak is None else peak / 1e6])
    return Measurement(
        name=f"step_{Path(config_path).stem}",
        title=f"A training step of `{Path(config_path).stem}` by crop length",
        command=f"ds4sci bench step {config_path} --crops {','.join(map(str, crops))}",
        columns=["crop", "seconds", "spread", "peak memory (MB)"],
        rows=rows,
        notes=[
            f"one chain, no recycling, plain torch (forward, loss, backward, AdamW), median of {repeats}; "
            "peak over what the process held before the model"
        ],
    )


def steps_against(config_path: str, overrides: list[str], against: list[str], crop: int) -> Measurement:
    """A training step as configured and with the overrides ``against``, or ``reference``: every kernel's reference.

    Seconds A B A B in one process, peak memory each in its own; losses of the same steps from the same weights."""
    from ds4sci.kernels import KERNELS

    changes = [f"kernels.{name}=reference" for name in KERNELS] if against == ["reference"] else against
    runs = {"as configured": overrides, " ".join(against): [*overrides, *changes]}
    peaks = []
    for own in runs.values():
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            peaks.append(pool.submit(_steps_of_crop, config_path, own, crop, 1).result()[1])
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        times, losses = pool.submit(_alternating, config_path, list(runs.values()), crop, 6).result()
    medians = [statistics.median(own) for own in times]
    apart = max(abs(x - y) / abs(y) for x, y in zip(*losses, strict=True))
    return Measurement(
        name=f"step_{Path(config_path).stem}_{crop}_against",
        title=f"A training step of `{Path(config_path).stem}` at crop {crop}, beside `{' '.join(against)}`",
        command=f"ds4sci bench step {config_path} --crops {crop} --against {' '.join(against)}",
        columns=["", "seconds", "spread", "peak memory (MB)", "times as fast"],
        rows=[
            [name, median, f"{spread(own):.0%}", None if peak is None else peak / 1e6, medians[-1] / median]
            for name, own, peak, median in zip(runs, times, peaks, medians, strict=True)
        ],
        notes=[
            "one chain, no recycling, plain torch (forward, loss, backward, AdamW), A B A B",
            f"losses of {len(losses[0])} steps from the same weights: "
            + ", ".join(f"{x:.5g}" for x in losses[0])
            + f"; the two differ by at most {apart:.1e} of their size",
        ],
    )


def _batch(config: RunConfig, crop: int) -> Any:
    from ds4sci.data.structures.batch import collate
    from ds4sci.data.structures.features import featurize

    features: Any = config.settings.data.features  # type: ignore[attr-defined]
    rng = np.random.default_rng(0)
    record = chain(crop, features.max_clusters + features.max_extra, rng)
    return collate([featurize(record, features, rng)])


def _alternating(
    config_path: str, choices: list[list[str]], crop: int, repeats: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Seconds, and losses, of ``repeats`` steps of each choice of overrides; the first step of each is not timed."""
    import torch

    from ds4sci.kernels import KERNELS
    from ds4sci.kernels.spec import prefer

    configs = [RunConfig.load(config_path, own) for own in choices]
    batch = _batch(configs[0], crop)
    steppers = []
    for config in configs:
        torch.manual_seed(config.seed)
        steppers.append(trainer(config))
    times: list[list[float]] = [[] for _ in configs]
    losses: list[list[float]] = [[] for _ in configs]
    for turn in range(repeats + 1):
        for i, (config, step) in enumerate(zip(configs, steppers, strict=True)):
            prefer(config.kernels, KERNELS)  # the process has one set of choices: this run's, now
            torch.manual_seed(turn)
            start = time.perf_counter()
            losses[i].append(step(batch))
            synchronize()
            if turn:
                times[i].append(time.perf_counter() - start)
    return times, losses


def _steps_of_crop(config_path: str, overrides: list[str], crop: int, repeats: int) -> tuple[list[float], int | None]:
    import torch

    config = RunConfig.load(config_path, overrides)
    batch = _batch(config, crop)
    before = peak_bytes()
    step = trainer(config)
    step(batch)
    times = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        step(batch)
        synchronize()
        times.append(time.perf_counter() - start)
    if torch.cuda.is_available():
        return times, torch.cuda.max_memory_allocated()
    after = peak_bytes()
    return times, None if before is None or after is None else after - before


def peak_bytes() -> int | None:
    """The most memory this program has held, from ``/proc``; None where there is none.

    ``getrusage`` will not do: a process that a large one forked begins with the large one's peak.
    """
    return memory.from_proc("self/status", "VmHWM")


def keep_within(more: float | None = None) -> None:
    """Let an allocation fail where it takes this process ``more`` bytes beyond what it has; by default beyond nine
    tenths of what the machine has free, where otherwise the kernel would kill a process. Only where there is /proc."""
    import resource

    held, free = memory.from_proc("self/status", "VmData"), memory.from_proc("meminfo", "MemAvailable")
    if held is not None and free is not None:
        limit = held + (0.9 * free if more is None else more)
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit), resource.RLIM_INFINITY))
