"""mmCIF, plain or gzipped, by gemmi (measured against Biopython in ``ds4sci.data.bench``)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, overload

import gemmi

from ds4sci.data.sources.structure import records
from ds4sci.data.sources.text import read_ascii
from ds4sci.types import Record


@overload
def read(path: str | Path, chain: None = None, *, label: bool = False) -> list[Record]: ...
@overload
def read(path: str | Path, chain: str, *, label: bool = False) -> Record: ...


def read(path: str | Path, chain: str | None = None, *, label: Literal[True, False] = False) -> Record | list[Record]:
    """All protein chains of an mmCIF file, or one of them by author id (``label``: by label id).

    What becomes of alternate locations, missing and modified residues: ``ds4sci.data.sources.structure.records``.
    Of several data blocks the first with atoms counts. ``ValueError`` names the file: truncated or damaged (gzip or
    CIF), not mmCIF, no protein chain, no such chain.
    """
    try:
        document = gemmi.cif.read_string(read_ascii(path))
    except (RuntimeError, IndexError) as error:
        raise ValueError(f"{path}: not mmCIF, or truncated ({error})") from error
    except ValueError as error:
        message = str(error)
        if message.startswith(f"{path}:"):
            raise
        raise ValueError(f"{path}: not mmCIF, or truncated ({message.removeprefix('string:')})") from error
    block = next(
        (block for block in document if block.find_loop("_atom_site.id") or block.find_value("_atom_site.id")), None
    )
    if block is None:
        raise ValueError(f"{path}: no _atom_site in it; expected an mmCIF file with coordinates")
    try:
        structure = gemmi.make_structure_from_block(block)
        structure.merge_chain_parts()
        structure.setup_entities()
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: damaged mmCIF ({error})") from error
    canonical = {
        row.str(0): "".join(row.str(1).split())
        for row in block.find("_entity_poly.", ["entity_id", "pdbx_seq_one_letter_code_can"])
    }
    return records(structure, path, chain=chain, label=label, canonical=canonical)
