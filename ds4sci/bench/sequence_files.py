"""Benchmark of the sequence store: indexing and random reads of FASTA, baselines: Biopython and pyfaidx.

Each file is indexed by ds4sci (into a store, with checksums, masks and names), parsed by Biopython's ``SeqIO.parse``
and indexed by pyfaidx's ``Faidx``, A B C A B C. Then ds4sci and pyfaidx read the same random intervals.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ds4sci.bench.measurement import FOLDER, Measurement, spread
from ds4sci.bench.registry import OutFolder, show
from ds4sci.data.sequences import SequenceStore, index

COMMAND = "sequences"
READ_LENGTH = 1000
"""Residues of a read; less if the record is shorter."""


def command(
    files: Annotated[list[Path], typer.Argument(metavar="FASTA…", help="Plain FASTA files.")],
    out: OutFolder = FOLDER,
    note: Annotated[str, typer.Option("--note", help="Description of the files, for the notes of the table.")] = "",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Number of rounds.")] = 3,
) -> None:
    """FASTA indexing (MB/s) and random reads (reads/s) of ds4sci, Biopython and pyfaidx."""
    measurement = measure(files, note=note, rounds=rounds)
    show(measurement, measurement.save(out))


def measure(files: Sequence[Path], *, note: str = "", rounds: int = 3, reads: int = 20_000) -> Measurement:
    """MB/s of indexing and reads/s, in CPU time of one process, medians of ``rounds`` rounds.

    ``note`` describes the files. Raises ValueError without files, and as ``ds4sci.data.sequences.index`` does.
    """
    if not files:
        raise ValueError("no FASTA files; name files to index, of 100 MB or more for stable figures")
    rows: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for path in files:
            rows += _one_file(path, Path(folder), rounds, reads)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("biopython", "pyfaidx"))
    return Measurement(
        name="sequences",
        title="FASTA: indexing and random reads",
        command="ds4sci bench sequences " + " ".join(path.name for path in files),
        columns=["file", "reader", "MB/s", "spread", "reads/s", "speed-up, indexing", "speed-up, reads"],
        rows=rows,
        notes=[
            f"CPU time of one process, median of {rounds}, A B C A B C; {versions}",
            "ds4sci: checksums of source and store, soft mask, unknown residues, names; Biopython: SeqIO.parse "
            "(baseline for indexing); pyfaidx: Faidx, which writes the .fai index (baseline for reads)",
            f"reads: {reads} random intervals of {READ_LENGTH} residues or the whole record, file in the page cache",
            *([note] if note else []),
        ],
    )


def _one_file(path: Path, folder: Path, rounds: int, reads: int) -> list[list[Any]]:
    from Bio import SeqIO
    from pyfaidx import Faidx

    copy, store = folder / path.name, folder / f"{path.name}.store"
    shutil.copyfile(path, copy)  # pyfaidx writes its index to the folder of the file
    fai = copy.with_name(f"{copy.name}.fai")

    def biopython() -> None:
        for _ in SeqIO.parse(copy, "fasta"):
            pass

    def ds4sci() -> None:
        shutil.rmtree(store, ignore_errors=True)
        index([copy], store, jobs=1)

    def faidx() -> None:
        fai.unlink(missing_ok=True)
        Faidx(str(copy)).close()

    megabytes = path.stat().st_size / 1e6
    rates: dict[str, list[float]] = {"ds4sci": [], "Biopython": [], "pyfaidx": []}
    for _ in range(rounds):
        for name, action in zip(rates, (ds4sci, biopython, faidx), strict=True):
            rates[name].append(megabytes / _seconds(action))

    opened, other = SequenceStore.open(store), Faidx(str(copy))
    intervals = _random_intervals(opened, reads)
    reading: dict[str, list[float]] = {"ds4sci": [], "pyfaidx": []}
    for _ in range(rounds):
        seconds = _seconds(lambda: [opened.residues(*interval).tobytes() for interval, _ in intervals])
        reading["ds4sci"].append(reads / seconds)
        seconds = _seconds(lambda: [other.fetch(name, start + 1, stop) for (_, start, stop), name in intervals])
        reading["pyfaidx"].append(reads / seconds)
    other.close()
    baseline, baseline_reads = statistics.median(rates["Biopython"]), statistics.median(reading["pyfaidx"])
    rows: list[list[Any]] = []
    for name, values in rates.items():
        median, read = statistics.median(values), statistics.median(reading[name]) if name in reading else None
        rows.append(
            [path.name, name, median, f"{spread(values):.0%}", read, median / baseline, read and read / baseline_reads]
        )
    return rows


def _random_intervals(store: SequenceStore, count: int) -> list[tuple[tuple[int, int, int], str]]:
    rng = np.random.default_rng(0)
    found = []
    for record in rng.choice(len(store), count, p=store.lengths / store.total).tolist():
        length = int(store.lengths[record])
        start = int(rng.integers(0, max(1, length - READ_LENGTH + 1)))
        found.append(((record, start, min(start + READ_LENGTH, length)), store.name(record)))
    return found


def _seconds(action: Callable[[], Any]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start
