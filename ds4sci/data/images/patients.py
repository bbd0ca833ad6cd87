"""Patient-wise splits: the patient of each image, and training and held-out images without a common patient."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

COLUMNS = ("file", "patient", "label", "split")
SPLITS = ("train", "valid")


@dataclass(frozen=True)
class TableRow:
    """What a table says of one image; None where it has no such column or the cell is empty."""

    patient: str | None = None
    label: str | None = None
    split: str | None = None


def read_table(path: Path) -> dict[str, TableRow]:
    """Read a CSV file with the column ``file`` and any of ``patient``, ``label`` and ``split``: file → row.

    Raises ValueError, with the line, for a missing or unknown column, a file named twice, and an unknown split.
    """
    rows: dict[str, TableRow] = {}
    with path.open(newline="", encoding="utf-8-sig") as handle:
        reader = csv.DictReader(handle)
        columns = reader.fieldnames or []
        if "file" not in columns or not set(columns) <= set(COLUMNS):
            raise ValueError(f"{path}: columns {', '.join(columns) or 'none'}; expected file, and any of patient, "
                             "label and split")  # fmt: skip
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row or None in row.values():
                raise ValueError(f"{where}: another number of cells than the {len(columns)} columns")
            name = row["file"]
            if name in rows:
                raise ValueError(f"{where}: {name} is named twice")
            one = TableRow(*(row.get(key) or None for key in COLUMNS[1:]))
            if one.split is not None and one.split not in SPLITS:
                raise ValueError(f"{where}: split {one.split!r}; expected train or valid")
            rows[name] = one
    return rows


def split_patients(patients: Sequence[str], fraction: float, seed: int) -> dict[str, str]:
    """Return patient → ``train`` or ``valid``.

    ``fraction`` of the patients, rounded, are held out, at least one and not all: those whose SHA-256 of (seed, name)
    is lowest. A patient's rank among the others therefore does not depend on the order of the files.

    Raises ValueError for fewer than two patients.
    """
    names = sorted(set(patients))
    if len(names) < 2:
        found = f"only the patient {names[0]}" if names else "no patient"
        raise ValueError(f"{found}: a split by patients needs two or more; give a table with the column split")
    ranked = sorted(names, key=lambda name: hashlib.sha256(f"{seed}\n{name}".encode()).digest())
    held_out = min(max(1, round(fraction * len(names))), len(names) - 1)
    return {name: "valid" if number < held_out else "train" for number, name in enumerate(ranked)}


def check_split(patients: Mapping[str, str], splits: Mapping[str, str]) -> None:
    """Raise ValueError, naming patient and files, if two images of one patient are in different splits.

    patients, splits  file → patient, and file → split
    """
    first: dict[str, str] = {}
    for file, split in splits.items():
        other = first.setdefault(patients[file], file)
        if splits[other] != split:
            raise ValueError(
                f"{file} is in {split}, but {other} of the same patient {patients[file]!r} in {splits[other]}; "
                "a patient belongs to one split"
            )
