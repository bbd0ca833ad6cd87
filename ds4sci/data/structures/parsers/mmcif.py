"""mmCIF parser, plain or gzipped. gemmi parses the syntax and the header, this module the atom records."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date
from itertools import compress, islice
from operator import ne
from pathlib import Path
from typing import Any, Literal, overload

import gemmi
import numpy as np

from ds4sci.chemistry.residue_constants import RESTYPE_1TO3
from ds4sci.data.structures.parsers import assembly_records
from ds4sci.data.structures.parsers.atom_table import AtomTable, Residue, merge_residue_parts
from ds4sci.data.structures.parsers.decimals import parse_decimals
from ds4sci.data.structures.parsers.records import ParsedStructure, make_records, select_records
from ds4sci.data.text_files import read_ascii
from ds4sci.types import Record

_NULL = frozenset(["?", "."])
_NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?:\(\d+\))?")
"""A CIF number, optionally with a standard uncertainty."""
_LARGEST = float(np.finfo(np.float32).max)
_HEADER = (
    "_entry.", "_entity.", "_entity_poly.", "_entity_poly_seq.", "_struct_asym.", "_pdbx_struct_mod_residue.",
    "_refine.", "_em_3d_reconstruction.", "_reflns.", "_exptl.",
)  # fmt: skip
_POSITION = ("cartn_x", "cartn_y", "cartn_z")


@overload
def read(path: str | Path, chain: None = None, *, label: bool = False) -> list[Record]: ...
@overload
def read(path: str | Path, chain: str, *, label: bool = False) -> Record: ...


def read(path: str | Path, chain: str | None = None, *, label: Literal[True, False] = False) -> Record | list[Record]:
    """Read all protein chains of an mmCIF file, or the chain with author id ``chain`` (with ``label``: label id).

    ``ds4sci.data.structures.parsers.records`` describes alternate locations, missing and modified residues. If there
    are several data blocks, the first with atoms is read. Raises ``ValueError`` with the file and, if known, the line:
    truncated or damaged file (gzip or CIF), not mmCIF, invalid number, no protein chain, unknown chain.
    """
    return select_records(parse(path, label=label), chain, label=label)


def parse(path: str | Path, *, label: bool = False) -> ParsedStructure:
    """Parse a file: protein chains, excluded chains, and the status of all rows of ``_atom_site``.

    With ``label``, record ids contain label ids. Raises ``ValueError`` as ``read`` does, but not for a file without
    protein chains.
    """
    text = read_ascii(path)
    try:
        document = gemmi.cif.read_string(text)
    except (RuntimeError, IndexError, ValueError) as error:
        message = str(error).removeprefix("string:")
        raise ValueError(f"{path}: not mmCIF, or truncated ({message})") from error
    try:
        sites = [(block, site) for block in document if len(site := block.find_mmcif_category("_atom_site."))]
    except RuntimeError as error:
        raise ValueError(f"{path}: damaged mmCIF ({error})") from error
    if not sites:
        raise ValueError(f"{path}: no _atom_site category; expected an mmCIF file with coordinates")
    block, site = sites[0]
    table = _Columns(path, text, block, site).atoms()
    table.other_block_atoms = sum(len(other) for _, other in sites[1:])
    try:
        header = gemmi.make_structure_from_block(_header(block))
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: damaged mmCIF ({error})") from error
    sequences = {entity.name: list(entity.full_sequence) for entity in header.entities if entity.full_sequence}
    canonical: dict[str, str] = {}
    tags = ["entity_id", "?pdbx_seq_one_letter_code", "?pdbx_seq_one_letter_code_can"]
    for row in block.find("_entity_poly.", tags):
        entity, code, parents = (row.str(at) if row.has(at) else "" for at in range(3))
        canonical[entity] = "".join(parents.split())
        if entity not in sequences:
            sequences[entity] = _residue_names(code) or _residue_names(parents)
    compounds = {row.str(0): row.str(1).lower() for row in block.find("_chem_comp.", ["id", "type"])}
    made = make_records(table, header, sequences=sequences, canonical=canonical, compounds=compounds, label=label)
    return replace(made, released=_release_date(block), assemblies=assembly_records.read_mmcif(block))


def _header(block: gemmi.cif.Block) -> gemmi.cif.Block:
    """Return a block with only the header categories. (gemmi searches atoms for others, such as ``_struct_conn``.)"""
    header = gemmi.cif.Block(block.name)
    for item in block:
        tags: Any = item.pair or (item.loop.tags if item.loop else None)
        if tags and tags[0].lower().startswith(_HEADER):
            header.add_item(item)
    return header


def _release_date(block: gemmi.cif.Block) -> date | None:
    """Return the date of the oldest revision, as AlphaFold does, or None without one."""
    column = block.find_values("_pdbx_audit_revision_history.revision_date")
    return min((found for value in column if (found := _date(gemmi.cif.as_string(value)))), default=None)


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:  # ? or not a date
        return None


def _residue_names(code: str) -> list[str]:
    """Return the residue names of a one-letter sequence in which modified residues are written as (MSE)."""
    found = re.findall(r"\(([^()]+)\)|(\S)", code)
    return [long or RESTYPE_1TO3.get(letter.upper(), "UNK") for long, letter in found]


class _Columns:
    """Columns of ``_atom_site``. Errors contain the line."""

    def __init__(self, path: str | Path, text: str, block: gemmi.cif.Block, site: gemmi.cif.Table) -> None:
        self._path, self._text, self._block = path, text, block
        self._tags = {tag.lower().removeprefix("_atom_site."): tag for tag in site.tags}
        self._rows = len(site)

    def _column(self, *names: str) -> list[str] | None:
        """Return the first of these columns that has a value, as written in the file."""
        for name in names:
            if name in self._tags:
                column = list(self._block.find_values(self._tags[name]))
                if not _NULL.issuperset(column):
                    return column
        return None

    def _texts(self, *names: str) -> list[str] | None:
        """Return the first of these columns that has a value, without quotes, and with "" for missing values."""
        column = self._column(*names)
        if column is None:
            return None
        plain = {value: gemmi.cif.as_string(value) for value in set(column)}
        if all(value == text for value, text in plain.items()):
            return column
        return [plain[value] for value in column]

    def _integer(self, name: str, value: str, row: int) -> int | None:
        if value.isdigit() and len(value) < 10:
            return int(value)
        if value in _NULL or not value:
            return None
        if re.fullmatch(r"[-+]?\d{1,9}", value):
            return int(value)
        raise self._refuse(row, name, value, "an integer of at most nine digits")

    def _reals(self, name: str, default: float | None) -> np.ndarray:
        if name not in self._tags:
            if default is None:
                raise ValueError(f"{self._path}: no _atom_site.{name.capitalize()} column; expected coordinates in Å")
            return np.full(self._rows, default)
        column = list(self._block.find_values(self._tags[name]))
        different = list(set(column)) if default is not None else column
        if 8 * len(different) < len(column):  # most occupancies are 1
            value_of = {text: self._real(name, text, column.index(text), default) for text in different}
            return np.array([value_of[text] for text in column])
        values = parse_decimals(column)
        if values is None:  # exponents, uncertainties, missing values or invalid numbers
            values = np.array([self._real(name, text, at, default) for at, text in enumerate(column)])
        return values

    def _real(self, name: str, text: str, row: int, default: float | None) -> float:
        if text in _NULL and default is not None:
            return default
        match = _NUMBER.fullmatch(text)
        if match is None or abs(float(match[1])) > _LARGEST:
            raise self._refuse(row, name, text, "a finite number")
        return float(match[1])

    def _refuse(self, row: int, name: str, value: str, expected: str) -> ValueError:
        return ValueError(f"{self._path}: {self._where(row)}: {self._tags[name]} is {value!r}; expected {expected}")

    def _where(self, row: int) -> str:
        """Return the line of a row if every row is on its own line, else the row number."""
        item = self._block.find_loop_item(next(iter(self._tags.values())).lower())
        if item is None:
            return "_atom_site"
        lines = self._text.split("\n")
        at = item.line_number - 1
        while at < len(lines) and (not lines[at].strip() or lines[at].lstrip()[0] in "_#" or "loop_" in lines[at]):
            at += 1
        if all(len(line.split()) == len(self._tags) for line in lines[at : at + row + 1]):
            return f"line {at + row + 1}"
        return f"row {row + 1} of _atom_site"

    def atoms(self) -> AtomTable:
        n = self._rows
        blank = [""] * n
        names = self._texts("label_atom_id", "auth_atom_id")
        residues = self._texts("label_comp_id", "auth_comp_id")
        if names is None or residues is None:
            missing = "label_atom_id" if names is None else "label_comp_id"
            raise ValueError(f"{self._path}: no _atom_site.{missing} column; expected atom and residue names")
        altlocs = self._texts("label_alt_id") or blank
        author = self._texts("auth_asym_id", "label_asym_id") or blank
        label = self._texts("label_asym_id", "auth_asym_id") or blank
        entity = self._texts("label_entity_id") or blank
        insertion = self._texts("pdbx_pdb_ins_code") or blank
        label_seq = self._column("label_seq_id") or blank
        number = self._column("auth_seq_id") or label_seq
        number_name = "auth_seq_id" if number is not label_seq else "label_seq_id"
        group = self._column("group_pdb") or blank
        model = self._column("pdbx_pdb_model_num") or blank
        positions = np.stack([self._reals(name, None) for name in _POSITION], axis=1)
        occupancies = self._reals("occupancy", 1.0)
        b_factors = self._reals("b_iso_or_equiv", 0.0)

        found: list[Residue] = []
        later_atoms, later_chains = [], set()
        keys = list(zip(model, author, label, entity, label_seq, number, insertion, residues, strict=True))
        starts = [0, *compress(range(1, n), map(ne, keys, islice(keys, 1, None)))]
        for start, end in zip(starts, [*starts[1:], n], strict=True):
            in_model, author_id, label_id, entity_id, position, seq_id, code, name = keys[start]
            if in_model != model[0]:
                later_atoms.append(range(start, end))
                later_chains.add(author_id)
                continue
            label_number = self._integer("label_seq_id", position, start)
            author_number = self._integer(number_name, seq_id, start)
            het = group[start] == "HETATM"
            atoms = range(start, end)
            found.append(
                Residue(name, author_id, label_id, entity_id, label_number, author_number, code, het, 0, atoms)
            )
        joined = merge_residue_parts(found, names, altlocs)
        table = AtomTable(self._path, names, altlocs, positions, occupancies, b_factors, joined)
        table.later_model_chains = sorted(later_chains)
        for atoms in later_atoms:
            table.set_atom_status(atoms, "other model")
        return table
