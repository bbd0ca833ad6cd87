"""Fold the sequences of a FASTA file with a trained run, record by record: one that fails costs only itself."""

from __future__ import annotations

import json
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ds4sci.data.alignments import alignment_files
from ds4sci.data.alignments.profile import with_msa_input
from ds4sci.data.sequences import fasta_records
from ds4sci.data.structures import writers
from ds4sci.files.atomic_files import replace_text
from ds4sci.inference.evaluate_fold import load
from ds4sci.inference.record_errors import explain, release_memory
from ds4sci.machine import memory, provenance
from ds4sci.train.progress import counted
from ds4sci.types import Record

PREDICTED, FAILED, NOT_ATTEMPTED = "predicted", "failed", "not attempted"
"""``status`` of a record in the summary."""

SUMMARY = "summary.json"
SUMMARY_EVERY = 10.0
"""Seconds after which the summary is written anew, so that a process that the system kills leaves one."""

_UNSAFE = re.compile(r"[^A-Za-z0-9_.|=,+@()\[\]-]|^\.")
"""Characters that no file name should have on any system: separators, spaces, leading dots, wildcards."""


@dataclass(frozen=True)
class Job:
    """A record to predict. ``error``: why it will not be, found before the first prediction."""

    record: Record
    stem: str
    notes: tuple[str, ...] = ()
    alignments: tuple[alignment_files.AlignmentFileReport, ...] = ()
    error: str | None = None


def predict_run(
    run: Path | str,
    fasta: Path | str,
    out_dir: Path | str,
    msa_dir: Path | str | None = None,
    *,
    which: str = "best",
    overrides: Sequence[str] = (),
    check_memory: bool = True,
    show: bool = True,
) -> dict[str, Any]:
    """Predict every record of ``fasta`` and write OUT/ID.cif, OUT/ID.pdb and OUT/summary.json.

    msa_dir  folder of alignments named by record: ID.a3m or ID.sto (.stk, .stockholm), plain or .gz, or the folder ID/
             of them (``ds4sci.data.alignments.alignment_files``); several of one record are joined. A record without
             one is predicted from its sequence, as is every record without ``msa_dir``; the summary's ``input`` says so
    which    ``best``, ``latest``, ``step_NNNNNN`` or a step
    overrides  ``key=value`` over the run's own configuration, such as ``data.evaluation_recycling=3``
    check_memory  refuse a record that needs more memory than there is (``ds4sci.models.fold.prediction_bytes``),
             instead of trying it and, in the worst case, being killed by the system

    pLDDT (0–100) is the B-factor of every atom. A record too big for the PDB format gets mmCIF alone, and the summary
    says why. Records are predicted one at a time: memory is that of the longest. A record that fails (a letter that is
    no amino acid, no sequence, memory, a bad alignment, coordinates that are not finite) leaves no files, also none of
    an earlier run, is named in the summary, and the others go on. Characters of an ID that file names should not have
    become ``_``; names that would be the same get a number.

    Returns the summary: ``run, name, step, machine, commit, counts, records`` with rows of ``id, length, status, error,
    files, notes, input, msa_rows, alignments, memory_gb`` (needed, as estimated) and, where predicted, ``plddt``.
    ``status`` is ``predicted``, ``failed`` or, when the command was interrupted, ``not attempted``.

    Raises ``ValueError`` naming file and record, before the first prediction: not FASTA, no entry or none that can be
    read, a name used twice, no alignment for any record.
    """
    run, fasta, out_dir = Path(run), Path(fasta), Path(out_dir)
    if fasta.is_dir():
        raise ValueError(f"{fasta}: a folder; expected one FASTA file")
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"{out_dir}: a file; expected a folder for the structures, or a name that is not taken")
    jobs = read_jobs(fasta, None if msa_dir is None else Path(msa_dir))
    config, task, step = load(run, which, overrides)
    rows = [_row(job) for job in jobs]
    console = Console(highlight=False, soft_wrap=True)

    def summary() -> dict[str, Any]:
        counts = {status: sum(row["status"] == status for row in rows) for status in (PREDICTED, FAILED, NOT_ATTEMPTED)}
        facts = {"run": str(run), "name": config.train.name or run.name, "step": step}
        return {
            **facts,
            "machine": provenance.describe(),
            "commit": provenance.commit(),
            "counts": counts,
            "records": rows,
        }

    out_dir.mkdir(parents=True, exist_ok=True)
    written = time.monotonic()
    try:
        with counted("folding", len(jobs), shown=show) as advance:
            for job, row in zip(jobs, rows, strict=True):
                _attempt(task, job, row, out_dir, check_memory)
                if show:
                    console.print(_line(row), markup=False)
                if time.monotonic() - written > SUMMARY_EVERY:
                    _write_summary(out_dir, summary())
                    written = time.monotonic()
                advance()
    finally:
        _write_summary(out_dir, summary())
    return summary()


def predict_fasta(
    run: Path | str,
    fasta: Path | str,
    out_dir: Path | str,
    *,
    msa_dir: Path | str | None = None,
    which: str = "best",
    overrides: Sequence[str] = (),
    show: bool = True,
) -> Iterator[Path]:
    """``predict_run``, giving the paths of the files it wrote; warns of records that failed."""
    summary = predict_run(run, fasta, out_dir, msa_dir, which=which, overrides=overrides, show=show)
    failed = failures(summary)
    if failed:
        warnings.warn(f"{len(failed)} of {len(summary['records'])} records failed: {'; '.join(failed)}", stacklevel=2)
    return written_files(summary, Path(out_dir))


def written_files(summary: dict[str, Any], out_dir: Path) -> Iterator[Path]:
    """The files that a summary tells of, and its own."""
    names = [name for row in summary["records"] for name in row["files"]]
    return (out_dir / name for name in [*names, SUMMARY])


def failures(summary: dict[str, Any]) -> list[str]:
    """One line for each record that failed: its id, its length and why."""
    failed = [row for row in summary["records"] if row["status"] == FAILED]
    return [f"{row['id']} ({row['length']} residues): {row['error']}" for row in failed]


def read_jobs(fasta: Path, msa_dir: Path | None) -> list[Job]:
    """The records of a FASTA file with their alignments, and what is wrong with them, as ``predict_run`` says."""
    entries = fasta_records.read_entries(fasta)
    if all(entry.error for entry in entries):
        raise ValueError(entries[0].error)
    found = {} if msa_dir is None else alignment_files.index_folder(msa_dir)
    jobs: list[Job] = []
    for entry, stem in zip(entries, file_stems([entry.name for entry in entries]), strict=True):
        record = fasta_records.make_record(entry.name, entry.sequence)
        paths = found.get(alignment_files.chain_key(entry.name), [])
        job = Job(record, stem, entry.notes, error=entry.error)
        if entry.error is not None:
            jobs.append(job)
            continue
        try:
            record, files = alignment_files.attach_files(record, paths)
            left_out = alignment_files.summarize(files)
            notes = (*entry.notes, left_out) if left_out else entry.notes
            job = replace(job, record=record, alignments=tuple(files), notes=notes)
        except (ValueError, OSError) as error:
            job = replace(job, error=str(error))
        jobs.append(job)
    if msa_dir is not None and not any(found.get(alignment_files.chain_key(entry.name)) for entry in entries):
        raise ValueError(
            f"{msa_dir}: no alignment for any record of {fasta}; name them by record, such as {entries[0].name}.a3m "
            f"or {entries[0].name}.sto.gz."
        )
    return jobs


def file_stems(names: Sequence[str]) -> list[str]:
    """For each record's name one for its files: safe on every system, and no two the same, capitals or not."""
    safe = [_UNSAFE.sub("_", name)[:200] for name in names]
    taken = {stem.lower() for name, stem in zip(names, safe, strict=True) if stem == name}
    given: set[str] = set()
    stems = []
    for name, stem in zip(names, safe, strict=True):
        number, chosen = 2, stem
        # a name that needed no change keeps it, unless an earlier one has it but for capitals
        while chosen.lower() in given or (chosen != name and chosen.lower() in taken):
            chosen, number = f"{stem}_{number}", number + 1
        given.add(chosen.lower())
        stems.append(chosen)
    return stems


def _row(job: Job) -> dict[str, Any]:
    return {
        "id": job.record.id,
        "length": len(job.record.sequence),
        "status": NOT_ATTEMPTED,
        "error": None,
        "files": [],
        "notes": list(job.notes),
        "input": "sequence",
        "msa_rows": 0 if job.record.msa is None else len(job.record.msa.names),
        "alignments": [file.as_json() for file in job.alignments],
        "memory_gb": None,
    }


def _attempt(task: Any, job: Job, row: dict[str, Any], out_dir: Path, check_memory: bool) -> None:
    """Predict one record and fill in its row, whatever happens."""
    made: list[Path] = []
    failure: str | None = None
    try:
        _remove([out_dir / f"{job.stem}{suffix}" for suffix in (".cif", ".pdb")])  # an earlier run's
        if job.error is not None:
            raise ValueError(job.error)
        device = next(task.model.parameters()).device
        wanted = task.config.data.features.msa_input
        record = with_msa_input(job.record, wanted)
        needed, there = task.prediction_bytes(record), memory.available_bytes(device)
        row["memory_gb"] = round(needed / 1e9, 2)
        row["input"] = "sequence" if job.record.msa is None or wanted == "sequence" else "alignment"
        if check_memory and there is not None and needed > there:
            raise ValueError(
                f"needs about {needed / 1e9:.1f} GB of memory at {row['length']} residues, {there / 1e9:.1f} GB are"
                " free; use a machine with more, cut the sequence into domains, or try it all the same with"
                " --no-memory-check"
            )
        (prediction,) = task.predict([task.featurize(record)], device)
        prediction = replace(prediction, id=record.id)
        made.append(writers.write_mmcif(prediction, out_dir / f"{job.stem}.cif"))
        try:
            made.append(writers.write_pdb(prediction, out_dir / f"{job.stem}.pdb"))
        except writers.PdbLimitError as error:
            row["no_pdb"] = str(error)
        row |= {"status": PREDICTED, "plddt": round(float(np.mean(prediction.plddt)), 2)}
        row["files"] = [path.name for path in made]
    except Exception as error:  # whatever it is, it must cost one record; the summary and the exit code tell of it
        failure = explain(error, row["length"])
    except BaseException:  # interrupted
        _remove(made)
        raise
    if failure is not None:  # out here, where the error's traceback holds no tensors any more
        row |= {"status": FAILED, "error": failure}
        _remove(made)
        release_memory()


def _remove(files: list[Path]) -> None:
    for path in files:
        path.unlink(missing_ok=True)


def _line(row: dict[str, Any]) -> str:
    begin = f"{row['id']}: {row['length']} residues"
    notes = "".join(f"\n  warning: {note}" for note in row["notes"])
    if row["status"] == FAILED:
        return f"{begin}, failed: {row['error']}{notes}"
    return f"{begin}, pLDDT {row['plddt']:.1f}, from its {row['input']}{notes}"


def _write_summary(out_dir: Path, summary: dict[str, Any]) -> None:
    replace_text(out_dir / SUMMARY, json.dumps(summary, indent=1) + "\n")
