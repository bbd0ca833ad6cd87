"""Safetensors files written piece by piece and read by slices.

Neither direction holds more than ``CHUNK_BYTES`` besides the tensors of the caller. The safetensors library maps a file
into memory, where the pages that are read count as memory of the process, and its slices follow the dimensions of a
tensor; checkpoints need ranges of the flattened tensor. Format: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import torch
from torch import Tensor

from ds4sci.train import watchdog

CHUNK_BYTES = 1 << 24
"""Bytes that are copied at once."""

TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64,
}  # fmt: skip
"""dtypes by their names in the format."""

NAMES = {dtype: name for name, dtype in TYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a tensor in a file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def write_tensors(handle: BinaryIO, specs: Sequence[TensorSpec], content: Iterable[memoryview]) -> None:
    """Write a safetensors file: its header, then ``content``, the bytes of the tensors in the order of ``specs``."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec in specs:
        start, end = end, end + spec.size * spec.dtype.itemsize
        entries[spec.name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    handle.write(len(header).to_bytes(8, "little") + header)
    for chunk in content:
        handle.write(chunk)
        watchdog.beat()


def byte_chunks(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the bytes of ``tensor`` in row-major order, as uint8 tensors on the CPU of at most ``CHUNK_BYTES``."""
    flat = tensor.detach().reshape(-1)
    for part in flat.split(max(1, CHUNK_BYTES // flat.element_size())):
        if part.numel():
            yield part.cpu().contiguous().view(torch.uint8)


class TensorReader:
    """A safetensors file that is read by ranges of the flattened tensors. A context manager.

    specs  name → dtype and shape
    """

    def __init__(self, path: Path) -> None:
        """Raises ValueError, with the path and the reason, if ``path`` is not a whole safetensors file."""
        self.path = path
        self.specs: dict[str, TensorSpec] = {}
        self._starts: dict[str, int] = {}
        try:
            self._handle = path.open("rb", buffering=0)
        except OSError as error:
            raise ValueError(f"{path}: not a readable safetensors file: {error}") from None
        try:
            size = path.stat().st_size
            length = int.from_bytes(self._handle.read(8), "little")
            if length > size - 8:
                raise ValueError(f"its header has {length} bytes, but the file {size}")
            entries = json.loads(self._handle.read(length))
            entries.pop("__metadata__", None)
            for name, entry in entries.items():
                spec = TensorSpec(name, TYPES[entry["dtype"]], tuple(entry["shape"]))
                start, end = entry["data_offsets"]
                if min(spec.shape, default=0) < 0:
                    raise ValueError(f"{name} has the shape {list(spec.shape)}")
                if not 0 <= start <= end <= size - 8 - length or end - start != spec.size * spec.dtype.itemsize:
                    raise ValueError(f"the bytes {start} to {end} of {name} do not fit its shape or the file")
                self.specs[name], self._starts[name] = spec, 8 + length + start
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self._handle.close()
            raise ValueError(f"{path}: not a readable safetensors file: {error}") from None

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._handle.close()

    def read_into(self, target: Tensor, name: str, start: int = 0) -> None:
        """Fill ``target``, a tensor of any shape, dtype and device, with elements ``start``, … of tensor ``name``.

        Raises ValueError if the file has no such elements.
        """
        spec = self.specs.get(name)
        if spec is None or start + target.numel() > spec.size:
            raise ValueError(f"{self.path}: no elements {start} to {start + target.numel()} of {name}")
        target = target.detach()
        flat = target.view(-1) if target.is_contiguous() else target.new_empty(target.numel())
        self._handle.seek(self._starts[name] + start * spec.dtype.itemsize)
        for part in flat.split(max(1, CHUNK_BYTES // spec.dtype.itemsize)):
            if not part.numel():
                continue
            buffer = torch.empty(part.numel(), dtype=spec.dtype)
            left = buffer.view(torch.uint8).numpy().data
            while left:
                count = self._handle.readinto(left)
                if not count:
                    raise ValueError(f"{self.path}: ends inside {name}")
                left = left[count:]
            part.copy_(buffer)
        if not target.is_contiguous():
            target.copy_(flat.view(target.shape))
