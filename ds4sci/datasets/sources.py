"""Archives of datasets: from a mirror folder, from an installed package, or downloaded with pip or apt-get.

The size and SHA-256 of an archive are checked before it is used, also if it was downloaded a moment ago.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from ds4sci.datasets import manifest
from ds4sci.datasets.dataset import Source

Log = Callable[[str], None]


def obtain(source: Source, downloads: Path, *, mirror: Path | None, allow_installed: bool, log: Log) -> Path:
    """Return the archive of ``source``, or the folder below which the installed package has the same files.

    downloads        folder for a downloaded archive; one from an earlier, interrupted call is used if it is intact
    mirror           folder that holds the archive, under its usual name or any other; nothing is downloaded
    allow_installed  whether an installed package may serve. Its files are not checked here, so the caller must check
                     what is made of them.

    Raises ValueError if the archive cannot be found or downloaded, and if it has another size or SHA-256.
    """
    if mirror is not None:
        return _in_mirror(source, mirror)
    if allow_installed and (root := installed_root(source)) is not None:
        log(f"using the installed package {source.package} {source.version}")
        return root
    downloads.mkdir(parents=True, exist_ok=True)
    for file in _archives(source, downloads):
        fault = _fault(file, source)
        if not fault:
            log(f"using {file}, downloaded earlier")
            return file
        log(f"refused: {fault}; downloading it again")
        file.unlink()
    log(f"downloading {source.package} {source.version} ({source.size / 1e6:,.1f} MB)")
    _download(source, downloads)
    files = _archives(source, downloads)
    if not files:
        raise ValueError(f"{source.package} {source.version}: the download left no file {file_name(source)}")
    if fault := _fault(files[0], source):
        files[0].unlink()
        raise ValueError(f"refused: {fault}. The package index or a proxy serves another file; {_by_hand(source)}")
    return files[0]


def file_name(source: Source) -> str:
    """Usual name of the archive, with ``*`` for the part that depends on the build."""
    if source.kind == "deb":
        return f"{source.package}_{source.version.replace(':', '%3a')}_*.deb"
    return f"{re.sub('[-_.]+', '_', source.package)}-{source.version}-*.whl"


def installed_root(source: Source) -> Path | None:
    """Folder below which the installed package has the files of its archive; None if this version is not installed."""
    if source.kind == "wheel":
        try:
            found = importlib.metadata.distribution(source.package)
        except importlib.metadata.PackageNotFoundError:
            return None
        return Path(str(found.locate_file(""))) if found.version == source.version else None
    program = shutil.which("dpkg-query")
    if program is None:
        return None
    query = [program, "--show", "--showformat", "${db:Status-Status} ${Version}", source.package]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return Path("/") if done.stdout == f"installed {source.version}" else None


def _archives(source: Source, folder: Path) -> list[Path]:
    """Files of ``folder`` with the usual name of the archive; names of wheels compare as PyPI's do."""
    if source.kind == "deb":
        return sorted(folder.glob(file_name(source)))
    found = []
    for file in sorted(folder.glob("*.whl")):
        package, version = (*file.name.split("-"), "", "")[:2]
        if _normal(package) == _normal(source.package) and version == source.version:
            found.append(file)
    return found


def _normal(package: str) -> str:
    return re.sub("[-_.]+", "-", package).lower()


def _fault(file: Path, source: Source) -> str:
    return manifest.fault(file, manifest.FileSum(source.size, source.sha256))


def _in_mirror(source: Source, mirror: Path) -> Path:
    if not mirror.is_dir():
        raise ValueError(f"{mirror}: no such folder; expected a folder with {file_name(source)}")
    same_name = _archives(source, mirror)
    same_size = [file for file in sorted(mirror.iterdir()) if file.is_file() and file.stat().st_size == source.size]
    faults = {file: _fault(file, source) for file in [*same_name, *same_size]}
    for file, fault in faults.items():
        if not fault:
            return file
    if same_name:
        raise ValueError(f"refused: {faults[same_name[0]]}; replace it, or omit --from to download it")
    raise ValueError(
        f"{mirror}: no file {file_name(source)}; expected the {source.kind} of {source.package} {source.version} with "
        f"{source.size:,} bytes and sha256 {source.sha256}. Put it there, or omit --from to download it"
    )


def _download(source: Source, folder: Path) -> None:
    """Run pip or apt-get in ``folder``. Raises ValueError with the end of its output if it fails."""
    if source.kind == "wheel":
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:", "--dest", "."]
        command = [sys.executable, "-m", "pip", "download", *options, f"{source.package}=={source.version}"]
    elif source.kind == "deb":
        program = shutil.which("apt-get")
        if program is None:
            raise ValueError(
                f"{source.package}: apt-get is not installed, so the Debian archive cannot be downloaded; "
                f"{_by_hand(source)}"
            )
        command = [program, "download", "--quiet", f"{source.package}={source.version}"]
    else:
        raise ValueError(f"{source.package}: unknown kind of source {source.kind!r}; expected wheel or deb")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = " ".join([line for line in lines if line.startswith(("ERROR", "E:"))] or lines[-2:])
        raise ValueError(f"{source.package} {source.version} could not be downloaded: {reason}. {_by_hand(source)}")


def _by_hand(source: Source) -> str:
    where = "PyPI" if source.kind == "wheel" else "a Debian mirror or snapshot.debian.org"
    return f"Copy {file_name(source)} from {where} into a folder and name it with --from DIR"
