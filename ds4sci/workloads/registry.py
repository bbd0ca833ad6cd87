"""Registry of workloads: run files with a section ``[benchmark]``.

Three places are searched:

- ``configs/benchmarks/*.toml`` of ds4sci;
- installed packages with an entry point in the group ``ds4sci.benchmarks``. Its value is the name of a package; the
  ``*.toml`` files directly in the folder of that package are its benchmarks;
- files and folders that are given by path.

A file that cannot be read, or a package that cannot be imported, is reported as a problem and hides no other workload.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import os
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from ds4sci.config.benchmark import BenchmarkConfig
from ds4sci.config.run_file import read_benchmark

GROUP = "ds4sci.benchmarks"
"""Entry point group of packages with benchmarks."""


@dataclass(frozen=True)
class Workload:
    """A run file with ``[benchmark]``.

    file    absolute path of the run file
    origin  ``ds4sci``, the package that brings it, or the folder in which it was found
    """

    benchmark: BenchmarkConfig
    file: Path
    origin: str

    @property
    def name(self) -> str:
        """Name on the command line and in logs."""
        return self.benchmark.name


@dataclass
class Catalogue:
    """Workloads by name, and a line for each file or package that could not be used."""

    workloads: dict[str, Workload] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add_files(self, files: Iterable[Path], origin: str) -> None:
        """Add the run files with ``[benchmark]``; other TOML files are skipped. The first of a name is kept."""
        for file in files:
            try:
                benchmark = read_benchmark(file)
            except (ValueError, OSError) as error:
                self.problems.append(_with_file(error, file))
                continue
            if benchmark is None:
                continue
            workload = Workload(benchmark, file.absolute(), origin)
            first = self.workloads.setdefault(workload.name, workload)
            if first.file.resolve() != workload.file.resolve():
                self.problems.append(
                    f"{file}: benchmark.name = {workload.name!r} is taken by {first.file}; choose another name"
                )


def catalogue(folders: Sequence[Path] = ()) -> Catalogue:
    """Return the workloads of ds4sci, of installed packages and of ``folders``.

    Raises ValueError if one of ``folders`` is not a folder.
    """
    found = Catalogue()
    found.add_files(toml_files(own_folder()), "ds4sci")
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        _add_entry_point(found, entry)
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; expected a folder of run files (*.toml) with [benchmark]")
        found.add_files(toml_files(folder), str(folder))
    return found


def find(name: str) -> Workload:
    """Return the workload ``name``: a name of the catalogue, a run file, or a folder with one workload.

    Raises ValueError for an unknown name, with the nearest known ones, for a file without ``[benchmark]``, and for a
    folder with none or several.
    """
    path = Path(name)
    if path.suffix == ".toml" or os.sep in name:
        return _by_path(path)
    found = catalogue()
    if name in found.workloads:
        return found.workloads[name]
    if path.is_dir():
        return _by_path(path)
    near = difflib.get_close_matches(name, found.workloads, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"expected one of: {', '.join(found.workloads)}"
    unread = f" These could not be read: {'; '.join(found.problems)}" if found.problems else ""
    raise ValueError(f"unknown benchmark {name!r}; {hint} `ds4sci bench list` lists them.{unread}")


def own_folder() -> Path:
    """Folder of the run files of ds4sci: packaged with it, or of its repository."""
    package = Path(__file__).parents[1]
    packaged = package / "_configs" / "benchmarks"
    return packaged if packaged.is_dir() else package.parent / "configs" / "benchmarks"


def toml_files(folder: Path) -> list[Path]:
    """The TOML files directly in ``folder``, in alphabetical order."""
    return sorted(path for path in folder.glob("*.toml") if path.is_file())


def _by_path(path: Path) -> Workload:
    if path.is_dir():
        found = Catalogue()
        found.add_files(toml_files(path), str(path))
        if len(found.workloads) == 1:
            return next(iter(found.workloads.values()))
        unread = f" ({'; '.join(found.problems)})" if found.problems else ""
        if not found.workloads:
            raise ValueError(f"{path}: no run file with [benchmark] in this folder{unread}")
        files = ", ".join(str(workload.file) for workload in found.workloads.values())
        raise ValueError(f"{path}: several benchmarks; give one of the files: {files}")
    try:
        benchmark = read_benchmark(path)
    except (ValueError, OSError) as error:
        raise ValueError(_with_file(error, path)) from None
    if benchmark is None:
        raise ValueError(
            f"{path}: this run file has no [benchmark]: add the section (name, title, metric, target, direction), or "
            f"train it with: ds4sci train {path}"
        )
    return Workload(benchmark, path.absolute(), str(path.parent))


def _add_entry_point(found: Catalogue, entry: importlib.metadata.EntryPoint) -> None:
    package = entry.dist.name if entry.dist is not None else "unknown package"
    where = f"package {package}, entry point {entry.name} = {entry.value!r} of {GROUP}"
    try:
        module = entry.load()
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        found.problems.append(
            f"{where}: cannot be imported: {type(error).__name__}: {error} ({last.filename}:{last.lineno})"
        )
        return
    if not isinstance(module, ModuleType):
        found.problems.append(
            f"{where}: is {type(module).__name__}; expected the name of a package whose folder holds the run files"
        )
        return
    folders = [Path(folder) for folder in getattr(module, "__path__", ())]
    if not folders and module.__file__:
        folders = [Path(module.__file__).parent]
    files = [file for folder in folders for file in toml_files(folder)]
    before = len(found.workloads) + len(found.problems)
    found.add_files(files, package)
    if len(found.workloads) + len(found.problems) == before and not any(
        workload.file.parent in folders for workload in found.workloads.values()
    ):
        looked = ", ".join(map(str, folders))
        found.problems.append(f"{where}: no run file (*.toml) with [benchmark] in {looked}; is it in package_data?")


def _with_file(error: Exception, file: Path) -> str:
    text = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
    return text if str(file) in text else f"{file}: {text}"
