"""Folder of template hits by chain, and the library of their structures: templates of a record from both.

``NAME.hhr`` or ``NAME.sto``, or a folder ``NAME/`` as AlphaFold and OpenFold write it, in which ``.hhr`` files and
``hmm_output.sto``, ``pdb_hits.sto``, … are hits (``ds4sci.data.alignments.alignment_files``), or an alignment database
of OpenFold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import cached_property
from pathlib import Path

from ds4sci.data.alignments.alignment_files import (
    chain_key,
    complex_chain_files,
    index_folder,
    is_template_hits,
)
from ds4sci.data.structures.template_hits import HIT_SUFFIXES, read_hits
from ds4sci.data.structures.template_library import TemplateLibrary
from ds4sci.data.structures.template_selection import HitReport, select_templates
from ds4sci.data.text_files import FileSection
from ds4sci.types import Record


@dataclass(frozen=True)
class TemplateFolder:
    """Where templates come from. Folders are read on first use, once per process.

    hits        folder of hit files, or the super-index of an alignment database
    structures  folder of mmCIF files (``TemplateLibrary``)
    latest      cut-off date: later structures are no templates; None: no cut-off
    obsolete    file ``obsolete.dat`` of the PDB, or None
    """

    hits: Path
    structures: Path
    latest: date | None = None
    obsolete: Path | None = None

    @cached_property
    def _by_chain(self) -> Mapping[str, Sequence[Path | FileSection]]:
        return index_folder(self.hits, HIT_SUFFIXES)

    @cached_property
    def library(self) -> TemplateLibrary:
        """The structures."""
        return TemplateLibrary(self.structures, self.obsolete)

    def check(self) -> None:
        """Raise ``ValueError`` now if a folder is absent or has no structures, not in every worker."""
        _ = self._by_chain, self.library

    @property
    def fingerprint(self) -> list[str]:
        """What the templates of a chain depend on besides its hits. Files added to ``structures`` change it."""
        times = [path.stat().st_mtime_ns for path in (self.structures, self.obsolete) if path is not None]
        return [str(self.structures.absolute()), str(self.latest), str(self.obsolete), *map(str, times)]

    def files(self, name: str) -> list[Path | FileSection]:
        """Return the files of hits of a chain."""
        entries = self._by_chain.get(chain_key(name), ())
        return [path for path in entries if is_template_hits(path) or self._is_named_by_chain(path)]

    def complex_files(self, name: str, chain: str) -> list[Path]:
        """Return the files of hits of a chain of the complex ``name`` in AlphaFold-Multimer's folders."""
        if not self.hits.is_dir():
            return []
        return [path for path in complex_chain_files(self.hits, name, chain) if is_template_hits(path)]

    @property
    def names(self) -> set[str]:
        """``chain_key`` of all chains that have files."""
        return {name for name in self._by_chain if self.files(name)}

    def _is_named_by_chain(self, path: Path | FileSection) -> bool:
        return isinstance(path, Path) and path.parent == self.hits and path.is_file()

    def attach(
        self,
        record: Record,
        files: Sequence[Path | FileSection] | None = None,
        *,
        released: date | None = None,
        training: bool = False,
    ) -> tuple[Record, list[HitReport]]:
        """Return ``record`` with templates, and a report of each hit; unchanged if the chain has no files of hits.

        files     of its hits; by default those named by the record
        ``training``: as AlphaFold trains, templates must not be later than the record, which was ``released``, or than
        ``latest``, and chains of its own entry are no templates. Raises ``ValueError`` for damaged files, and in
        training for a record without a date if there is no ``latest``.
        """
        files = self.files(record.id) if files is None else files
        if not files:
            return record, []
        dates = [one for one in (self.latest, released if training else None) if one is not None]
        if training and not dates:
            raise ValueError(
                f"{record.id}: templates need a cut-off date, and the structure has no release date; give "
                "--max-template-date"
            )
        hits = [(path.name, hit) for path in files for hit in read_hits(path, record.sequence)]
        templates, reports = select_templates(
            record.sequence,
            hits,
            self.library,
            latest=min(dates, default=None),
            own_entry=record.id.rpartition("_")[0].lower() if training else None,
        )
        return replace(record, templates=templates), reports
