"""Files of arrays (``.npz``) without Python objects: writing with every version of numpy, reading as memory maps.

Pages of a memory map are read when they are used, and shared by all processes.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Literal

import numpy as np

_LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Signature, and the lengths of name and extra field, of a member's header (ZIP specification, 4.3.7)."""


def save_arrays(handle: IO[bytes], arrays: Mapping[str, np.ndarray], *, compress: bool = False) -> None:
    """Write ``arrays`` as an ``.npz`` file. Raises TypeError, naming the array, for one that would be pickled.

    ``np.savez(…, allow_pickle=False)`` does this from numpy 2.1 on; earlier versions store the argument as an array.
    """
    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise TypeError(f"array {name!r} holds Python objects, which are not written to files")
    (np.savez_compressed if compress else np.savez)(handle, **arrays)  # type: ignore[arg-type]


def map_arrays(path: Path, *, omit_compressed: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Return the arrays of ``path`` by name: read-only memory maps where they are stored uncompressed.

    Compressed arrays are read into memory, except those named in ``omit_compressed``, which are left out. Raises
    FileNotFoundError, and ValueError, zipfile.BadZipFile or OSError for a file that is no ``.npz`` or is truncated, or
    that holds Python objects.
    """
    arrays: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as raw:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if member.compress_type != zipfile.ZIP_STORED:
                if name not in omit_compressed:
                    with archive.open(member) as file:
                        arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
                continue
            raw.seek(member.header_offset)
            signature, name_length, extra_length = _LOCAL_HEADER.unpack(raw.read(_LOCAL_HEADER.size))
            if signature != b"PK\x03\x04":
                raise ValueError(f"{name}: its header is damaged")
            raw.seek(name_length + extra_length, 1)
            start = raw.tell()
            version = np.lib.format.read_magic(raw)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0,
            }.get(version)  # fmt: skip
            if read_header is None:
                raise ValueError(f"{name}: format version {version} of .npy is not supported; expected 1.0 or 2.0")
            shape, fortran, dtype = read_header(raw)
            if dtype.hasobject:
                raise ValueError(f"{name}: it holds Python objects, which are not loaded")
            if raw.tell() - start + dtype.itemsize * int(np.prod(shape, dtype=np.int64)) != member.file_size:
                raise ValueError(f"{name}: its size is not that of an array of shape {shape}")
            order: Literal["F", "C"] = "F" if fortran else "C"
            if 0 in shape or not shape:
                raw.seek(start)
                arrays[name] = np.lib.format.read_array(raw, allow_pickle=False)
            else:
                arrays[name] = np.memmap(path, dtype, "r", raw.tell(), shape, order)
    return arrays
