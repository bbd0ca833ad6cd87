"""Layers of Hugging Face models on a part of the tokens at a time: ``model.chunk_tokens``.

Of a whole row exist only the layer's input and output, the keys and values of its attention, and in the backward pass
their gradients. Everything else, such as queries, MLPs and norms, exists for one chunk. The code of the layer is not
edited: it is called on the chunk's tokens, and ds4sci's attention joins the chunk's queries to the stored keys.

    forward   causal: chunk after chunk; the keys of a chunk are stored before its queries attend.
              bidirectional: first all chunks up to their keys, then all chunks.
    backward  first the keys of all chunks again. Causal: from the last chunk to the first, each recomputed and
              differentiated; the gradients of its keys, from itself and later chunks, are then complete.
              bidirectional: all chunks, then all chunks up to their keys, with the gradients of keys and values.

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


class _KeysStored(Exception):
    """The keys of the chunk are stored, and the rest of the layer is not wanted."""


@dataclass
class Chunk:
    """The running chunk, and the keys and values of its row.

    first      token of the flattened rows at which the chunk begins
    tokens     of the flattened rows
    only_keys  end the layer's call as soon as the keys are stored
    keys, values            ``[tokens, g, d]``; None before the first call of attention
    grad_keys, grad_values  fp32 like them, in the backward pass
    causal     of the layer's attention; None before its first call
    own        k and v of the chunk, with their graph
    """

    tokens: int
    first: int = 0
    only_keys: bool = False
    keys: Tensor | None = None
    values: Tensor | None = None
    grad_keys: Tensor | None = None
    grad_values: Tensor | None = None
    causal: bool | None = None
    own: list[Tensor] = field(default_factory=list)
    calls: int = 0

    def attend(self, q: Tensor, k: Tensor, v: Tensor, doc_spans: Tensor, causal: bool, scale: float) -> Tensor:
        """Return the output ``[c, h, d]`` of the chunk's queries. Raises ValueError at the second call in a layer."""
        self.calls += 1
        if self.calls > 1:
            raise ValueError("model.chunk_tokens: the layer calls attention more than once")
        self.causal = causal
        if self.keys is None or self.values is None:
            self.keys, self.values = (x.new_empty(self.tokens, *x.shape[1:]) for x in (k, v))
        here = slice(self.first, self.first + len(k))
        if self.only_keys or causal:
            self.keys[here], self.values[here] = k.detach(), v.detach()
        self.own = [k, v]
        if self.only_keys:
            raise _KeysStored
        out: Tensor = _Attention.apply(q, k, v, self, Queries(doc_spans, self.first, causal, scale))
        return out


class _Attention(torch.autograd.Function):
    """Attention of a chunk with the stored keys. The gradients of its keys are those that have been added up so far,
    if they are complete."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, chunk: Chunk, queries: Queries) -> Tensor:
        assert chunk.keys is not None
        assert chunk.values is not None
        out, ctx.saved = queries.attend(q, chunk.keys, chunk.values)
        ctx.save_for_backward(q, out)
        ctx.chunk, ctx.queries, ctx.dtypes = chunk, queries, (k.dtype, v.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (q, out), chunk = ctx.saved_tensors, ctx.chunk
        saved, ctx.saved = ctx.saved, None
        grad_q = ctx.queries.add_gradients(
            grad, q, chunk.keys, chunk.values, out, saved, chunk.grad_keys, chunk.grad_values
        )
        if not ctx.queries.causal:
            return grad_q, None, None, None, None
        here = slice(chunk.first, chunk.first + len(q))
        grads = (x[here].to(t) for x, t in zip((chunk.grad_keys, chunk.grad_values), ctx.dtypes, strict=True))
        return grad_q, *grads, None, None


def run_chunked(
    function: functools.partial[Any], x: Tensor, *args: Any, chunk_tokens: int, layer: nn.Module,
    use_chunk: Callable[[Chunk], contextlib.AbstractContextManager[None]], overwrites: bool = False,
) -> Tensor:  # fmt: skip
    """Call a layer on ``chunk_tokens`` tokens of one row of x ``[b, n, c]`` at a time, forward and backward.

    function   the layer, with its keyword arguments, as ``GradientCheckpointingLayer`` passes it
    layer      the module whose parameters get gradients
    use_chunk  context in which ds4sci's attention uses a chunk
    overwrites  whether backward of a causal layer may write the gradient of x over x. A second backward through the
                same graph then raises RuntimeError

    Raises ValueError for arguments that cannot be divided by tokens.
    """
    runner = _Runner(function, args, chunk_tokens, layer, use_chunk, (x.shape[0], x.shape[1]), overwrites)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    out: Tensor = _Layer.apply(runner, parameters, x, *parameters)
    return out


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, runner: _Runner, parameters: list[Tensor], x: Tensor, *inputs: Tensor) -> Tensor:
        ctx.runner, ctx.parameters = runner, parameters
        ctx.save_for_backward(x)
        return runner.forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (x,) = ctx.saved_tensors
        grad_x, grads = ctx.runner.backward(x, grad, ctx.parameters)
        return None, None, grad_x if ctx.needs_input_grad[2] else None, *grads


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
    is_spent: bool = False

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
        chunk = Chunk(x.shape[0] * x.shape[1])
        self.call(x, 0, chunk, only_keys=True)
        if not chunk.causal:
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

    def backward(self, x: Tensor, grad: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        """Return the gradients of x and of the parameters."""
        if self.is_spent:
            raise RuntimeError("model.chunk_tokens: a second backward pass through the same graph is not possible")
        chunk = Chunk(x.shape[0] * x.shape[1])
        with torch.no_grad():
            for i in range(len(self.parts)):
                self.call(x, i, chunk, only_keys=True)
        assert chunk.keys is not None
        assert chunk.values is not None
        chunk.grad_keys, chunk.grad_values = (
            torch.zeros(y.shape, dtype=torch.promote_types(y.dtype, torch.float32), device=y.device)
            for y in (chunk.keys, chunk.values)
        )
        # Causal: the input of a chunk is not needed after its backward. If another operation has saved x, autograd
        # raises an error there, as x has been modified.
        self.is_spent = self.overwrites and bool(chunk.causal)
        grad_x = x.detach() if self.is_spent else torch.empty_like(x)
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
        if not chunk.causal:
            for i in range(len(self.parts)):
                own = self.at(x, self.parts[i]).detach().requires_grad_()
                with torch.enable_grad():
                    self.call(x, i, chunk, own=own, only_keys=True)
                here = slice(chunk.first, chunk.first + own.shape[1])
                pairs = zip(chunk.own, (chunk.grad_keys, chunk.grad_values), strict=True)
                wanted = [(k, g[here].to(k.dtype)) for k, g in pairs if k.requires_grad]
                add(i, [k for k, _ in wanted], [g for _, g in wanted], own, False)
        return grad_x, [None if s is None else s.to(p.dtype) for s, p in zip(sums, parameters, strict=True)]

    def at(self, x: Tensor, part: tuple[int, int, int]) -> Tensor:
        row, start, stop = part
        return x[row : row + 1, start:stop]

    def call(self, x: Tensor, i: int, chunk: Chunk, *, own: Tensor | None = None, only_keys: bool = False) -> Tensor:
        """Call the layer on chunk i: its output; with ``only_keys`` an empty tensor, and its keys are stored."""
        row, start, _ = part = self.parts[i]
        chunk.first, chunk.only_keys, chunk.calls, chunk.own = row * self.shape[1] + start, only_keys, 0, []
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
