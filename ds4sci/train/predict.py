"""Fold the sequences of a FASTA file with a trained run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ds4sci import machine
from ds4sci.data import writers
from ds4sci.data.profile import with_input
from ds4sci.data.sources import fasta as fasta_source
from ds4sci.data.sources import msa as msa_source
from ds4sci.train.durable import replace_text
from ds4sci.train.evaluate import load
from ds4sci.train.progress import counted
from ds4sci.types import Record

SAFE_NAME = re.compile(r"[A-Za-z0-9_|=,+@()\[\]-][A-Za-z0-9_.|=,+@()\[\]-]{0,199}")
"""Record names that may become file names on every system: no separators, spaces, leading dots or wildcards."""


def predict_run(
    run: Path | str,
    fasta: Path | str,
    out_dir: Path | str,
    msa_dir: Path | str | None = None,
    *,
    which: str = "best",
    overrides: Sequence[str] = (),
    show: bool = True,
) -> dict[str, Any]:
    """Predict every record of ``fasta`` and write OUT/ID.cif, OUT/ID.pdb and OUT/summary.json.

    msa_dir  folder of alignments named by record: ID.a3m or ID.sto (.stk, .stockholm), plain or .gz; several of one
             record are joined. A record without one is predicted from its sequence, as is every record without
             ``msa_dir``; the summary's ``input`` says which it was
    which    ``best``, ``latest``, ``step_NNNNNN`` or a step
    overrides  ``key=value`` over the run's own configuration, such as ``data.evaluation_recycling=3``

    pLDDT (0–100) is the B-factor of every atom. A record too big for the PDB format gets mmCIF alone, and the summary
    says why. Records are predicted one at a time: memory is that of the longest. All names, sequences and alignments
    are checked before the first prediction. Returns the summary: ``run, step, machine, commit, records`` with rows of
    ``id, length, plddt, input, msa_rows, files``.

    Raises ``ValueError`` naming file and record: not FASTA, no entry, a name used twice or unfit as a file name, an
    alignment of another sequence.
    """
    run, fasta, out_dir = Path(run), Path(fasta), Path(out_dir)
    records = read_records(fasta, None if msa_dir is None else Path(msa_dir))
    config, task, step = load(run, which, overrides)
    wanted = task.config.data.features.msa_input  # type: ignore[attr-defined]
    device = next(task.model.parameters()).device
    rows = []
    with counted("folding", len(records), shown=show) as advance:
        for record in records:
            features = task.featurize(with_input(record, wanted))  # type: ignore[attr-defined]
            (prediction,) = task.predict([features], device)  # type: ignore[attr-defined]
            prediction = replace(prediction, id=record.id)
            files = [writers.write_mmcif(prediction, out_dir / f"{record.id}.cif")]
            row: dict[str, Any] = {
                "id": record.id,
                "length": len(record.sequence),
                "plddt": round(float(np.mean(prediction.plddt)), 2),
                "input": "sequence" if record.msa is None or wanted == "sequence" else "alignment",
                "msa_rows": 0 if record.msa is None else len(record.msa.names),
            }
            try:
                files.append(writers.write_pdb(prediction, out_dir / f"{record.id}.pdb"))
            except writers.PdbLimitError as error:
                row["no_pdb"] = str(error)
            row["files"] = [path.name for path in files]
            rows.append(row)
            advance()
    summary = {
        "run": str(run),
        "name": config.train.name or run.name,
        "step": step,
        "machine": machine.describe(),
        "commit": machine.commit(),
        "records": rows,
    }
    replace_text(out_dir / "summary.json", json.dumps(summary, indent=1) + "\n")
    if show:
        console = Console(highlight=False)
        for row in rows:
            console.print(f"{row['id']}: {row['length']} residues, pLDDT {row['plddt']:.1f}, from its {row['input']}")
    return summary


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
    """``predict_run``, giving the paths of the files it wrote."""
    summary = predict_run(run, fasta, out_dir, msa_dir, which=which, overrides=overrides, show=show)
    names = [name for row in summary["records"] for name in row["files"]]
    return (Path(out_dir) / name for name in [*names, "summary.json"])


def read_records(fasta: Path, msa_dir: Path | None) -> list[Record]:
    """The records of a FASTA file with their alignments, checked as ``predict_run`` says."""
    entries = fasta_source.read_fasta(fasta)
    taken: dict[str, str] = {}
    for name, _ in entries:
        if not SAFE_NAME.fullmatch(name):
            raise ValueError(
                f"{fasta}: record {name!r} cannot name a file; use up to 200 of the characters A–Z a–z 0–9 _ . - | = , "
                "+ @ ( ) [ ], the first of them no dot."
            )
        # Some file systems do not tell capitals from small letters: A.cif would replace a.cif.
        other = taken.setdefault(name.lower(), name)
        if other != name:
            raise ValueError(f"{fasta}: records {other!r} and {name!r} differ in capitals alone; rename one of them.")
    found = {} if msa_dir is None else msa_source.index(msa_dir)
    records = []
    for name, sequence in entries:
        record = fasta_source.record(name, sequence)
        paths = found.get(msa_source.chain_key(name), [])
        if paths:
            parts = [msa_source.read(path) for path in paths]
            record = msa_source.attach(record, msa_source.merge(parts), ", ".join(map(str, paths)))
        records.append(record)
    if msa_dir is not None and all(record.msa is None for record in records):
        raise ValueError(
            f"{msa_dir}: no alignment for any record of {fasta}; name them by record, such as {entries[0][0]}.a3m "
            f"or {entries[0][0]}.sto.gz."
        )
    return records
