"""Complexes: chains joined to one record, with the alignment files of each chain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.chemistry.chains import chain_slices, entity_numbers, number_chains
from ds4sci.chemistry.residue_codes import UNKNOWN, encode
from ds4sci.data.alignments import alignment_files
from ds4sci.data.alignments.pairing import MAX_ROWS, ChainAlignments, RowCounts, join_alignments
from ds4sci.data.alignments.profile import msa_profile
from ds4sci.data.structures.template_features import ABSENT
from ds4sci.data.text_files import FileSection
from ds4sci.types import Msa, Record, TemplateSet

ALIGNED_COPY = "the alignment of another copy of this chain is used"
"""Reason for skipped alignment files of a copy."""


@dataclass(frozen=True)
class EntityFiles:
    """Alignment files that were read for one entity, with the name of the chain that they belong to."""

    chain: str
    files: tuple[alignment_files.AlignmentFileReport, ...]

    def as_json(self) -> list[dict[str, Any]]:
        """Return the JSON objects of the files."""
        return [{"chain": self.chain, **file.as_json()} for file in self.files]


def join_chains(name: str, chains: Sequence[Record], *, msa: Msa | None = None) -> Record:
    """Return the complex ``name`` of ``chains``, in their order; ``msa`` is its alignment.

    ``residue_index`` restarts in each chain. Secondary structure, B-factors and profiles are those of the chains. If
    only some chains have a profile, the others get that of their alignment, or of their sequence alone. Templates stay
    those of their chain: template k of the complex has template k of every chain, padded where a chain has none.
    The alignments of the chains are not joined here (``attach_alignments``).
    """
    if len(chains) == 1:
        return replace(chains[0], id=name, msa=chains[0].msa if msa is None else msa)
    profiles = [one.profile for one in chains]
    if any(profile is not None for profile in profiles):
        profiles = [msa_profile(_own_alignment(one)) if one.profile is None else one.profile for one in chains]
    has_dssp = any(one.dssp is not None for one in chains)
    b_factors = [one.b_factors for one in chains if one.b_factors is not None]
    resolutions = [one.resolution for one in chains if one.resolution is not None]
    return Record(
        id=name,
        sequence="".join(one.sequence for one in chains),
        atom_positions=np.concatenate([one.atom_positions for one in chains]),
        atom_mask=np.concatenate([one.atom_mask for one in chains]),
        residue_index=np.concatenate([one.residue_index for one in chains]),
        b_factors=np.concatenate(b_factors) if len(b_factors) == len(chains) else None,
        dssp="".join(one.dssp or "?" * len(one.sequence) for one in chains) if has_dssp else None,
        profile=None if profiles[0] is None else np.concatenate([one for one in profiles if one is not None]),
        msa=msa,
        resolution=max(resolutions) if resolutions else None,
        templates=_join_templates(chains),
        chain_ids=number_chains([one.sequence for one in chains]),
    )


def share_templates(chains: Sequence[Record]) -> list[Record]:
    """Give copies of a chain the templates of the first copy that has some."""
    given: dict[str, TemplateSet] = {}
    for one in chains:
        if one.templates is not None:
            given.setdefault(one.sequence, one.templates)
    return [replace(one, templates=one.templates or given.get(one.sequence)) for one in chains]


def split_chains(record: Record) -> list[Record]:
    """Return the chains of a complex with their coordinates, named ``ID_1``, ``ID_2`` …; a single chain as it is.

    Alignments and templates are left out.
    """
    if record.chain_ids is None:
        return [record]

    def part(array: Any, own: slice) -> Any:
        return None if array is None else array[own]

    return [
        Record(
            id=f"{record.id}_{number}",
            sequence=record.sequence[own],
            atom_positions=record.atom_positions[own],
            atom_mask=record.atom_mask[own],
            residue_index=record.residue_index[own],
            b_factors=part(record.b_factors, own),
            dssp=part(record.dssp, own),
            profile=part(record.profile, own),
            resolution=record.resolution,
        )
        for number, own in enumerate(chain_slices(record.chain_ids.asym_id), start=1)
    ]


def attach_alignments(
    name: str,
    chains: Sequence[Record],
    files_of: Callable[[int], Sequence[Path | FileSection]],
    *,
    max_rows: int = MAX_ROWS,
    max_file_rows: int | None = None,
) -> tuple[Record, list[EntityFiles], list[RowCounts]]:
    """Return the complex of ``chains`` with the joined alignment of their files, and reports of files and rows.

    ``files_of(i)`` are the alignment files of chain i. Copies of a chain share the files of the first copy that has
    some. Hits in UniProt (``uniprot_hits.sto``) are paired by species; an entity without them pairs the rows of its
    other files, if their names give a species (``ds4sci.data.alignments.pairing``). An entity without files is aligned
    to itself only. Without any alignment the record has none. ``max_file_rows`` limits the rows of an entity before
    they are joined. Raises ValueError with the file and the line, row or residue.
    """
    numbers = [number - 1 for number in entity_numbers([one.sequence for one in chains])]
    reports: list[EntityFiles] = []
    aligned: list[ChainAlignments] = []
    with_profile: dict[int, Record] = {}
    found = False
    for entity in sorted(set(numbers)):
        members = [at for at, number in enumerate(numbers) if number == entity]
        owner = next((at for at in members if files_of(at)), members[0])
        record, pairing, files = alignment_files.attach_complex_files(
            chains[owner], files_of(owner), max_rows=max_file_rows
        )
        reports.append(EntityFiles(chains[owner].id, tuple(files)))
        reports += [
            EntityFiles(
                chains[at].id,
                tuple(alignment_files.AlignmentFileReport(file.name, skip_reason=ALIGNED_COPY) for file in others),
            )
            for at in members
            if at != owner and (others := [file for file in files_of(at) if file not in files_of(owner)])
        ]
        found = found or record.msa is not None or pairing is not None
        if record.profile is None and (source := record.msa or pairing) is not None:
            record = replace(record, profile=msa_profile(source))
        with_profile[entity] = record
        aligned.append(ChainAlignments(_own_alignment(record), pairing))
    made = [replace(one, profile=with_profile[number].profile) for one, number in zip(chains, numbers, strict=True)]
    if not found:
        return join_chains(name, made), reports, []
    msa, counts = join_alignments(aligned, numbers, max_rows=max_rows)
    return join_chains(name, made, msa=msa), reports, counts


def _own_alignment(record: Record) -> Msa:
    """The alignment of a chain, or one with the chain as its only row."""
    if record.msa is not None:
        return record.msa
    letters = np.minimum(encode(record.sequence), UNKNOWN)[None].astype(np.uint8)
    return Msa(letters, np.zeros(letters.shape, np.int32), (record.id,))


def _join_templates(chains: Sequence[Record]) -> TemplateSet | None:
    given = [one.templates for one in chains]
    count = max((len(one.names) for one in given if one is not None), default=0)
    if not count:
        return None
    n = sum(len(one.sequence) for one in chains)
    aatype = np.full((count, n), ABSENT, np.uint8)
    positions, mask = np.zeros((count, n, 37, 3), np.float32), np.zeros((count, n, 37), bool)
    names: list[list[str]] = [[] for _ in range(count)]
    begin = 0
    for chain, one in zip(chains, given, strict=True):
        columns = slice(begin, begin := begin + len(chain.sequence))
        own = 0 if one is None else len(one.names)
        if one is not None:
            aatype[:own, columns], mask[:own, columns] = one.aatype, one.atom_mask
            positions[:own, columns] = one.atom_positions
        for row in range(count):
            names[row].append(one.names[row] if one is not None and row < own else "-")
    return TemplateSet(tuple("+".join(parts) for parts in names), aatype, positions, mask)
