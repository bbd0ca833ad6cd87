"""Fuzz test of the mmCIF and PDB parsers: a status for every atom record, or a ``ValueError`` with the file."""

from __future__ import annotations

import gzip
import random
import re
import tempfile
import warnings
from functools import cache
from pathlib import Path

import gemmi
import numpy as np

from ds4sci.data.structures.assemblies import assembly_chains
from ds4sci.data.structures.parsers import mmcif, pdb

DATA = Path(__file__).parents[1] / "fixtures"
RECORDS = 120
"""Maximum number of atom records of a seed. Small files cover more of the parser in the same time."""
TOKENS = (
    *(b"? . nan inf -1 0 1 9999 10000 99999999999 1e400 1.0 ******** HOH ALA MSE UNK HSE NMET ACE DA ZN CA N C O OXT H"
      b" OT1 SE ATOM HETATM TER END MODEL ENDMDL loop_ data_y A B AA # ; ' \" _atom_site.id _entity.id polymer water"
      b" LONGNAMEOFMANYLETTERS \xef\xbb\xbf \x00 \xff \t polypeptide(L)").split(b" "),
    b" ", b"\n", b"\r\n", b"",
)  # fmt: skip


@cache
def seeds() -> list[bytes]:
    """Shortened entries in both formats, with and without entity tables, and the special cases of the fixtures."""
    found = [path.read_bytes() for path in sorted((DATA / "structures").iterdir())]
    for path in sorted((DATA / "mmcif").glob("*.cif.gz")):
        text = gzip.decompress(path.read_bytes()).decode()
        found.append(text.encode())
        structure = gemmi.read_structure(str(path))
        structure.setup_entities()
        found += [structure.make_pdb_string().encode(), structure.make_mmcif_document().as_string().encode()]
    return [_cut(one) for one in found]


def _cut(text: bytes) -> bytes:
    """Keep the first atom records, some from the middle, the last ones, and the header."""
    lines = text.split(b"\n")
    atoms = [at for at, line in enumerate(lines) if line.startswith((b"ATOM", b"HETATM"))]
    middle = len(atoms) // 2
    kept = {*atoms[: RECORDS // 2], *atoms[middle : middle + RECORDS // 4], *atoms[-RECORDS // 4 :]}
    is_cif = b"_atom_site." in text
    needed = re.compile(
        rb"data_|_atom_site\.|loop_|_entity|_struct_asym|_entry\.id"
        rb"|SEQRES|MODRES|REMARK   2|REMARK 350|HEADER|TER|MODEL|ENDMDL|END"
    )
    if not is_cif:
        return b"\n".join(l for at, l in enumerate(lines) if at in kept or (at not in atoms and needed.match(l)))
    document = gemmi.cif.read_string(text.removeprefix(b"\xef\xbb\xbf").decode())
    block = document[0]
    for category in block.get_mmcif_category_names():
        if category not in (
            "_atom_site.",
            "_entity.",
            "_entity_poly.",
            "_entity_poly_seq.",
            "_struct_asym.",
            "_entry.",
            "_pdbx_struct_assembly.",
            "_pdbx_struct_assembly_gen.",
            "_pdbx_struct_oper_list.",
        ):
            block.find_mmcif_category(category).erase()
    site = block.find_mmcif_category("_atom_site.")
    for row in reversed(range(len(site))):
        if atoms[row] not in kept:
            site.remove_row(row)
    return document.as_string().encode()


def inputs(rng: np.random.Generator) -> bytes:
    """One of the seeds with up to eight changes to bytes, fields, columns, lines and blocks, or two seeds
    concatenated."""
    draw = random.Random(int(rng.integers(2**63)))
    data = draw.choice(seeds())
    for _ in range(draw.choice((0, 1, 1, 1, 2, 2, 3, 5, 8))):
        data = draw.choice(MUTATIONS)(data, draw)
    return data


def _line(data: bytes, rng: random.Random) -> tuple[list[bytes], int]:
    lines = data.split(b"\n")
    return lines, rng.randrange(len(lines))


def flip_byte(data: bytes, rng: random.Random) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    return (
        data[:at]
        + bytes([rng.randrange(256) if rng.random() < 0.5 else data[at] ^ (1 << rng.randrange(7))])
        + data[at + 1 :]
    )


def replace_field(data: bytes, rng: random.Random) -> bytes:
    lines, at = _line(data, rng)
    fields = [*re.finditer(rb"\S+", lines[at])]
    if fields:
        one = rng.choice(fields)
        lines[at] = lines[at][: one.start()] + rng.choice(TOKENS) + lines[at][one.end() :]
    return b"\n".join(lines)


def swap_fields(data: bytes, rng: random.Random) -> bytes:
    lines, at = _line(data, rng)
    fields = lines[at].split(b" ")
    first, second = rng.randrange(len(fields)), rng.randrange(len(fields))
    fields[first], fields[second] = fields[second], fields[first]
    lines[at] = b" ".join(fields)
    return b"\n".join(lines)


def shift_columns(data: bytes, rng: random.Random) -> bytes:
    lines, at = _line(data, rng)
    where = rng.randrange(len(lines[at]) + 1)
    lines[at] = lines[at][:where] + rng.choice(TOKENS) + lines[at][where + rng.randrange(2) :]
    return b"\n".join(lines)


def overwrite_columns(data: bytes, rng: random.Random) -> bytes:
    """Write the same bytes at one position of many lines: a chain id, an altloc, a record name or a number."""
    lines, at = _line(data, rng)
    where, text = rng.randrange(80), rng.choice(TOKENS)
    for one in range(at, min(at + rng.randrange(1, 40), len(lines))):
        if lines[one].startswith((b"ATOM", b"HETATM")):
            lines[one] = lines[one][:where] + text + lines[one][where + len(text) :]
    return b"\n".join(lines)


def move_lines(data: bytes, rng: random.Random) -> bytes:
    lines, at = _line(data, rng)
    block = lines[at : at + rng.randrange(1, 30)]
    if rng.random() < 0.6:
        del lines[at : at + len(block)]
    if rng.random() < 0.6:
        to = rng.randrange(len(lines) + 1)
        lines[to:to] = block
    return b"\n".join(lines)


def insert_line(data: bytes, rng: random.Random) -> bytes:
    lines, at = _line(data, rng)
    lines.insert(at, rng.choice(TOKENS))
    return b"\n".join(lines)


def drop_column(data: bytes, rng: random.Random) -> bytes:
    """Rename or remove the tag of a loop."""
    tags = re.findall(rb"(?m)^_\S+", data)
    if not tags:
        return data
    tag = rng.choice(tags)
    return data.replace(tag, tag + b"x" if rng.random() < 0.7 else b"", 1)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def join(data: bytes, rng: random.Random) -> bytes:
    return data + rng.choice((b"", b"\n")) + rng.choice(seeds())


MUTATIONS = (
    flip_byte, replace_field, replace_field, swap_fields, shift_columns, overwrite_columns, move_lines, insert_line,
    drop_column, cut, join,
)  # fmt: skip


def check(data: bytes) -> None:
    """Parse ``data`` in the format that it resembles. Raise ``AssertionError`` on a violation."""
    is_cif = b"_atom_site" in data or data.lstrip(b"\xef\xbb\xbf \n").startswith(b"data_")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        path = Path(folder) / ("x.cif" if is_cif else "x.pdb")
        path.write_bytes(data)
        try:
            parsed = mmcif.parse(path) if is_cif else pdb.parse(path)
        except ValueError as error:
            if str(path) not in str(error):
                raise AssertionError("the error does not name the file") from error
            return
    records = _rows(data) if is_cif else _lines(data)
    assert sum(parsed.atoms.values()) == records, f"{records} records, {parsed.atoms}"
    assert "not in a chain" not in parsed.atoms
    assert parsed.atoms["kept"] == sum(int(record.atom_mask.sum()) for record in parsed.records)
    names = [record.id for record in parsed.records]
    assert len(set(names)) == len(names)
    for record in parsed.records:
        n = len(record.sequence)
        assert n > 0
        assert record.atom_positions.shape == (n, 37, 3)
        assert record.residue_index.shape == (n,)
        assert np.isfinite(record.atom_positions).all()
        assert np.isfinite(record.b_factors).all()
        assert (np.diff(record.residue_index) > 0).all()
        assert not record.atom_positions[~record.atom_mask].any()
    for choice in ("first", "2"):
        made = assembly_chains(parsed, choice)  # damaged records are a failure with a reason, not an exception
        assert (made.failure is None) or (made.failure[1] and not made.chains)
        ids = [record.id for record in made.chains] + [record.id for record, _, _ in made.left_out]
        assert len(set(ids)) == len(ids)
        assert made.failure is not None or set(names) <= set(ids)
        assert all(np.isfinite(record.atom_positions).all() for record in made.chains)


def _lines(data: bytes) -> int:
    return len(re.findall(rb"(?m)(?:^|(?<=\r))(?:ATOM  |HETATM)", data.removeprefix(b"\xef\xbb\xbf")))


def _rows(data: bytes) -> int:
    """Count the rows of all _atom_site loops with gemmi's CIF parser."""
    text = data.removeprefix(b"\xef\xbb\xbf").decode("ascii", "replace").replace("\ufffd", "?")
    return sum(len(block.find_mmcif_category("_atom_site.")) for block in gemmi.cif.read_string(text))
