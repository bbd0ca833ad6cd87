"""Wheels and Debian archives for tests."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path


def write_wheel(folder: Path, name: str, version: str, files: Mapping[str, bytes]) -> Path:
    """Write a wheel that pip accepts."""
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    wheel = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content = {**files, f"{info}/METADATA": metadata.encode(), f"{info}/WHEEL": wheel.encode(), f"{info}/RECORD": b""}
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in content.items():
            archive.writestr(zipfile.ZipInfo(member), data)
    return path


def write_deb(
    path: Path, files: Mapping[str, bytes], *, links: Mapping[str, str] | None = None, compression: str = "xz"
) -> Path:
    """Write a Debian archive: ar with ``debian-binary``, ``control.tar`` and ``data.tar``."""
    control = _tar({"./control": b"Package: toy\nVersion: 1\nArchitecture: all\nMaintainer: x <x@y>\nDescription: x\n"})
    members = {"debian-binary": b"2.0\n", "control.tar.xz": control}
    members["data.tar" + (f".{compression}" if compression else "")] = _tar(
        {f"./{name}": data for name, data in files.items()}, links or {}, compression
    )
    content = b"!<arch>\n"
    for name, data in members.items():
        content += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data
        content += b"\n" * (len(data) % 2)
    path.write_bytes(content)
    return path


def _tar(files: Mapping[str, bytes], links: Mapping[str, str] | None = None, compression: str = "xz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(f"./{name}")
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return buffer.getvalue()
