"""Structure prediction for the sequences of a FASTA file, one record at a time; a failure affects only its record."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from ds4sci.chemistry.chains import chain_slices, entity_numbers
from ds4sci.config.run_file import RunConfig
from ds4sci.config.task_module import import_task
from ds4sci.data.alignments.profile import with_msa_input
from ds4sci.data.structures import writers
from ds4sci.data.structures.template_folder import TemplateFolder
from ds4sci.files.atomic_files import replace_text
from ds4sci.inference.prediction_inputs import Job, chain_counts, read_jobs
from ds4sci.inference.trained_run import TrainedRun, read_config
from ds4sci.machine import memory, provenance
from ds4sci.machine.memory_errors import describe_error, release_memory
from ds4sci.nn.heads import ranking_confidence
from ds4sci.nn.quantized_weights import Format, stored_bytes
from ds4sci.tasks import StructurePredictor
from ds4sci.tasks.build import default_kernels
from ds4sci.train.progress import progress_bar

PREDICTED, FAILED, NOT_ATTEMPTED = "predicted", "failed", "not attempted"
"""``status`` of a record in the summary."""

SUMMARY = "summary.json"
SUMMARY_INTERVAL_S = 10.0
"""Seconds between writes of the summary, so that it exists even if the process is killed."""


def predict_run(
    run: Path | str,
    fasta: Path | str,
    out_dir: Path | str,
    msa_dir: Path | str | None = None,
    *,
    template_dir: Path | str | None = None,
    one_complex: bool = False,
    template_hits: TemplateFolder | None = None,
    which: str = "best",
    overrides: Sequence[str] = (),
    quantize: Format | None = None,
    check_memory: bool = True,
    show: bool = True,
) -> dict[str, Any]:
    """Predict every record of ``fasta``; write OUT/ID.cif, ID.pdb, ID.confidence.npz and OUT/summary.json.

    A record with ``:`` between sequences is a complex of these chains, which the output names A, B, … in their order.

    msa_dir       folder of alignments named by record: ID.a3m or ID.sto (.stk, .stockholm), plain or .gz, or a folder
                  ID/ of them (``ds4sci.data.alignments.alignment_files``); several alignments of a record are joined.
                  A record without an alignment is predicted from its sequence, as the summary's ``input`` says
    template_dir  folder of templates named by record: ID.npz (``ds4sci.data.structures.template_files``). A record
                  without a file is predicted without templates
    one_complex   all records are chains of one complex, named by the FASTA file
    template_hits  hits of records without such a file, and their structures
    which         ``best``, ``latest``, ``step_NNNNNN`` or a step
    overrides     ``key=value`` over the configuration of the run, such as ``data.evaluation_recycling=3``
    quantize      weights in ``int8`` or ``nf4``; see ``TrainedRun.load``
    check_memory  refuse a record that needs more memory than is free, by the estimate of the task, instead of trying it
                  and possibly being killed by the system

    Alignments and templates of a complex are those of its chains: the files of chain B of record ID are named ID_B.a3m,
    ID_B/ or ID_B.npz, or are in ID/B/ or ID/msas/B/ as in AlphaFold-Multimer; with ``one_complex``, by the record of
    the chain. Rows are paired by species (``ds4sci.data.alignments.pairing``).

    pLDDT (0–100) is the B-factor of every atom. A record too large for the PDB format gets only mmCIF; the summary says
    why. Records are predicted one at a time, so the longest one determines the memory. A record that fails (a letter
    that is no amino acid, an empty sequence, memory, a bad alignment, coordinates that are not finite) leaves no files,
    not even those of an earlier run, and is named in the summary; the other records are predicted. Unsafe characters of
    an ID become ``_`` in file names; names that would collide get a number.

    Returns the summary: ``run, name, step, quantize, weight_bytes, machine, commit, counts, records``. A row of
    ``records`` has ``id, length, status, error, files, notes, input, msa_rows, alignments, templates, template_hits,
    memory_gb`` (estimated) and, if predicted, ``recycling`` (passes before the last), ``plddt`` (mean),
    ``ranking_confidence``, which is the mean pLDDT as for AlphaFold's monomers, and ``ptm`` from models with the head
    ``tm``. A complex has ``iptm`` too, and 0.8 ipTM + 0.2 pTM as its ``ranking_confidence``; ``chains``: name, FASTA
    record, entity, length and, if predicted, mean pLDDT of each; and ``pairing``, the rows of each entity that its
    alignment has. ``status`` is ``predicted``, ``failed`` or, if the command was interrupted, ``not attempted``.

    Raises ValueError before the first prediction, naming file and record: a task that predicts no structures, a file
    that is not FASTA, no readable entry, a duplicate name, no alignment or no templates for any record, a model that
    takes no templates, or no complexes. The last two are found before alignments, templates and weights are read.
    """
    run, fasta, out_dir = Path(run), Path(fasta), Path(out_dir)
    if fasta.is_dir():
        raise ValueError(f"{fasta}: is a folder; expected a FASTA file")
    if out_dir.exists() and not out_dir.is_dir():
        raise ValueError(f"{out_dir}: is a file; expected a folder for the structures, or a new name")
    _check_model(run, read_config(run, which, overrides), fasta, one_complex, template_dir or template_hits)
    if template_hits is not None:
        template_hits.check()
    jobs = read_jobs(
        fasta,
        None if msa_dir is None else Path(msa_dir),
        None if template_dir is None else Path(template_dir),
        template_hits,
        one_complex=one_complex,
    )
    loaded = TrainedRun.load(run, which, overrides, quantize=quantize)
    task = loaded.task
    if not isinstance(task, StructurePredictor):
        raise loaded.lacks("predict structures", "`featurize`, `predict`, `prediction_bytes` and `msa_input`")
    rows = [_row(job) for job in jobs]
    console = Console(highlight=False, soft_wrap=True)
    if show:
        for message in loaded.messages:
            console.print(message, markup=False)

    def summary() -> dict[str, Any]:
        counts = {status: sum(row["status"] == status for row in rows) for status in (PREDICTED, FAILED, NOT_ATTEMPTED)}
        return {
            "run": str(run),
            "name": loaded.name,
            "step": loaded.step,
            "quantize": quantize,
            "weight_bytes": stored_bytes(task.model),
            "machine": provenance.describe(),
            "commit": provenance.commit(),
            "counts": counts,
            "records": rows,
        }

    out_dir.mkdir(parents=True, exist_ok=True)
    written = time.monotonic()
    try:
        with default_kernels(loaded.config), progress_bar("folding", len(jobs), shown=show) as advance:
            for job, row in zip(jobs, rows, strict=True):
                _attempt(task, loaded.device, job, row, out_dir, check_memory)
                if show:
                    console.print(_line(row), markup=False)
                if time.monotonic() - written > SUMMARY_INTERVAL_S:
                    try:
                        _write_summary(out_dir, summary())
                    except OSError as error:  # such as a full disk; the summary is written again in the end
                        console.print(f"warning: {out_dir / SUMMARY}: {error}", markup=False)
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
    """Call ``predict_run``; return the paths of the files it wrote. Warns about records that failed."""
    summary = predict_run(run, fasta, out_dir, msa_dir, which=which, overrides=overrides, show=show)
    failed = failures(summary)
    if failed:
        warnings.warn(f"{len(failed)} of {len(summary['records'])} records failed: {'; '.join(failed)}", stacklevel=2)
    return written_files(summary, Path(out_dir))


def written_files(summary: dict[str, Any], out_dir: Path) -> Iterator[Path]:
    """Return the paths of the files that a summary lists, and of the summary."""
    names = [name for row in summary["records"] for name in row["files"]]
    return (out_dir / name for name in [*names, SUMMARY])


def failures(summary: dict[str, Any]) -> list[str]:
    """Return one line for each record that failed: its ID, its length and the error."""
    failed = [row for row in summary["records"] if row["status"] == FAILED]
    return [f"{row['id']} ({row['length']} residues): {row['error']}" for row in failed]


def _check_model(run: Path, config: RunConfig, fasta: Path, one_complex: bool, templates: Any) -> None:
    """Raise ValueError for templates or complexes that the model does not take, before other files are read."""
    module = import_task(config.task.name)
    if templates is not None and not module.takes_templates(config.settings):
        raise ValueError(
            f"{run}: the model takes no templates; it needs model.template.blocks and data.features.max_templates "
            "(ds4sci predict without --templates)"
        )
    if module.takes_complexes(config.settings):
        return
    for name, count in chain_counts(fasta, one_complex=one_complex).items():
        if count > 1:
            raise ValueError(
                f"{fasta}: {name} is a complex of {count} chains, and the model of {run} is one of single chains, which"
                " would join them to one; predict each chain as a record of its own, or use a model of complexes"
            )


def _row(job: Job) -> dict[str, Any]:
    row = {
        "id": job.record.id,
        "length": len(job.record.sequence),
        "status": NOT_ATTEMPTED,
        "error": None,
        "files": [],
        "notes": list(job.notes),
        "input": "sequence",
        "msa_rows": 0 if job.record.msa is None else len(job.record.msa.names),
        "alignments": list(job.alignments),
        "templates": [] if job.record.templates is None else list(job.record.templates.names),
        "template_hits": [hit.as_json() for hit in job.hits],
        "memory_gb": None,
    }
    if len(job.chains) > 1:
        read = [chain for chain in job.chains if chain.sequence]  # an empty one fails the record; its error names it
        entities = entity_numbers([chain.sequence for chain in read])
        row["chains"] = [
            {"name": chain.name, "record": chain.record, "length": len(chain.sequence), "entity": entity}
            for chain, entity in zip(read, entities, strict=True)
        ]
        row["pairing"] = list(job.pairing)
    return row


def _attempt(
    task: StructurePredictor, device: torch.device, job: Job, row: dict[str, Any], out_dir: Path, check_memory: bool
) -> None:
    """Predict one record and fill in its row, whether it succeeds or fails. Files of an earlier run are removed."""
    written_paths: list[Path] = []
    failure: str | None = None
    try:
        _remove([out_dir / f"{job.stem}{suffix}" for suffix in (".cif", ".pdb", writers.CONFIDENCE_SUFFIX)])
        if job.error is not None:
            raise ValueError(job.error)
        record = with_msa_input(job.record, task.msa_input)
        needed, free = task.prediction_bytes(record), memory.available_bytes(device)
        row["memory_gb"] = round(needed / 1e9, 2)
        row["input"] = "sequence" if job.record.msa is None or task.msa_input == "sequence" else "alignment"
        if check_memory and free is not None and needed > free:
            raise ValueError(
                f"needs about {needed / 1e9:.1f} GB of memory at {row['length']} residues, {free / 1e9:.1f} GB are"
                " free; use a machine with more memory, cut the sequence into domains, or disable this check with"
                " --no-memory-check"
            )
        (prediction,) = task.predict([task.featurize(record)], device)
        prediction = replace(prediction, id=record.id)
        written_paths.append(writers.write_mmcif(prediction, out_dir / f"{job.stem}.cif"))
        try:
            written_paths.append(writers.write_pdb(prediction, out_dir / f"{job.stem}.pdb"))
        except writers.PdbLimitError as error:
            row["no_pdb"] = str(error)
        written_paths.append(writers.write_confidence(prediction, out_dir / f"{job.stem}{writers.CONFIDENCE_SUFFIX}"))
        mean = round(float(np.mean(prediction.plddt)), 2)
        row |= {"status": PREDICTED, "plddt": mean, "ranking_confidence": mean}
        if prediction.recycling is not None:
            row["recycling"] = prediction.recycling
        if prediction.chain_ids is not None:
            for chain, own in zip(row["chains"], chain_slices(prediction.chain_ids.asym_id), strict=True):
                chain["plddt"] = round(float(np.mean(prediction.plddt[own])), 2)
        if prediction.ptm is not None:
            row["ptm"] = round(prediction.ptm, 4)
        if prediction.ptm is not None and prediction.iptm is not None:
            row["iptm"] = round(prediction.iptm, 4)
            row["ranking_confidence"] = round(ranking_confidence(prediction.ptm, prediction.iptm), 4)
        row["files"] = [path.name for path in written_paths]
    except Exception as error:  # any error fails one record only; the summary and the exit code report it
        failure = describe_error(error, row["length"])
    except BaseException:  # interrupted
        _remove(written_paths)
        raise
    if failure is not None:  # outside the handler, where no traceback keeps tensors alive
        row |= {"status": FAILED, "error": failure}
        _remove(written_paths)
        release_memory()


def _remove(files: list[Path]) -> None:
    for path in files:
        path.unlink(missing_ok=True)


def _line(row: dict[str, Any]) -> str:
    chains = f" in {len(row['chains'])} chains" if "chains" in row else ""
    start = f"{row['id']}: {row['length']} residues{chains}"
    warnings = [*row["notes"], *([row["no_pdb"]] if "no_pdb" in row else [])]
    notes = "".join(f"\n  warning: {note}" for note in warnings)
    if row["status"] == FAILED:
        return f"{start}, failed: {row['error']}{notes}"
    ptm = f", pTM {row['ptm']:.2f}" if "ptm" in row else ""
    ptm += f", ipTM {row['iptm']:.2f}" if "iptm" in row else ""
    return f"{start}, pLDDT {row['plddt']:.1f}{ptm}, from its {row['input']}{notes}"


def _write_summary(out_dir: Path, summary: dict[str, Any]) -> None:
    replace_text(out_dir / SUMMARY, json.dumps(summary, indent=1) + "\n")
