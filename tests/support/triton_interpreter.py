"""Triton's CPU interpreter made fit for tests: bf16 that rounds, calls that cost less, and probes of every access.

The interpreter (3.3 to 3.9) keeps bf16 as the bits in uint16: it truncates where a GPU rounds, and multiplies the bits
as integers. ``repair`` mends casts and products; other arithmetic in bf16, which no kernel here does, it refuses.
And it sums along a first axis one by one, which errs more than a GPU's tree; ``repair`` makes all sums alike.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from ds4sci.kernels.evoformer_attention import triton as host
from ds4sci.kernels.evoformer_attention import triton_configs
from ds4sci.kernels.pointwise import triton_configs as pointwise_configs
from ds4sci.kernels.pointwise import triton_plan
from ds4sci.kernels.triton_launch import Launch

Handle = interpreter.TensorHandle
Builder = interpreter.InterpreterBuilder


plain: dict[str, Any] = {}
"""The methods that ``repair`` replaced, as Triton has them."""


def is_bf16(x: Any) -> bool:
    return isinstance(x, Handle) and x.dtype.scalar == tl.bfloat16


def widened(bits: np.ndarray) -> np.ndarray:
    """bf16 as uint16 to fp32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def rounded(x: np.ndarray) -> np.ndarray:
    """fp32 to bf16 as uint16, by torch: to nearest, ties to even."""
    dense = torch.from_numpy(np.array(x, dtype=np.float32, order="C"))
    return dense.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def _refusing(method: Any) -> Any:
    def refusing(self: Any, *operands: Any) -> Any:
        if any(is_bf16(x) for x in operands):
            raise NotImplementedError("arithmetic in bf16: the interpreter would compute with the bits")
        return method(self, *operands)

    return refusing


def repair() -> None:
    """Mend bf16 in this process, and make calls between kernels' functions cheap; once."""
    if hasattr(Builder, "ds4sci_repaired"):
        return
    Builder.ds4sci_repaired = True
    cast, dot = Builder.cast_impl, Builder.create_dot
    plain["cast_impl"] = cast

    def cast_impl(self: Any, source: Any, kind: Any) -> Any:
        if is_bf16(source) and kind.scalar != tl.bfloat16:
            source = Handle(widened(source.data), tl.float32)
            return source if kind.scalar == tl.float32 else cast(self, source, kind)
        if kind.scalar == tl.bfloat16 and not is_bf16(source):
            return Handle(rounded(source.data), tl.bfloat16)
        return cast(self, source, kind)

    def create_dot(self: Any, a: Any, b: Any, *others: Any) -> Any:
        a, b = (Handle(widened(x.data), tl.float32) if is_bf16(x) else x for x in (a, b))
        return dot(self, a, b, *others)

    def summed(self: Any, given: Any) -> Any:
        lines = np.ascontiguousarray(np.moveaxis(given.handle.data, self.axis, -1))
        total = lines.sum(-1)  # pairwise, for the axis lies densely
        return self.to_tensor(np.expand_dims(total, self.axis) if self.keep_dims else total, given.dtype)

    Builder.cast_impl, Builder.create_dot = cast_impl, create_dot
    interpreter.ReduceOps.sum = summed
    for name in ("binary_op", "unary_op"):
        setattr(Builder, name, _refusing(getattr(Builder, name)))
    # Every call of an inner function patches triton.language anew, a third of the time: once in a launch will do.
    patched: set[Any] = set()
    launch = interpreter.GridExecutor.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.fn not in patched:
            interpreter._patch_lang(self.fn)
            patched.add(self.fn)
        return self.rewrite()(*args, **kwargs)

    def launched(self: Any, *args: Any, **kwargs: Any) -> Any:
        patched.clear()
        return launch(self, *args, **kwargs)

    interpreter.InterpretedFunction.__call__ = call
    interpreter.GridExecutor.__call__ = launched
    # Arguments are on the CPU already; copying every storage onto itself would touch all of a huge one.
    interpreter.GridExecutor._init_args_hst = lambda self, args, kwargs: (list(args), dict(kwargs))
    interpreter.GridExecutor._restore_args_dev = lambda self, *args: None


def check_overflow(check: bool) -> None:
    """Whether integer sums and products that overflow are errors; it takes a third of the time."""
    for name in ("sanitize_overflow", "debug"):  # the check is made by one and heeded by the other
        object.__setattr__(interpreter.interpreter_builder.options, name, check)


def small_tiles() -> None:
    """Several tiles, tails, row groups and launches even in small cases, whatever the kernels are tuned to.

    Tiles between matrix products are larger than on a GPU: a program takes as long, whatever the size of its tile.
    """
    rows = {"attend": 4, "grad_keys": 2, "grad_queries": 2, "grad_bias": 2}

    def choose(purpose: str, arch: str, d: int, bits: int, length: int, shared: int) -> triton_configs.Config:
        return triton_configs.Config(max(1, min(rows[purpose], shared)), 32, 32, 4, 1)

    triton_configs.choose = choose
    host.MAX_PROGRAMS = 16

    def tile(purpose: str, channels: int, bits: int) -> pointwise_configs.Config:
        config = pointwise_configs.choose(purpose, channels, bits)
        if purpose.startswith("columns"):
            config = replace(config, channels=min(32, 1 << (channels - 1).bit_length()))
        return replace(config, others=2**14 // config.channels)

    triton_plan.choose = tile
    triton_plan.MAX_PROGRAMS = 6


def addresses(x: torch.Tensor) -> np.ndarray:
    """Of every element of ``x``, distinct and sorted."""
    place = np.array([x.data_ptr()], dtype=np.int64)
    for size, stride in zip(x.shape, x.stride(), strict=True):
        place = (place[:, None] + (np.arange(size) * stride * x.element_size())[None, :]).ravel()
    return np.unique(place)


@dataclass
class Seen:
    """What one launch did: bytes read and written by argument (of lanes that a mask let through), and offences."""

    kernel: str
    read: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)
    outside: Counter[str] = field(default_factory=Counter)
    """Lanes, by "load" or "store", that touch no element of any argument."""
    races: Counter[str] = field(default_factory=Counter)
    """Elements, by argument, that one program wrote and another read or wrote: their order is not fixed on a GPU."""


class Probe:
    """The accesses of one launch with these tensors, none of which may overlap another."""

    def __init__(self, kernel: str, tensors: dict[str, torch.Tensor]) -> None:
        self.seen = Seen(kernel)
        parts = [(name, addresses(x), x.element_size()) for name, x in tensors.items()]
        self.names = [name for name, _, _ in parts]
        self.place = np.concatenate([place for _, place, _ in parts])
        self.owner = np.concatenate([np.full(len(p), i) for i, (_, p, _) in enumerate(parts)])
        self.bytes = np.concatenate([np.full(len(p), size) for _, p, size in parts])
        order = np.argsort(self.place, kind="stable")
        self.place, self.owner, self.bytes = self.place[order], self.owner[order], self.bytes[order]
        assert (np.diff(self.place) > 0).all(), "arguments share memory: the probe could not tell them apart"
        self.writer = np.full(len(self.place), -1)
        self.reader = np.full(len(self.place), -1)  # -2: several programs
        self.program = -1

    def access(self, kind: str, pointers: Any, mask: Any) -> None:
        place, keep = np.broadcast_arrays(pointers.data, mask.data)
        wanted = place[keep].astype(np.int64).ravel()
        if not wanted.size:
            return
        index = np.minimum(np.searchsorted(self.place, wanted), len(self.place) - 1)
        found = self.place[index] == wanted
        self.seen.outside[kind] += int((~found).sum())
        index = index[found]
        bytes_by_argument = np.bincount(self.owner[index], self.bytes[index], len(self.names))
        counter = self.seen.read if kind == "load" else self.seen.written
        for name, total in zip(self.names, bytes_by_argument, strict=True):
            counter[name] += int(total)
        other = (self.writer[index] != -1) & (self.writer[index] != self.program)
        if kind == "store":
            other |= (self.reader[index] != -1) & (self.reader[index] != self.program)
            self.writer[index] = self.program
        else:
            before = self.reader[index]
            self.reader[index] = np.where((before == -1) | (before == self.program), self.program, -2)
        for owner in self.owner[index[other]]:
            self.seen.races[self.names[owner]] += 1


@contextlib.contextmanager
def watched(probe: Probe) -> Iterator[None]:
    """Let ``probe`` see every access. A lane that touches no argument is counted and kept from memory."""
    names = ("create_masked_load", "create_masked_store", "set_grid_idx")
    load, store, set_grid = plain = [getattr(Builder, name) for name in names]

    def inside(pointers: Any, mask: Any) -> Any:
        place = pointers.data.astype(np.int64)
        index = np.minimum(np.searchsorted(probe.place, place), len(probe.place) - 1)
        return Handle(mask.data & (probe.place[index] == place), tl.int1)

    def masked_load(self: Any, pointers: Any, mask: Any, *others: Any) -> Any:
        probe.access("load", pointers, mask)
        return load(self, pointers, inside(pointers, mask), *others)

    def masked_store(self: Any, pointers: Any, value: Any, mask: Any, *others: Any) -> Any:
        probe.access("store", pointers, mask)
        return store(self, pointers, value, inside(pointers, mask), *others)

    def set_grid_index(self: Any, x: int, y: int, z: int) -> Any:
        probe.program = x
        return set_grid(self, x, y, z)

    try:
        for name, method in zip(names, (masked_load, masked_store, set_grid_index), strict=True):
            setattr(Builder, name, method)
        yield
    finally:
        for name, method in zip(names, plain, strict=True):
            setattr(Builder, name, method)


def watch(monkeypatch: pytest.MonkeyPatch, module: Any = host) -> list[Seen]:
    """What each launch of a module that has ``run`` does from now on, in order."""
    seen: list[Seen] = []
    run = module.run

    def probing(launches: Iterable[Launch], device: torch.device) -> None:
        for launch in launches:
            tensors = {name: x for name, x in launch.arguments.items() if isinstance(x, torch.Tensor)}
            probe = Probe(launch.kernel, tensors)
            seen.append(probe.seen)
            with watched(probe):
                run([launch], device)

    monkeypatch.setattr(module, "run", probing)
    return seen
