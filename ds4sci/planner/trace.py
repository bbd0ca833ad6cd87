"""Trace of one training step of one rank: saved activations, peak memory and bytes sent, without computing anything.

The weights are FakeTensors: they have shapes, types and storages, but no memory. The batch is real, so that code that
depends on its values runs. Operations of ``ds4sci.kernels`` hide what they allocate inside; they are traced once per
shape in their ``tiled`` implementation, which is torch code. The other ranks are those of torch's process group
``fake``, whose collectives return at once.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ds4sci.kernels import KERNELS, tiles
from ds4sci.kernels.flop_formulas import FORMULAS
from ds4sci.kernels.spec import set_default_implementations
from ds4sci.models.huggingface import attention
from ds4sci.nn import activation_budget, activation_memory
from ds4sci.parallel.collectives import sent_by_collective
from ds4sci.parallel.groups import SequenceGroup
from ds4sci.tasks import SequenceParallel, Task

TILED = {name: "tiled" for name, kernel in KERNELS.items() if any(i.name == "tiled" for i in kernel.implementations)}
"""Implementations that are traced: they allocate at least what those in Triton and C++ do."""


@functools.cache
def _fake_mode() -> FakeTensorMode:
    """Return the mode of all fake weights. It is not entered: new tensors are real unless computed from weights."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@dataclass(frozen=True)
class StepTrace:
    """Memory and communication of the forward and backward pass of one micro-batch, in bytes.

    saved  storages saved for the backward pass, without weights and inputs
    host   saved inputs of recomputed layers that are kept in host memory (``model.offload``)
    peak   largest sum of living storages, without weights, inputs, ``host`` and complete gradients of weights
    peak_with_gradients  the same with gradients of weights, which ZeRO 0 and 1 keep to the end of the step
    sent   collective operation → bytes that this rank sends to others
    calls  collective operation → how often it is called
    flops  operations of matrix products, convolutions and attention, recomputed ones included
    """

    saved: int
    host: int
    peak: int
    peak_with_gradients: int
    sent: dict[str, int]
    calls: dict[str, int] = field(default_factory=dict)
    flops: int = 0


@dataclass
class Recorder(TorchDispatchMode):
    """Dispatch mode that sums the storages that are alive, and the bytes that collectives send.

    Works on fake and on real tensors. Storages that exist before are registered by ``ignore``. Saved storages and FLOPs
    of matrix products and attention are counted for the current ``stage`` of a pipeline.
    """

    current: int = 0
    peak: int = 0
    peak_with_gradients: int = 0
    gradients: int = 0
    host: int = 0
    sent: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    inside: dict[Any, tuple[int, int]] = field(default_factory=dict)
    stage: int = 0
    flops: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__init__()
        self._living: dict[int, tuple[int, Any]] = {}
        self._saved: dict[int, tuple[int, Any, int]] = {}

    def ignore(self, tensors: Sequence[Tensor]) -> None:
        """Count the storages of ``tensors`` as 0 bytes."""
        for x in tensors:
            self._register(x.untyped_storage(), 0)

    def saved_bytes(self, stage: int | None = None) -> int:
        """Return the bytes of the storages that were saved for the backward pass and are alive, of one stage or all."""
        living = [(size, of) for size, storage, of in self._saved.values() if storage() is not None]
        return sum(size for size, of in living if stage in (None, of))

    def record_saved(self) -> contextlib.AbstractContextManager[None]:
        """Context manager in which tensors saved for the backward pass are recorded."""

        def pack(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            size, _ = self._living.get(storage._cdata, (storage.nbytes(), None))
            before = self._saved.get(storage._cdata)
            if before is None or before[1]() is None:  # an address may be used again
                self._saved[storage._cdata] = (size, weakref.ref(storage), self.stage)
            return x

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)

    def to_host(self, x: Tensor) -> Tensor:
        """Count ``x`` as host memory from now on, as ``activation_memory.to_host`` does on a GPU."""
        key = x.untyped_storage()._cdata
        size, storage = self._living[key]
        self._living[key] = (0, storage)
        self.current -= size
        self.host += size
        return x

    def drop_gradient(self, parameter: Tensor) -> None:
        """Release the complete gradient of ``parameter``, and count it in ``peak_with_gradients`` only."""
        assert parameter.grad is not None
        self.gradients += parameter.grad.nbytes
        parameter.grad = None

    def _reach(self, size: int) -> None:
        self.peak = max(self.peak, size)
        self.peak_with_gradients = max(self.peak_with_gradients, size + self.gradients)

    def _register(self, storage: Any, size: int) -> None:
        key = storage._cdata
        if key in self._living:
            return

        def release(_: Any) -> None:
            self.current -= self._living.pop(key)[0]

        self._living[key] = (size, weakref.ref(storage, release))
        self.current += size
        self._reach(self.current)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        if func.namespace == "c10d":
            name, size = sent_by_collective(func, args)
            if size:
                self.sent[name] += size
                self.calls[name] += 1
        args = _with_known_shapes(func, args)
        if func.namespace == "ds4sci":
            peak, flops = self._inside(func, args)
            self._reach(self.current + peak)
            if not flops and (formula := FORMULAS.get(func._overloadpacket)) is not None:
                flops = int(formula(*args, **kwargs))
            self.flops[self.stage] += flops
        out = func(*args, **kwargs)
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.flops[self.stage] += count(*args, **kwargs, out_val=out)
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                storage = x.untyped_storage()
                self._register(storage, storage.nbytes())
        return out

    def _inside(self, func: Any, args: Any) -> tuple[int, int]:
        """Return peak memory, outputs included, and FLOPs inside an operation; 0 where it is not written in torch."""
        leaves = tree_leaves(args)
        if func._overloadpacket is torch.ops.ds4sci.varlen_attention:
            q, doc_spans, causal = args[0], args[3], args[4]
            squares = float((doc_spans[:, 1] - doc_spans[:, 0]).double().square().sum())
            return 0, int(4 * q.shape[1] * q.shape[2] * squares / (2 if causal else 1))
        if not any(x in ("tiled", "native", "triton") for x in leaves if isinstance(x, str)):
            return 0, 0
        key = (func, *(_signature(x) for x in leaves))
        if key not in self.inside:
            tiled = [("tiled" if x in ("native", "triton") else x) if isinstance(x, str) else x for x in args]
            recorder = Recorder(inside=self.inside)
            recorder.ignore([x for x in leaves if isinstance(x, Tensor)])
            with recorder, torch.no_grad():
                OPDEFS[func.name().split(".")[0]]._init_fn(*tiled)
            self.inside[key] = recorder.peak, recorder.flops.total()
        return self.inside[key]


def _signature(x: Any) -> Any:
    return (x.dtype, tuple(x.shape), x.stride()) if isinstance(x, Tensor) else x


def _with_known_shapes(func: Any, args: Any) -> Any:
    """Return ``args`` such that the shape of the result depends on known values only.

    A choice between two known tensors by a predicted condition takes the second (the renaming of symmetric atoms), so
    that masks stay known. A known mask that indexes predictions becomes integer indices.
    """
    if func is torch.ops.aten.where.self and isinstance(args[0], FakeTensor):
        if not any(isinstance(x, FakeTensor) for x in args[1:]):
            return (torch.zeros(args[0].shape, dtype=torch.bool), *args[1:])
    elif func is torch.ops.aten.index.Tensor:
        index: list[Tensor | None] = []
        for x in args[1]:
            known_mask = x is not None and x.dtype is torch.bool and not isinstance(x, FakeTensor)
            index += list(x.nonzero().unbind(1)) if known_mask else [x]
        return (args[0], index)
    return args


def make_fake(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace all weights and buffers of ``model`` by FakeTensors; floating-point ones get ``dtype``."""
    seen: dict[int, Tensor] = {}

    def fake(x: Tensor) -> Tensor:
        if id(x) not in seen:
            with _fake_mode():
                made = torch.empty(x.shape, dtype=dtype if x.is_floating_point() else x.dtype, device="cpu")
            seen[id(x)] = nn.Parameter(made, x.requires_grad) if isinstance(x, nn.Parameter) else made
        return seen[id(x)]

    kept = {id(x): x for x in [*model.parameters(), *model.buffers()]}  # keeps the keys of ``seen`` unique
    for module in model.modules():
        tables: list[dict[str, Any]] = [module._parameters, module._buffers]
        for table in tables:
            for name, x in table.items():
                if x is not None:
                    table[name] = fake(x)
    del kept


def set_groups(task: Task, group: SequenceGroup) -> None:
    """Split the examples of ``task`` over ``group``. Raises ValueError if the task or its model cannot be split."""
    if group.size > 1 and not isinstance(task, SequenceParallel):
        raise ValueError(f"{type(task).__name__} cannot split an example over ranks (parallel.sequence)")
    if isinstance(task, SequenceParallel):
        task.set_parallel_groups(group)


def tensors_of(batch: Any) -> list[Tensor]:
    """Return the tensors of ``batch``."""
    return [x for x in vars(batch).values() if isinstance(x, Tensor)]


def trace_step(
    task: Task, batch: Any, *, gpu: bool = True, inside: dict[Any, tuple[int, int]] | None = None
) -> StepTrace:
    """Trace forward and backward of ``batch``. The model of ``task`` has fake weights (``make_fake``).

    gpu     trace what a GPU would run: its tile sizes, its attention within documents, offloaded inputs
    inside  cache of the peaks inside operations, to share between traces

    Raises ValueError if the model or the loss reads values of predictions, which a trace does not have.
    """
    model = task.model
    model.train()
    for _ in range(2 if any(stack.counts for stack in activation_budget.stacks(model)) else 0):
        with conditions(Recorder(), gpu):
            model(batch)  # the first two steps on a shape may count what layers keep
    recorder = Recorder(inside={} if inside is None else inside)
    recorder.ignore([*model.parameters(), *model.buffers()])
    recorder.ignore(tensors_of(batch))
    trained = [p for p in model.parameters() if p.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(recorder.drop_gradient) for p in trained]
    try:
        with conditions(recorder, gpu), recorder:
            with recorder.record_saved():
                loss, _ = task.loss(model(batch), batch)
            saved = recorder.saved_bytes()
            loss.backward()
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException) as error:
        raise ValueError(
            f"{type(task).__name__} cannot be traced: its model or loss reads values of predictions ({error}); choose "
            "shapes and branches by the batch only"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return StepTrace(
        saved, recorder.host, recorder.peak, recorder.peak_with_gradients, dict(recorder.sent), dict(recorder.calls),
        recorder.flops.total(),
    )  # fmt: skip


@contextlib.contextmanager
def conditions(recorder: Recorder, gpu: bool) -> Iterator[None]:
    """Context manager of a trace: implementations, and for a GPU its tile sizes, attention and offloading."""
    no_separate: Callable[..., None] = lambda *args, **kwargs: None  # noqa: E731
    with contextlib.ExitStack() as stack:
        stack.enter_context(set_default_implementations(TILED, KERNELS))
        if gpu:
            stack.enter_context(mock.patch.object(tiles, "CPU_BYTES", tiles.GPU_BYTES))
            stack.enter_context(mock.patch.object(attention, "forward_backward", no_separate))
            stack.enter_context(mock.patch.object(activation_memory, "to_host", recorder.to_host))
        yield
