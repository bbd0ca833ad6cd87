"""Layers of Hugging Face models on a part of the tokens at a time: ``model.chunk_tokens``.

Of a whole row exist only the layer's input and output, the keys and values of its attention, and in the backward pass
their gradients; the gradient of the input is written over that of the output. Everything else, such as queries, MLPs
and norms, exists for one chunk. The code of the layer is not edited: it is called on the chunk's tokens, and ds4sci's
attention joins the chunk's queries to the stored keys.

    forward   causal: chunk after chunk; the keys of a chunk are stored before its queries attend.
              bidirectional: first all chunks up to their keys, then all chunks.
    backward  first the keys of all chunks again. Causal: from the last chunk to the first, each recomputed and
              differentiated; the gradients of its keys, from itself and later chunks, are then complete.
              bidirectional: all chunks, then all chunks up to their keys, with the gradients of keys and values.

With rows sharded across P ranks (``ds4sci.parallel.ulysses``), each rank runs its own chunks, all ranks at the same
time. It holds the keys and values of whole rows for the heads that it computes, and an exchange per chunk gives it the
queries of all ranks for these. A chunk needs the keys of tokens of other ranks that precede it, so causal layers run
like bidirectional ones.

After FPDT (Yao et al. 2024, arXiv 2408.16978), without its offloading and its own attention.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ds4sci.kernels.varlen_attention.chunks import Queries
from ds4sci.nn.activation_budget import keep_all
from ds4sci.nn.activation_memory import reuse_freed_tensors
from ds4sci.parallel.groups import SINGLE_RANK, SequenceGroup
from ds4sci.parallel.ulysses import HeadExchange


class _KeysStored(Exception):
    """The keys of the chunk are stored, and the rest of the layer is not wanted."""


@dataclass
class Chunk:
    """The running chunk, and the keys and values of all rows.

    rows, length  rows, and tokens of a row on each rank
    row, start    of the chunk's first token
    only_keys     end the layer's call as soon as the keys are stored
    keys, values            ``[tokens of the whole rows, g, d]`` for this rank's heads; None before the first call of
                            attention
    grad_keys, grad_values  fp32 like them, in the backward pass
    causal        of the layer's attention; None before its first call
    own           k and v of the chunk, with their graph
    exchange      of the chunk's tokens for this rank's heads; None before the first call of attention
    """

    group: SequenceGroup
    rows: int
    length: int
    row: int = 0
    start: int = 0
    only_keys: bool = False
    keys: Tensor | None = None
    values: Tensor | None = None
    grad_keys: Tensor | None = None
    grad_values: Tensor | None = None
    causal: bool | None = None
    own: list[Tensor] = field(default_factory=list)
    exchange: HeadExchange | None = None
    calls: int = 0

    @property
    def all_keys_first(self) -> bool:
        """Whether a query may attend to keys of chunks that run later, or run on other ranks."""
        return not self.causal or self.group.size > 1

    @property
    def firsts(self) -> list[int]:
        """Where the chunk of each rank begins in the flattened whole rows."""
        size = self.group.size
        return [(self.row * size + rank) * self.length + self.start for rank in range(size)]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, causal: bool, scale: float) -> Tensor:
        """Return the output ``[c, h, d]`` of the chunk's queries. Raises ValueError at the second call in a layer."""
        self.calls += 1
        if self.calls > 1:
            raise ValueError("model.chunk_tokens: the layer calls attention more than once")
        self.causal = causal
        if self.exchange is None:
            self.exchange = HeadExchange(self.group, q.shape[1], k.shape[1])
        if self.only_keys or not self.all_keys_first:
            parts = [self.exchange.keys_to_heads(x.detach()) for x in (k, v)]
            if self.keys is None or self.values is None:
                tokens = self.rows * self.length * self.group.size
                self.keys, self.values = (x.new_empty(tokens, *x.shape[1:]) for x, *_ in parts)
            for stored, of_ranks in zip((self.keys, self.values), parts, strict=True):
                for first, part in zip(self.firsts, of_ranks, strict=True):
                    stored[first : first + len(part)] = part
        self.own = [k, v]
        if self.only_keys:
            raise _KeysStored
        queries = [Queries(doc_spans, first, causal, scale) for first in self.firsts]
        out: Tensor = _Attention.apply(q, k, v, self, queries)
        return out

    def key_gradients(self) -> list[Tensor]:
        """The gradients of the chunk's k and v that have been added up so far, as ``own``."""
        assert self.exchange is not None
        found = []
        for own, grad in zip(self.own, (self.grad_keys, self.grad_values), strict=True):
            assert grad is not None
            parts = [grad[first : first + len(own)] for first in self.firsts]
            found.append(self.exchange.keys_to_tokens(parts).to(own.dtype))
        return found


class _Attention(torch.autograd.Function):
    """Attention of a chunk with the stored keys. The gradients of its keys are those that have been added up so far,
    if they are complete."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, chunk: Chunk, queries: list[Queries]) -> Tensor:
        keys, values, exchange = chunk.keys, chunk.values, chunk.exchange
        assert keys is not None
        assert values is not None
        assert exchange is not None
        given = exchange.queries_to_heads(q)
        if keys.shape[1]:
            results = [one.attend(part, keys, values) for one, part in zip(queries, given, strict=True)]
        else:  # more ranks than heads
            results = [(part, ()) for part in given]
        outs, ctx.saved = zip(*results, strict=True)
        ctx.save_for_backward(*given, *outs)
        ctx.chunk, ctx.queries = chunk, queries
        return exchange.queries_to_tokens(list(outs))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors, chunk, count = ctx.saved_tensors, ctx.chunk, len(ctx.queries)
        grads = list(chunk.exchange.queries_to_heads(grad))
        saved, ctx.saved = ctx.saved, None
        for i, one in enumerate(ctx.queries):
            if chunk.keys.shape[1]:
                grads[i] = one.add_gradients(
                    grads[i], tensors[i], chunk.keys, chunk.values, tensors[count + i], saved[i], chunk.grad_keys,
                    chunk.grad_values,
                )  # fmt: skip
        grad_q = chunk.exchange.queries_to_tokens(grads)
        return grad_q, *((None, None) if chunk.all_keys_first else chunk.key_gradients()), None, None


def run_chunked(
    function: functools.partial[Any], x: Tensor, *args: Any, chunk_tokens: int, layer: nn.Module,
    use_chunk: Callable[[Chunk], contextlib.AbstractContextManager[None]], overwrites: bool = False,
    group: SequenceGroup = SINGLE_RANK, recompute_x: Callable[[], Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Call a layer on ``chunk_tokens`` tokens of one row of x ``[b, n, c]`` at a time, forward and backward.

    function   the layer, with its keyword arguments, as ``GradientCheckpointingLayer`` passes it
    layer      the module whose parameters get gradients
    use_chunk  context in which ds4sci's attention uses a chunk
    overwrites  whether backward may write the gradient of x over that of the output, if no other tensor shares its
                memory. False where a Python hook might keep the gradient
    group      ranks that the rows are sharded across; x is this rank's part. Collective
    recompute_x  function that returns x again, called once in backward; x is then not kept

    Raises ValueError for arguments that cannot be divided by tokens.
    """
    shape = x.shape[0], x.shape[1]
    runner = _Runner(function, args, chunk_tokens, layer, use_chunk, shape, overwrites, group, recompute_x)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    out: Tensor = _Layer.apply(runner, parameters, x, *parameters)
    return out


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, runner: _Runner, parameters: list[Tensor], x: Tensor, *inputs: Tensor) -> Tensor:
        ctx.runner, ctx.parameters = runner, parameters
        ctx.save_for_backward(*([] if runner.recompute_x else [x]))
        with reuse_freed_tensors():
            return runner.forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        runner = ctx.runner
        with reuse_freed_tensors():
            x = ctx.saved_tensors[0] if runner.recompute_x is None else runner.input_again()
            grad_x, grads = runner.backward(x, grad, ctx.parameters)
        return None, None, grad_x if ctx.needs_input_grad[2] else None, *grads


def _has_one_owner(x: Tensor) -> bool:
    """Whether ``x``, of one Python variable, owns all its memory alone. False if torch cannot tell."""
    if x._base is not None or not x.is_contiguous() or x.untyped_storage().nbytes() != x.nbytes:
        return False
    counts = getattr(x, "_use_count", None), getattr(torch._C, "_storage_Use_Count", None)
    if None in counts:
        return False
    storage = x.untyped_storage()  # one more owner of the memory
    return x._use_count() == 1 and torch._C._storage_Use_Count(storage._cdata) <= 2  # type: ignore[attr-defined]


@dataclass
class _Runner:
    """A layer and its arguments. See ``run_chunked``."""

    function: functools.partial[Any]
    args: tuple[Any, ...]
    chunk_tokens: int
    layer: nn.Module
    use_chunk: Callable[[Chunk], contextlib.AbstractContextManager[None]]
    shape: tuple[int, int]
    overwrites: bool
    group: SequenceGroup
    recompute_x: Callable[[], Tensor] | None

    def __post_init__(self) -> None:
        rows, n = self.shape
        self.parts = [
            (row, start, min(start + self.chunk_tokens, n))
            for row in range(rows)
            for start in range(0, n, self.chunk_tokens)
        ]
        # each chunk has its own random numbers, the same in every pass
        self.seeds: list[int] = torch.randint(2**62, (len(self.parts),)).tolist()
        self.autocast: dict[str, Any] | None = None

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        self.autocast = {
            "device_type": kind, "enabled": torch.is_autocast_enabled(kind), "dtype": torch.get_autocast_dtype(kind),
        }  # fmt: skip
        chunk = Chunk(self.group, *self.shape)
        self.call(x, 0, chunk, only_keys=True)
        if chunk.all_keys_first:
            for i in range(1, len(self.parts)):
                self.call(x, i, chunk, only_keys=True)
        out: Tensor | None = None
        for i, part in enumerate(self.parts):
            y = self.call(x, i, chunk)
            if out is None:
                out = y.new_empty(*x.shape[:2], *y.shape[2:])
            self.at(out, part).copy_(y)
        assert out is not None
        return out

    def input_again(self) -> Tensor:
        assert self.recompute_x is not None
        assert self.autocast is not None
        with torch.autocast(**self.autocast):
            return self.recompute_x()

    def backward(self, x: Tensor, grad: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        """Return the gradients of x and of the parameters."""
        chunk = Chunk(self.group, *self.shape)
        with torch.no_grad():
            for i in range(len(self.parts)):
                self.call(x, i, chunk, only_keys=True)
        assert chunk.keys is not None
        assert chunk.values is not None
        chunk.grad_keys, chunk.grad_values = (
            torch.zeros(y.shape, dtype=torch.promote_types(y.dtype, torch.float32), device=y.device)
            for y in (chunk.keys, chunk.values)
        )
        # the gradient of a chunk's output is not needed after its backward
        fits = grad.shape == x.shape and grad.dtype == x.dtype
        grad_x = grad.detach() if self.overwrites and fits and _has_one_owner(grad) else torch.empty_like(x)
        sums: list[Tensor | None] = [None] * len(parameters)

        def add(i: int, outputs: list[Tensor], grads: list[Tensor], own: Tensor, first: bool) -> None:
            found = torch.autograd.grad(outputs, [own, *parameters], grads, allow_unused=True)
            place = self.at(grad_x, self.parts[i])
            if first:
                place.copy_(found[0])
            elif found[0] is not None:
                place += found[0]
            for at, one in enumerate(found[1:]):
                if one is not None:  # in fp32: there may be many chunks
                    wide = one.to(torch.promote_types(one.dtype, torch.float32))
                    before = sums[at]
                    sums[at] = wide if before is None else before.add_(wide)

        for i in reversed(range(len(self.parts))):
            own = self.at(x, self.parts[i]).detach().requires_grad_()
            with torch.enable_grad():
                y = self.call(x, i, chunk, own=own)
            add(i, [y], [self.at(grad, self.parts[i])], own, True)
        if chunk.all_keys_first:
            for i in range(len(self.parts)):
                own = self.at(x, self.parts[i]).detach().requires_grad_()
                with torch.enable_grad():
                    self.call(x, i, chunk, own=own, only_keys=True)
                wanted = [(k, g) for k, g in zip(chunk.own, chunk.key_gradients(), strict=True) if k.requires_grad]
                add(i, [k for k, _ in wanted], [g for _, g in wanted], own, False)
        return grad_x, [None if s is None else s.to(p.dtype) for s, p in zip(sums, parameters, strict=True)]

    def at(self, x: Tensor, part: tuple[int, int, int]) -> Tensor:
        row, start, stop = part
        return x[row : row + 1, start:stop]

    def call(self, x: Tensor, i: int, chunk: Chunk, *, own: Tensor | None = None, only_keys: bool = False) -> Tensor:
        """Call the layer on chunk i: its output; with ``only_keys`` an empty tensor, and its keys are stored."""
        row, start, _ = part = self.parts[i]
        chunk.row, chunk.start, chunk.only_keys, chunk.calls, chunk.own = row, start, only_keys, 0, []
        args = [self.divide(value, part) for value in self.args]
        keywords = {name: self.divide(value, part) for name, value in self.function.keywords.items()}
        given = self.at(x, part) if own is None else own
        assert self.autocast is not None
        with self.use_chunk(chunk), self.random(i, x.device), torch.autocast(**self.autocast):
            try:
                out = keep_all(functools.partial(self.function.func, *self.function.args, **keywords), given, *args)
            except _KeysStored:
                return given[:, :0]
        if only_keys:
            raise ValueError("model.chunk_tokens: the layer does not call attention")
        if isinstance(out, tuple):
            raise ValueError("model.chunk_tokens: the layer returns a tuple")
        found: Tensor = out
        return found

    def divide(self, value: Any, part: tuple[int, int, int]) -> Any:
        """Return the part of an argument that belongs to a chunk; what has no tokens stays. Raises ValueError."""
        rows, n = self.shape
        row, start, stop = part
        if isinstance(value, (tuple, list)):
            return type(value)(self.divide(one, part) for one in value)
        if not isinstance(value, Tensor):
            return value
        if value.requires_grad:
            raise ValueError("model.chunk_tokens: the layer has an argument with a gradient besides its input")
        if value.dim() == 1 and len(value) == n:
            return value[start:stop]
        if value.dim() >= 2 and value.shape[0] in (1, rows) and value.shape[1] == n:
            return value[row : row + 1, start:stop] if value.shape[0] == rows else value[:, start:stop]
        if n in value.shape:
            raise ValueError(
                f"model.chunk_tokens: the layer has an argument of shape {tuple(value.shape)}, which cannot be divided "
                "by tokens"
            )
        return value

    @contextlib.contextmanager
    def random(self, i: int, device: torch.device) -> Iterator[None]:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(self.seeds[i])
            yield
