"""Biological assemblies of a structure file: chains and the operators that are applied to them.

mmCIF files have them in ``_pdbx_struct_assembly``, ``_pdbx_struct_assembly_gen`` and ``_pdbx_struct_oper_list``, PDB
files in REMARK 350. The records are evaluated when an assembly is used: damaged ones do not make a file unreadable.
gemmi 0.7.5 skips operators that it cannot read, and all but the first factor of a product, without a message.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import gemmi
import numpy as np

MAX_OPERATORS = 10_000
"""Largest number of operators of an assembly. The largest entries, capsids of HIV, have 1,356 chains."""
_MATRIX = tuple(f"matrix[{row}][{column}]" for row in (1, 2, 3) for column in (1, 2, 3))
_VECTOR = tuple(f"vector[{row}]" for row in (1, 2, 3))
_GENERATOR = "_pdbx_struct_assembly_gen"
_OPERATOR = "_pdbx_struct_oper_list"
_LARGEST = 1e6
"""Å. Largest shift of an operator; also excludes numbers that are not finite."""
_ROTATION_TOLERANCE = 0.01
"""Largest element of RᵀR − 1: files have 3 to 10 decimals."""


class Generator(NamedTuple):
    """Chains, and the operators that each of them is copied with: float64 [operators, 3, 4], rotation and shift (Å)."""

    chains: tuple[str, ...]
    operators: np.ndarray


@dataclass(frozen=True)
class AssemblyRecords:
    """Assemblies of one file, as written.

    details     assembly id → its description, in file order
    generators  rows of ``_pdbx_struct_assembly_gen``: assembly id, operator expression, chains
    operators   operator id → twelve numbers: matrix by rows, vector
    by_author   whether chains are author ids (PDB) or label ids (mmCIF)
    source      place in the file, for error messages
    """

    details: Mapping[str, str] = field(default_factory=dict)
    generators: Sequence[tuple[str, str, tuple[str, ...]]] = ()
    operators: Mapping[str, Sequence[str]] = field(default_factory=dict)
    by_author: bool = False
    source: str = f"{_GENERATOR} and {_OPERATOR}"

    @property
    def names(self) -> list[str]:
        """Return the assembly ids in file order."""
        return list(dict.fromkeys([*self.details, *(name for name, _, _ in self.generators)]))

    def expand(self, name: str) -> list[Generator]:
        """Return the generators of the assembly ``name`` in file order.

        An operator expression is a list of ids and ranges (``1,3-5``), or a product of such lists in parentheses: of
        ``(1-60)(61,62)`` the right operator is applied first. Raises ``ValueError`` with the assembly: no generator,
        invalid expression, unknown operator, a number that is missing or above 10⁶, a matrix that is no rotation, or
        more than ``MAX_OPERATORS`` operators.
        """
        rows = [(expression, chains) for own, expression, chains in self.generators if own == name]
        if not rows:
            raise ValueError(f"assembly {name} has no operators in {self.source}")
        try:
            lists = [self._operator_lists(expression) for expression, _ in rows]
            if not any(chains for _, chains in rows):
                raise ValueError(f"{self.source} list no chains")
            count = sum(math.prod(map(len, factors)) for factors in lists)
            if count > MAX_OPERATORS:
                raise ValueError(f"{count} operators; expected at most {MAX_OPERATORS}")
            matrices = {one: self._matrix(one) for one in {id for ids in lists for part in ids for id in part}}
        except ValueError as error:
            raise ValueError(f"assembly {name}: {error}") from error
        return [
            Generator(
                chains, np.stack([_product([matrices[one] for one in ids]) for ids in itertools.product(*factors)])
            )
            for factors, (_, chains) in zip(lists, rows, strict=True)
        ]

    def _operator_lists(self, expression: str) -> list[list[str]]:
        text = "".join(expression.split())
        factors = re.findall(r"\(([^()]+)\)|([^()]+)", text)
        if not re.fullmatch(r"(\([^()]+\)|[^()]+)+", text):
            raise ValueError(f"operator expression {expression!r}; expected one such as 1,2 or (1-60)(61,62)")
        return [
            [one for item in (inner or bare).split(",") for one in self._range(item, expression)]
            for inner, bare in factors
        ]

    def _range(self, item: str, expression: str) -> list[str]:
        limits = re.fullmatch(r"(\d{1,9})-(\d{1,9})", item)
        if item in self.operators or limits is None:
            found = [item]
        else:
            first, last = int(limits[1]), int(limits[2])
            if not 0 <= last - first < MAX_OPERATORS:
                raise ValueError(
                    f"operators {item} of {expression!r}; expected an increasing range of at most {MAX_OPERATORS}"
                )
            found = [str(number) for number in range(first, last + 1)]
        for one in found:
            if one not in self.operators:
                known = ", ".join(itertools.islice(self.operators, 20)) or "no operators"
                raise ValueError(f"operator {one!r} of {expression!r} is not in {self.source}, which has {known}")
        return found

    def _matrix(self, operator: str) -> np.ndarray:
        try:
            numbers = np.array([float(text) for text in self.operators[operator]])
        except ValueError as error:
            raise ValueError(f"operator {operator} of {self.source}: {error}; expected twelve numbers") from error
        if len(numbers) != 12 or not (np.abs(numbers) <= _LARGEST).all():
            raise ValueError(f"operator {operator} of {self.source} does not have twelve numbers up to {_LARGEST:.0e}")
        matrix = np.concatenate([numbers[:9].reshape(3, 3), numbers[9:, None]], axis=1)
        rotation = matrix[:, :3]
        error_of = np.abs(rotation.T @ rotation - np.eye(3)).max()
        if error_of > _ROTATION_TOLERANCE or np.linalg.det(rotation) < 0:
            raise ValueError(
                f"operator {operator} of {self.source} is no rotation: it would deform or mirror the chains"
            )
        return matrix


def _product(matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Return the operator [3, 4] that applies the last of ``matrices`` first."""
    result = matrices[-1]
    for one in reversed(matrices[:-1]):
        rotation, shift = one[:, :3] @ result[:, :3], one[:, :3] @ result[:, 3] + one[:, 3]
        result = np.concatenate([rotation, shift[:, None]], axis=1)
    return result


def read_mmcif(block: gemmi.cif.Block) -> AssemblyRecords:
    """Return the assembly records of a data block."""
    details = {
        row.str(0): row.str(1) if row.has(1) else "" for row in block.find("_pdbx_struct_assembly.", ["id", "?details"])
    }
    generators = [
        (row.str(0), row.str(1), tuple(one for one in re.split(r"[\s,]+", row.str(2)) if one))
        for row in block.find(f"{_GENERATOR}.", ["assembly_id", "oper_expression", "asym_id_list"])
    ]
    rows = block.find(f"{_OPERATOR}.", ["id", *_MATRIX, *_VECTOR])
    operators = {row.str(0): [row.str(at) for at in range(1, 13)] for row in rows}
    return AssemblyRecords(details, generators, operators)


def read_pdb(lines: Sequence[str]) -> AssemblyRecords:
    """Return the assembly records of the lines of a PDB file: REMARK 350, where operators are numbered per assembly."""
    name = "1"  # of files with one assembly, which may omit it
    details: dict[str, str] = {}
    blocks: list[tuple[str, list[str], dict[str, list[str]]]] = []
    for line in lines:
        if not line.startswith("REMARK 350"):
            continue
        text = line[10:].strip()
        if found := re.match(r"BIOMOLECULE:\s*(\S+)", text):
            name = found[1]
            details.setdefault(name, "")
            blocks.append((name, [], {}))
        elif found := re.match(r"(APPLY THE FOLLOWING TO|AND) CHAINS:(.*)", text):
            if found[1] != "AND" or not blocks:
                blocks.append((name, [], {}))
            blocks[-1][1].extend(one for one in re.split(r"[\s,]+", found[2]) if one)
        elif re.match(r"BIOMT[123]\s", text):
            _, serial, *numbers = text.split()
            if not blocks:
                blocks.append((name, [], {}))
            blocks[-1][2].setdefault(serial, []).extend(numbers)
    operators: dict[str, Sequence[str]] = {}
    generators = []
    for own, chains, rows in blocks:
        details.setdefault(own, "")
        ids = []
        for serial, numbers in rows.items():
            id = f"{own}:{serial}"
            ids.append(f"{id}:{len(operators)}" if id in operators else id)  # groups of chains may repeat numbers
            operators[ids[-1]] = (
                [numbers[at] for at in (0, 1, 2, 4, 5, 6, 8, 9, 10, 3, 7, 11)] if len(numbers) == 12 else ()
            )
        if ids:
            generators.append((own, ",".join(ids), tuple(chains)))
    return AssemblyRecords(details, generators, operators, by_author=True, source="REMARK 350")
