"""A folder of structures, and alignments where there are any, → one chain set: ``ds4sci data build``.

Each file is read by a worker, which leaves its chains in OUT.work/ under a key of the file's name, size, time and the
settings. A build that was interrupted, or runs again with a few more files, reads only what it has not yet; an entry
that cannot be read is made anew. The order of the set is that of the files' names, whatever the number of workers.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ds4sci.data.alignments import alignment_files
from ds4sci.data.alignments.profile import msa_profile
from ds4sci.data.structures.chain_file import concatenate, drop_empty_arrays, pack_all_arrays, write_arrays
from ds4sci.data.structures.chain_filters import BuildSettings, rejection_reason
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.structures.dssp import assign_secondary_structure
from ds4sci.data.structures.parsers import mmcif, pdb
from ds4sci.data.structures.parsers.atom_table import KEPT
from ds4sci.data.text_files import stem, suffix
from ds4sci.data.worker_pool import run_in_processes
from ds4sci.files.atomic_files import replace_text
from ds4sci.machine.processor import usable_cores
from ds4sci.types import Record

READERS = {".cif": mmcif.parse, ".mmcif": mmcif.parse, ".pdb": pdb.parse, ".ent": pdb.parse}
MAX_PAIRED_RESIDUES = 6000
"""Entries up to this size have their strands paired across chains; the table of pairs grows with its square."""
NOT_ACCEPTED = "chain not accepted"
CACHE_VERSION = 4
"""Part of the cache's key: raise it when what is stored for the same file changes."""


@dataclass(frozen=True)
class BuildReport:
    """What became of every file, chain and atom record; ``rows`` are the lines of ``report`` (OUT.report.jsonl).

    A row with status ``read`` is a file that could be read; its ``atoms`` counts the file's atom records by what became
    of them (``ds4sci.data.structures.parsers.atom_table.ATOM_STATUSES``). The other rows are chains, or files that
    could not be read; ``atoms_kept`` counts a chain's atoms, which are in the set if it is accepted.
    """

    out: Path
    report: Path
    files: int
    cached: int
    rows: list[dict[str, Any]] = field(repr=False)
    unused_alignments: list[str] = field(default_factory=list, repr=False)
    """Names in the folder of alignments that no chain of any file has."""

    @property
    def counts(self) -> dict[str, int]:
        """Chains (or files, where none could be read) by status: accepted, duplicate, and the refusals by kind."""
        chains = [row for row in self.rows if row["status"] != "read"]
        return dict(Counter(row["status"] if row["status"] != "rejected" else row["kind"] for row in chains))

    @property
    def atoms(self) -> dict[str, int]:
        """Atom records of all files that could be read, by what became of them; the commonest first.

        Those of chains that are not in the set, whatever the reason, are ``NOT_ACCEPTED``.
        """
        total: Counter[str] = Counter()
        for row in self.rows:
            total.update(row.get("atoms", {}))
            if row["status"] != "accepted" and row.get("atoms_kept"):
                total.update({KEPT: -row["atoms_kept"], NOT_ACCEPTED: row["atoms_kept"]})
        return dict(total.most_common())

    def summary(self) -> str:
        """A few lines for people: how many were taken, and the refusals by kind with one example each."""
        accepted = [row for row in self.rows if row["status"] == "accepted"]
        residues = sum(row["length"] for row in accepted)
        lines = [
            f"{self.out}: {len(accepted)} chains, {residues} residues from {self.files} files"
            f" ({self.cached} from cache)"
        ]
        for kind, count in sorted(self.counts.items(), key=lambda item: -item[1]):
            if kind != "accepted":
                example = next(row for row in self.rows if kind in (row["status"], row.get("kind")))
                lines.append(f"  {count} {kind}, such as {example['chain'] or example['file']}: {example['reason']}")
        unknown = sum(row["unknown"] for row in accepted)
        if unknown:
            lines.append(f"  {unknown} residues of the accepted chains are of unknown type (X)")
        found = self.atoms
        records = sum(found.values())
        if records:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in found.items() if reason != KEPT)
            kept = found.get(KEPT, 0)
            lines.append(
                f"  {records:,} atom records: {kept:,} kept ({kept / records:.1%})" + (f"; {reasons}" * bool(reasons))
            )
        if self.unused_alignments:
            lines.append(
                f"  {len(self.unused_alignments)} alignments are of no chain here, such as {self.unused_alignments[0]}"
            )
        left_out = self.alignment_rows_left_out
        if left_out:
            lines.append("  of alignments: " + ", ".join(f"{count} {what}" for what, count in left_out.items()))
        return "\n".join([*lines, f"  every file and chain: {self.report}"])

    @property
    def alignment_rows_left_out(self) -> dict[str, int]:
        """Rows of alignments, and alignment files, that the set has not, by reason."""
        counts: Counter[str] = Counter()
        for row in self.rows:
            for file in row.get("alignments", ()):
                counts.update({f"rows: {reason}": count for reason, count in file.get("left_out", {}).items()})
                if "skipped" in file:
                    counts[f"files: {file['skipped']}"] += 1
        return dict(counts)


def build(
    src_dir: str | Path,
    out: str | Path,
    *,
    msa_dir: str | Path | None = None,
    jobs: int | None = None,
    settings: BuildSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> BuildReport:
    """Read every .cif, .mmcif, .pdb and .ent (and .gz of them) under ``src_dir`` into the chain set ``out``.

    ``msa_dir``: alignments by chain id (``ds4sci.data.alignments.alignment_files.index_folder``); they give the profile
    too. ``jobs``: processes, by default one for each core this process may use. ``progress(done, files)`` is called
    after each file.

    Chains are called by the entry's id in the file, else by the file's name. Where another file's chain is called so
    already, and is not the same sequence, the file's name and then its path below ``src_dir`` take the place of the
    entry's id; alignments are looked for under the first id.

    Assemblies (.pdb1), .pdbx and .bcif are not read; the report has a row of each, and of broken links.

    No file stops the others: what could not be used, and why, is a line of OUT.report.jsonl. ``out`` and the report
    appear complete or not at all. ``ValueError``: no structure in the folder, or not one chain accepted. ``OSError``:
    the disk is full or closed to us.
    """
    src_dir, out, settings = Path(src_dir), Path(out), settings or BuildSettings()
    files = _structures(src_dir)
    alignments = AlignmentFolder(None if msa_dir is None else Path(msa_dir), time.time_ns())
    alignments.by_chain()  # a missing folder is an error now, not in each worker
    work = out.with_name(out.name + ".work")
    work.mkdir(parents=True, exist_ok=True)

    entries = {path: work / f"{_key(path, src_dir, settings)}.npz" for path in files}
    todo = [path for path in files if not _is_current(entries[path], alignments.by_chain())]
    done = len(files) - len(todo)
    if progress:
        progress(done, len(files))
    arguments = [(path, str(path.relative_to(src_dir)), entries[path], alignments, settings) for path in todo]
    for path, failure in run_in_processes(_read_one, arguments, jobs=jobs or usable_cores(), marker_dir=work):
        if failure:
            _store(entries[path[0]], [], [_row(path[1], None, "rejected", "parser error", failure)], {})
        done += 1
        if progress:
            progress(done, len(files))

    rows, parts = _collect(entries, src_dir)
    rows += _unsupported_files(src_dir)
    report = out.with_name(out.name + ".report.jsonl")
    replace_text(report, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), sync=False)
    if not parts:
        reasons = Counter(row["reason"] for row in rows if row["reason"]).most_common(1)
        raise ValueError(
            f"{src_dir}: not one chain accepted of {len(files)} files; the commonest reason: {reasons[0][0]}"
        )
    write_arrays(out, drop_empty_arrays(concatenate(parts)))
    for old in set(work.glob("*.npz")) - set(entries.values()):
        old.unlink()
    chains = {alignment_files.chain_key(row["chain"]) for row in rows if row["chain"]}
    unused = sorted(set(alignments.by_chain()) - chains)
    return BuildReport(out, report, len(files), len(files) - len(todo), rows, unused)


class AlignmentFolder(NamedTuple):
    """Where the alignments lie; each process makes its own index once for each build, not one with each file."""

    folder: Path | None
    build: int

    def by_chain(self) -> dict[str, list[Path]]:
        return _index(self)


@lru_cache(maxsize=1)
def _index(alignments: AlignmentFolder) -> dict[str, list[Path]]:
    return {} if alignments.folder is None else alignment_files.index_folder(alignments.folder)


def _structures(src_dir: Path) -> list[Path]:
    if not src_dir.is_dir():
        raise ValueError(f"{src_dir}: no such folder; expected one with mmCIF or PDB files")
    files = sorted(path for path in src_dir.rglob("*") if suffix(path) in READERS and path.is_file())
    if not files:
        raise ValueError(
            f"{src_dir}: no structure in it; expected files called *{', *'.join(READERS)}, or those with .gz"
        )
    return files


def _unsupported_files(src_dir: Path) -> list[dict[str, Any]]:
    """Rows of files that look like structures by their names, and are not read."""
    rows = []
    for path in sorted(src_dir.rglob("*")):
        ending = suffix(path)
        if ending in READERS and not path.exists():
            reason = "a link to a file that is not there"
        elif re.fullmatch(r"\.(pdb\d+|pdbx|pdbqt|bcif|mmtf)", ending) and not path.is_dir():
            reason = f"files called *{ending} are not read; expected *{', *'.join(READERS)}, or those with .gz"
        else:
            continue
        rows.append(_row(str(path.relative_to(src_dir)), None, "rejected", "unsupported file", reason))
    return rows


def _key(path: Path, src_dir: Path, settings: BuildSettings) -> str:
    told = path.stat()
    parts = [CACHE_VERSION, str(path.relative_to(src_dir)), told.st_size, told.st_mtime_ns, settings.model_dump_json()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _stamp(paths: list[Path]) -> list[list[Any]]:
    return [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def _is_current(entry: Path, alignments: dict[str, list[Path]]) -> bool:
    """Whether a cache entry is whole and saw the alignments as they are now."""
    if not entry.exists():
        return False
    try:
        told, _ = _load(entry)
    except ValueError:
        entry.unlink()
        return False
    crashed = any(row["kind"] == "parser error" for row in told["rows"])  # may go well with more memory
    return not crashed and all(_stamp(alignments.get(key, [])) == seen for key, seen in told["alignments"].items())


def _load(entry: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    try:
        with np.load(entry, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        return json.loads(arrays.pop("report").tobytes()), arrays
    except Exception as error:  # a damaged zip raises whatever its broken bytes lead to
        raise ValueError(f"{entry}: damaged cache entry ({type(error).__name__}: {error})") from error


def _store(entry: Path, records: list[Record], rows: list[dict[str, Any]], alignments: dict[str, Any]) -> None:
    told = json.dumps({"rows": rows, "alignments": alignments}).encode()
    write_arrays(entry, {"report": np.frombuffer(told, np.uint8), **(pack_all_arrays(records) if records else {})})


def _collect(entries: Mapping[Path, Path], src_dir: Path) -> tuple[list[dict[str, Any]], list[dict[str, np.ndarray]]]:
    """Rows and arrays of all entries (by file), in order.

    Of chains with one id from several files the first has it. A copy, which has its sequence too, is refused; others
    are called by their file's stem, or its path, instead of the entry's id that they share.
    """
    rows: list[dict[str, Any]] = []
    parts: list[dict[str, np.ndarray]] = []
    owner: dict[str, tuple[str, Path, int]] = {}
    for path, entry in entries.items():
        told, arrays = _load(entry)
        rows += told["rows"]
        taken = {row["chain"]: row for row in told["rows"] if row["status"] == "accepted"}
        if not taken:
            continue
        chains = ChainSet(arrays, str(entry))
        at = {name: index for index, name in enumerate(taken)}
        again = [name for name in taken if name in owner]
        for name in again:
            _, first, index = owner[name]
            if _sequence(first, index) == chains.sequence(at[name]):
                _reject_id(taken.pop(name), owner[name][0])
        names = {name: name for name in taken}
        if any(name in owner for name in taken):
            names = _renamed(told["rows"], taken, path.relative_to(src_dir), owner)
        for name in [name for name in taken if names[name] in owner]:
            _reject_id(taken.pop(name), owner[name][0])
        owner.update({names[name]: (row["file"], entry, at[name]) for name, row in taken.items()})
        if len(taken) == len(chains) and all(old == new for old, new in names.items()):
            parts.append(arrays)
        elif taken:
            parts.append(pack_all_arrays([replace(one, id=names[one.id]) for one in chains if one.id in taken]))
    return rows, parts


def _sequence(entry: Path, index: int) -> str:
    return ChainSet(_load(entry)[1], str(entry)).sequence(index)


def _reject_id(row: dict[str, Any], owner: str) -> None:
    row.update(status="rejected", kind="same id", reason=f"{owner} has a chain of this id")


def _renamed(rows: list[dict[str, Any]], taken: Iterable[str], path: Path, owner: Container[str]) -> dict[str, str]:
    """Free ids for the chains of the file ``path``, in its rows too; the old ids where its path is no help either."""
    old = next(row["entry"] for row in rows if row["status"] == "read")
    below = "_".join([*path.parts[:-1], stem(path)])
    for prefix in (re.sub(r"[^\w.+-]+", "_", one) for one in (stem(path), below)):
        names = {name: prefix + name.removeprefix(old) for name in taken}
        if any(name in owner for name in names.values()):
            continue
        for row in rows:
            if row["chain"] and row["kind"] != "same id":
                row["chain"] = prefix + row["chain"].removeprefix(old)
            if row["status"] == "duplicate":
                row["reason"] = row["reason"].replace(f"of {old}", f"of {prefix}", 1)
        return names
    return {name: name for name in taken}


def _row(
    file: str, chain: str | None, status: str, kind: str | None, reason: str | None, **more: Any
) -> dict[str, Any]:
    return {"file": file, "chain": chain, "status": status, "kind": kind, "reason": reason, **more}


def _read_one(path: Path, name: str, entry: Path, where: AlignmentFolder, settings: BuildSettings) -> None:
    """Read one file and leave its chains and its rows of the report in ``entry``."""
    alignments = where.by_chain()
    seen: dict[str, Any] = {}
    try:
        parsed = READERS[suffix(path)](path)
        chains = parsed.records
        together = sum(len(chain.sequence) for chain in chains) <= MAX_PAIRED_RESIDUES
        letters = (
            assign_secondary_structure(chains)
            if together
            else [assign_secondary_structure([chain])[0] for chain in chains]
        )
    except (ValueError, OSError) as error:
        _store(entry, [], [_row(name, None, "rejected", "unreadable", str(error))], {})
        return
    except Exception as error:  # a reader's bug must cost one file, not the build; the report shows it
        _store(entry, [], [_row(name, None, "rejected", "parser error", f"{type(error).__name__}: {error}")], {})
        return
    rows = [_row(name, None, "read", None, None, entry=parsed.entry, atoms=parsed.atoms)]
    rows += [_row(name, f"{parsed.entry}_{one.chain}", "rejected", one.kind, one.reason) for one in parsed.excluded]
    taken: dict[str, Record] = {}
    for chain, dssp in zip(chains, letters, strict=True):
        resolved = int(chain.atom_mask[:, :3].all(1).sum())
        size: dict[str, Any] = {
            "length": len(chain.sequence),
            "resolved": resolved,
            "unknown": chain.sequence.count("X"),
            "atoms_kept": int(chain.atom_mask.sum()),
        }
        refusal = rejection_reason(chain, resolved, settings)
        if any(chain.id == other.id for other in taken.values()):
            refusal = ("same id", "an earlier chain of this file has the same id")
        first = taken.get(chain.sequence)
        if refusal is None and first is not None and not settings.keep_duplicates:
            rows.append(_row(name, chain.id, "duplicate", None, f"the sequence of {first.id}", **size))
            continue
        key = alignment_files.chain_key(chain.id)
        seen[key] = _stamp(alignments.get(key, []))
        rows_of: list[alignment_files.AlignmentFileReport] = []
        if refusal is None:
            try:
                chain, rows_of = alignment_files.attach_files(
                    replace(chain, dssp=dssp), alignments.get(key, []), max_rows=settings.max_msa_rows
                )
                if chain.msa is not None:
                    chain = replace(chain, profile=msa_profile(chain.msa))
                pack_all_arrays([chain])
            except (ValueError, OSError) as error:
                refusal = ("alignment" if alignments.get(key) else "not storable", str(error))
        if refusal is not None:
            rows.append(_row(name, chain.id, "rejected", *refusal, **size))
            continue
        taken[chain.id if settings.keep_duplicates else chain.sequence] = chain
        depth = 0 if chain.msa is None else len(chain.msa.sequences)
        told = {"alignments": [file.as_json() for file in rows_of]} if rows_of else {}
        rows.append(_row(name, chain.id, "accepted", None, None, **size, msa_rows=depth, **told))
    _store(entry, list(taken.values()), rows, seen)
