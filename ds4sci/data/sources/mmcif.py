"""mmCIF, plain or gzipped: syntax and everything but the atoms by gemmi."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, overload

import gemmi
import numpy as np

from ds4sci.data.sources.atoms import AtomTable, Residue, ResidueCollector
from ds4sci.data.sources.structure import ParsedStructure, make_records, select
from ds4sci.data.sources.text import read_ascii
from ds4sci.residues import RESTYPE_1TO3
from ds4sci.types import Record

_NULL = frozenset(["?", "."])
_NUMBER = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?:\(\d+\))?")
"""A CIF number, perhaps with its standard uncertainty."""
_POSITION = ("cartn_x", "cartn_y", "cartn_z")


@overload
def read(path: str | Path, chain: None = None, *, label: bool = False) -> list[Record]: ...
@overload
def read(path: str | Path, chain: str, *, label: bool = False) -> Record: ...


def read(path: str | Path, chain: str | None = None, *, label: Literal[True, False] = False) -> Record | list[Record]:
    """All protein chains of an mmCIF file, or one of them by author id (``label``: by label id).

    What becomes of alternate locations, missing and modified residues: ``ds4sci.data.sources.structure``. Of several
    data blocks the first with atoms counts. ``ValueError`` names the file, and the line where there is one: truncated
    or damaged (gzip or CIF), not mmCIF, not a number, no protein chain, no such chain.
    """
    return select(parse(path, label=label), chain, label=label)


def parse(path: str | Path, *, label: bool = False) -> ParsedStructure:
    """Chains, chains left out and the account of all rows of ``_atom_site``; ``label``: call chains by label ids.

    ``ValueError`` as for ``read``, except that a file without any protein chain is no error.
    """
    text = read_ascii(path)
    try:
        document = gemmi.cif.read_string(text)
    except (RuntimeError, IndexError, ValueError) as error:
        message = str(error).removeprefix("string:")
        raise ValueError(f"{path}: not mmCIF, or truncated ({message})") from error
    sites = [(block, site) for block in document if len(site := block.find_mmcif_category("_atom_site."))]
    if not sites:
        raise ValueError(f"{path}: no _atom_site in it; expected an mmCIF file with coordinates")
    block, site = sites[0]
    table = _Columns(path, text, block, site).atoms()
    table.elsewhere = sum(len(other) for _, other in sites[1:])
    site.erase()
    try:
        header = gemmi.make_structure_from_block(block)
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
    return make_records(table, header, sequences=sequences, canonical=canonical, compounds=compounds, label=label)


def _residue_names(code: str) -> list[str]:
    """Names of a one-letter sequence in which (MSE) stands for a modified residue."""
    found = re.findall(r"\(([^()]+)\)|(\S)", code)
    return [long or RESTYPE_1TO3.get(letter.upper(), "UNK") for long, letter in found]


class _Columns:
    """The columns of ``_atom_site``, with errors that name the line."""

    def __init__(self, path: str | Path, text: str, block: gemmi.cif.Block, site: gemmi.cif.Table) -> None:
        self._path, self._text = path, text
        tags = [tag.lower().removeprefix("_atom_site.") for tag in site.tags]
        if site.loop is not None:
            values, width = site.loop.values, len(tags)
            self._have = {tag: values[at::width] for at, tag in enumerate(tags)}
        else:
            self._have = {tag: [value] for tag, value in zip(tags, site[0], strict=True)}
        self._rows = len(site)
        self._first_tag = site.tags[0]
        self._block = block

    def _texts(self, *tags: str) -> list[str] | None:
        """The first of these columns that has any value; quotes are taken off."""
        for tag in tags:
            column = self._have.get(tag)
            if column is not None and not _NULL.issuperset(column):
                cache = {value: gemmi.cif.as_string(value) for value in set(column)}
                return [cache[value] for value in column]
        return None

    def _integers(self, tag: str) -> list[int | None] | None:
        column = self._have.get(tag)
        if column is None or _NULL.issuperset(column):
            return None
        cache: dict[str, int | None] = {}
        for value in set(column):
            if value in _NULL:
                cache[value] = None
            elif re.fullmatch(r"[-+]?\d{1,9}", value):
                cache[value] = int(value)
            else:
                raise self._refuse(column.index(value), tag, value, "an integer of at most nine digits")
        return [cache[value] for value in column]

    def _reals(self, tag: str, default: float | None) -> np.ndarray:
        column = self._have.get(tag)
        if column is None:
            if default is None:
                raise ValueError(f"{self._path}: no _atom_site.{tag.capitalize()}; expected coordinates in Å")
            return np.full(self._rows, default)
        try:
            values = np.array(list(map(float, column)))
            if np.isfinite(values).all() and "_" not in "".join(column):
                return values
        except ValueError:
            pass  # nulls or uncertainties, or not a number: look at each
        values = np.empty(self._rows)
        for at, text in enumerate(column):
            told = _NUMBER.fullmatch(text)
            if told is None and (text not in _NULL or default is None):
                raise self._refuse(at, tag, text, "a number")
            values[at] = float(told[1]) if told else default
            if not np.isfinite(values[at]):
                raise self._refuse(at, tag, text, "a finite number")
        return values

    def _refuse(self, row: int, tag: str, value: str, expected: str) -> ValueError:
        name = next(one for one in self._block.find_mmcif_category("_atom_site.").tags if one.lower().endswith(tag))
        return ValueError(f"{self._path}: {self._where(row)}: {name} is {value!r}; expected {expected}")

    def _where(self, row: int) -> str:
        """Line of a row, where every row has a line of its own; else its number."""
        item = self._block.find_loop_item(self._first_tag)
        if item is None:
            return "_atom_site"
        lines = self._text.split("\n")
        at = item.line_number - 1
        while at < len(lines) and (not lines[at].strip() or lines[at].lstrip()[0] in "_#" or "loop_" in lines[at]):
            at += 1
        width = len(self._have)
        if all(len(line.split()) == width for line in lines[at : at + row + 1]):
            return f"line {at + row + 1}"
        return f"row {row + 1} of _atom_site"

    def atoms(self) -> AtomTable:
        n = self._rows
        blank, nothing = [""] * n, [None] * n
        names = self._texts("label_atom_id", "auth_atom_id")
        residues = self._texts("label_comp_id", "auth_comp_id")
        if names is None or residues is None:
            missing = "label_atom_id" if names is None else "label_comp_id"
            raise ValueError(f"{self._path}: no _atom_site.{missing}; expected the names of atoms and residues")
        altlocs = self._texts("label_alt_id") or blank
        author = self._texts("auth_asym_id", "label_asym_id") or blank
        label = self._texts("label_asym_id", "auth_asym_id") or blank
        entity = self._texts("label_entity_id") or blank
        insertion = self._texts("pdbx_pdb_ins_code") or blank
        label_seq = self._integers("label_seq_id") or nothing
        number = self._integers("auth_seq_id") or label_seq
        group = self._have.get("group_pdb") or ["ATOM"] * n
        model = self._have.get("pdbx_pdb_model_num") or blank
        positions = np.stack([self._reals(tag, None) for tag in _POSITION], axis=1)
        occupancies = self._reals("occupancy", 1.0)
        b_factors = self._reals("b_iso_or_equiv", 0.0)

        found = ResidueCollector(names, altlocs)
        keys: list[tuple[Any, ...]] = list(
            zip(residues, author, label, entity, label_seq, number, insertion, group, model, strict=True)
        )
        starts = [at for at in range(n) if at == 0 or keys[at] != keys[at - 1]]
        first_model = model[0]
        elsewhere = []
        for start, end in zip(starts, [*starts[1:], n], strict=True):
            *identity, record, in_model = keys[start]
            if in_model == first_model:
                found.add(Residue(*identity, record == "HETATM", 0, range(start, end)))
            else:
                elsewhere.append(range(start, end))
        table = AtomTable(self._path, names, altlocs, positions, occupancies, b_factors, found.residues)
        for atoms in elsewhere:
            table.mark_atoms(atoms, "other model")
        return table
