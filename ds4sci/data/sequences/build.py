"""FASTA, FASTQ and GenBank files → one sequence store: ``ds4sci data index``.

Each file becomes a part in OUT.work/ (by processes of ``workers``), then the parts become one store. A run that was
killed goes on: a finished part is kept as long as its file still has the checksum it was made from.
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

from ds4sci.data.sequences import layout, name_index
from ds4sci.data.sequences.alphabet import ALPHABETS, guess_alphabet
from ds4sci.data.sequences.block_reader import BlockReader, fingerprint
from ds4sci.data.sequences.formats import read_chunks
from ds4sci.data.sequences.shard_writer import EXAMPLES, IndexRules, write_shard
from ds4sci.data.sequences.store import SequenceStore
from ds4sci.data.sequences.subset import contiguous, copy_records
from ds4sci.data.worker_pool import run_in_processes
from ds4sci.files import locks
from ds4sci.machine.processor import usable_cores

_HEAD = 1 << 16
"""Letters that an alphabet is recognised from: beyond the 10,000 N that human chromosomes begin with."""


@dataclass(frozen=True)
class IndexSummary:
    """What an index run did; ``str(summary)`` is for people.

    unchanged  the store was there, made from the same files by the same rules: nothing was done
    kept       files whose parts an earlier, killed run had finished
    skipped    kind of fault → ``{"count": n, "examples": [messages]}``
    replaced   what was changed in letters and headers → how often
    rare       letters that are kept though they say little (IUPAC codes; B, Z, J, U, O) → how often
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
            + (" (unchanged since it was made: nothing to do)" if self.unchanged else "")
            + (f" ({self.reused_files} of them read by an earlier run)" if self.reused_files else "")
        ]
        for kind, told in sorted(self.skipped.items(), key=lambda item: -item[1]["count"]):
            lines.append(f"  skipped: {told['count']:,} {kind}, such as {told['examples'][0]}")
        lines += [f"  {what}: {count:,}" for what, count in self.replaced.items()]
        if self.rare:
            lines.append("  kept as they are: " + ", ".join(f"{letter} {n:,}" for letter, n in self.rare.items()))
        return "\n".join(lines)


def index(
    files: Sequence[str | Path],
    out: str | Path,
    *,
    alphabet: Literal["auto", "protein", "dna"] = "auto",
    bad: Literal["error", "skip"] = "error",
    max_length: int | None = None,
    jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> IndexSummary:
    """Read FASTA, FASTQ and GenBank files (plain, gzip, bgzip; told by content) into the store ``out``.

    ``alphabet``: ``auto`` recognises it from the files' beginnings, which must agree. ``bad``: what is wrong with a
    record or a file raises ``ValueError`` (file, line, record, remedy), or with ``skip`` leaves it out and counts it.
    ``max_length``: residues of a record. ``jobs``: processes, by default one for each core this process may use.
    ``progress(done, files)`` is called after each file. Memory: 150 bytes a record and a few megabytes a process.

    The order is that of ``files`` and of the records in them. ``out`` appears whole or not at all; a run over the same
    files and rules does nothing, one over changed files replaces the store. ``ValueError`` also for no files, a file
    given twice, no record in all of them, or an ``out`` that exists and is no store.
    """
    paths, out = [Path(file) for file in files], Path(out)
    _check(paths, out, alphabet, bad, max_length)
    work = out.with_name(f"{out.name}.work")
    name, guessed = _recognise(paths) if alphabet == "auto" else (alphabet, None)
    rules = IndexRules(name, bad, max_length, guessed)
    told = cache(fingerprint)  # read where there is something to compare with
    if out.exists() and any(out.iterdir()):
        store = SequenceStore.open(out)
        sources = [(source["size"], source["sha256"]) for source in store.manifest["sources"]]
        if store.manifest["rules"] == _kept(rules) and sources == [told(path) for path in paths]:
            return _summary(out, store.manifest, unchanged=True, reused_files=0)
    with _exclusive_lock(work, out):
        parts = {path: work / _key(path, rules) for path in paths}
        for leftover in set(work.iterdir()) - set(parts.values()) - {work / "lock"}:
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        todo = [(path, parts[path], rules) for path in paths if not _is_current(parts[path], path, told)]
        done = kept = len(paths) - len(todo)
        if progress:
            progress(done, len(paths))
        for (path, *_), failure in run_in_processes(write_shard, todo, jobs=jobs or usable_cores(), marker_dir=work):
            if failure:
                raise ValueError(f"{path}: {failure}; give it more memory or fewer jobs")
            done += 1
            if progress:
                progress(done, len(paths))
        manifest = _merge_shards([SequenceStore.open(parts[path]) for path in paths], work / "whole", rules)
        if out.exists():
            out.rename(work / "old")
        (work / "whole").rename(out)
        shutil.rmtree(work)
    return _summary(out, manifest, unchanged=False, reused_files=kept)


def _check(paths: list[Path], out: Path, alphabet: str, bad: str, max_length: int | None) -> None:
    if not paths:
        raise ValueError("no files to index; name FASTA, FASTQ or GenBank files")
    for at, path in enumerate(paths):
        if path in paths[:at]:
            raise ValueError(f"{path}: given twice; name each file once")
    for what, value, known in (
        ("alphabet", alphabet, ("auto", *ALPHABETS)),
        ("bad", bad, ("error", "skip")),
    ):
        if value not in known:
            raise ValueError(f"{what} must be one of {', '.join(known)}; got {value!r}")
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length must be 1 or more residues; got {max_length}")
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / layout.MANIFEST).is_file())):
        raise ValueError(f"{out}: exists and is no sequence store; remove it or choose another folder")


def _recognise(paths: list[Path]) -> tuple[str, str | None]:
    """The alphabet of the files' beginnings, and the first file that shows it."""
    found: dict[str, Path] = {}
    for path in paths:
        letters = b""
        try:
            for piece in read_chunks(BlockReader(path, _HEAD), path):
                letters += piece.letters[: _HEAD - len(letters)]
                if len(letters) >= _HEAD:
                    break
        except ValueError:
            continue  # the file's own reader tells it, or skips the file
        name = guess_alphabet(letters)
        if name is not None:
            found.setdefault(name, path)
    if len(found) > 1:
        both = " and ".join(f"{name} ({path})" for name, path in found.items())
        raise ValueError(f"the files hold {both}; a store has one alphabet: index them apart, or give alphabet=")
    name, path = next(iter(found.items()), ("protein", paths[0]))
    return name, str(path)


def _kept(rules: IndexRules) -> dict[str, Any]:
    """What of the rules decides what a store holds."""
    return rules._replace(guessed=None)._asdict()


def _key(path: Path, rules: IndexRules) -> str:
    return hashlib.sha256(json.dumps([layout.FORMAT, str(path.absolute()), *rules]).encode()).hexdigest()[:32]


def _is_current(part: Path, path: Path, told: Callable[[Path], tuple[int, str]]) -> bool:
    """Whether a finished part was made from the file as it is now; one that was not is removed."""
    if not part.exists():
        return False
    try:
        source = SequenceStore.open(part).manifest["sources"][0]
        if source["sha256"] and (source["size"], source["sha256"]) == told(path):
            return True
    except ValueError:
        pass  # damaged: made anew, as one of an older file is
    shutil.rmtree(part)
    return False


@contextmanager
def _exclusive_lock(work: Path, out: Path) -> Iterator[None]:
    """Hold the work folder against a second run into the same store; the system lets go of it when a run dies."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locks.exclusive_or_raise(work / "lock"))
        except BlockingIOError:
            raise ValueError(f"{out}: another run is making it; wait for that one") from None
        yield


def _merge_shards(parts: list[SequenceStore], whole: Path, rules: IndexRules) -> dict[str, Any]:
    """Write all parts' records as the store ``whole``; with one part and no name twice, that is the part itself."""
    manifest = _merge_manifests([part.manifest for part in parts], rules)
    keep = _first_of_names(parts, rules, manifest["skipped"])
    if not any(kept.any() for kept in keep):
        told = [message for skipped in manifest["skipped"].values() for message in skipped["examples"]]
        raise ValueError(f"no record is left of {len(parts)} files; the first was skipped for: {told[0]}")
    if len(parts) == 1 and keep[0].all():
        parts[0].folder.rename(whole)
        manifest = {**parts[0].manifest, **manifest}
        layout.write_manifest(whole, manifest)
        return manifest
    writer = layout.StoreWriter(whole)
    for source, (part, kept) in enumerate(zip(parts, keep, strict=True)):
        for first, last in contiguous(kept):
            copy_records(writer, part, first, last, source)
    return writer.finish(manifest)


def _merge_manifests(manifests: list[dict[str, Any]], rules: IndexRules) -> dict[str, Any]:
    skipped: dict[str, dict[str, Any]] = {}
    counts: dict[str, dict[str, int]] = {"replaced": {}, "rare": {}}
    for manifest in manifests:
        for kind, told in manifest["skipped"].items():
            sofar = skipped.setdefault(kind, {"count": 0, "examples": []})
            sofar["count"] += told["count"]
            sofar["examples"] = [*sofar["examples"], *told["examples"]][:EXAMPLES]
        for what, total in counts.items():
            for key, count in manifest[what].items():
                total[key] = total.get(key, 0) + count
    return {
        "alphabet": rules.alphabet,
        "rules": _kept(rules),
        "sources": [source for manifest in manifests for source in manifest["sources"]],
        "skipped": skipped,
        "replaced": counts["replaced"],
        "rare": dict(sorted(counts["rare"].items())),
    }


def _first_of_names(parts: list[SequenceStore], rules: IndexRules, skipped: dict[str, Any]) -> list[np.ndarray]:
    """bool [records] of each part: False for a record whose name an earlier one has; those are told in ``skipped``."""
    firsts = np.cumsum([0, *(len(part) for part in parts)])
    keep = np.ones(firsts[-1], bool)
    hashes = np.concatenate([part.arrays["name_hashes"] for part in parts])
    order = np.concatenate([part.arrays["name_records"] + first for part, first in zip(parts, firsts, strict=False)])
    by_hash = np.argsort(hashes, kind="stable") if len(parts) > 1 else np.arange(len(hashes))

    def owner(record: int) -> tuple[SequenceStore, int]:
        at = int(np.searchsorted(firsts, record, "right")) - 1
        return parts[at], record - int(firsts[at])

    def name(record: int) -> str:
        part, local = owner(record)
        return part.name(local)

    for record, first in name_index.find_duplicates(hashes[by_hash], order[by_hash], name):
        part, local = owner(record)
        other, place = owner(first)
        message = (
            f"{part.location(local)}: the name was used in {other.sources[0]}, line {other.arrays['lines'][place]};"
            " names must differ: rename one"
        )
        if rules.bad != "skip":
            raise ValueError(f"{message}, or keep the first with bad='skip'")
        keep[record] = False
        told = skipped.setdefault("name used before", {"count": 0, "examples": []})
        told["count"] += 1
        if len(told["examples"]) < EXAMPLES:
            told["examples"].append(message)
    return [keep[a:b] for a, b in pairwise(firsts)]


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
