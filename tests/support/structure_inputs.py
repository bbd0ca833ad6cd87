"""Independent counts of atom records, checks of parsed structures, and generated PDB lines."""

from __future__ import annotations

import gzip
from pathlib import Path

from ds4sci.chemistry.residue_constants import RESTYPE_1TO3
from ds4sci.data.structures.parsers import mmcif, pdb
from ds4sci.data.structures.parsers.records import ParsedStructure

DATA = Path(__file__).parents[1] / "fixtures"
ENTRIES = sorted((DATA / "mmcif").glob("*.cif.gz"))
CASES = sorted((DATA / "structures").iterdir())


def parse(path: Path, **options: bool) -> ParsedStructure:
    """Parse a file with the parser that its suffix selects."""
    name = path.name.removesuffix(".gz")
    return mmcif.parse(path, **options) if name.endswith(".cif") else pdb.parse(path)


def text_of(path: Path) -> str:
    raw = path.read_bytes()
    return (gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw).decode("utf-8-sig")


def count_atom_records(text: str) -> int:
    """Count lines that begin with ATOM or HETATM: records of PDB files, or rows of mmCIF files with one row per
    line."""
    return sum(line.startswith(("ATOM ", "HETATM")) for line in text.splitlines())


def parse_and_check(path: Path) -> ParsedStructure:
    """Parse a file and check that every atom record has a status and that ids are unique."""
    parsed = parse(path)
    assert sum(parsed.atoms.values()) == count_atom_records(text_of(path))
    assert "not in a chain" not in parsed.atoms
    assert all(count > 0 for reason, count in parsed.atoms.items() if reason != "kept")
    assert parsed.atoms["kept"] == sum(int(record.atom_mask.sum()) for record in parsed.records)
    assert len({record.id for record in parsed.records}) == len(parsed.records)
    return parsed


def atom_line(name: str, residue: str, number: str, where: tuple[float, float, float], **more: object) -> str:
    """Return one PDB line. ``number`` may end with an insertion code."""
    code = number[-1] if number[-1].isalpha() else " "
    element = str(more.get("element", name[0]))
    head = f"{more.get('kind', 'ATOM'):<6}{more.get('serial', 1):>5} {name if len(name) > 3 else ' ' + name:<4}"
    place = f"{more.get('altloc', ' ')}{residue:>3}{'' if len(residue) > 3 else ' '}{more.get('chain', 'A')}"
    place += f"{number.rstrip(code).strip():>4}{code}   "
    numbers = "".join(f"{x:8.3f}" for x in where) + f"{more.get('occupancy', 1.0):6.2f}{20.0:6.2f}"
    return f"{head}{place}{numbers}      {more.get('segment', ''):<4}{element:>2}"


BACKBONE = {"N": (0.0, 0.0, 0.0), "CA": (1.46, 0.0, 0.0), "C": (2.0, 1.42, 0.0), "O": (1.3, 2.4, 0.0)}


def residue_lines(residue: str, number: str, shift: float, **more: object) -> list[str]:
    """Return the backbone of a residue. Residues 3.8 Å apart along x with consecutive numbers are bonded."""
    return [atom_line(name, residue, number, (x + shift, y, z), **more) for name, (x, y, z) in BACKBONE.items()]


def chain_lines(sequence: str, first: int = 1, shift: float = 0.0, **more: object) -> list[str]:
    """Return PDB lines of bonded residues along x, numbered from ``first``."""
    return [
        line
        for at, letter in enumerate(sequence)
        for line in residue_lines(RESTYPE_1TO3[letter], str(first + at), shift + 3.8 * at, **more)
    ]


def write_pdb(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join([*lines, "END", ""]))
    return path


ATOM_SITE = """data_x
loop_
_atom_site.group_PDB
_atom_site.id
_atom_site.label_atom_id
_atom_site.label_comp_id
{tags}
_atom_site.Cartn_x
_atom_site.Cartn_y
_atom_site.Cartn_z
"""


def write_cif(path: Path, tags: list[str], rows: list[str], before: str = "", after: str = "") -> Path:
    """Write an mmCIF file with the rows of ``_atom_site``; ``tags`` are its columns between names and coordinates."""
    head = ATOM_SITE.format(tags="\n".join(f"_atom_site.{tag}" for tag in tags))
    path.write_text(head.replace("data_x\n", f"data_x\n{before}") + "\n".join(rows) + f"\n#\n{after}")
    return path


def cif_residue(name: str, ids: str, shift: float, group: str = "ATOM") -> list[str]:
    """Return the rows of a backbone; ``ids`` are the values of the columns in ``tags``."""
    return [f"{group} 1 {atom} {name} {ids} {x + shift:.3f} {y:.3f} {z:.3f}" for atom, (x, y, z) in BACKBONE.items()]
