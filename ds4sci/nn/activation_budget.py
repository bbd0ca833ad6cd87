"""Levels of what the layers of a model keep for the backward pass, within a budget (``train.activation_budget``).

=============  ===================================================  ==============================
``Keep``       kept between forward and backward                    computed again in backward
=============  ===================================================  ==============================
``INPUT``      the layer's input                                    the whole layer
``OPERATORS``  its input, and outputs of costly operators: those    all but these operators
               of attention, and of triangle multiplication
``ALL``        what autograd saves                                  nothing
=============  ===================================================  ==============================

Outputs of attention are small and costly: the second forward pass of attention takes n times as long as that of a
linear layer with as many outputs. So a budget first keeps operators in as many layers as it can, then all of as many
layers as it can, from the last layer on: the backward pass releases these before it computes earlier layers again.
Bytes that are left where all layers keep all go to projections that fused operations would compute again
(``kernels.saved_projections``): q, k, v and gate of attention, a and b of triangle multiplication, in the order in
which the operations run.

The sizes are counted, not estimated. In the first step on inputs of a new shape, layers keep their input only, and one
is counted: the last of those with the most trained weights, usually the last, which the backward pass computes first.
If the budget might not have room for all that it keeps, its tokenwise functions keep their inputs only, and it is
counted again in the second step if there is room.

Gradients do not depend on the budget: what is computed again has the same bits, and functions that recomputed layers
apply to a part of the tokens at a time (``token_loss.tiled``) do so in all layers.

Torch's own selective checkpointing demands the same operators in forward and recomputation, which ZeRO 3 does not give:
it gathers and releases weights inside the layer. Here only the kept operators have to be the same.
"""

from __future__ import annotations

import enum
import functools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

from ds4sci.parallel.groups import SINGLE_RANK, SequenceGroup

CHECKPOINT_MIN_TOKENS = 8192
"""Without a budget, layers of transformers are recomputed above this number of tokens per rank and micro-batch."""
WHOLE_LAYER = 30
"""Times its input that a layer keeps at most, roughly. In the tests, ESM, Llama, ViT and an Evoformer block keep 10 to
15 times their input."""
GB = 1e9
"""Bytes of a GB of ``train.activation_budget``."""

OPERATORS = (
    "ds4sci::varlen_attention", "ds4sci::evoformer_attention", "ds4sci::gated_self_attention",
    "ds4sci::triangle_multiplication", "flash_attn::_flash_attn_varlen_forward", "flash_attn::_flash_attn_forward",
    "aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_cudnn_attention",
)  # fmt: skip
"""Operators whose outputs are kept before others. Those that are not registered in a process are left out."""


RunLayer = Callable[..., Any]
"""Function that calls a layer, ``run(layer, *args)``, and decides what is kept for backward."""


class Keep(enum.Enum):
    """What a layer keeps: see the module."""

    INPUT = enum.auto()
    OPERATORS = enum.auto()
    ALL = enum.auto()


@dataclass(frozen=True)
class LayerBytes:
    """Bytes that a layer keeps at each of the three levels of ``Keep``.

    is_bound  ``all`` is a lower bound: tokenwise functions of the counted layer kept their inputs only
    """

    input: int
    operators: int
    all: int
    is_bound: bool = False


def choose(budget: float, layers: int, size: LayerBytes) -> list[Keep]:
    """Return what each of ``layers`` equal layers keeps, such that their sum is at most ``budget`` bytes.

    Layers that keep their input only are the least that is possible, also if they exceed the budget.
    """
    left = budget - layers * size.input
    operators = max(0, size.operators - size.input)
    kept = min(layers, int(max(0.0, left) // operators)) if operators else 0
    left -= kept * operators
    more = size.all - (size.operators if kept else size.input)
    whole = 0
    if kept == layers or not operators:
        whole = layers if more <= 0 else min(layers, int(max(0.0, left) // more))
    kept = max(kept, whole)
    return [Keep.INPUT] * (layers - kept) + [Keep.OPERATORS] * (kept - whole) + [Keep.ALL] * whole


class LayerStack:
    """What each layer of a stack keeps. A model has one for each stack of equal layers, as an attribute of a module.

    layers  number of layers of the model, over which a budget is divided
    limit   bytes; infinite: nothing is computed again; None: no budget is set
    log     called with a sentence whenever a decision is made
    group   ranks that share each example: they decide alike, because layers that are computed again communicate again
    spare   bytes for projections in the layers that ``plan`` was called for, together
    """

    def __init__(self, name: str, layers: int, *, has_projections: bool = False) -> None:
        """``name``: what the layers are called in messages, in the plural.

        ``has_projections``: whether they are called within an allowance of ``spare`` bytes (``saved_projections``).
        """
        self.name, self.layers, self.has_projections = name, layers, has_projections
        self.limit: float | None = None
        self.log: Callable[[str], None] | None = None
        self.group: SequenceGroup = SINGLE_RANK
        self.spare = 0.0
        self._sizes: dict[Any, LayerBytes] = {}
        self._reported = False

    @property
    def counts(self) -> bool:
        """Whether the first steps on a shape count what layers keep."""
        return self.limit not in (None, 0, math.inf)

    def recomputes(self, tokens: int) -> bool:
        """Whether layers on ``tokens`` tokens may be recomputed: with a finite budget, and without one if there are
        many."""
        limited = tokens > CHECKPOINT_MIN_TOKENS if self.limit is None else self.limit < math.inf
        return torch.is_grad_enabled() and limited

    def plan(self, shape: Any, layers: Sequence[nn.Module], input_bytes: int) -> list[RunLayer | None]:
        """Return for each layer a function that calls it, ``run(layer, *args)``, and keeps what the budget allows; None
        for a layer that is called as it is.

        shape        of the inputs, hashable: anything that the sizes depend on, besides dtypes and trained weights
        input_bytes  of a layer, roughly
        """
        count = len(layers)
        if self.limit is None and self.log is not None and not self._reported:
            self._reported = True
            self.log(
                f"Activations: {count} {self.name} keep their input for backward and are computed again; with "
                "train.activation_budget (GB) they keep the outputs of attention too, and whatever else fits"
            )
        self.spare = math.inf if self.limit == math.inf and self.has_projections else 0.0
        if not self.counts:
            return [None if self.limit else keep_input] * count
        if not count:
            return []
        # The layer with the most trained weights, the last of them: others keep at most as much.
        trained = [sum(p.numel() for p in layer.parameters() if p.requires_grad) for layer in layers]
        at = max(range(count), key=lambda i: (trained[i], i))
        first = next(layers[0].parameters(), None)
        autocast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
        shape = shape, None if first is None else first.dtype, autocast, tuple(trained)
        size = self._sizes.get(shape)
        if size is None:
            whole = (self.limit or 0) > (count + WHOLE_LAYER) * input_bytes
            found: list[RunLayer | None] = [keep_input] * count
            found[at] = functools.partial(self._count, shape, count, whole)
            return found
        runs: dict[Keep, RunLayer] = {Keep.INPUT: keep_input, Keep.OPERATORS: keep_operators, Keep.ALL: keep_all}
        keeps = choose(self.limit or 0, count, size)
        if size.is_bound and keeps[-1] is Keep.ALL:
            found = [keep_operators if size.operators > size.input else keep_input] * count
            found[at] = functools.partial(self._count, shape, count, True)
            return found
        self.spare = self._spare_bytes(count, size)
        return [runs[keep] for keep in keeps]

    def _count(self, shape: Any, layers: int, whole: bool, function: Callable[..., Any], *args: Any) -> Any:
        """Call a layer and count what it keeps; with ``whole`` tokenwise functions keep all."""
        with _counted() as counted:
            out = (keep_all if whole else _call)(function, *args)
        given = sum(x.nbytes for x in args if isinstance(x, Tensor) and x.requires_grad)
        values = [given, given + counted.operators, max(counted.saved, given + counted.operators)]
        if self.group.size > 1:
            largest = torch.tensor(values, dtype=torch.int64, device=args[0].device)
            dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=self.group.handle)
            values = largest.tolist()
        size = self._sizes[shape] = LayerBytes(values[0], values[1], values[2], is_bound=not whole)
        decided = whole or choose(self.limit or 0, layers, size)[-1] is not Keep.ALL
        if decided and self.log is not None:
            self.log(self.describe(shape, layers))
        return out

    def _spare_bytes(self, layers: int, size: LayerBytes) -> float:
        """Bytes that the budget leaves where all ``layers`` keep all."""
        if not self.has_projections or size.is_bound:
            return 0.0
        return max(0.0, (self.limit or 0) - layers * size.all)

    def describe(self, shape: Any, layers: int) -> str:
        """Return the decision for ``shape``, which has been counted, as a sentence."""
        size = self._sizes[shape]
        keeps = choose(self.limit or 0, layers, size)
        sums = {Keep.INPUT: size.input, Keep.OPERATORS: size.operators, Keep.ALL: size.all}
        total = sum(sums[keep] for keep in keeps)
        counts = {keep: keeps.count(keep) for keep in Keep}
        parts = [
            f"{counts[keep]} {text}"
            for keep, text in (
                (Keep.ALL, "keep all"), (Keep.OPERATORS, "keep their input and attention"),
                (Keep.INPUT, "keep their input"),
            )
            if counts[keep]
        ]  # fmt: skip
        spare = self._spare_bytes(layers, size)
        more = f", and up to {spare / GB:.2f} GB of projections" if spare else ""
        return f"Activations: of {layers} {self.name}, {', '.join(parts)} for backward ({total / GB:.2f} GB{more})"


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def keep_input(function: Callable[..., Any], *args: Any) -> Any:
    """Call ``function``, of which only the inputs are kept for backward."""
    return checkpoint(function, *args, use_reentrant=False)


def keep_operators(function: Callable[..., Any], *args: Any) -> Any:
    """Call ``function``, of which the inputs and the outputs of ``OPERATORS`` are kept for backward."""

    def contexts() -> tuple[_Keeping, _Replaying]:
        outputs: deque[tuple[Any, Any]] = deque()
        return _Keeping(_operators(), outputs), _Replaying(outputs)

    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts)


def keep_all(function: Callable[..., Any], *args: Any) -> Any:
    """Call ``function``, of which everything is kept, also what is inside tokenwise functions."""
    global _keeps_all
    _keeps_all = True
    try:
        return function(*args)
    finally:
        _keeps_all = False


_keeps_all = False


def keeps_all() -> bool:
    """Whether a layer runs in ``keep_all``."""
    return _keeps_all


def stacks(model: nn.Module) -> list[LayerStack]:
    """Return the stacks of ``model``, in the order of its modules."""
    found = {id(x): x for module in model.modules() for x in vars(module).values() if isinstance(x, LayerStack)}
    return list(found.values())


def set_budget(model: nn.Module, gigabytes: float | Literal["unlimited"], *, divided_by: int = 1) -> None:
    """Divide a budget among the stacks of ``model`` in proportion to their layers.

    divided_by  micro-batches whose activations exist at the same time: the stages of a pipeline

    Raises ValueError if no layers of the model can be recomputed.
    """
    every = stacks(model)
    layers = sum(stack.layers for stack in every)
    if not layers:
        raise ValueError(f"train.activation_budget: {type(model).__name__} has no layers that can be recomputed")
    budget = math.inf if gigabytes == "unlimited" else gigabytes
    for stack in every:
        stack.limit = budget * GB * (stack.layers / layers) / divided_by if stack.layers else 0


def log_decisions(model: nn.Module, log: Callable[[str], None]) -> None:
    """Have the stacks of ``model`` report what they decide."""
    for stack in stacks(model):
        stack.log = log


def _operators() -> list[Any]:
    """Return those of ``OPERATORS`` that are registered in this process."""
    found = []
    for name in OPERATORS:
        namespace, operator = name.split("::")
        if (packet := getattr(getattr(torch.ops, namespace), operator, None)) is not None:
            found.append(packet.default)
    return found


@dataclass
class _Counted:
    """Bytes saved by autograd without weights, and bytes of the outputs of ``OPERATORS``."""

    saved: int = 0
    operators: int = 0


@contextmanager
def _counted() -> Iterator[_Counted]:
    """Context manager that counts what is saved for the backward pass inside, once for each storage."""
    found, seen = _Counted(), dict[int, Tensor]()

    def pack(x: Tensor) -> Tensor:
        base = x._base if x._base is not None else x
        if not isinstance(base, nn.Parameter):
            storage = x.untyped_storage()
            if storage._cdata not in seen:
                seen[storage._cdata] = x  # keeps the storage alive, and its address unique
                found.saved += storage.nbytes()
        return x.detach()  # an output that its own operation saves would otherwise be a cycle, never freed

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), _OperatorOutputs(found, _operators()):
            yield found
    finally:
        seen.clear()  # saved tensors keep the hook alive, and the hook would keep them


class _Mode(TorchDispatchMode):
    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compiled functions, such as flex_attention, run as without this mode."""
        return True


def _detached(outputs: Any) -> Any:
    return tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, outputs)


class _Keeping(_Mode):
    """Mode of the forward pass of a layer: keeps the outputs of ``operators``, in order."""

    def __init__(self, operators: Iterable[Any], outputs: deque[tuple[Any, Any]]) -> None:
        super().__init__()
        self.operators, self.outputs = frozenset(operators), outputs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in self.operators:
            self.outputs.append((func, _detached(out)))
        return out


class _Replaying(_Mode):
    """Mode of the recomputation: the operator that comes next returns the output that was kept. A second recomputation,
    after a backward pass with ``retain_graph``, computes everything."""

    def __init__(self, outputs: deque[tuple[Any, Any]]) -> None:
        super().__init__()
        self.outputs = outputs

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.outputs and func is self.outputs[0][0]:
            return self.outputs.popleft()[1]
        return func(*args, **(kwargs or {}))


class _OperatorOutputs(_Mode):
    def __init__(self, found: _Counted, operators: Iterable[Any]) -> None:
        super().__init__()
        self.found, self.operators = found, frozenset(operators)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in self.operators:
            self.found.operators += sum(x.nbytes for x in tree_leaves(out) if isinstance(x, Tensor))
        return out
