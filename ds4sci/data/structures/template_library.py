"""Library of template structures: mmCIF files of a folder by PDB entry, with replacements of obsolete entries."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from ds4sci.data.structures.parsers import mmcif
from ds4sci.data.structures.parsers.records import ParsedStructure
from ds4sci.data.text_files import read_text, suffix

_SUFFIXES = (".cif", ".cif.gz")
_CACHED_ENTRIES = 16
"""Parsed entries that a process keeps: chains of one family have the same hits."""


class TemplateLibrary:
    """mmCIF files ``1abc.cif`` (or ``.cif.gz``) in ``folder``, or as in the PDB's archive in ``folder/ab/``.

    obsolete  file ``obsolete.dat`` of the PDB, or None: entries that others have replaced

    Raises ``ValueError`` for a folder without mmCIF files and a damaged list.
    """

    def __init__(self, folder: Path, obsolete: Path | None = None) -> None:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; expected a folder of template structures, 1abc.cif or .cif.gz")
        if not any(suffix(path) == ".cif" for path in folder.rglob("*")):
            raise ValueError(f"{folder}: no mmCIF file; expected template structures named 1abc.cif or 1abc.cif.gz")
        self.folder = folder
        self.obsolete = {} if obsolete is None else read_obsolete(obsolete)

    def current(self, entry: str) -> str | None:
        """Return the entry that has replaced ``entry``, itself if it is not obsolete, None if it was removed."""
        seen: set[str] = set()
        found: str | None = entry
        while found is not None and found in self.obsolete and found not in seen:
            seen.add(found)
            found = self.obsolete[found]
        return found

    def path(self, entry: str) -> Path | None:
        """Return the file of an entry, or None."""
        for name in (entry.lower(), entry.upper()):
            for folder in (self.folder, self.folder / name[1:3]):
                for ending in _SUFFIXES:
                    if (path := folder / f"{name}{ending}").is_file():
                        return path
        return None

    def read(self, path: Path) -> ParsedStructure:
        """Parse a file. Raises ``ValueError`` with its name if it is damaged."""
        return _parse(path)


@lru_cache(_CACHED_ENTRIES)
def _parse(path: Path) -> ParsedStructure:
    return mmcif.parse(path)


def read_obsolete(path: Path) -> dict[str, str | None]:
    """Read ``obsolete.dat``: entry → the (first) entry that replaced it, or None if it was removed; lower case.

    A line is ``OBSLTE``, date, entry and replacements: ``OBSLTE    31-JUL-94 116L     216L``.
    """
    found: dict[str, str | None] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        words = line.split()
        if words and words[0] == "OBSLTE":
            if len(words) < 3:
                raise ValueError(f"{path}: line {number}: expected 'OBSLTE DATE ENTRY [REPLACEMENT…]', found {line!r}")
            found[words[2].lower()] = words[3].lower() if len(words) > 3 else None
    if not found:
        raise ValueError(f"{path}: no line begins with OBSLTE; expected the list of obsolete entries of the PDB")
    return found
