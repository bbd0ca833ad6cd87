"""Triton's CPU interpreter adapted for tests: bf16 rounding, cheaper calls, probes of memory accesses.

The interpreter (3.3 to 3.9) stores bf16 as bits in uint16: it truncates where a GPU rounds, and multiplies the bits as
integers. ``repair`` fixes casts and products, and refuses other bf16 arithmetic, which no kernel here uses. The
interpreter also sums sequentially along a first axis, with larger errors than the tree of a GPU; ``repair`` sums
pairwise along all axes.
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
"""Triton's original methods, which ``repair`` replaced."""


def is_bf16(x: Any) -> bool:
    return isinstance(x, Handle) and x.dtype.scalar == tl.bfloat16


def widened(bits: np.ndarray) -> np.ndarray:
    """bf16 as uint16 to fp32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def rounded(x: np.ndarray) -> np.ndarray:
    """fp32 to bf16 as uint16, by torch: to nearest, ties to even."""
    dense = torch.from_numpy(np.array(x, dtype=np.float32, order="C"))
    return dense.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Matrix product that adds in the order of k, as a GPU does: ``(b.T @ a.T).T`` has the same bits.

    The BLAS of numpy rounds differently for transposed operands, so that backward kernels, which compute scores
    transposed, would not get the probabilities of the forward pass.
    """
    total = np.zeros((*a.shape[:-1], b.shape[-1]), a.dtype)
    for k in range(a.shape[-1]):
        total += a[..., :, k, None] * b[..., k, None, :]
    return total


def _refusing(method: Any) -> Any:
    def refusing(self: Any, *operands: Any) -> Any:
        if any(is_bf16(x) for x in operands):
            raise NotImplementedError("arithmetic in bf16: the interpreter would compute with the bits")
        return method(self, *operands)

    return refusing


def repair() -> None:
    """Repair bf16 in this process and make calls of inner functions cheaper. Repeated calls have no effect."""
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
        if a.data.dtype == b.data.dtype == others[0].data.dtype == np.float32:
            return Handle(product(a.data, b.data) + others[0].data, others[0].dtype.scalar)
        return dot(self, a, b, *others)

    def summed(self: Any, given: Any) -> Any:
        lines = np.ascontiguousarray(np.moveaxis(given.handle.data, self.axis, -1))
        total = lines.sum(-1)  # pairwise, because the axis is contiguous
        return self.to_tensor(np.expand_dims(total, self.axis) if self.keep_dims else total, given.dtype)

    Builder.cast_impl, Builder.create_dot = cast_impl, create_dot
    interpreter.ReduceOps.sum = summed
    for name in ("binary_op", "unary_op"):
        setattr(Builder, name, _refusing(getattr(Builder, name)))
    # The interpreter patches triton.language for every call of an inner function, a third of the time. Once suffices.
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
    # Arguments are on the CPU already; copying a huge storage onto itself would touch all of it.
    interpreter.GridExecutor._init_args_hst = lambda self, args, kwargs: (list(args), dict(kwargs))
    interpreter.GridExecutor._restore_args_dev = lambda self, *args: None


def check_overflow(check: bool) -> None:
    """Set whether overflow of integer sums and products is an error. The check takes a third of the time."""
    for name in ("sanitize_overflow", "debug"):  # one enables the check, the other its assertion
        object.__setattr__(interpreter.interpreter_builder.options, name, check)


def small_tiles() -> None:
    """Use small tiles of attention, so that small cases have several tiles, tails, row groups and launches.

    Pointwise tiles are larger than on a GPU: the time of a program does not depend on the size of its tile.
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
    """Distinct addresses of the elements of ``x``, sorted."""
    place = np.array([x.data_ptr()], dtype=np.int64)
    for size, stride in zip(x.shape, x.stride(), strict=True):
        place = (place[:, None] + (np.arange(size) * stride * x.element_size())[None, :]).ravel()
    return np.unique(place)


@dataclass
class Accesses:
    """Accesses of one launch: bytes read and written by unmasked lanes, by argument, and violations."""

    kernel: str
    read: Counter[str] = field(default_factory=Counter)
    written: Counter[str] = field(default_factory=Counter)
    outside: Counter[str] = field(default_factory=Counter)
    """Lanes, by "load" or "store", that access no element of any argument."""
    races: Counter[str] = field(default_factory=Counter)
    """Elements, by argument, that one program wrote and another read or wrote, in an order that a GPU does not fix."""


class Probe:
    """Recorder of the accesses of one launch with these tensors, which must not overlap."""

    def __init__(self, kernel: str, tensors: dict[str, torch.Tensor]) -> None:
        self.seen = Accesses(kernel)
        parts = [(name, addresses(x), x.element_size()) for name, x in tensors.items()]
        self.names = [name for name, _, _ in parts]
        self.place = np.concatenate([place for _, place, _ in parts])
        self.owner = np.concatenate([np.full(len(p), i) for i, (_, p, _) in enumerate(parts)])
        self.bytes = np.concatenate([np.full(len(p), size) for _, p, size in parts])
        order = np.argsort(self.place, kind="stable")
        self.place, self.owner, self.bytes = self.place[order], self.owner[order], self.bytes[order]
        assert (np.diff(self.place) > 0).all(), "arguments share memory, which the probe cannot distinguish"
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
    """Within the block, ``probe`` records every access. Lanes out of bounds are counted and suppressed."""
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


def watch(monkeypatch: pytest.MonkeyPatch, module: Any = host) -> list[Accesses]:
    """Accesses of each future launch of a module with a function ``run``, in order."""
    seen: list[Accesses] = []
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
