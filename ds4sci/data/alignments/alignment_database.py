"""Alignment databases of OpenFold: files of all chains in a few ``.db`` files, found by a super-index.

The index is a JSON object ``{"1abc_A": {"db": "alignment_db_0.db", "files": [["uniref90_hits.a3m", 0, 5120], …]}, …}``
with the name, first byte and size of each file. Its ``.db`` files lie beside it. OpenFold's
``create_alignment_db_sharded.py`` writes both, and ``unify_alignment_db_indices.py`` joins the indices of several.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ds4sci.data.text_files import FileSection, read_text


class AlignmentDatabase(Mapping[str, list[FileSection]]):
    """Files of each chain.

    key  chain id → key of the mapping

    Raises ``ValueError`` with the index and the chain: not JSON, not a super-index, no such ``.db`` file. Places beyond
    the end of a ``.db`` file raise when the chain is looked up. Memory: the index, about 300 bytes per file.
    """

    def __init__(self, index: Path, key: Callable[[str], str]) -> None:
        self.index = index
        try:
            found = json.loads(read_text(index))
        except ValueError as error:
            raise ValueError(f"{index}: not a super-index of an alignment database (JSON): {error}") from error
        if not isinstance(found, dict) or not found:
            raise ValueError(f"{index}: expected a JSON object with an entry for each chain")
        self._entries: dict[str, tuple[str, Any]] = {key(name): (name, entry) for name, entry in found.items()}
        self._sizes: dict[str, int] = {}
        for name, entry in found.items():
            if not isinstance(entry, dict) or not isinstance(entry.get("db"), str) or "files" not in entry:
                raise ValueError(
                    f'{index}: {name}: expected {{"db": FILE, "files": [[NAME, START, SIZE], …]}}, found '
                    f"{json.dumps(entry)[:60]}; join indices of single databases with OpenFold's "
                    "unify_alignment_db_indices.py"
                )
            if entry["db"] not in self._sizes:
                path = index.parent / entry["db"]
                if not path.is_file():
                    raise ValueError(f"{index}: {name}: no file {path}; expected the databases beside the index")
                self._sizes[entry["db"]] = path.stat().st_size

    def __getitem__(self, key: str) -> list[FileSection]:
        name, entry = self._entries[key]
        sections = []
        for row in entry["files"]:
            if not isinstance(row, list) or [type(one) for one in row] != [str, int, int] or min(row[1:]) < 0:
                raise ValueError(f"{self.index}: {name}: expected [NAME, START, SIZE], found {json.dumps(row)[:60]}")
            file, start, size = row
            if start + size > self._sizes[entry["db"]]:
                raise ValueError(
                    f"{self.index}: {name}: {file} ends at byte {start + size} of {entry['db']}, which has "
                    f"{self._sizes[entry['db']]}; the database is truncated, or the index is of another one"
                )
            sections.append(FileSection(self.index.parent / entry["db"], name, file, start, size))
        return sections

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
