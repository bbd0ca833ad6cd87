"""Benchmark of loaders on samples of uneven cost: A3M alignments of log-normal depths, and a consumer of fixed speed.

A loader cannot be faster than its consumer, nor than its workers: ideal = max(batches · step, work / workers), where
work is the sum of the times that the workers of that run spent in their samples. All loaders start with their worker
processes loaded and nothing made: the first samples, one batch per worker, wait for a file that opens the run.
"""

from __future__ import annotations

import contextlib
import gc
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ds4sci.bench.measurement import Measurement, write
from ds4sci.bench.registry import JsonFile, Quick, show
from ds4sci.data.alignments import msa
from ds4sci.data.loader import make_rng
from ds4sci.data.ready_loader import ready_samples
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.text_files import resolve_data_path
from ds4sci.machine.processor import usable_cores
from ds4sci.types import RESIDUES, Msa

COMMAND = "ready_loader"
CHAINS = Path("examples/fold/data/chains_valid.npz")
STEP_SECONDS = 0.025
BATCH = 4
WINDOW = 64
SIGMA = 1.23
"""Standard deviation of the logarithm of depths and times: the 99th percentile is 17 times the median."""
MEDIAN_DEPTH, MAX_DEPTH = 300, 20_000
MEDIAN_SECONDS = 0.009

Loader = Callable[["Source", int], Iterator[Sequence["Sample"]]]


@dataclass(frozen=True)
class Sample:
    """A sample and the seconds that its worker spent on it."""

    value: Any
    seconds: float


@dataclass(frozen=True)
class Source:
    """Function from an index to a sample; the first ``gates`` wait until the file ``gate``/open exists.

    files   alignments to read, or None to sleep ``times`` instead
    """

    gate: Path
    gates: int
    times: tuple[float, ...]
    files: tuple[Path, ...] | None = None

    def __len__(self) -> int:
        return self.gates + len(self.times)

    def __getitem__(self, index: int) -> Sample:
        if index < self.gates:
            (self.gate / f"waiting{index}").touch()
            while not (self.gate / "open").exists():
                time.sleep(0.001)
            return Sample(None, 0.0)
        index -= self.gates
        start = time.perf_counter()
        value: Msa | None = None
        if self.files is None:
            time.sleep(self.times[index])
        else:
            value = msa.read(self.files[index])
        return Sample(value, time.perf_counter() - start)

    __call__ = __getitem__


def command(
    json: JsonFile,
    workers: Annotated[int, typer.Option(help="Worker processes; 0 = one per core, at most 4.")] = 0,
    samples: Annotated[int, typer.Option(help="Samples of an epoch.")] = 1024,
    rounds: Annotated[int, typer.Option(help="Epochs per loader, in turn; the median is reported.")] = 3,
    quick: Quick = False,
) -> None:
    """Loaders on alignments of uneven depths: seconds of an epoch and % over the ideal, beside torch's DataLoader."""
    workers = workers or min(4, usable_cores())
    measurement = measure(workers, 16 if quick else samples, 1 if quick else rounds)
    write(json, asdict(measurement))
    show(measurement, json)


def measure(workers: int, samples: int, rounds: int) -> Measurement:
    """Seconds of an epoch of ``samples`` samples with each loader."""
    loaders = available_loaders()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = write_alignments(folder / "alignments", samples)
        times = tuple(make_rng(0, 1).lognormal(np.log(MEDIAN_SECONDS), SIGMA, samples).tolist())
        found: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for _ in range(rounds):
            for title, chosen in (("A3M files", files), ("same time asleep", None)):
                for label, loader in loaders.items():
                    source = Source(folder / "gate", BATCH * workers, times, tuple(chosen) if chosen else None)
                    found.setdefault((title, label), []).append(run_epoch(loader, source, workers))
        depths = sorted(file.read_bytes().count(b">") for file in files)
    rows: list[list[Any]] = []
    for (title, label), runs in found.items():
        seconds = statistics.median(run[0] for run in runs)
        over = statistics.median(run[0] / run[1] - 1 for run in runs)
        spread = (max(run[0] for run in runs) - min(run[0] for run in runs)) / seconds
        rows.append([title, label, seconds, statistics.median(run[1] for run in runs), 100 * over, 100 * spread])
    return Measurement(
        name="ready_loader",
        title="Loaders on samples of uneven cost",
        command="ds4sci bench ready_loader --json OUT",
        columns=["source", "loader", "seconds", "ideal (s)", "over ideal (%)", "spread (%)"],
        rows=rows,
        notes=[
            f"{samples} samples, batches of {BATCH}, {workers} worker processes, {rounds} rounds, A B A B; a step of "
            f"the consumer sleeps {1000 * STEP_SECONDS:.0f} ms",
            "ideal: max(batches · step, time spent in samples / workers), of the same run",
            f"A3M files: bundled chains, rows drawn from their profiles, log-normal depths from {depths[0]:,} to "
            f"{depths[-1]:,}, median {int(statistics.median(depths)):,}; asleep: log-normal times, median "
            f"{1000 * MEDIAN_SECONDS:.0f} ms, longest {1000 * max(times):.0f} ms",
            f"ds4sci ready: at most {WINDOW} samples overtake another one; prefetching: 8 samples per worker for every "
            "loader",
        ],
    )


def write_alignments(folder: Path, count: int) -> list[Path]:
    """Write ``count`` A3M files: chains with rows drawn from their profiles, gaps and insertions, of log-normal
    depth."""
    folder.mkdir()
    chains = ChainSet.open(resolve_data_path(CHAINS))
    letters = np.frombuffer((RESIDUES + "-").encode(), np.uint8)
    files = []
    for number in range(count):
        rng = make_rng(0, 0, number)
        record = chains[number % len(chains)]
        depth = int(np.clip(rng.lognormal(np.log(MEDIAN_DEPTH), SIGMA), 1, MAX_DEPTH))
        n = len(record.sequence)
        profile = np.full((n, 20), 0.05) if record.profile is None else record.profile + 1e-3
        cumulated = (profile / profile.sum(1, keepdims=True)).cumsum(1)
        rows = np.minimum((rng.random((depth, n, 1)) > cumulated).sum(2), 19) if depth * n < 1e5 else None
        if rows is None:  # column by column: less memory
            rows = np.stack([np.searchsorted(column, rng.random(depth)).clip(max=19) for column in cumulated], axis=1)
        rows[rng.random((depth, n)) < 0.1] = 20
        lines = [f">query\n{record.sequence}"]
        for index, row in enumerate(letters[rows]):
            text = row.tobytes().decode()
            if index % 4 == 0:
                text = f"{text[: n // 2]}acd{text[n // 2 :]}"
            lines.append(f">row{index}\n{text}")
        path = folder / f"{number:05d}.a3m"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        files.append(path)
    return files


def run_epoch(loader: Loader, source: Source, workers: int) -> tuple[float, float]:
    """Return the seconds of an epoch with a sleeping consumer, and the ideal."""
    shutil.rmtree(source.gate, ignore_errors=True)
    source.gate.mkdir()
    batches = loader(source, workers)
    opener = _Opener(source.gate, workers)
    work, count, number = 0.0, 0, 0
    try:
        opener.start()
        start = seconds = 0.0
        for batch in batches:
            start = start or opener.opened()
            if taken := [sample for sample in batch if sample.seconds]:
                work += sum(sample.seconds for sample in taken)
                count, number = count + 1, number + len(taken)
                time.sleep(STEP_SECONDS)
                seconds = time.perf_counter() - start  # without the end of the workers
    finally:
        opener.join()
        if hasattr(batches, "close"):
            batches.close()
        del batches
        gc.collect()  # torchdata's objects would end in the next loader's forked workers, with warnings
    expected = len(source) - source.gates
    if number != expected:
        raise RuntimeError(f"the loader gave {number} of {expected} samples")
    return seconds, max(count * STEP_SECONDS, work / workers)


class _Opener:
    """Thread that opens the gate when every worker waits at it."""

    def __init__(self, gate: Path, workers: int) -> None:
        import threading

        self._gate, self._workers, self._time = gate, workers, 0.0
        self._thread = threading.Thread(target=self._open, daemon=True)
        self.start, self.join = self._thread.start, self._thread.join

    def _open(self) -> None:
        end = time.monotonic() + 120
        while len(list(self._gate.glob("waiting*"))) < self._workers and time.monotonic() < end:
            time.sleep(0.002)
        self._time = time.perf_counter()
        (self._gate / "open").touch()

    def opened(self) -> float:
        """Time at which the gate was opened."""
        self.join()
        return self._time


def ready(source: Source, workers: int, window: int = WINDOW) -> Iterator[Sequence[Sample]]:
    """ds4sci's loader."""
    samples = ready_samples(
        source, iter(range(len(source))), workers=workers, kind="process", window=window, capacity=8 * workers
    )
    with contextlib.closing(samples):  # type: ignore[type-var]  # a generator
        while batch := [sample for _, sample in islice(samples, BATCH)]:
            yield batch


def torch_loader(source: Source, workers: int, in_order: bool = True) -> Iterator[Sequence[Sample]]:
    """torch's DataLoader. It has a queue per worker, and a worker makes a whole batch."""
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        source,  # type: ignore[arg-type]  # a map-style dataset: __len__ and __getitem__
        batch_size=BATCH, num_workers=workers, collate_fn=_as_tensors, in_order=in_order, prefetch_factor=8 // BATCH,
    )  # fmt: skip
    return iter(loader)


def _as_tensors(batch: Sequence[Sample]) -> list[Sample]:
    """Turn the arrays of samples into tensors, which torch's workers send through shared memory."""
    import torch

    return [
        Sample((torch.from_numpy(one.value.sequences), torch.from_numpy(one.value.deletions)), one.seconds)
        if isinstance(one.value, Msa)
        else one
        for one in batch
    ]


def torchdata_loader(source: Source, workers: int) -> Iterator[Sequence[Sample]]:
    """torchdata's ParallelMapper, out of order, with batches of its results."""
    from torchdata.nodes import Batcher, IterableWrapper, Loader, ParallelMapper, Prefetcher

    mapped = ParallelMapper(
        IterableWrapper(range(len(source))), map_fn=source, num_workers=workers, in_order=False, method="process",
        multiprocessing_context="fork",
    )  # fmt: skip
    return iter(Loader(Prefetcher(Batcher(mapped, batch_size=BATCH, drop_last=False), 8 * workers // BATCH)))


def available_loaders() -> dict[str, Loader]:
    """Loaders by the name in the table; torchdata's only where it is installed."""
    loaders: dict[str, Loader] = {
        "ds4sci ready": ready,
        "ds4sci, strict order": partial(ready, window=0),
        "torch DataLoader": torch_loader,
        "torch DataLoader, in_order=False": partial(torch_loader, in_order=False),
    }
    with contextlib.suppress(ImportError):
        import torchdata.nodes  # noqa: F401

        loaders["torchdata ParallelMapper, in_order=False"] = torchdata_loader
    return loaders
