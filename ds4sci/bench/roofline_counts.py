"""Work of a piece of code: FLOPs, modelled memory traffic, bytes from the disk, bytes sent to other ranks.

FLOPs are those of torch's formulas and of ``ds4sci.kernels.flop_formulas``. Memory traffic is a model, because few
machines show their memory counters to a user: every operator reads its inputs and writes its outputs, through a cache
of whole tensors. Bytes of the disk are counted by the system, those of the network by the collective operations.
"""

from __future__ import annotations

import math
import weakref
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ds4sci.kernels.flop_formulas import FORMULAS
from ds4sci.monitor.counters import ProcessCounters
from ds4sci.parallel.collectives import sent_by_collective

WRITES_ONLY = frozenset({
    "zero_", "fill_", "copy_", "normal_", "uniform_", "bernoulli_", "random_", "exponential_", "_foreach_zero_",
    "_foreach_copy_",
})  # fmt: skip
"""Operators in place that do not read what they overwrite."""
READS_PARTS = frozenset({"embedding", "index_select", "gather", "index", "take", "take_along_dim"})
"""Operators that read as many elements of their first input as they write."""
ALLOCATES = frozenset({"empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "empty_permuted"})
OTHER_CACHE = 32 << 20
"""Bytes of the cache where the system does not show its size."""


@dataclass(frozen=True)
class Work:
    """Work of one step.

    flops     dtype name → operations
    operands  bytes of all inputs and outputs of the operators
    memory    bytes to and from memory: ``operands`` without what the cache still holds
    disk      bytes read from disks
    network   bytes that this rank sends to others
    """

    flops: dict[str, int] = field(default_factory=dict)
    operands: int = 0
    memory: int = 0
    disk: int = 0
    network: int = 0

    @property
    def total_flops(self) -> int:
        """Operations in all dtypes."""
        return sum(self.flops.values())


def cache_bytes(device: torch.device) -> int:
    """Size of the largest cache of a CPU or GPU, ``OTHER_CACHE`` if unknown."""
    if device.type == "cuda":
        return int(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", OTHER_CACHE))
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text(encoding="utf-8").strip()
        sizes.append(int(text[:-1]) << {"K": 10, "M": 20, "G": 30}[text[-1]] if text[-1] in "KMG" else int(text))
    return max(sizes, default=OTHER_CACHE)


class TensorCache:
    """Model of a cache: it holds whole storages, the most recently used ones, and writes changed ones back when they
    leave. Storages that are freed leave without being written; larger ones than the cache pass it by.

    traffic  bytes read from and written to memory so far
    """

    def __init__(self, capacity: int) -> None:
        self.capacity, self.traffic = capacity, 0
        self._held: OrderedDict[int, tuple[int, bool]] = OrderedDict()
        self._used = 0
        self._watched: dict[int, Any] = {}

    def read(self, x: Tensor, size: int) -> None:
        """Account for a read of ``size`` bytes of ``x``."""
        storage = x.untyped_storage()
        key = storage._cdata
        if key not in self._held:
            self.traffic += size
            self._hold(storage, size, False)
        else:
            self._held.move_to_end(key)

    def write(self, x: Tensor, size: int) -> None:
        """Account for a write of ``size`` bytes of ``x``."""
        if size > self.capacity:
            self.traffic += size
            self._drop(x.untyped_storage()._cdata)
        else:
            self._hold(x.untyped_storage(), size, True)

    def _hold(self, storage: Any, size: int, changed: bool) -> None:
        key = storage._cdata
        before, was_changed = self._held.pop(key, (0, False))
        self._used -= before
        size = max(size, before)
        if size > self.capacity:
            return
        self._held[key] = (size, changed or was_changed)
        self._used += size
        if key not in self._watched:

            def release(_: Any) -> None:
                self._drop(key)

            self._watched[key] = weakref.ref(storage, release)
        while self._used > self.capacity:
            oldest, (bytes_held, is_changed) = self._held.popitem(last=False)
            self._used -= bytes_held
            self.traffic += bytes_held if is_changed else 0
            self._watched.pop(oldest, None)

    def _drop(self, key: int) -> None:
        self._used -= self._held.pop(key, (0, False))[0]
        self._watched.pop(key, None)


class StepCounter(TorchDispatchMode):
    """Dispatch mode that counts FLOPs, memory traffic and bytes sent.

    cache  bytes of the modelled cache. It keeps its content after the block: count a second step to start warm
    """

    def __init__(self, cache: int) -> None:
        super().__init__()
        self.cache = TensorCache(cache)
        self.reset()

    def reset(self) -> None:
        """Set the counts to zero. The content of the cache stays."""
        self.flops: Counter[str] = Counter()
        self.operands = self.network = self.cache.traffic = 0

    def work(self, disk: int = 0) -> Work:
        """The counts so far."""
        return Work(dict(self.flops), self.operands, self.cache.traffic, disk, self.network)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "c10d":
            self.network += sent_by_collective(func, args)[1]
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        formula = FORMULAS.get(packet) or flop_registry.get(packet)
        if formula is not None:
            dtype = next(x.dtype for x in tree_leaves((args, out)) if isinstance(x, Tensor) and x.is_floating_point())
            self.flops[str(dtype).removeprefix("torch.")] += int(formula(*args, **kwargs, out_val=out))
        if func.namespace not in ("prim", "c10d"):
            self._count_memory(func, args, kwargs, out)
        return out

    def _count_memory(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        name = func._overloadpacket.__name__
        if name in ALLOCATES:
            return
        written = _written(func, args, kwargs)
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        known = {x.untyped_storage()._cdata for x in inputs}
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        made = [x for x in outputs if x.untyped_storage()._cdata not in known]
        if not written and not made:
            return  # a view
        skipped = {id(x) for x in written} if name in WRITES_ONLY or "out" in kwargs else set()
        parts = sum(map(touched_bytes, made)) if name in READS_PARTS else math.inf
        for place, x in enumerate(inputs):
            if id(x) not in skipped:
                size = min(touched_bytes(x), parts) if place == 0 else touched_bytes(x)
                self.operands += int(size)
                self.cache.read(x, int(size))
        for x in (*written, *made):
            self.operands += touched_bytes(x)
            self.cache.write(x, touched_bytes(x))


def touched_bytes(x: Tensor) -> int:
    """Bytes of the elements of ``x`` in memory: a broadcast dimension counts once."""
    if 0 in x.shape:
        return 0
    return x.element_size() * math.prod(n for n, stride in zip(x.shape, x.stride(), strict=True) if stride)


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Arguments that the operator overwrites."""
    found = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[place] if place < len(args) else kwargs.get(argument.name)
            found += [x for x in tree_leaves(value) if isinstance(x, Tensor)]
    return found


class DiskReads:
    """Bytes that this process and its children have read from disks since the counter was made.

    ``read`` returns None where the system does not count them.
    """

    def __init__(self) -> None:
        self._counters = ProcessCounters()
        self._first = self._counters.read().get("read")

    def read(self) -> int | None:
        """Bytes so far."""
        now = self._counters.read().get("read")
        return None if now is None or self._first is None else int(now - self._first)
