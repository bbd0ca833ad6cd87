"""Reader of the parameters at which a surrogate predicts: a ``.csv`` or ``.npz`` file.

``.csv``: a header with the names of the parameters, in any order, and one line per prediction. ``.npz``: one array [m]
per parameter, named after it, or one array ``parameters`` [m, p] in the order of the surrogate.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def read_parameters(file: Path, names: Sequence[str]) -> np.ndarray:
    """Return the parameters ``names`` of every prediction, float64 [m, p].

    Raises ValueError with file and line or array for an unreadable file, a parameter that is missing, unknown or
    repeated, a wrong number of values, and values that are not finite numbers.
    """
    readers = {".csv": _read_csv, ".npz": _read_npz}
    if file.suffix not in readers:
        raise ValueError(f"{file}: expected a file with the suffix .csv or .npz")
    values, places = readers[file.suffix](file, names)
    if not len(values):
        raise ValueError(f"{file}: no parameters; expected at least one line or row")
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(f"{file}, {places[row]}: {names[column]} is {values[row, column]}; expected a finite number")
    return values


def _read_csv(file: Path, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Return the values and the place of each row, such as ``line 2``."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as handle:
            reader = csv.reader(handle, strict=True)
            lines = [(f"line {reader.line_num}", cells) for cells in reader if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file}: not a readable CSV file: {error}") from None
    first, header = lines[0] if lines else ("line 1", [])
    header = [cell.strip() for cell in header]
    _check_names(f"{file}, {first}", header, names)
    order = [header.index(name) for name in names]
    rows = []
    for place, cells in lines[1:]:
        if len(cells) != len(header):
            raise ValueError(f"{file}, {place}: {len(cells)} values; expected {len(header)}, one per parameter")
        try:
            rows.append([float(cells[column]) for column in order])
        except ValueError:
            raise ValueError(f"{file}, {place}: {', '.join(cells)[:80]}: expected numbers") from None
    values = np.array(rows, dtype=np.float64).reshape(len(rows), len(names))
    return values, [place for place, _ in lines[1:]]


def _read_npz(file: Path, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = {name: np.asarray(arrays[name]) for name in arrays.files}
    except Exception as error:  # a damaged zip or header can raise any exception
        raise ValueError(f"{file}: not a readable .npz file of numbers: {type(error).__name__}: {error}") from None
    for name, array in found.items():
        if array.dtype.kind not in "fiu":
            raise ValueError(f"{file}: the array {name} has the type {array.dtype}; expected numbers")
    if set(found) == {"parameters"}:
        values = found["parameters"].astype(np.float64)
        if values.ndim != 2 or values.shape[1] != len(names):
            raise ValueError(
                f"{file}: parameters has the shape {list(values.shape)}; expected [m, {len(names)}], the columns being "
                f"{', '.join(names)}"
            )
        return values, [f"row {row}" for row in range(len(values))]
    _check_names(str(file), list(found), names)
    sizes = {name: found[name].shape for name in names}
    if len(set(sizes.values())) > 1 or found[names[0]].ndim != 1:
        raise ValueError(f"{file}: arrays of the shapes {sizes}; expected arrays [m] of one length")
    values = np.stack([found[name].astype(np.float64) for name in names], axis=1)
    return values, [f"row {row}" for row in range(len(values))]


def _check_names(where: str, given: Sequence[str], names: Sequence[str]) -> None:
    missing, unknown = [n for n in names if n not in given], [n for n in given if n not in names]
    repeated = [name for name in names if given.count(name) > 1]
    for problem, found in (("missing", missing), ("unknown", unknown), ("repeated", repeated)):
        if found:
            raise ValueError(f"{where}: {problem}: {', '.join(found)}; expected the parameters {', '.join(names)}")
