"""Indexing of FASTA, FASTQ and GenBank files into one sequence store: ``ds4sci data index``.

Worker processes write one shard per file into OUT.work/, then the shards are merged into one store. A killed run can be
resumed: a finished shard is reused as long as the checksum of its file has not changed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ds4sci.data.sequences import intervals, layout, name_index
from ds4sci.data.sequences.alphabet import ALPHABETS, guess_alphabet
from ds4sci.data.sequences.block_reader import BlockReader, fingerprint
from ds4sci.data.sequences.formats import read_chunks
from ds4sci.data.sequences.shard_writer import MAX_EXAMPLES, IndexRules, write_shard
from ds4sci.data.sequences.store import SequenceStore
from ds4sci.data.sequences.subset import copy_records
from ds4sci.data.worker_pool import run_in_processes
from ds4sci.files import locks
from ds4sci.machine.processor import usable_cores

_HEAD = 1 << 16
"""Letters from which the alphabet is guessed: more than the 10,000 N at the start of human chromosomes."""


@dataclass(frozen=True)
class IndexSummary:
    """Result of ``index``; ``str(summary)`` is a readable report.

    unchanged     the store existed, made from the same files with the same rules, so nothing was done
    reused_files  files whose shards an earlier, killed run had finished
    skipped       kind of error → ``{"count": n, "examples": [messages]}``
    replaced      change of letters or headers → count
    rare          letters stored although they are ambiguous or rare (IUPAC codes; B, Z, J, U, O) → count
    """

    out: Path
    alphabet: str
    records: int
    residues: int
    files: int
    unchanged: bool
    reused_files: int
    skipped: dict[str, dict[str, Any]]
    replaced: dict[str, int]
    rare: dict[str, int]

    def __str__(self) -> str:
        lines = [
            f"{self.out}: {self.records:,} {self.alphabet} records, {self.residues:,} residues from {self.files} files"
            + (" (unchanged, nothing to do)" if self.unchanged else "")
            + (f" ({self.reused_files} of them reused from an earlier run)" if self.reused_files else "")
        ]
        for kind, entry in sorted(self.skipped.items(), key=lambda item: -item[1]["count"]):
            lines.append(f"  skipped: {entry['count']:,} {kind}, such as {entry['examples'][0]}")
        lines += [f"  {change}: {count:,}" for change, count in self.replaced.items()]
        if self.rare:
            lines.append("  rare letters kept: " + ", ".join(f"{letter} {n:,}" for letter, n in self.rare.items()))
        return "\n".join(lines)


def index(
    files: Sequence[str | Path],
    out: str | Path,
    *,
    alphabet: Literal["auto", "protein", "dna"] = "auto",
    on_bad_record: Literal["error", "skip"] = "error",
    max_length: int | None = None,
    jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> IndexSummary:
    """Read FASTA, FASTQ and GenBank files into the store ``out``.

    files          plain, gzip or bgzip; format and compression are detected from the content
    alphabet       ``auto`` guesses it from the beginning of each file; all files must agree
    on_bad_record  ``error``: an error of a record or a file raises ``ValueError`` (file, line, record, remedy);
                   ``skip``: the record or file is skipped and counted
    max_length     maximum number of residues of a record
    jobs           number of processes, by default one per usable core
    progress       ``progress(done, files)`` is called after each file

    Records keep the order of ``files`` and of the records in them. ``out`` is written atomically. A run with the same
    files and rules does nothing; a run with changed files replaces the store. Memory: 150 bytes per record, and a few
    megabytes per process. ``ValueError`` also if there are no files, a file is given twice, no file has a valid record,
    or ``out`` exists and is not a store.
    """
    paths, out = [Path(file) for file in files], Path(out)
    _check_arguments(paths, out, alphabet, on_bad_record, max_length)
    work = out.with_name(f"{out.name}.work")
    name, guessed_from = _guess_alphabet(paths) if alphabet == "auto" else (alphabet, None)
    rules = IndexRules(name, on_bad_record, max_length, guessed_from)
    checksum = cache(fingerprint)  # computed only if there is a shard or store to compare with
    if out.exists() and any(out.iterdir()):
        store = SequenceStore.open(out)
        sources = [(source["size"], source["sha256"]) for source in store.manifest["sources"]]
        if store.manifest["rules"] == _manifest_rules(rules) and sources == [checksum(path) for path in paths]:
            return _summary(out, store.manifest, unchanged=True, reused_files=0)
    with _exclusive_lock(work, out):
        shards = {path: work / _shard_name(path, rules) for path in paths}
        for leftover in set(work.iterdir()) - set(shards.values()) - {work / "lock"}:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        todo = [(path, shards[path], rules) for path in paths if not _is_current(shards[path], path, checksum)]
        done = reused = len(paths) - len(todo)
        if progress:
            progress(done, len(paths))
        for (path, *_), failure in run_in_processes(write_shard, todo, jobs=jobs or usable_cores(), marker_dir=work):
            if failure:
                raise ValueError(f"{path}: {failure}; provide more memory or use fewer jobs")
            done += 1
            if progress:
                progress(done, len(paths))
        manifest = _merge_shards([SequenceStore.open(shards[path]) for path in paths], work / "whole", rules)
        if out.exists():
            out.rename(work / "old")
        (work / "whole").rename(out)
        shutil.rmtree(work)
    return _summary(out, manifest, unchanged=False, reused_files=reused)


def _check_arguments(paths: list[Path], out: Path, alphabet: str, on_bad_record: str, max_length: int | None) -> None:
    if not paths:
        raise ValueError("no files to index; pass FASTA, FASTQ or GenBank files")
    for index, path in enumerate(paths):
        if path in paths[:index]:
            raise ValueError(f"{path}: given twice; pass each file once")
    for argument, value, allowed in (
        ("alphabet", alphabet, ("auto", *ALPHABETS)),
        ("on_bad_record", on_bad_record, ("error", "skip")),
    ):
        if value not in allowed:
            raise ValueError(f"{argument} must be one of {', '.join(allowed)}; got {value!r}")
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length must be at least 1 residue; got {max_length}")
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / layout.MANIFEST).is_file())):
        raise ValueError(f"{out}: exists and is not a sequence store; remove it or choose another folder")


def _guess_alphabet(paths: list[Path]) -> tuple[str, str | None]:
    """The alphabet of the files, guessed from their beginnings, and the first file with that alphabet."""
    first_files: dict[str, Path] = {}
    for path in paths:
        letters = b""
        try:
            for chunk in read_chunks(BlockReader(path, _HEAD), path):
                letters += chunk.letters[: _HEAD - len(letters)]
                if len(letters) >= _HEAD:
                    break
        except ValueError:
            continue  # write_shard reports the error, or skips the file
        name = guess_alphabet(letters)
        if name is not None:
            first_files.setdefault(name, path)
    if len(first_files) > 1:
        both = " and ".join(f"{name} ({path})" for name, path in first_files.items())
        raise ValueError(
            f"the files contain {both}; a store has one alphabet: index them into separate stores, or set alphabet="
        )
    name, path = next(iter(first_files.items()), ("protein", paths[0]))
    return name, str(path)


def _manifest_rules(rules: IndexRules) -> dict[str, Any]:
    """The rules that determine the content of a store."""
    return rules._replace(guessed_from=None).to_manifest()


def _shard_name(path: Path, rules: IndexRules) -> str:
    return hashlib.sha256(json.dumps([layout.FORMAT, str(path.absolute()), *rules]).encode()).hexdigest()[:32]


def _is_current(shard: Path, path: Path, checksum: Callable[[Path], tuple[int, str]]) -> bool:
    """Whether a finished shard was made from the current content of its file; an outdated shard is removed."""
    if not shard.exists():
        return False
    try:
        source = SequenceStore.open(shard).manifest["sources"][0]
        if source["sha256"] and (source["size"], source["sha256"]) == checksum(path):
            return True
    except ValueError:
        pass  # a damaged shard is written again, like an outdated one
    shutil.rmtree(shard)
    return False


@contextmanager
def _exclusive_lock(work: Path, out: Path) -> Iterator[None]:
    """Lock the work folder against a second run into the same store; the lock ends with the process."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.exclusive_or_raise(work / "lock"))
        except BlockingIOError:
            raise ValueError(f"{out}: another run is writing this store; wait for it to finish") from None
        yield


def _merge_shards(shards: list[SequenceStore], out: Path, rules: IndexRules) -> dict[str, Any]:
    """Write the records of all shards to the store ``out``; a single shard without duplicates is renamed."""
    manifest = _merge_manifests([shard.manifest for shard in shards], rules)
    keep = _mask_duplicates(shards, rules, manifest["skipped"])
    if not any(mask.any() for mask in keep):
        messages = [message for skipped in manifest["skipped"].values() for message in skipped["examples"]]
        raise ValueError(f"no valid record in {len(shards)} files; the first one was skipped because of: {messages[0]}")
    if len(shards) == 1 and keep[0].all():
        shards[0].folder.rename(out)
        manifest = {**shards[0].manifest, **manifest}
        layout.write_manifest(out, manifest)
        return manifest
    writer = layout.StoreWriter(out)
    for source, (shard, mask) in enumerate(zip(shards, keep, strict=True)):
        for first, last in intervals.from_mask(mask).tolist():
            copy_records(writer, shard, first, last, source)
    return writer.finish(manifest)


def _merge_manifests(manifests: list[dict[str, Any]], rules: IndexRules) -> dict[str, Any]:
    skipped: dict[str, dict[str, Any]] = {}
    counts: dict[str, dict[str, int]] = {"replaced": {}, "rare": {}}
    for manifest in manifests:
        for kind, entry in manifest["skipped"].items():
            total = skipped.setdefault(kind, {"count": 0, "examples": []})
            total["count"] += entry["count"]
            total["examples"] = [*total["examples"], *entry["examples"]][:MAX_EXAMPLES]
        for name, totals in counts.items():
            for key, count in manifest[name].items():
                totals[key] = totals.get(key, 0) + count
    return {
        "alphabet": rules.alphabet,
        "rules": _manifest_rules(rules),
        "sources": [source for manifest in manifests for source in manifest["sources"]],
        "skipped": skipped,
        "replaced": counts["replaced"],
        "rare": dict(sorted(counts["rare"].items())),
    }


def _mask_duplicates(shards: list[SequenceStore], rules: IndexRules, skipped: dict[str, Any]) -> list[np.ndarray]:
    """bool [records] of each shard: False for a record with the name of an earlier one, which ``skipped`` counts."""
    offsets = np.cumsum([0, *(len(shard) for shard in shards)])
    keep = np.ones(offsets[-1], bool)
    hashes = np.concatenate([shard.arrays["name_hashes"] for shard in shards])
    records = np.concatenate(
        [shard.arrays["name_records"] + offset for shard, offset in zip(shards, offsets, strict=False)]
    )
    by_hash = np.argsort(hashes, kind="stable") if len(shards) > 1 else np.arange(len(hashes))

    def locate(record: int) -> tuple[SequenceStore, int]:
        index = int(np.searchsorted(offsets, record, "right")) - 1
        return shards[index], record - int(offsets[index])

    def name(record: int) -> str:
        shard, local = locate(record)
        return shard.name(local)

    for record, first in name_index.find_duplicates(hashes[by_hash], records[by_hash], name):
        shard, local = locate(record)
        first_shard, first_local = locate(first)
        message = (
            f"{shard.location(local)}: the name was used in {first_shard.sources[0]},"
            f" line {first_shard.arrays['lines'][first_local]}; names must be unique: rename one"
        )
        if rules.on_bad_record != "skip":
            raise ValueError(f"{message}, or keep the first with on_bad_record='skip' (`--bad skip`)")
        keep[record] = False
        entry = skipped.setdefault("name used before", {"count": 0, "examples": []})
        entry["count"] += 1
        if len(entry["examples"]) < MAX_EXAMPLES:
            entry["examples"].append(message)
    return [keep[a:b] for a, b in pairwise(offsets)]


def _summary(out: Path, manifest: dict[str, Any], *, unchanged: bool, reused_files: int) -> IndexSummary:
    return IndexSummary(
        out=out,
        alphabet=manifest["alphabet"],
        records=manifest["records"],
        residues=manifest["residues"],
        files=len(manifest["sources"]),
        unchanged=unchanged,
        reused_files=reused_files,
        skipped=manifest["skipped"],
        replaced=manifest["replaced"],
        rare=manifest["rare"],
    )
