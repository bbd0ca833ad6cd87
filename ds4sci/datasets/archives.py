"""Members of downloaded archives: wheels (zip) and Debian archives (ar with a tar inside).

Only regular files are extracted, under their name in the archive, which may not leave the target folder. A folder can
stand in for an archive: that of an installed package, with the same member names below it.
"""

from __future__ import annotations

import io
import lzma
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

_AR_MAGIC = b"!<arch>\n"
_BLOCK = 1 << 20


def extract(archive: Path, folder: Path, names: Sequence[str]) -> list[Path]:
    """Extract the members ``names`` of ``archive`` into ``folder``; return their paths in that order.

    names  exact paths in the archive, such as ``usr/share/doc/x.gz``; a leading ``./`` is ignored

    Raises ValueError if ``archive`` is not a wheel or Debian archive, is truncated, or lacks a member, and if a member
    is a link or its name leaves ``folder``.
    """
    targets = {_plain(name): folder / safe_name(name) for name in names}
    missing = set(targets)
    try:
        for name, handle in _members(archive, set(targets)):
            if handle is None:
                raise ValueError(f"{archive}: {name} is not a regular file; expected a file")
            targets[name].parent.mkdir(parents=True, exist_ok=True)
            with targets[name].open("wb") as out:
                shutil.copyfileobj(handle, out, _BLOCK)
            missing.discard(name)
            if not missing:
                break
    except (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise ValueError(f"{archive}: damaged archive: {error}") from None
    if missing:
        raise ValueError(f"{archive}: has no file {', '.join(sorted(missing))}")
    return list(targets.values())


def safe_name(name: str) -> str:
    """``name`` as a relative path that stays in its folder. Raises ValueError for any other."""
    path = PurePosixPath(_plain(name))
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise ValueError(f"file name {name!r} is not a relative path inside the dataset's folder")
    return str(path)


def _plain(name: str) -> str:
    return name.removeprefix("./")


def _members(archive: Path, wanted: set[str]) -> Iterator[tuple[str, IO[bytes] | None]]:
    """The wanted members, each with an open file, or None for a link or folder."""
    if archive.is_dir():
        yield from _files_of_folder(archive, wanted)
    elif zipfile.is_zipfile(archive):
        yield from _files_of_zip(archive, wanted)
    else:
        with _tar_of_deb(archive) as tar:
            for member in tar:
                if _plain(member.name) in wanted:
                    yield _plain(member.name), tar.extractfile(member) if member.isreg() else None


def _files_of_folder(folder: Path, wanted: set[str]) -> Iterator[tuple[str, IO[bytes] | None]]:
    for name in sorted(wanted):
        if (folder / name).is_file():
            with (folder / name).open("rb") as handle:
                yield name, handle


def _files_of_zip(archive: Path, wanted: set[str]) -> Iterator[tuple[str, IO[bytes] | None]]:
    with zipfile.ZipFile(archive) as opened:
        for name in sorted(wanted & set(opened.namelist())):
            kind = opened.getinfo(name).external_attr >> 28  # file type of the Unix mode: 8 = regular, 0 = not given
            if kind in (0, 8) and not name.endswith("/"):
                with opened.open(name) as handle:
                    yield name, handle
            else:
                yield name, None


@contextmanager
def _tar_of_deb(archive: Path) -> Iterator[tarfile.TarFile]:
    """The tar of the files that a Debian archive installs."""
    with archive.open("rb") as handle:
        name, start, size = _data_member(archive, handle)
        if not name.endswith(".zst"):
            with tarfile.open(fileobj=_Section(handle, start, size), mode="r|*") as tar:
                yield tar
            return
    program = shutil.which("dpkg-deb")
    if program is None:
        raise ValueError(f"{archive}: {name} is compressed with zstd; reading it needs the program dpkg-deb")
    with subprocess.Popen([program, "--fsys-tarfile", str(archive)], stdout=subprocess.PIPE) as process:
        with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
            yield tar
        process.terminate()  # it may still be writing members that were not wanted


def _data_member(archive: Path, handle: IO[bytes]) -> tuple[str, int, int]:
    """Name, offset and size of ``data.tar.*`` in a Debian archive (ar format, headers of 60 bytes)."""
    if handle.read(len(_AR_MAGIC)) != _AR_MAGIC:
        raise ValueError(f"{archive}: neither a wheel (zip) nor a Debian archive (ar)")
    total = archive.stat().st_size
    while header := handle.read(60):
        digits = header[48:58].strip()
        if len(header) < 60 or header[58:] != b"`\n" or not digits.isdigit():
            raise ValueError(f"{archive}: damaged archive: malformed ar header at byte {handle.tell() - len(header)}")
        name, size, start = header[:16].decode("latin-1").strip().rstrip("/"), int(digits), handle.tell()
        if start + size > total:
            raise ValueError(f"{archive}: damaged archive: {name} ends after the end of the file")
        if name.startswith("data.tar"):
            return name, start, size
        handle.seek(start + size + size % 2)
    raise ValueError(f"{archive}: Debian archive without data.tar")


class _Section(io.RawIOBase):
    """The ``size`` bytes of ``handle`` from ``start``, as a file to read."""

    def __init__(self, handle: IO[bytes], start: int, size: int) -> None:
        self._handle, self._left = handle, size
        handle.seek(start)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._handle.read(min(len(buffer), self._left))
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)
