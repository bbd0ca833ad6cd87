"""Stored datasets: get, verify and find them.

A dataset is made in a temporary folder next to its own; its manifest is written last, and the folder is renamed into
place. A process that is killed therefore leaves no folder that looks finished. A lock keeps two processes from making
the same dataset; the second waits and uses the result of the first.
"""

from __future__ import annotations

import contextlib
import difflib
import shutil
from collections.abc import Iterator
from pathlib import Path

from ds4sci.datasets import manifest, registry, sources
from ds4sci.datasets.checked_copy import copy_checked
from ds4sci.datasets.dataset import MANIFEST, Dataset, home, stored_folder
from ds4sci.datasets.manifest import FileSum, Manifest
from ds4sci.datasets.sources import Log
from ds4sci.files import atomic_files, locks

REPOSITORY = Path(__file__).resolve().parents[2]
"""Folder that holds the bundled files, if ds4sci runs from a checkout."""


def get(name: str, *, to: Path | None = None, mirror: Path | None = None, log: Log = lambda text: None) -> Path:
    """Return the folder of the dataset ``name``, which is downloaded, generated or copied unless it is there intact.

    to      folder to make it in; by default the store, or for bundled files their folder in the repository
    mirror  folder with the archives, or with the finished dataset; nothing is downloaded or generated
    log     function that receives one line per step, and each file that is refused

    Every file of a dataset that exists is read and compared with its sum. If one is damaged, the dataset is made
    again. Raises ValueError for an unknown name, files that cannot be obtained, wrong sums, too little free space, and
    a folder ``to`` that holds something else.
    """
    entry = registry.find(name)
    dataset = entry.dataset
    if to is None and mirror is None and (folder := _bundled_folder(dataset)) is not None:
        if found := verify(name):
            raise ValueError(f"{'; '.join(found)}. Restore it with: git checkout -- {dataset.bundled}")
        return folder
    folder = (to or stored_folder(dataset.name, dataset.version)).absolute()
    lock = folder.with_name(f".{folder.name}.lock")
    with locks.exclusive(lock, on_wait=lambda: log(f"waiting for another process that makes {folder}")):
        if folder.exists():
            found = _faults(dataset, folder)
            if not found:
                log(f"{folder}: present, every file is intact")
                return folder
            _refuse_other_content(dataset, folder, is_ours=to is None)
            for text in found:
                log(f"refused: {text}")
        _make(entry, folder, mirror, log)
    return folder


def verify(name: str, folder: Path | None = None) -> list[str]:
    """Read every file of a stored dataset; describe each missing or damaged one. Empty if all are intact.

    folder  where it is; by default the store, or for bundled files their folder in the repository
    """
    dataset = registry.find(name).dataset
    if folder is None and (bundled := _bundled_folder(dataset)) is not None:
        return manifest.faults(bundled, _fixed_sums(dataset))
    return _faults(dataset, folder or stored_folder(dataset.name, dataset.version))


def state(name: str) -> tuple[str, Path]:
    """``present``, ``absent`` or ``damaged``, and the folder. Compares sizes and does not read the files."""
    dataset = registry.find(name).dataset
    if (bundled := _bundled_folder(dataset)) is not None:
        return ("damaged" if manifest.faults(bundled, _fixed_sums(dataset), sums=False) else "present"), bundled
    folder = stored_folder(dataset.name, dataset.version)
    if not folder.exists():
        return "absent", folder
    return ("damaged" if _faults(dataset, folder, sums=False) else "present"), folder


def lookup(path: Path, key: str = "data.path") -> Path:
    """The folder ``path``, or that of the stored dataset ``NAME-VERSION``; its files have the sizes of its manifest.

    Raises ValueError, with the command that gets the dataset, if there is no such folder or a file is missing.
    """
    if path.is_dir():
        folder, remedy = path, f"ds4sci data get NAME --to {path}"
        if not (folder / MANIFEST).exists():
            return folder  # not made by ds4sci: its shards are checked when they are opened
    else:
        name, _, version = str(path).rpartition("-")
        folder = stored_folder(name, version)
        if not folder.exists():
            raise ValueError(f"{key} = {str(path)!r}: no such folder, and {_absence(name, version, path)}")
        remedy = f"ds4sci data get {name}"
    try:
        found = manifest.faults(folder, manifest.read(folder).files, sums=False)
    except ValueError as error:
        found = [str(error)]
    if found:
        raise ValueError(f"{key} = {str(path)!r}: {found[0]}; get the dataset again with: {remedy}")
    return folder


def _absence(name: str, version: str, path: Path) -> str:
    """Why there is no stored dataset ``name-version``, and what to do."""
    if name in registry.names():
        known = registry.find(name).dataset.version
        if known == version:
            return f"the dataset {name} is not in {home()}; get it with: ds4sci data get {name}"
        return f"the dataset {name} has version {known}; expected {name}-{known}"
    near = difflib.get_close_matches(name or str(path), registry.names(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else "the datasets are listed by: ds4sci data list"
    return f"no dataset of that name and version (NAME-VERSION); {hint}"


def _bundled_folder(dataset: Dataset) -> Path | None:
    folder = REPOSITORY / dataset.bundled
    return folder if dataset.bundled and folder.is_dir() else None


def _fixed_sums(dataset: Dataset) -> dict[str, FileSum]:
    """The sums that are the same on every machine; sizes are not compared (−1)."""
    return {name: FileSum(-1, sha256) for name, sha256 in dataset.files.items()}


def _faults(dataset: Dataset, folder: Path, *, sums: bool = True) -> list[str]:
    """Differences between a folder, its manifest and the dataset's fixed sums."""
    if not folder.is_dir():
        return [f"{folder}: missing"]
    try:
        stored = manifest.read(folder)
    except ValueError as error:
        return [str(error)]
    return _differences(dataset, folder, stored) or manifest.faults(folder, stored.files, sums=sums)


def _differences(dataset: Dataset, folder: Path, stored: Manifest) -> list[str]:
    """Differences between a manifest and the description of the dataset."""
    if (stored.name, stored.version) != (dataset.name, dataset.version):
        found = f"{stored.name} version {stored.version}"
        return [f"{folder}: holds {found}, expected {dataset.name} version {dataset.version}"]
    if not dataset.files:
        return []
    found_sums = {name: file.sha256 for name, file in stored.files.items()}
    return [
        f"{folder / name}: sha256 {found_sums.get(name, 'missing')}, expected {dataset.files.get(name, 'no such file')}"
        for name in sorted(found_sums.keys() | dataset.files.keys())
        if found_sums.get(name) != dataset.files.get(name)
    ]


def _refuse_other_content(dataset: Dataset, folder: Path, *, is_ours: bool) -> None:
    """Raise ValueError if replacing ``folder`` would delete something else than this dataset."""
    if is_ours or (folder.is_dir() and not any(folder.iterdir())):
        return
    with contextlib.suppress(ValueError):
        if manifest.read(folder).name == dataset.name:
            return
    raise ValueError(f"{folder}: already exists and is not the dataset {dataset.name}; choose a new folder")


def _make(entry: registry.Entry, folder: Path, mirror: Path | None, log: Log) -> None:
    """Make the dataset in a temporary folder and rename it to ``folder``. The caller holds the lock."""
    dataset, partial = entry.dataset, folder.with_name(f".{folder.name}.partial")
    downloads, old = folder.with_name(f".{folder.name}.download"), folder.with_name(f".{folder.name}.old")
    for leftover in (partial, old):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    check_free_space(folder.parent, dataset.size + sum(source.size for source in dataset.sources))
    partial.mkdir()
    try:
        _fill(entry, partial, downloads, mirror, log)
        stored = manifest.write(partial, dataset.name, dataset.version)
        if found := _differences(dataset, partial, stored):
            raise ValueError(f"{dataset.name}: the files that were made differ: {'; '.join(found)}")
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        atomic_files.sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(downloads, ignore_errors=True)
    log(f"{folder}: {len(stored.files)} files, {stored.size / 1e6:,.1f} MB")


def _fill(entry: registry.Entry, partial: Path, downloads: Path, mirror: Path | None, log: Log) -> None:
    """Write the files of the dataset into the empty folder ``partial``."""
    dataset = entry.dataset
    if (finished := _finished(dataset, mirror)) is not None:
        log(f"copying {finished}")
        for name, expected in manifest.read(finished).files.items():
            copy_checked(finished / name, partial / name, expected)
    elif dataset.bundled:
        source = mirror or REPOSITORY / dataset.bundled
        for name, expected in _fixed_sums(dataset).items():
            if not (source / name).is_file():
                raise ValueError(
                    f"{source / name}: missing; {dataset.name} is in the folder {dataset.bundled} of the repository of "
                    "ds4sci: run from a checkout, or name a copy of that folder with --from DIR"
                )
            copy_checked(source / name, partial / name, expected)
    elif mirror is not None and not dataset.sources:
        raise ValueError(
            f"{mirror}: no {MANIFEST} of {dataset.name} version {dataset.version}; expected the finished dataset, in "
            f"this folder or in {dataset.name}-{dataset.version} below it. Omit --from to generate it"
        )
    else:
        assert entry.make is not None
        archives = {
            source.package: sources.obtain(
                source, downloads, mirror=mirror, allow_installed=bool(dataset.files), log=log
            )
            for source in dataset.sources
        }
        log(f"making {dataset.name} version {dataset.version}")
        entry.make(partial, archives)


def _finished(dataset: Dataset, mirror: Path | None) -> Path | None:
    """The folder of the finished dataset in a mirror: the mirror itself or ``NAME-VERSION`` in it."""
    for folder in _candidates(dataset, mirror):
        with contextlib.suppress(ValueError):
            stored = manifest.read(folder)
            if (stored.name, stored.version) == (dataset.name, dataset.version):
                return folder
    return None


def _candidates(dataset: Dataset, mirror: Path | None) -> Iterator[Path]:
    if mirror is not None:
        yield mirror
        yield mirror / f"{dataset.name}-{dataset.version}"


def check_free_space(folder: Path, needed: int) -> None:
    """Create ``folder``; raise ValueError if its disk has less than ``needed`` bytes free."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{folder}: {free / 1e6:,.1f} MB free, but {needed / 1e6:,.1f} MB are needed; free some space, or choose "
            "a folder on another disk"
        )
