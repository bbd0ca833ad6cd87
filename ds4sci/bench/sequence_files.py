"""``python -m ds4sci.bench.sequence_files FASTA… [--out FOLDER]``: indexing and random reads beside Biopython and
pyfaidx.

Each file is indexed by ours (into a store, with checksums, masks and names), parsed by Biopython's ``SeqIO.parse`` and
indexed by pyfaidx's ``Faidx``, one after the other, several times over; then the same stretches are read at random.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.bench.measurement import FOLDER, Measurement
from ds4sci.data.sequences import SequenceStore, index

READ = 1000
"""Residues of a read, less where the record is shorter."""


def measure(files: Sequence[Path], *, note: str = "", rounds: int = 3, reads: int = 20_000) -> Measurement:
    """MB/s of indexing and reads/s, processor time, medians of ``rounds``, A B C A B C; one process.

    ``note`` says what the files are.

    ``ValueError`` for no files, and as ``ds4sci.data.sequences.index``.
    """
    if not files:
        raise ValueError("name FASTA files to index, of 100 MB or more for steady figures")
    rows: list[list[Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for path in files:
            rows += _one_file(path, Path(folder), rounds, reads)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("biopython", "pyfaidx"))
    return Measurement(
        name="sequences",
        title="Indexing FASTA, and reading at random",
        command="ds4sci bench sequences " + " ".join(path.name for path in files),
        columns=["file", "reader", "MB/s", "spread", "reads/s", "times Biopython's MB/s", "times pyfaidx's reads/s"],
        rows=rows,
        notes=[
            f"processor time of one process, median of {rounds}, A B C A B C; {versions}",
            "ours: checksums of source and store, soft mask, unknown residues, names; Biopython: SeqIO.parse;"
            " pyfaidx: Faidx, which makes the .fai index",
            f"reads: {reads} stretches of {READ} residues or the whole record, at random, the file in the page cache",
            *([note] if note else []),
        ],
    )


def _one_file(path: Path, folder: Path, rounds: int, reads: int) -> list[list[Any]]:
    from Bio import SeqIO
    from pyfaidx import Faidx

    copy, store = folder / path.name, folder / f"{path.name}.store"
    shutil.copyfile(path, copy)  # pyfaidx writes its index beside the file
    beside = copy.with_name(f"{copy.name}.fai")

    def biopython() -> None:
        for _ in SeqIO.parse(copy, "fasta"):
            pass

    def ours() -> None:
        shutil.rmtree(store, ignore_errors=True)
        index([copy], store, jobs=1)

    def faidx() -> None:
        beside.unlink(missing_ok=True)
        Faidx(str(copy)).close()

    megabytes = path.stat().st_size / 1e6
    rates: dict[str, list[float]] = {"ds4sci": [], "Biopython": [], "pyfaidx": []}
    for _ in range(rounds):
        for name, action in zip(rates, (ours, biopython, faidx), strict=True):
            rates[name].append(megabytes / _seconds(action))

    opened, other = SequenceStore.open(store), Faidx(str(copy))
    wanted = _stretches(opened, reads)
    reading: dict[str, list[float]] = {"ds4sci": [], "pyfaidx": []}
    for _ in range(rounds):
        took = _seconds(lambda: [opened.residues(*one).tobytes() for one, _ in wanted])
        reading["ds4sci"].append(reads / took)
        took = _seconds(lambda: [other.fetch(name, start + 1, stop) for (_, start, stop), name in wanted])
        reading["pyfaidx"].append(reads / took)
    other.close()
    least, slower = statistics.median(rates["Biopython"]), statistics.median(reading["pyfaidx"])
    rows: list[list[Any]] = []
    for name, values in rates.items():
        median, read = statistics.median(values), statistics.median(reading[name]) if name in reading else None
        apart = (max(values) - min(values)) / median
        rows.append([path.name, name, median, f"{apart:.0%}", read, median / least, read and read / slower])
    return rows


def _stretches(store: SequenceStore, count: int) -> list[tuple[tuple[int, int, int], str]]:
    rng = np.random.default_rng(0)
    found = []
    for record in rng.choice(len(store), count, p=store.lengths / store.total).tolist():
        length = int(store.lengths[record])
        start = int(rng.integers(0, max(1, length - READ + 1)))
        found.append(((record, start, min(start + READ, length)), store.name(record)))
    return found


def _seconds(action: Callable[[], Any]) -> float:
    began = time.process_time()
    action()
    return time.process_time() - began


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Indexing and random reads of FASTA beside Biopython and pyfaidx.")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for sequences.json")
    parser.add_argument("--note", default="", help="what the files are, for the table's readers")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    print(measure(given.files, note=given.note, rounds=given.rounds).save(given.out))


if __name__ == "__main__":
    main()
