"""Files of a checkpoint that any layout reads: fp32 weights and optimizer state in slices, and the averaged weights.

``rank_NNNN.safetensors``  the slices that one rank wrote; a tensor ``kind|name|start`` holds consecutive elements of
                           the flattened parameter ``name``; kind: ``weight``, or a moment of the optimizer
``index.json``             shapes, step counts, and in which file each slice is
``model.safetensors``      whole tensors: averaged weights in fp32, frozen parameters, buffers

Every element is written once, by one of the ranks that hold it. No rank holds a whole copy of anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ds4sci.files.atomic_files import Writer
from ds4sci.train import optimizer_slices, watchdog
from ds4sci.train.ema import Ema, is_sharded, local_slice, local_tensor, release_gathered
from ds4sci.train.optimizer_slices import WEIGHT, Fragment
from ds4sci.train.tensor_file import CHUNK_BYTES, NAMES, TYPES, TensorReader, TensorSpec, byte_chunks, write_tensors

if TYPE_CHECKING:
    from ds4sci.train.distributed import DistributedContext
    from ds4sci.train.engine import Engine

INDEX = "index.json"
MODEL = "model.safetensors"
SMALLEST = 1 << 16
"""Elements below which a slice is not divided among the ranks that hold it."""


@dataclass(frozen=True)
class Slice:
    """Elements ``start`` … ``stop`` − 1 of the flattened tensor ``name``, and the rank that writes them."""

    name: str
    start: int
    stop: int
    rank: int


def divide(sizes: dict[str, int], held: Sequence[dict[str, tuple[int, int]]]) -> list[Slice]:
    """Assign every element of every tensor to one of the ranks that hold it, evenly.

    sizes  name → number of elements
    held   for each rank: name → range of elements that it holds

    Raises RuntimeError if no rank holds an element.
    """
    slices: list[Slice] = []
    for number, (name, first, last, ranks) in enumerate(_holders(sizes, held)):
        parts = max(1, min(len(ranks), (last - first) // SMALLEST))
        for part in range(parts):
            start, stop = (first + (last - first) * k // parts for k in (part, part + 1))
            slices.append(Slice(name, start, stop, ranks[(number + part) % len(ranks)]))
    return slices


def _holders(
    sizes: dict[str, int], held: Sequence[dict[str, tuple[int, int]]]
) -> Iterator[tuple[str, int, int, list[int]]]:
    """Yield (name, first, last, ranks that hold this range) for consecutive ranges of every tensor."""
    for name, size in sizes.items():
        ranges = {rank: own[name] for rank, own in enumerate(held) if name in own}
        for first, last in pairwise(sorted({0, size, *(edge for own in ranges.values() for edge in own)})):
            ranks = [rank for rank, (start, stop) in ranges.items() if start <= first and last <= stop]
            if not ranks:
                raise RuntimeError(f"no rank holds the elements {first} to {last} of {name}")
            yield name, first, last, ranks


def write_slices(folder: Path, engine: Engine, writer: Writer) -> None:
    """Write the slices of this rank and, on rank 0, the index. A collective operation."""
    context = engine.context
    own = {fragment.name: fragment for fragment in optimizer_slices.fragments(engine)}
    shapes = {name: _shape(p) for name, p in engine.named_parameters() if p.requires_grad}
    table: list[dict[str, Any]] = context.gather({
        name: {
            "shape": shape,
            "held": (own[name].start, own[name].stop) if name in own else None,
            "kinds": list(own[name].tensors()) if name in own else [],
            "scalars": own[name].scalars() if name in own else {},
        }
        for name, shape in shapes.items()
    })  # fmt: skip
    entries: dict[str, Any] = {}
    for rows in table:
        for name, row in rows.items():
            entry = entries.setdefault(name, {"shape": row["shape"], "kinds": [], "scalars": {}, "slices": []})
            entry["kinds"] = entry["kinds"] or row["kinds"]
            entry["scalars"] = entry["scalars"] or row["scalars"]
    entries = dict(sorted(entries.items()))
    sizes = {name: int(torch.Size(entry["shape"]).numel()) for name, entry in entries.items()}
    ranges = [{name: row["held"] for name, row in rows.items() if row["held"] is not None} for rows in table]
    slices = divide(sizes, ranges)

    specs, parts = [], []
    for one in slices:
        if one.rank != context.rank:
            continue
        fragment = own[one.name]
        for kind, tensor in fragment.tensors().items():
            specs.append(TensorSpec(f"{kind}|{one.name}|{one.start}", tensor.dtype, (one.stop - one.start,)))
            held, first = fragment.place(tensor)
            parts.append(held.reshape(-1)[one.start - first : one.stop - first])
    content = (chunk.numpy().data for part in parts for chunk in byte_chunks(part))
    writer.write(folder / file_name(context.rank), lambda handle: write_tensors(handle, specs, content))
    if context.is_main:
        for one in slices:
            entries[one.name]["slices"].append([one.start, one.stop, one.rank])
        index = {"files": [file_name(rank) for rank in range(context.world_size)], "parameters": entries}
        writer.write_bytes(folder / INDEX, json.dumps(index).encode())


def file_name(rank: int) -> str:
    """Return the name of the file of slices that ``rank`` writes."""
    return f"rank_{rank:04d}.safetensors"


class SliceReader:
    """Reader of the slices of a checkpoint. A context manager.

    parameters  name → shape, kinds, scalars
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        self.parameters: dict[str, dict[str, Any]] = index["parameters"]
        self._files: list[str] = index["files"]
        self._open: dict[int, TensorReader] = {}
        self._stack = ExitStack()

    def __enter__(self) -> SliceReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def read_into(self, target: Tensor, kind: str, name: str, start: int) -> None:
        """Fill ``target`` with elements ``start``, … of a parameter. A moment that it does not have is zero.

        Raises ValueError if the checkpoint lacks an element.
        """
        entry = self.parameters[name]
        if kind != WEIGHT and kind not in entry["kinds"]:
            target.zero_()
            return
        flat = target.view(-1) if target.is_contiguous() else target.new_empty(target.numel())
        stop, found = start + target.numel(), 0
        for first, last, number in entry["slices"]:
            begin, end = max(first, start), min(last, stop)
            if begin < end:
                part = flat[begin - start : end - start]
                self._reader(number).read_into(part, f"{kind}|{name}|{first}", begin - first)
                found += end - begin
        if not target.is_contiguous():
            target.copy_(flat.view(target.shape))
        if found != target.numel():
            raise ValueError(f"{self.folder}: {INDEX} has {found} of the elements {start} to {stop} of {kind} {name}")

    def dtype(self, kind: str, name: str) -> torch.dtype:
        """Return the dtype of a moment of a parameter."""
        first, _, number = self.parameters[name]["slices"][0]
        return self._reader(number).specs[f"{kind}|{name}|{first}"].dtype

    def _reader(self, number: int) -> TensorReader:
        if number not in self._open:
            self._open[number] = self._stack.enter_context(TensorReader(self.folder / self._files[number]))
        return self._open[number]


@torch.no_grad()
def read_slices(folder: Path, engine: Engine) -> None:
    """Load weights and optimizer state from any layout. Nothing is sent between ranks.

    Raises ValueError if the trainable parameters of the checkpoint are not those of the model.
    """
    held: dict[Tensor, list[Fragment]] = {}
    for fragment in optimizer_slices.fragments(engine):
        held.setdefault(fragment.master, []).append(fragment)
    optimizer = optimizer_slices.base_optimizer(engine)
    with SliceReader(folder) as reader, TensorReader(folder / MODEL) as model:
        _check_parameters(folder, engine, reader, model)
        for name, p in engine.named_parameters():
            target, start = local_slice(p, local_tensor(p))
            if p.requires_grad:
                reader.read_into(target, WEIGHT, name, start)
            else:
                model.read_into(target, name, start)
            release_gathered(p)
        for name, buffer in engine.named_buffers():
            model.read_into(buffer, name)
        for group in held.values():
            moments, scalars = _state_of(group, reader)
            if moments or scalars:
                optimizer_slices.create_state(group[0], optimizer, moments, scalars)
            for fragment in group:
                for kind, tensor in fragment.tensors().items():
                    target, start = fragment.place(tensor)
                    reader.read_into(target, kind, fragment.name, start)


def _state_of(group: list[Fragment], reader: SliceReader) -> tuple[dict[str, torch.dtype], dict[str, float]]:
    """Return moments with their dtypes and numbers of a master tensor. Its parameters share one step count: the
    highest, since a parameter without gradients takes no step of its own only without ZeRO."""
    moments: dict[str, torch.dtype] = {}
    scalars: dict[str, float] = {}
    for fragment in group:
        entry = reader.parameters[fragment.name]
        moments |= {kind: reader.dtype(kind, fragment.name) for kind in entry["kinds"] if kind != WEIGHT}
        for name, value in entry["scalars"].items():
            scalars[name] = max(value, scalars.get(name, value))
    return moments, scalars


def _check_parameters(folder: Path, engine: Engine, reader: SliceReader, model: TensorReader) -> None:
    others = {name: tuple(_shape(p)) for name, p in engine.named_parameters() if not p.requires_grad}
    others |= {name: tuple(buffer.shape) for name, buffer in engine.named_buffers()}
    for name, needed in others.items():
        if name not in model.specs or model.specs[name].shape != needed:
            found = model.specs[name].shape if name in model.specs else "nothing"
            raise ValueError(f"{model.path}: {name} has the shape {needed} in the model, but the file has {found}")
    own = {name: _shape(p) for name, p in engine.named_parameters() if p.requires_grad}
    everywhere = {name for names in engine.context.gather(list(own)) for name in names}
    wrong = [
        f"{name}: {tuple(reader.parameters[name]['shape'])} in the checkpoint, {tuple(shape)} in the model"
        for name, shape in own.items()
        if name in reader.parameters and reader.parameters[name]["shape"] != shape
    ]
    missing, unknown = sorted(own.keys() - reader.parameters.keys()), sorted(reader.parameters.keys() - everywhere)
    if wrong or missing or unknown:
        raise ValueError(
            f"{folder}: the trainable parameters are not those of the model: wrong shape: {wrong[:3]}, not in the "
            f"checkpoint: {missing[:3]}, not trainable in the model: {unknown[:3]}. Resume with the model section of "
            "the run, or start a new run with train.weights"
        )


def write_model(folder: Path, engine: Engine, ema: Ema, writer: Writer) -> None:
    """Write averaged weights, frozen parameters and buffers as whole tensors on rank 0. A collective operation.

    Rank 0 receives the elements that it does not hold in chunks, one after the other.
    """
    context = engine.context
    own: dict[str, tuple[Tensor, int]] = {}
    specs: dict[str, tuple[str, list[int]]] = {}
    for name, p in engine.named_parameters():
        own[name] = ema.local_slice(name) if p.requires_grad else local_slice(p, local_tensor(p))
        specs[name] = NAMES[own[name][0].dtype], _shape(p)
    for name, buffer in engine.named_buffers():
        own[name] = (buffer, 0)
        specs[name] = NAMES[buffer.dtype], list(buffer.shape)
    own = {name: (local.detach().reshape(-1), start) for name, (local, start) in own.items()}
    held = {name: (start, start + flat.numel()) for name, (flat, start) in own.items()}
    table = context.gather((specs, held))
    every = {name: spec for part, _ in table for name, spec in part.items()}
    # sorted by name, so that the same weights are the same file on any layout
    whole = [TensorSpec(name, TYPES[dtype], tuple(shape)) for name, (dtype, shape) in sorted(every.items())]
    holders = _holders({spec.name: spec.size for spec in whole}, [part for _, part in table])
    slices = [Slice(name, first, last, min(ranks)) for name, first, last, ranks in holders]
    if not context.is_main:
        for one in slices:
            if one.rank == context.rank:
                flat, start = own[one.name]
                for chunk in byte_chunks(flat[one.start - start : one.stop - start]):
                    dist.send(chunk, 0, group=context.control)
                    watchdog.beat()
        return
    content = _collected(slices, own, {spec.name: spec.dtype for spec in whole}, context)
    writer.write(folder / MODEL, lambda handle: write_tensors(handle, whole, content))
    for _ in content:  # what is left after a failed write: no rank may wait for this one
        pass


def _collected(
    slices: list[Slice], own: dict[str, tuple[Tensor, int]], dtypes: dict[str, torch.dtype], context: DistributedContext
) -> Iterator[memoryview]:
    """Yield the bytes of ``slices`` on rank 0: its own, and those that the other ranks send."""
    for one in slices:
        if one.rank == context.rank:
            flat, start = own[one.name]
            for chunk in byte_chunks(flat[one.start - start : one.stop - start]):
                yield chunk.numpy().data
            continue
        left = (one.stop - one.start) * dtypes[one.name].itemsize
        while left:
            # byte_chunks divides a tensor into the same chunks, since every itemsize divides CHUNK_BYTES
            chunk = torch.empty(min(left, CHUNK_BYTES), dtype=torch.uint8)
            dist.recv(chunk, one.rank, group=context.control)
            yield chunk.numpy().data
            left -= chunk.numel()


@torch.no_grad()
def read_ema(folder: Path, ema: Ema, updates: int) -> None:
    """Load the averaged weights of ``model.safetensors`` by slices."""
    with TensorReader(folder / MODEL) as model:
        for name in ema.names:
            target, start = ema.local_slice(name)
            model.read_into(target, name, start)
    ema.updates = updates


def _shape(parameter: Any) -> list[int]:
    return list(parameter.ds_shape if is_sharded(parameter) else parameter.shape)
