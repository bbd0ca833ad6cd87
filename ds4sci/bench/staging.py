"""Benchmark of staging: copy rate with checksums, beside plain copies of the same files in the same run.

Before every copy the files of the source are removed from the page cache, and data that waits to be written is
flushed. The ceiling is the faster of two plain copies, which compute no checksum: one file at a time, and as many at a
time as staging uses.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from ds4sci.bench.measurement import Measurement, spread, timed, write
from ds4sci.bench.registry import JsonFile, Quick, show
from ds4sci.datasets import manifest, staging, store
from ds4sci.files.atomic_files import fingerprint
from ds4sci.machine import page_cache

STAGED = "staging: checksum while copying"
TWO_PASSES = "plain copy, then checksum"


def command(
    json_out: JsonFile = Path("benchmarks/staging.json"),
    megabytes: Annotated[int, typer.Option("--mb", min=1, help="Size of the dataset.")] = 1024,
    files: Annotated[int, typer.Option("--files", min=1, help="Number of files.")] = 8,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Copies of each kind; the median counts.")] = 5,
    source: Annotated[
        Path | None, typer.Option("--source", metavar="DIR", help="Folder for the source. Default: a temporary one.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Folder to copy to. Default: a temporary one.")
    ] = None,
    quick: Quick = False,
) -> None:
    """Staging of a dataset: copy rate with checksums and share of the plain copy's rate."""
    measurement = measure(8 if quick else megabytes, files, 1 if quick else rounds, source, to)
    write(json_out, asdict(measurement))
    show(measurement, json_out)


def measure(megabytes: int, files: int, rounds: int, source: Path | None = None, to: Path | None = None) -> Measurement:
    """Copy a dataset of random bytes in each way, in turn, and return the rates."""
    with (
        tempfile.TemporaryDirectory(dir=source) as source_folder,
        tempfile.TemporaryDirectory(dir=to) as target_folder,
    ):
        dataset, target = Path(source_folder) / "random-1", Path(target_folder) / "target"
        size = write_dataset(dataset, megabytes * 10**6 // files, files)
        store.check_free_space(Path(target_folder), 2 * size)
        at_once = staging.FILES_AT_ONCE
        methods: dict[str, Callable[[], object]] = {
            "plain copy, one file at a time": lambda: plain_copy(dataset, target, 1),
            f"plain copy, {at_once} files at a time": lambda: plain_copy(dataset, target, at_once),
            TWO_PASSES: lambda: two_passes(dataset, target, at_once),
            STAGED: lambda: staging.stage(dataset, target),
        }
        seconds: dict[str, list[float]] = {name: [] for name in methods}
        for _ in range(rounds):
            for name, method in methods.items():
                shutil.rmtree(target, ignore_errors=True)
                os.sync()  # what the copy before has left to write
                page_cache.drop([dataset])
                seconds[name].append(timed(method))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ceiling = min(value for name, value in medians.items() if name not in (STAGED, TWO_PASSES))
    return Measurement(
        name="staging",
        title="Staging: copy with checksums",
        command=f"ds4sci bench staging --mb {megabytes} --files {files} --rounds {rounds}",
        columns=["method", "MB/s", "spread", "% of the plain copy"],
        rows=[
            [name, size / 1e6 / medians[name], f"{spread(values):.0%}", 100 * ceiling / medians[name]]
            for name, values in seconds.items()
        ],
        notes=[
            f"{files} files, {size / 1e6:,.0f} MB of random bytes, median of {rounds}, methods in turn",
            "source not in the page cache, target without fsync; 100 % is the faster plain copy (sendfile)",
        ],
    )


def write_dataset(folder: Path, file_size: int, files: int) -> int:
    """Write ``files`` files of random bytes with a manifest; return the bytes of all."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(files):
        (folder / f"train-{number:05d}.bin").write_bytes(rng.bytes(file_size))
    return manifest.write(folder, "random", "1").size


def plain_copy(folder: Path, target: Path, at_once: int) -> None:
    """Copy the files without checksums."""
    target.mkdir()
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda path: shutil.copyfile(path, target / path.name), sorted(folder.iterdir())))


def two_passes(folder: Path, target: Path, at_once: int) -> None:
    """Copy the files, then read the copies for their checksums."""
    plain_copy(folder, target, at_once)
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(fingerprint, sorted(target.iterdir())))
