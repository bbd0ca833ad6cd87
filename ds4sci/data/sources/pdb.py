"""PDB format, plain or gzipped: atom records by their columns, the header by gemmi."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

import gemmi
import numpy as np

from ds4sci.data.sources.atoms import AtomTable, Residue, ResidueCollector
from ds4sci.data.sources.names import SIMULATION_PARENT, kind
from ds4sci.data.sources.structure import ParsedStructure, make_records, select
from ds4sci.data.sources.text import read_ascii
from ds4sci.types import Record

_HEADER = ("HEADER", "REMARK", "SEQRES", "MODRES")
_NUMBER = re.compile(r" *[-+]?(\d+\.\d*|\.\d+) *| *[-+]?\d+")
"""A real number in its columns. Without a decimal point it ends at the right edge: else it belongs to a neighbour."""


@overload
def read(path: str | Path, chain: None = None, *, label: bool = False) -> list[Record]: ...
@overload
def read(path: str | Path, chain: str, *, label: bool = False) -> Record: ...


def read(path: str | Path, chain: str | None = None, *, label: bool = False) -> Record | list[Record]:
    """All protein chains of a PDB file, or the one called ``chain``; see ``ds4sci.data.sources.structure``.

    ``ValueError`` names the file, and the line where there is one: no atom records, a damaged record, no protein chain,
    no such chain; ``label`` is mmCIF's.
    """
    if label:
        raise ValueError(f"{path}: PDB files have no label ids; choose the chain by its author id")
    return select(parse(path), chain)


def parse(path: str | Path) -> ParsedStructure:
    """Chains, chains left out and the account of all ATOM and HETATM records of a PDB file.

    Residues of a chain with SEQRES are aligned to it. ``ValueError`` as for ``read``, except that a file without any
    protein chain is no error.
    """
    lines = read_ascii(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    table = _atoms(path, lines)
    head = "\n".join(line for line in lines if line[:6] in _HEADER)
    try:
        header = gemmi.read_pdb_string(head + "\n")
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: damaged header of a PDB file ({error})") from error
    sequences = {entity.name: list(entity.full_sequence) for entity in header.entities if entity.full_sequence}
    return make_records(table, header, sequences=sequences)


def _atoms(path: str | Path, lines: Sequence[str]) -> AtomTable:
    rows: list[int] = []  # index of each record's line
    starts: list[tuple[int, str, int]] = []  # first record of each residue of the first model, its key, TERs before
    ended: list[int] = []  # residues before each TER
    section = model = 0
    first_model: int | None = None
    first_model_end = 0
    before: str | None = None
    for at, line in enumerate(lines):
        head = line[:6]
        if head == "ATOM  " or head == "HETATM":
            if first_model is None:
                first_model = model
            if model == first_model:
                # A blank chain id may be told by the segment, which CHARMM and NAMD write.
                key = head + (line[17:27] if line[21:22] != " " else line[17:27] + line[72:76])
                if key != before:
                    starts.append((len(rows), key, section))
                    before = key
                first_model_end = len(rows) + 1
            rows.append(at)
        elif head[:3] == "TER":
            if model == first_model:
                section += 1
                ended.append(len(starts) - 1)
            before = None
        elif head[:5] == "MODEL" or head == "ENDMDL" or line.rstrip() == "END":
            model += 1
            before = None
        elif head[:4].upper() == "ATOM" or head[:4].upper() == "HETA":
            raise ValueError(
                f"{path}: line {at + 1}: the record is called {head!r}; expected 'ATOM  ' or 'HETATM' and the serial"
                " number from column 7 on; write large structures as mmCIF"
            )
    if not rows:
        raise ValueError(f"{path}: no ATOM records; expected a PDB file with coordinates")
    records = [lines[at] for at in rows]
    positions, occupancies, b_factors = _numbers(path, records, rows)
    cache: dict[str, str] = {}
    names = [cache.get(raw) or cache.setdefault(raw, raw.strip()) for raw in (line[12:16] for line in records)]
    altlocs = ["" if line[16] == " " else line[16] for line in records]

    split_name = _name_splitter({key[6:16] for _, key, _ in starts})
    segments = {key[16:].strip() for _, key, _ in starts if len(key) > 16}
    found = ResidueCollector(names, altlocs)
    chains: list[str] = []
    ends = [start for start, _, _ in starts[1:]] + [first_model_end]
    for (start, key, ters), end in zip(starts, ends, strict=True):
        name, chain = split_name(key[6:11])
        if not chain and len(segments) > 1:
            chain = key[16:].strip()
        number = _residue_number(key[11:15])
        if number is None:
            raise ValueError(f"{path}: line {rows[start] + 1}: residue number {key[11:15]!r}; expected an integer")
        insertion, het = key[15].strip(), key[0] == "H"
        chains.append(chain)
        found.add(Residue(name, chain, "", "", None, number, insertion, het, ters, range(start, end)))
    table = AtomTable(path, names, altlocs, positions, occupancies, b_factors, found.residues)
    table.terminated = [chains[at] for at in ended]
    table.mark_atoms(range(first_model_end, len(rows)), "other model")
    return table


def _numbers(path: str | Path, records: list[str], rows: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions, occupancies (default 1) and B-factors (default 0); refuses a number that its columns do not hold."""
    try:
        coordinates = "".join([line[30:54] for line in records]).encode("ascii")
        if len(coordinates) != 24 * len(records) or coordinates.translate(None, b"0123456789.-+ "):
            raise ValueError
        positions = np.frombuffer(coordinates, "S8").astype(np.float64).reshape(-1, 3)
        digits = np.frombuffer(coordinates, np.uint8).reshape(-1, 8)
        dots = digits == ord(".")
        if not dots.any(1).all() or ((digits[:, 0] != ord(" ")) & (dots.argmax(1) > 4)).any():
            raise ValueError
        columns = []
        for begin, end in ((54, 60), (60, 66)):
            texts = [line[begin:end] for line in records]
            if not all(map(_NUMBER.fullmatch, set(texts))):
                raise ValueError
            columns.append(np.array(list(map(float, texts))))
        if any(_is_shifted(text) for text in {line[54:60] for line in records}):
            raise ValueError
        return positions, *columns
    except ValueError:  # something is damaged or left out: look at each record
        values = np.array([_line_numbers(path, line, at + 1) for line, at in zip(records, rows, strict=True)])
        return values[:, :3], values[:, 3], values[:, 4]


def _line_numbers(path: str | Path, line: str, number: int) -> list[float]:
    occupancy, b_factor = line[54:60], line[60:66]

    def refuse(what: str, text: str) -> ValueError:
        return ValueError(
            f"{path}: line {number}: {what} is {text!r}; expected a number within its columns. A program that writes"
            " larger numbers shifts or overflows the columns: write the structure as mmCIF"
        )

    values = []
    for axis, begin in zip("xyz", (30, 38, 46), strict=True):
        text = line[begin : begin + 8]
        if "." not in text or not _NUMBER.fullmatch(text):
            raise refuse(axis, text)
        # OpenMM drops decimals of large numbers; a number that shifted its neighbours is told by the occupancy.
        wide = text[0] != " " and text.index(".") > 4
        if wide and (not _NUMBER.fullmatch(occupancy) or _is_shifted(occupancy)):
            raise refuse(axis, text)
        values.append(float(text))
    for what, text, default in (("occupancy", occupancy, 1.0), ("B-factor", b_factor, 0.0)):
        if not text.strip():
            values.append(default)
        elif not _NUMBER.fullmatch(text) or (what == "occupancy" and _is_shifted(text)):
            raise refuse(what, text)
        else:
            values.append(float(text))
    return values


def _is_shifted(occupancy: str) -> bool:
    """Whether the columns are full and the decimal point is not where ``%6.2f`` puts it."""
    return len(occupancy) == 6 and occupancy[0] not in " -" and occupancy.find(".") > 3


def _residue_number(text: str) -> int | None:
    """Of four columns: decimal, or hybrid-36 (A000 is 10000), as cctbx and gemmi write it."""
    try:
        return int(text)
    except ValueError:
        if re.fullmatch(r"[A-Z][0-9A-Z]{3}", text):
            return int(text, 36) - 10 * 36**3 + 10**4
        if re.fullmatch(r"[a-z][0-9a-z]{3}", text):
            return int(text, 36) + 16 * 36**3 + 10**4
        return None


def _name_splitter(keys: set[str]) -> Callable[[str], tuple[str, str]]:
    """How columns 18–22 are read where column 21, which the format leaves blank, is used.

    Simulation programs write four-letter residue names there (NMET, HISE), others (PHENIX, gemmi) chain ids of two
    letters. The ids win where any residue of that chain could not have such a name but has a known one of three.
    """
    four_letters: dict[str, bool] = {}
    for pair in {key[3:5] for key in keys if key[3] != " "}:
        names = {key[:3].strip() for key in keys if key[3:5] == pair}
        others = [name for name in names if not _is_four_letter_name(name + pair[0])]
        four_letters[pair] = all(kind(name) == "other" for name in others)

    def split(columns: str) -> tuple[str, str]:
        if columns[3] != " " and four_letters[columns[3:5]]:
            return columns[:4].strip(), columns[4].strip()
        return columns[:3].strip(), columns[3:5].strip()

    return split


def _is_four_letter_name(name: str) -> bool:
    return len(name) == 4 and (name in SIMULATION_PARENT or kind(name) != "other")
