"""PDB parser, plain or gzipped. gemmi parses the header, this module the columns of the atom records."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from operator import not_
from pathlib import Path
from typing import overload

import gemmi
import numpy as np

from ds4sci.data.structures.parsers import assembly_records
from ds4sci.data.structures.parsers.atom_names import SIMULATION_PARENT, kind
from ds4sci.data.structures.parsers.atom_table import AtomTable, Residue, merge_residue_parts
from ds4sci.data.structures.parsers.decimals import parse_fixed_columns
from ds4sci.data.structures.parsers.records import ParsedStructure, make_records, select_records
from ds4sci.data.text_files import read_ascii
from ds4sci.types import Record

_HEADER = ("HEADER", "REMARK", "SEQRES", "MODRES")
_NUMBER = re.compile(r" *[-+]?(\d+\.\d*|\.\d+) *| *[-+]?\d+")
"""A number in its columns. Without a decimal point it must end at the right edge, or it belongs to a neighbour."""


@overload
def read(path: str | Path, chain: None = None, *, label: bool = False) -> list[Record]: ...
@overload
def read(path: str | Path, chain: str, *, label: bool = False) -> Record: ...


def read(path: str | Path, chain: str | None = None, *, label: bool = False) -> Record | list[Record]:
    """Read all protein chains of a PDB file, or the chain with id ``chain``.

    See ``ds4sci.data.structures.parsers.records``. Raises ``ValueError`` with the file and, if known, the line: no atom
    records, damaged record, no protein chain, unknown chain. ``label`` is only supported for mmCIF.
    """
    if label:
        raise ValueError(f"{path}: PDB files have no label ids; select the chain by its author id")
    return select_records(parse(path), chain)


def parse(path: str | Path) -> ParsedStructure:
    """Parse a file: protein chains, excluded chains, and the status of all ATOM and HETATM records.

    The residues of a chain with SEQRES records are aligned to them. Raises ``ValueError`` as ``read`` does, but not for
    a file without protein chains.
    """
    lines = read_ascii(path).split("\n")
    table = _atoms(path, lines)
    head = "\n".join(line for line in lines if line[:6] in _HEADER)
    try:
        header = gemmi.read_pdb_string(head + "\n")
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: damaged header of a PDB file ({error})") from error
    sequences = {entity.name: list(entity.full_sequence) for entity in header.entities if entity.full_sequence}
    made = make_records(table, header, sequences=sequences)
    return replace(made, assemblies=assembly_records.read_pdb(lines))


def _atoms(path: str | Path, lines: Sequence[str]) -> AtomTable:
    is_atom = [line.startswith(("ATOM  ", "HETATM")) for line in lines]
    rows = list(compress(range(len(lines)), is_atom))
    if not rows:
        raise ValueError(f"{path}: no ATOM records; expected a PDB file with coordinates")
    terminators: list[int] = []  # records before each TER of the first model
    end = None  # records of the first model
    for at in compress(range(len(lines)), map(not_, is_atom)):
        line = lines[at]
        if line.startswith("TER"):
            if end is None:
                terminators.append(bisect_left(rows, at))
        elif line.startswith(("MODEL", "ENDMDL")) or line.rstrip() == "END":
            before = bisect_left(rows, at)
            if end is None and before:
                end = before
        elif line[:4].upper() in ("ATOM", "HETA") or line.lstrip().startswith(("ATOM  ", "HETATM")):
            raise ValueError(
                f"{path}: line {at + 1}: record name {line[:6]!r}; expected 'ATOM  ' or 'HETATM' and the serial"
                " number from column 7; write large structures as mmCIF"
            )
    end = len(rows) if end is None else end
    records = [lines[at] for at in rows]
    if set(map(len, records)) != {80}:
        for at, line in zip(rows, records, strict=True):
            if len(line) < 54:
                raise ValueError(
                    f"{path}: line {at + 1}: the line ends at column {len(line)}; expected x, y and z up to column 54"
                )
        records = [line[:80].ljust(80) for line in records]
    columns = np.frombuffer("".join(records).encode("ascii"), np.uint8).reshape(-1, 80)
    positions, occupancies, b_factors = _numbers(path, columns, records, rows)
    names, altlocs = _strings(columns[:, 12:16]), _strings(columns[:, 16:17])

    # A residue ends where its columns change, or at a TER. If the chain id is blank, the segment id (CHARMM, NAMD)
    # replaces it.
    identity = columns[:end, 17:27].copy().view("S10").ravel()
    segment = np.where(columns[:end, 21] == ord(" "), columns[:end, 72:76].copy().view("S4").ravel(), b"")
    kind_of = columns[:end, 0]
    changes = (identity[1:] != identity[:-1]) | (segment[1:] != segment[:-1]) | (kind_of[1:] != kind_of[:-1])
    starts = sorted({0, *(np.flatnonzero(changes) + 1).tolist(), *(at for at in terminators if 0 < at < end)})
    keys = [records[start][17:27] for start in starts]
    later = {record[17:22] for record in records[end:]}
    names_and_chains = _split_names({key[:5] for key in keys} | later)
    segments = {one.strip() for one in np.unique(segment)} - {b""}
    found: list[Residue] = []
    counted: dict[str, tuple[int, int]] = {}
    for start, stop, key in zip(starts, [*starts[1:], end], keys, strict=True):
        name, chain = names_and_chains[key[:5]]
        if not chain and len(segments) > 1:
            chain = segment[start].decode().strip()
        number = _residue_number(key[5:9])
        if number is None:
            raise ValueError(f"{path}: line {rows[start] + 1}: residue number {key[5:9]!r}; expected an integer")
        before, turns = counted.get(chain, (0, 0))
        turns += before == 9999 and number == 0  # the four columns overflow to 0
        counted[chain] = number, turns
        number += 10000 * turns
        het, section = records[start][0] == "H", bisect_right(terminators, start)
        found.append(Residue(name, chain, "", "", None, number, key[9].strip(), het, section, range(start, stop)))
    table = AtomTable(
        path, names, altlocs, positions, occupancies, b_factors, merge_residue_parts(found, names, altlocs)
    )
    table.ter_chains = [found[bisect_left(starts, at) - 1].author if at else "" for at in terminators]
    table.set_atom_status(range(end, len(rows)), "other model")
    chains = {names_and_chains[key][1] for key in later}
    table.later_model_chains = sorted(chains if len(segments) < 2 else chains - {""})  # segment ids are not read there
    return table


def _strings(columns: np.ndarray) -> list[str]:
    """Return the stripped text of columns (uint8 [n, width])."""
    raw = np.ascontiguousarray(columns).view(f"S{columns.shape[1]}").ravel().tolist()
    text = {one: one.decode().strip() for one in set(raw)}
    return [text[one] for one in raw]


def _numbers(
    path: str | Path, columns: np.ndarray, records: list[str], rows: list[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return positions, occupancies (default 1) and B-factors (default 0). Raise an error for a number that does not
    fit."""
    positions = parse_fixed_columns(np.ascontiguousarray(columns[:, 30:54]).reshape(-1, 8), 4)
    occupancies, b_factors = parse_fixed_columns(columns[:, 54:60], 3), parse_fixed_columns(columns[:, 60:66], 3)
    if positions is None or occupancies is None or b_factors is None:
        values = np.array([_line_numbers(path, line, at + 1) for line, at in zip(records, rows, strict=True)])
        return values[:, :3], values[:, 3], values[:, 4]
    return positions.reshape(-1, 3), occupancies, b_factors


def _line_numbers(path: str | Path, line: str, number: int) -> list[float]:
    occupancy, b_factor = line[54:60], line[60:66]

    def invalid(what: str, text: str) -> ValueError:
        return ValueError(
            f"{path}: line {number}: {what} is {text!r}; expected a number within its columns. Larger numbers shift or"
            " overflow the columns: write the structure as mmCIF"
        )

    values = []
    for axis, begin in zip("xyz", (30, 38, 46), strict=True):
        text = line[begin : begin + 8]
        if "." not in text or not _NUMBER.fullmatch(text):
            raise invalid(axis, text)
        # OpenMM drops decimals of large numbers. The occupancy shows whether a number has shifted its neighbours.
        wide = text[0] != " " and text.index(".") > 4
        if wide and (not _NUMBER.fullmatch(occupancy) or _is_shifted(occupancy)):
            raise invalid(axis, text)
        values.append(float(text))
    for what, text, default in (("occupancy", occupancy, 1.0), ("B-factor", b_factor, 0.0)):
        if not text.strip():
            values.append(default)
        elif not _NUMBER.fullmatch(text) or (what == "occupancy" and _is_shifted(text)):
            raise invalid(what, text)
        else:
            values.append(float(text))
    return values


def _is_shifted(occupancy: str) -> bool:
    """Return whether the columns are full and the decimal point is not at its ``%6.2f`` position."""
    return len(occupancy) == 6 and occupancy[0] not in " -" and occupancy.find(".") > 3


def _residue_number(text: str) -> int | None:
    """Parse a residue number of four columns: decimal, or hybrid-36 (A000 is 10000) as in cctbx and gemmi."""
    if re.fullmatch(r" *[-+]?[0-9]+ *", text):
        return int(text)
    if re.fullmatch(r"[A-Z][0-9A-Z]{3}", text):
        return int(text, 36) - 10 * 36**3 + 10**4
    if re.fullmatch(r"[a-z][0-9a-z]{3}", text):
        return int(text, 36) + 16 * 36**3 + 10**4
    return None


def _split_names(keys: set[str]) -> dict[str, tuple[str, str]]:
    """Return residue name and chain id of columns 18–22, also for files that use column 21, blank in the format.

    Simulation programs write four-letter residue names there (NMET, HISE); PHENIX and gemmi write two-letter chain ids.
    The column belongs to the chain id if a residue of that chain has a known three-letter name and no known four-letter
    name.
    """
    four_letters: dict[str, bool] = {}
    for pair in {key[3:5] for key in keys if key[3] != " "}:
        names = {key[:3].strip() for key in keys if key[3:5] == pair}
        others = [name for name in names if not _is_four_letter_name(name + pair[0])]
        four_letters[pair] = all(kind(name) == "other" for name in others)

    return {
        key: (key[:4].strip(), key[4].strip())
        if key[3] != " " and four_letters[key[3:5]]
        else (key[:3].strip(), key[3:5].strip())
        for key in keys
    }


def _is_four_letter_name(name: str) -> bool:
    return len(name) == 4 and (name in SIMULATION_PARENT or kind(name) != "other")
