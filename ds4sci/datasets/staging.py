"""Staging of a dataset: copy to storage of the node, by all ranks of the node together.

The files are divided among the ranks of a node by size. Each file is compared with its SHA-256 in the manifest while
it is copied, and appears under its name only then; so after a kill the files that exist are finished, and their sizes
and sums are in the manifest. They are read and compared again instead of being copied. The staged folder is named
after the content, ``NAME-SUM``, so that another version never mixes with it. Its manifest is written last.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ds4sci.datasets import manifest
from ds4sci.datasets.checked_copy import copy_checked
from ds4sci.datasets.dataset import MANIFEST
from ds4sci.datasets.manifest import FileSum, Manifest
from ds4sci.datasets.store import check_free_space
from ds4sci.files import locks

Gather = Callable[[str], Sequence[str]]
"""Function that returns the text of every rank, on every rank, after all have called it."""

STATE = ".staging"
"""Subfolder with the locks and the files that are being copied."""

FILES_AT_ONCE = 2
"""Files that a rank copies at the same time."""


@dataclass(frozen=True)
class Staged:
    """A staged dataset, and what this rank did.

    folder        of the staged dataset
    files         number of files of this rank
    copied_bytes  copied by this rank
    kept_bytes    found finished by this rank, and intact
    seconds       until every rank was finished
    refused       one text per staged file that was damaged and has been copied again
    """

    folder: Path
    files: int
    copied_bytes: int
    kept_bytes: int
    seconds: float
    refused: tuple[str, ...]


def stage(
    folder: Path, to: Path, *, local_rank: int = 0, local_size: int = 1, gather: Gather = lambda text: [text]
) -> Staged:
    """Copy the dataset in ``folder`` into a folder below ``to``, the same on every rank of a node. Every rank calls it.

    local_rank, local_size  this rank among those of its node, which share ``to``
    gather                  over all ranks of the run; every rank raises if one has failed

    Raises ValueError if ``folder`` has no manifest, if a source file is missing or differs from it, and if ``to`` has
    too little space.
    """
    start = time.perf_counter()
    problem = ""
    try:
        source = manifest.read(folder)
        target = staged_folder(folder, to, source)
        pending = {name: one for name, one in source.files.items() if manifest.fault(target / name, one, sums=False)}
        check_free_space(to, sum(one.size for one in pending.values()))
    except (ValueError, OSError) as error:
        problem = str(error)
    _raise_first(gather(problem))  # also: no rank writes before all have counted the free space
    share, done = shares(source, local_size)[local_rank], {}
    try:
        done = _stage_share(folder, target, share)
    except ValueError as error:
        problem = f"{error}; make the dataset again with: ds4sci data get {source.name} --to {folder}"
    except OSError as error:
        problem = str(error)
    _raise_first(gather(problem))
    if local_rank == 0:
        try:
            with locks.exclusive(target / STATE / f"{MANIFEST}.lock"):
                manifest.write_json(target, source)
        except OSError as error:
            problem = str(error)
    _raise_first(gather(problem))  # also: no rank opens the folder before its manifest is there
    kept = sum(share[name].size for name, fault in done.items() if fault is None)
    copied = sum(share[name].size for name, fault in done.items() if fault is not None)
    refused = tuple(fault for fault in done.values() if fault)
    return Staged(target, len(share), copied, kept, time.perf_counter() - start, refused)


def staged_folder(folder: Path, to: Path, source: Manifest) -> Path:
    """Folder below ``to`` for the content of ``source``."""
    content = json.dumps(source.to_json(), sort_keys=True).encode()
    return to / f"{folder.name}-{hashlib.sha256(content).hexdigest()[:8]}"


def shares(source: Manifest, count: int) -> list[dict[str, FileSum]]:
    """Divide the files into ``count`` disjoint shares of about the same size: the largest first, to the least."""
    divided: list[dict[str, FileSum]] = [{} for _ in range(count)]
    sizes = [0] * count
    for name, file in sorted(source.files.items(), key=lambda item: (-item[1].size, item[0])):
        least = sizes.index(min(sizes))
        divided[least][name] = file
        sizes[least] += file.size
    return divided


def _stage_share(folder: Path, target: Path, share: dict[str, FileSum]) -> dict[str, str | None]:
    """Stage the files of a rank. Returns the result of ``_stage_file`` of each."""
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        futures = {name: pool.submit(_stage_file, folder, target, name, one) for name, one in share.items()}
        try:
            return {name: future.result() for name, future in futures.items()}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _stage_file(folder: Path, target: Path, name: str, expected: FileSum) -> str | None:
    """Copy one file unless it is staged intact. Returns None if it was; else the fault of the staged file, or ""."""
    state = target / STATE / name
    with locks.exclusive(state.with_name(f"{state.name}.lock")):  # other runs of this node may stage the same dataset
        staged = target / name
        fault = manifest.fault(staged, expected) if staged.exists() else ""
        if staged.exists() and not fault:
            return None
        copy_checked(folder / name, staged, expected, partial=state.with_name(f"{state.name}.partial"))
    return fault


def _raise_first(problems: Sequence[str]) -> None:
    """Raise the first problem of all ranks, on every rank."""
    for text in problems:
        if text:
            raise ValueError(f"staging failed: {text}")
