"""Alignments and template hits of the chains of a build, by the names of the chains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ds4sci.data.alignments import alignment_files
from ds4sci.data.alignments.profile import msa_profile
from ds4sci.data.structures.template_folder import TemplateFolder
from ds4sci.data.text_files import FileSection
from ds4sci.types import Record


class ChainInputs(NamedTuple):
    """Files of chains besides their structures. Each process indexes them once per build, not per file.

    alignments  folder or super-index (``alignment_files.index_folder``), or None
    templates   hits and structures, or None
    build       identifies the build
    """

    alignments: Path | None
    templates: TemplateFolder | None
    build: int

    def check(self) -> None:
        """Raise ``ValueError`` if a folder does not exist or has no structures."""
        self.alignments_by_chain()
        if (templates := self._templates()) is not None:
            templates.check()

    def alignments_by_chain(self) -> Mapping[str, Sequence[Path | FileSection]]:
        """Return the alignment files by ``chain_key``."""
        return _index(self.alignments, self.build)

    def template_names(self) -> set[str]:
        """Return ``chain_key`` of the chains that have files of template hits."""
        templates = self._templates()
        return set() if templates is None else templates.names

    def files(self, key: str) -> list[Path | FileSection]:
        """Return the files of the chain with this ``chain_key``."""
        templates = self._templates()
        hits = [] if templates is None else templates.files(key)
        return [*self.alignments_by_chain().get(key, ()), *hits]

    def attach(self, chain: Record, released: date | None, max_rows: int) -> tuple[Record, dict[str, Any]]:
        """Return ``chain`` with alignment, profile and templates, and what its report says about their files.

        Raises ``ValueError`` with the file, as ``alignment_files.attach_files`` and ``TemplateFolder.attach`` do.
        """
        paths = self.alignments_by_chain().get(alignment_files.chain_key(chain.id), ())
        chain, files = alignment_files.attach_files(chain, paths, max_rows=max_rows)
        if chain.msa is not None:
            chain = replace(chain, profile=msa_profile(chain.msa))
        report: dict[str, Any] = {"alignments": [file.as_json() for file in files]} if files else {}
        chain, hits = self.attach_templates(chain, released)
        return chain, report | hits

    def attach_templates(self, chain: Record, released: date | None) -> tuple[Record, dict[str, Any]]:
        """Return ``chain`` with templates, and what its report says about their hits."""
        if (templates := self._templates()) is None:
            return chain, {}
        chain, hits = templates.attach(chain, released=released, training=True)
        return chain, {"templates": [hit.as_json() for hit in hits]}

    def _templates(self) -> TemplateFolder | None:
        return None if self.templates is None else _opened(self.templates, self.build)


@lru_cache(maxsize=1)
def _opened(templates: TemplateFolder, build: int) -> TemplateFolder:
    """A copy for this process: what it has read is not sent to workers with each file."""
    return replace(templates)


@lru_cache(maxsize=1)
def _index(alignments: Path | None, build: int) -> Mapping[str, Sequence[Path | FileSection]]:
    return {} if alignments is None else alignment_files.index_folder(alignments)
