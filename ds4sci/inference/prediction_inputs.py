"""Inputs of ``ds4sci predict --fasta``: chains and complexes with their alignments and templates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ds4sci.chemistry.chains import chain_name
from ds4sci.data.alignments import alignment_files
from ds4sci.data.alignments.pairing import HOMOMER, RowCounts
from ds4sci.data.alignments.profile import sequence_profile
from ds4sci.data.sequences import fasta_records
from ds4sci.data.structures.complexes import ALIGNED_COPY, attach_alignments, share_templates
from ds4sci.data.structures.template_files import read_templates
from ds4sci.data.structures.template_folder import TemplateFolder
from ds4sci.data.structures.template_selection import HitReport
from ds4sci.data.text_files import FileSection
from ds4sci.data.text_files import stem as file_stem
from ds4sci.types import Record

_UNSAFE = re.compile(r"[^A-Za-z0-9_.|=,+@()\[\]-]|^\.")
"""Characters that are unsafe in file names on some system: separators, spaces, leading dots, wildcards."""

_CHAIN_NAME = 2
"""Longest name of a chain in the name of a file: ``ID_LONG`` may be another record."""

UNPAIRED = (
    "no rows of different chains are paired: their alignments have no species in common; rows are paired by names such"
    " as tr|A0A146SKV9|A0A146SKV9_HUMAN, of hits in UniProt (uniprot_hits.sto)"
)
"""Note on a complex of which only the chains themselves are paired."""


@dataclass(frozen=True)
class ChainInput:
    """One chain to predict.

    sequence  residues
    name      of the chain in the output, such as ``A``
    files     names of its alignments and templates, without suffix; the first that exists is used
    record    name of the FASTA record
    """

    sequence: str
    name: str
    files: tuple[str, ...]
    record: str


@dataclass(frozen=True)
class Job:
    """A chain or complex to predict.

    stem        name of its output files, without suffix
    chains      its chains, in order
    notes       warnings about the input
    alignments  what was read of each alignment file, for the summary
    hits        outcome of each template hit
    pairing     rows of each entity of a complex in its alignment, for the summary
    error       why the record cannot be predicted, found before the first prediction
    """

    record: Record
    stem: str
    chains: tuple[ChainInput, ...]
    notes: tuple[str, ...] = ()
    alignments: tuple[dict[str, Any], ...] = ()
    hits: tuple[HitReport, ...] = ()
    pairing: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    error: str | None = None


def read_jobs(
    fasta: Path,
    msa_dir: Path | None,
    template_dir: Path | None = None,
    template_hits: TemplateFolder | None = None,
    *,
    one_complex: bool = False,
) -> list[Job]:
    """Return the records of a FASTA file with their alignments, templates and errors; see ``predict_run``.

    With ``one_complex`` all records are the chains of one complex, which has the name of the file.
    """
    entries = fasta_records.read_entries(fasta)
    if all(entry.error for entry in entries):
        raise ValueError(entries[0].error)
    indexed = {} if msa_dir is None else alignment_files.index_folder(msa_dir)
    named = _one_complex(fasta, entries) if one_complex else [_chains(entry) for entry in entries]
    groups = [list(entries)] if one_complex else [[entry] for entry in entries]
    names = [file_stem(fasta)] if one_complex else [entry.name for entry in entries]
    hit_names = set() if template_hits is None else template_hits.names
    templates = [] if template_dir is None else [file_stem(path) for path in template_dir.glob("*_*.npz")]
    found = {*indexed, *hit_names, *map(alignment_files.chain_key, templates)}
    named_files = {alignment_files.chain_key(file) for chains in named for chain in chains for file in chain.files}
    jobs: list[Job] = []
    has_alignment = False
    for name, chains, group, stem in zip(names, named, groups, file_stems(names), strict=True):
        errors = [entry.error for entry in group if entry.error is not None]
        notes = tuple(f"{entry.name}: {note}" if one_complex else note for entry in group for note in entry.notes)
        whole = fasta_records.make_record(name, "".join(chain.sequence for chain in chains))
        job = Job(whole, stem, chains, notes, error=errors[0] if errors else None)
        paths = [_alignments(indexed, msa_dir, name, chain) for chain in chains]
        has_alignment = has_alignment or any(paths)
        if job.error is None:
            try:
                if len(chains) > 1:
                    _refuse_joint_alignment(indexed, msa_dir, name, chains)
                job = _with_inputs(job, paths, template_dir, template_hits)
                if others := _other_chains(job, found - named_files, msa_dir):
                    job = replace(job, notes=(*job.notes, others))
            except (ValueError, OSError) as error:
                job = replace(job, error=str(error))
        jobs.append(job)
    example = jobs[0].chains[0].files[0]
    if msa_dir is not None and not has_alignment:
        raise ValueError(
            f"{msa_dir}: no alignment for any record of {fasta}; name the files by record, such as "
            f"{example}.a3m or {example}.sto.gz."
        )
    given = template_dir or (template_hits and template_hits.hits)
    if given is not None and not any(job.record.templates or job.hits or job.error for job in jobs):
        raise ValueError(
            f"{given}: no templates for any record of {fasta}; name the files by record, such as {example}.npz, or, "
            f"with --template-structures, {example}.hhr"
        )
    return jobs


def chain_counts(fasta: Path, *, one_complex: bool = False) -> dict[str, int]:
    """Return the number of chains of each record of a FASTA file, or of the complex of all of them."""
    counts = {entry.name: len(entry.chains) for entry in fasta_records.read_entries(fasta)}
    return {file_stem(fasta): sum(counts.values())} if one_complex else counts


def file_stems(names: Sequence[str]) -> list[str]:
    """Return a file name for each record: safe on every system, and unique regardless of case."""
    safe = [_UNSAFE.sub("_", name)[:200] for name in names]
    unchanged = {stem.lower() for name, stem in zip(names, safe, strict=True) if stem == name}
    used: set[str] = set()
    stems = []
    for name, stem in zip(names, safe, strict=True):
        number, chosen = 2, stem
        # a name that is already safe is kept, unless an earlier name differs from it only in case
        while chosen.lower() in used or (chosen != name and chosen.lower() in unchanged):
            chosen, number = f"{stem}_{number}", number + 1
        used.add(chosen.lower())
        stems.append(chosen)
    return stems


def _chains(entry: fasta_records.FastaEntry) -> tuple[ChainInput, ...]:
    """The chains of a record; the files of a complex are named ``NAME_A``, ``NAME_B`` …"""
    if len(entry.chains) == 1:
        return (ChainInput(entry.sequence, chain_name(1), (entry.name,), entry.name),)
    letters = [chain_name(number) for number in range(1, len(entry.chains) + 1)]
    return tuple(
        ChainInput(sequence, letter, (f"{entry.name}_{letter}",), entry.name)
        for sequence, letter in zip(entry.chains, letters, strict=True)
    )


def _one_complex(fasta: Path, entries: Sequence[fasta_records.FastaEntry]) -> list[tuple[ChainInput, ...]]:
    """The chains of all records. Their files are named by the record, or by the complex and the chain."""
    chains = [chain for entry in entries for chain in _chains(entry)]
    name = file_stem(fasta)
    return [
        tuple(
            replace(chain, name=chain_name(number), files=(*chain.files, f"{name}_{chain_name(number)}"))
            for number, chain in enumerate(chains, start=1)
        )
    ]


def _refuse_joint_alignment(
    indexed: Mapping[str, Sequence[Path | FileSection]], folder: Path | None, name: str, chains: Sequence[ChainInput]
) -> None:
    """Raise ValueError for an alignment of the whole complex ``name``, which would be ignored."""
    key = alignment_files.chain_key(name)
    if any(key == alignment_files.chain_key(file) for chain in chains for file in chain.files):
        return
    for path in indexed.get(key, ()):
        if isinstance(path, Path) and path.parent == folder and path.is_file():
            raise ValueError(
                f"{path}: an alignment of the whole complex; expected one of each chain, such as "
                f"{chains[0].files[0]}.a3m"
            )


def _other_chains(job: Job, names: set[str], msa_dir: Path | None) -> str:
    """Return a note about files of chains that a complex does not have, such as ``ID_C`` of chains A and B, or "".

    names  ``chain_key`` of the files that no chain is named by
    """
    if len(job.chains) == 1:
        return ""
    own = [chain.name for chain in job.chains]
    suffixes = [name.rpartition("_")[2] for name in names if name.rpartition("_")[0] == job.record.id.lower()]
    unused = {f"{job.record.id}_{one}" for one in suffixes if len(one) <= _CHAIN_NAME}
    for folder in [] if msa_dir is None else [msa_dir / job.record.id, msa_dir / job.record.id / "msas"]:
        if any((folder / chain).is_dir() for chain in own):  # as AlphaFold-Multimer writes them
            others = [path for path in folder.iterdir() if path.is_dir() and path.name not in {*own, "msas"}]
            unused |= {str(path.relative_to(msa_dir or folder)) for path in others if len(path.name) <= _CHAIN_NAME}
    if not unused:
        return ""
    return f"not used: the files of {', '.join(sorted(unused))}; the chains of the complex are {', '.join(own)}"


def _alignments(
    indexed: Mapping[str, Sequence[Path | FileSection]], folder: Path | None, name: str, chain: ChainInput
) -> list[Path | FileSection]:
    """The alignment files of a chain of the record ``name``."""
    if folder is None:
        return []
    for key in chain.files:
        if found := indexed.get(alignment_files.chain_key(key)):
            return list(found)
    return [*alignment_files.complex_chain_files(folder, name, chain.name)]


def _with_inputs(
    job: Job,
    paths: Sequence[list[Path | FileSection]],
    template_dir: Path | None,
    template_hits: TemplateFolder | None,
) -> Job:
    """Attach alignments and templates. Raises ValueError or OSError, naming the file, for one that cannot be used."""
    records = [
        fasta_records.make_record(job.record.id if len(job.chains) == 1 else chain.name, chain.sequence)
        for chain in job.chains
    ]
    hits: list[HitReport] = []
    if template_dir is not None or template_hits is not None:
        found = [
            _with_templates(
                record,
                template_dir,
                template_hits,
                (job.stem, job.record.id) if len(job.chains) == 1 else chain.files,
                job.record.id,
            )
            for record, chain in zip(records, job.chains, strict=True)
        ]
        records = share_templates([record for record, _ in found])
        hits = [
            hit if len(job.chains) == 1 else replace(hit, file=f"{chain.name}/{hit.file}")
            for chain, (_, reports) in zip(job.chains, found, strict=True)
            for hit in reports
        ]
    if len(records) == 1:
        record, files = alignment_files.attach_files(records[0], paths[0])
        alignments = [file.as_json() for file in files]
        counts: list[RowCounts] = []
    else:
        aligned = {chain.sequence for chain, own in zip(job.chains, paths, strict=True) if own}
        if aligned:  # the profile that a chain without alignment has when it is predicted alone
            records = [
                record if record.sequence in aligned else replace(record, profile=sequence_profile(record.sequence))
                for record in records
            ]
        record, reports, counts = attach_alignments(job.record.id, records, paths.__getitem__)
        alignments = [row for one in reports for row in one.as_json()]
        files = [file for one in reports for file in one.files if file.skip_reason != ALIGNED_COPY]
    notes = [*job.notes, *filter(None, [alignment_files.summarize(files)])]
    if any(HOMOMER in one.excluded for one in counts):
        notes.append(f"hits in UniProt are not used: {HOMOMER}")
    kept_pairs = [one.kept for one in counts if one.kind == "pairing"]
    if kept_pairs and max(kept_pairs) == 1:
        notes.append(UNPAIRED)
    return replace(
        job,
        record=record,
        alignments=tuple(alignments),
        hits=tuple(hits),
        pairing=tuple(one.as_json() for one in counts),
        notes=tuple(notes),
    )


def _with_templates(
    record: Record, folder: Path | None, hits: TemplateFolder | None, names: Sequence[str], complex_name: str
) -> tuple[Record, list[HitReport]]:
    """A chain with the templates of the first file that exists, else of its hits."""
    for name in names:
        if folder is not None and (file := folder / f"{_UNSAFE.sub('_', name)}.npz").is_file():
            return replace(record, templates=read_templates(file, len(record.sequence))), []
    if hits is None:
        return record, []
    files = next(filter(None, map(hits.files, names)), None) or hits.complex_files(complex_name, record.id)
    return hits.attach(record, files)
