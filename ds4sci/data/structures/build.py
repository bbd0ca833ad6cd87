"""Build of a chain set from a folder of structures and, optionally, alignments: ``ds4sci data build``.

Worker processes parse the files and store each result in OUT.work/ (``ds4sci.data.structures.build_cache``). A build
that was interrupted, or that is repeated with more files, parses only files without a current entry. Chains are in the
order of the file names, whatever the number of workers.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.data.alignments import alignment_files
from ds4sci.data.structures.assemblies import ASYMMETRIC_UNIT, assembly_chains
from ds4sci.data.structures.build_cache import entry_key, file_stamps, is_current, load_entry, store_entry
from ds4sci.data.structures.build_complex import make_complex
from ds4sci.data.structures.build_report import JOINED, REJECTED_MEMBER, BuildReport, report_row
from ds4sci.data.structures.chain_file import concatenate, drop_empty_arrays, pack_all_arrays, write_arrays
from ds4sci.data.structures.chain_filters import BuildSettings, chain_size, mask_low_confidence, rejection_reason
from ds4sci.data.structures.chain_inputs import ChainInputs
from ds4sci.data.structures.chain_set import ChainSet, write_files
from ds4sci.data.structures.dssp import assign_secondary_structure
from ds4sci.data.structures.parsers import mmcif, pdb
from ds4sci.data.structures.template_folder import TemplateFolder
from ds4sci.data.text_files import stem, suffix
from ds4sci.data.worker_pool import run_in_processes
from ds4sci.files.atomic_files import new_folder, refuse_full, replace_text
from ds4sci.machine.processor import usable_cores
from ds4sci.types import Record

READERS = {".cif": mmcif.parse, ".mmcif": mmcif.parse, ".pdb": pdb.parse, ".ent": pdb.parse}
MAX_PAIRED_RESIDUES = 6000
"""Largest entry whose strands are paired across chains. The pair table grows with the square of the size."""


def build(
    src_dir: str | Path,
    out: str | Path,
    *,
    msa_dir: str | Path | None = None,
    templates: TemplateFolder | None = None,
    jobs: int | None = None,
    settings: BuildSettings | None = None,
    chains_per_file: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> BuildReport:
    """Read all .cif, .mmcif, .pdb and .ent files (also with .gz) below ``src_dir`` into the chain set ``out``.

    ``msa_dir``: alignments by chain id (``ds4sci.data.alignments.alignment_files.index_folder``). Profiles are computed
    from them. ``templates``: hits by chain id and their structures; a chain gets those that were released until it was
    (``TemplateFolder.attach``). ``jobs``: number of processes, by default the number of usable cores. ``progress(done,
    files)`` is called after each file. ``chains_per_file``: write a new folder ``out`` of uncompressed files of about
    this many chains, which are mapped into memory.

    A chain id begins with the entry id in the file, or with the file name if the file has none. If a chain of another
    file has the same id and a different sequence, the file name, and then the path below ``src_dir``, replaces the
    entry id. Alignments are looked up by the original id.

    With ``settings.complexes`` all accepted chains of a file are one record, named by the entry id
    (``ds4sci.data.structures.build_complex``); ``settings.assembly`` selects a biological assembly.

    Files of assemblies (.pdb1), .pdbx and .bcif are not supported. The report lists them, and broken links.

    A file that cannot be used does not stop the build: OUT.report.jsonl has a line with the reason. ``out`` and the
    report are written atomically. Raises ``ValueError`` if the folder has no structures or no chain is accepted,
    ``OSError`` if the disk is full or not writable.
    """
    src_dir, out, settings = Path(src_dir), Path(out), settings or BuildSettings()
    if chains_per_file is not None:
        refuse_full(out)
    files = _find_structures(src_dir)
    inputs = ChainInputs(None if msa_dir is None else Path(msa_dir), templates, time.time_ns())
    inputs.check()  # fail now if a folder does not exist, not in every worker
    work = out.with_name(out.name + ".work")
    work.mkdir(parents=True, exist_ok=True)

    entries = {path: work / f"{entry_key(path, src_dir, settings, templates)}.npz" for path in files}
    todo = [path for path in files if not is_current(entries[path], inputs.files)]
    done = len(files) - len(todo)
    if progress:
        progress(done, len(files))
    arguments = [(path, str(path.relative_to(src_dir)), entries[path], inputs, settings) for path in todo]
    for path, failure in run_in_processes(_process_file, arguments, jobs=jobs or usable_cores(), marker_dir=work):
        if failure:
            store_entry(entries[path[0]], [], [report_row(path[1], None, "rejected", "parser error", failure)], {})
        done += 1
        if progress:
            progress(done, len(files))

    rows: list[dict[str, Any]] = []
    parts = _collect(entries, src_dir, rows)
    chains_written = _write(out, parts, chains_per_file)
    rows += _unsupported_files(src_dir)
    report = out.with_name(out.name + ".report.jsonl")
    replace_text(report, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), sync=False)
    if not chains_written:
        reasons = Counter(row["reason"] for row in rows if row["reason"]).most_common(1)
        raise ValueError(
            f"{src_dir}: no chain of {len(files)} files was accepted; the most frequent reason: {reasons[0][0]}"
        )
    for old in set(work.glob("*.npz")) - set(entries.values()):
        old.unlink()
    chains = {alignment_files.chain_key(row["chain"]) for row in rows if row["chain"]}
    unused = sorted(set(inputs.alignments_by_chain()) - chains)
    unused_hits = sorted(inputs.template_names() - chains)
    return BuildReport(out, report, len(files), len(files) - len(todo), rows, unused, unused_hits)


def _find_structures(src_dir: Path) -> list[Path]:
    if not src_dir.is_dir():
        raise ValueError(f"{src_dir}: no such folder; expected a folder with mmCIF or PDB files")
    files = sorted(path for path in src_dir.rglob("*") if suffix(path) in READERS and path.is_file())
    if not files:
        raise ValueError(f"{src_dir}: no structures found; expected files named *{', *'.join(READERS)} (or with .gz)")
    return files


def _unsupported_files(src_dir: Path) -> list[dict[str, Any]]:
    """Return report rows of structure files in unsupported formats and of broken links."""
    rows = []
    for path in sorted(src_dir.rglob("*")):
        ending = suffix(path)
        if ending in READERS and not path.exists():
            reason = "broken link: the target does not exist"
        elif re.fullmatch(r"\.(pdb\d+|pdbx|pdbqt|bcif|mmtf)", ending) and not path.is_dir():
            reason = f"unsupported format *{ending}; expected *{', *'.join(READERS)} (or with .gz)"
        else:
            continue
        rows.append(report_row(str(path.relative_to(src_dir)), None, "rejected", "unsupported file", reason))
    return rows


def _process_file(path: Path, name: str, entry: Path, inputs: ChainInputs, settings: BuildSettings) -> None:
    """Parse one file and store its accepted chains and report rows in the cache entry ``entry``."""
    stamps: dict[str, Any] = {}
    try:
        parsed = READERS[suffix(path)](path)
        made = assembly_chains(parsed, settings.assembly)
        chains = made.chains
        together = sum(len(chain.sequence) for chain in chains) <= MAX_PAIRED_RESIDUES
        dssp_of = (
            assign_secondary_structure(chains)
            if chains and together
            else [assign_secondary_structure([chain])[0] for chain in chains]
        )
    except (ValueError, OSError) as error:
        store_entry(entry, [], [report_row(name, None, "rejected", "unreadable", str(error))], {})
        return
    except Exception as error:  # a bug in a parser must not stop the build; the report shows it
        reason = f"{type(error).__name__}: {error}"
        store_entry(entry, [], [report_row(name, None, "rejected", "parser error", reason)], {})
        return
    assembly = {} if settings.assembly == ASYMMETRIC_UNIT or made.failure else made.as_json()
    rows = [report_row(name, None, "read", None, made.note, entry=parsed.entry, atoms=parsed.atoms, **assembly)]
    rows += [
        report_row(name, f"{parsed.entry}_{one.chain}", "rejected", one.kind, one.reason) for one in parsed.excluded
    ]
    known: list[Record] = []
    for chain, dssp in zip(chains, dssp_of, strict=True):
        try:
            masked = mask_low_confidence(chain, settings.min_plddt) if settings.min_plddt else chain
            known.append(replace(masked, dssp=dssp))
        except ValueError as error:
            rows.append(report_row(name, chain.id, "rejected", "no pLDDT", str(error)))
    if settings.complexes:
        joined, more, stamps = make_complex(name, parsed, made, known, inputs, settings)
        store_entry(entry, joined, rows + more, stamps)
        return
    accepted: dict[str, Record] = {}
    for chain in known:
        size = chain_size(chain)
        rejection = rejection_reason(chain, size["resolved"], settings)
        if any(chain.id == other.id for other in accepted.values()):
            rejection = ("same id", "an earlier chain of this file has the same id")
        first = accepted.get(chain.sequence)
        if rejection is None and first is not None and not settings.keep_duplicates:
            rows.append(report_row(name, chain.id, "duplicate", None, f"same sequence as {first.id}", **size))
            continue
        key = alignment_files.chain_key(chain.id)
        if rejection is None:
            try:
                stamps[key] = file_stamps(inputs.files(key))
                chain, report = inputs.attach(chain, parsed.released, settings.max_msa_rows)
                pack_all_arrays([chain])
            except (ValueError, OSError) as error:
                rejection = ("alignment" if stamps.get(key) else "not storable", str(error))
        if rejection is not None:
            rows.append(report_row(name, chain.id, "rejected", *rejection, **size))
            continue
        accepted[chain.id if settings.keep_duplicates else chain.sequence] = chain
        depth = 0 if chain.msa is None else len(chain.msa.sequences)
        rows.append(report_row(name, chain.id, "accepted", None, None, **size, msa_rows=depth, **report))
    store_entry(entry, list(accepted.values()), rows, stamps)


def _write(out: Path, parts: Iterator[dict[str, np.ndarray]], chains_per_file: int | None) -> int:
    """Write the set, unless it is empty; return the number of chains. Iterates over all parts."""
    first = next(parts, None)
    if first is None:
        return 0
    parts = itertools.chain([first], parts)
    if chains_per_file is not None:
        with new_folder(out) as temporary:
            return write_files(temporary, parts, chains_per_file)
    arrays = concatenate(list(parts))
    write_arrays(out, drop_empty_arrays(arrays))
    return len(arrays["ids"])


def _collect(
    entries: Mapping[Path, Path], src_dir: Path, rows: list[dict[str, Any]]
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the arrays of all entries (a map from file to entry), in order, and append their rows to ``rows``.

    If chains of several files have the same id, the first keeps it. Another chain with the same sequence is rejected as
    a copy. Other chains are renamed: the file's stem, or its path, replaces the shared entry id.
    """
    owner: dict[str, tuple[str, Path, int]] = {}
    for path, entry in entries.items():
        report, arrays = load_entry(entry)
        rows += report["rows"]
        accepted = {row["chain"]: row for row in report["rows"] if row["status"] == "accepted"}
        if not accepted:
            continue
        chains = ChainSet(arrays, str(entry))
        at = {name: index for index, name in enumerate(accepted)}
        repeated = [name for name in accepted if name in owner]
        for name in repeated:
            _, first, index = owner[name]
            if _stored_sequence(first, index) == chains.sequence(at[name]):
                _reject_id(accepted.pop(name), owner[name][0])
        names = {name: name for name in accepted}
        if any(name in owner for name in accepted):
            names = _rename_chains(report["rows"], accepted, path.relative_to(src_dir), owner)
        for name in [name for name in accepted if names[name] in owner]:
            _reject_id(accepted.pop(name), owner[name][0])
        _reject_members(report["rows"])
        owner.update({names[name]: (row["file"], entry, at[name]) for name, row in accepted.items()})
        if len(accepted) == len(chains) and all(old == new for old, new in names.items()):
            yield arrays
        elif accepted:
            yield pack_all_arrays([replace(one, id=names[one.id]) for one in chains if one.id in accepted])


def _stored_sequence(entry: Path, index: int) -> str:
    return ChainSet(load_entry(entry)[1], str(entry)).sequence(index)


def _reject_id(row: dict[str, Any], owner: str) -> None:
    row.update(status="rejected", kind="same id", reason=f"{owner} has a chain with this id")


def _reject_members(rows: list[dict[str, Any]]) -> None:
    """Reject the chains of a complex that was rejected as a copy of another file's."""
    copies = {row["chain"]: row for row in rows if row["kind"] == "same id"}
    for row in rows:
        if row["status"] == JOINED and (found := copies.get(row["reason"].removeprefix("chain of "))):
            row.update(status="rejected", kind=REJECTED_MEMBER, reason=found["reason"])


def _rename_chains(
    rows: list[dict[str, Any]], accepted: Iterable[str], path: Path, owner: Container[str]
) -> dict[str, str]:
    """Return new ids for the chains of the file ``path`` and update its rows; the old ids if the path gives no free
    id."""
    old = next(row["entry"] for row in rows if row["status"] == "read")
    full = "_".join([*path.parts[:-1], stem(path)])
    for prefix in (re.sub(r"[^\w.+-]+", "_", one) for one in (stem(path), full)):
        names = {name: prefix + name.removeprefix(old) for name in accepted}
        if any(name in owner for name in names.values()):
            continue
        for row in rows:
            if row["chain"] and row["kind"] != "same id":
                row["chain"] = prefix + row["chain"].removeprefix(old)
            if "copy_of" in row:
                row["copy_of"] = prefix + row["copy_of"].removeprefix(old)
            for status, word in (("duplicate", "as"), (JOINED, "of")):
                if row["status"] == status:
                    row["reason"] = row["reason"].replace(f"{word} {old}", f"{word} {prefix}", 1)
        return names
    return {name: name for name in accepted}
