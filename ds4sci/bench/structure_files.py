"""Benchmark of the mmCIF parsers: entries/s of gemmi, which ds4sci uses, and of Biopython."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ds4sci.bench.measurement import FOLDER, Measurement, median_and_range
from ds4sci.bench.registry import OutFolder, show
from ds4sci.data.structures.parsers import mmcif
from ds4sci.data.text_files import read_bytes

COMMAND = "parse"


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of mmCIF files.")] = Path(
        "tests/fixtures/mmcif"
    ),
    out: OutFolder = FOLDER,
) -> None:
    """mmCIF parsing: entries/s of gemmi and Biopython."""
    measurement = measure(folder)
    show(measurement, measurement.save(out))


def measure(folder: Path, *, rounds: int = 5) -> Measurement:
    """Entries/s of both parsers on the files of ``folder``. Raises ValueError if it has no mmCIF files."""
    files = sorted([*folder.glob("*.cif"), *folder.glob("*.cif.gz")])
    if not files:
        raise ValueError(f"{folder}: no *.cif or *.cif.gz files; name a folder of mmCIF files")
    found = parsers(files, rounds)["entries_per_second"]
    slowest = min(rates["median"] for rates in found.values())
    return Measurement(
        name="parsing",
        title="mmCIF parsers",
        command=f"ds4sci bench parse {folder}",
        columns=["parser", "entries/s", "min", "max", "speed-up"],
        rows=[
            [n, rates["median"], rates["min"], rates["max"], rates["median"] / slowest] for n, rates in found.items()
        ],
        notes=[
            f"{len(files)} entries, {rounds} rounds, A B A B; baseline: the slower parser",
            "gemmi builds records (entity sequence, modified residues, alternate locations); Biopython "
            "(FastMMCIFParser) reads atoms only",
        ],
    )


def parsers(files: Sequence[Path], rounds: int) -> dict[str, Any]:
    """Entries/s of both parsers on the same files: medians of ``rounds`` rounds, A B A B."""
    readers: dict[str, Callable[[Path], Any]] = {"gemmi": mmcif.read, "biopython": biopython_atoms}
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds):
        for name, read in readers.items():
            start = time.perf_counter()
            for path in files:
                read(path)
            seconds[name].append(time.perf_counter() - start)
    entries = {name: median_and_range([len(files) / took for took in times]) for name, times in seconds.items()}
    ratios = [b / a for a, b in zip(seconds["gemmi"], seconds["biopython"], strict=True)]
    return {
        "files": [path.name for path in files],
        "entries_per_second": entries,
        "gemmi_is_faster": median_and_range(ratios),
    }  # fmt: skip


def biopython_atoms(path: Path) -> list[np.ndarray]:
    """Atom positions [atoms, 3] of each chain of the first model, by the faster of Biopython's parsers.

    This is less work than a ds4sci record, so the comparison favours Biopython.
    """
    from Bio.PDB.MMCIFParser import FastMMCIFParser

    text = io.StringIO(read_bytes(path).decode("utf-8", "replace"))
    structure = FastMMCIFParser(QUIET=True).get_structure("x", text)
    return [np.array([atom.coord for atom in chain.get_atoms()]) for chain in structure[0]]
