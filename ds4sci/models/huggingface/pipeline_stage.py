"""Pipeline stages of Hugging Face language models: the whole model, in which the layers of other stages do nothing.

The model's own code runs on every stage. The last layer before a stage's own is replaced by one that returns the states
received from the stage before; all other layers of other stages return their input. What the model computes before its
layers belongs to the first stage, and everything else outside them to the last one. Whether the model allows this
cannot be read off its class, so it is tested on a miniature: outputs and gradients of a chain of two stages must be
those of the whole model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ds4sci.models.huggingface.parts import unwrap_peft
from ds4sci.models.huggingface.verification import miniatures
from ds4sci.models.language import LanguageModel
from ds4sci.parallel.pipeline import PipelineStage, StageParts, split_evenly
from ds4sci.types import LanguageBatch


@dataclass(frozen=True)
class SplitPlan:
    """How models of a class are split.

    inputs           names of the modules with parameters that are called before the first layer
    returns_tuple    whether a layer returns a tuple whose first element are the hidden states
    """

    inputs: frozenset[str]
    returns_tuple: bool


def partition(model: LanguageModel, stages: int) -> tuple[StageParts, ...]:
    """Return the parts of each stage. Its layers, and the head, are balanced by the number of weights in matrices.

    Raises ValueError if the model cannot be split, or has fewer layers than stages.
    """
    return _partition(model, stages, plan_split(model))


class LanguageStage(PipelineStage):
    """One stage of ``model``, whose other modules are removed from it. The states are the hidden states [b, n, c]."""

    model: LanguageModel

    def __init__(self, model: LanguageModel, stage: int, stages: int, plan: SplitPlan | None = None) -> None:
        """Raises ValueError if the model cannot be split, or has fewer layers than stages."""
        super().__init__()
        plan = plan or plan_split(model)
        self.parts = _partition(model, stages, plan)
        own = self.parts[stage].blocks
        names = {id(p): name for name, p in model.named_parameters()}
        shared = set(self.parts[0].parameters) & set(self.parts[-1].parameters)
        self.is_last = stage == stages - 1
        layers, (prefix, container) = model.layers, _layer_list(model)
        model.layers = [layers[i] for i in own]
        self.entry = _Entry(layers[own.start - 1], plan.returns_tuple) if stage else None
        for i, layer in enumerate(layers):
            if i not in own:
                container[i] = _OtherStage(layer, plan.returns_tuple)
        if self.entry is not None:
            container[own.start - 1] = self.entry
        for name, module in list(model.named_modules()):
            is_own = stage == 0 if name in plan.inputs else self.is_last
            if module._parameters and not name.startswith(prefix + ".") and not is_own:
                _remove_parameters(model, name, module, self.entry)
        self.model = model
        kept = {names[id(p)]: p for p in model.parameters()}
        self._parameters_by_name = {name: kept[name] for name in self.parts[stage].parameters}
        self.tied = [p for name, p in self._parameters_by_name.items() if name in shared]

    def stage_parameters(self) -> dict[str, nn.Parameter]:
        return self._parameters_by_name

    def forward(self, batch: LanguageBatch, states: Tensor | None, recycled: Tensor | None = None) -> Any:
        with self.entry.receiving(states) if self.entry is not None else contextlib.nullcontext():
            return self.model(batch) if self.is_last else self.model.hidden(batch)


def plan_split(model: LanguageModel) -> SplitPlan:
    """Return how ``model`` is split. Raises ValueError with the reason if it cannot be split."""
    name = type(unwrap_peft(model.model)).__name__
    for key, value in unwrap_peft(model.model).config.to_dict().items():
        if "layerdrop" in key and value:
            raise ValueError(
                f"parallel.pipeline: {name} skips layers at random ({key} = {value}), also those at which stages "
                f"meet; set model.overrides.{key}=0"
            )
    if model.factory is None:
        raise ValueError(f"parallel.pipeline: {name} was not built by ds4sci.models.language.build")
    _layer_list(model)
    with miniatures(model.factory, model.convention) as (small, batch):
        inputs = _inputs(small(), batch)
        reasons = []
        for returns_tuple in (False, True):
            plan = SplitPlan(inputs, returns_tuple)
            try:
                reason = _difference(small, batch, plan)
            except Exception as error:  # foreign code may raise anything
                reason = f"{type(error).__name__}: {error}".split("\n")[0]
            if reason is None:
                return plan
            reasons.append(reason)
    raise ValueError(
        f"parallel.pipeline: {name} cannot be divided into stages: a miniature of it, divided between two layers, does "
        f"not give its own output and gradients ({min(reasons, key=len)}); set parallel.pipeline = 1"
    )


def _layer_list(model: LanguageModel) -> tuple[str, nn.ModuleList]:
    """Name and list of the layers of ``model``. Raises ValueError if they are not the elements of one list."""
    layers = sorted(id(layer) for layer in model.layers)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) and sorted(map(id, module)) == layers:
            return name, module
    raise ValueError(
        f"parallel.pipeline: {type(unwrap_peft(model.model)).__name__} cannot be divided into stages: its layers are "
        "not one list in which each is called once; set parallel.pipeline = 1"
    )


def _partition(model: LanguageModel, stages: int, plan: SplitPlan) -> tuple[StageParts, ...]:
    prefix, container = _layer_list(model)
    costs = [sum(p.numel() for p in layer.parameters() if p.ndim > 1) for layer in container]
    head = model.matmul_parameters - sum(costs)
    costs[-1] += max(head, 0)
    runs = split_evenly(costs, stages)
    names = {id(p): name for name, p in model.named_parameters()}
    owners: dict[str, set[int]] = {name: set() for name in names.values()}
    for name, module in model.named_modules():
        for p in module._parameters.values():
            if p is None:
                continue
            if name.startswith(prefix + "."):
                block = int(name.removeprefix(prefix + ".").split(".")[0])
                owner = next(i for i, run in enumerate(runs) if block in run)
            else:
                owner = 0 if name in plan.inputs else stages - 1
            owners[names[id(p)]].add(owner)
    for name, found in owners.items():
        if len(found) > 1 and found != {0, stages - 1}:
            raise ValueError(
                f"parallel.pipeline: {type(unwrap_peft(model.model)).__name__} cannot be divided into {stages} stages: "
                f"stages {', '.join(map(str, sorted(found)))} share {name}; set parallel.pipeline = 1"
            )
    return tuple(
        StageParts(run, tuple(name for name, found in owners.items() if stage in found))
        for stage, run in enumerate(runs)
    )


def _inputs(model: LanguageModel, batch: LanguageBatch) -> frozenset[str]:
    """Names of the modules with parameters outside the layers that are called before the first layer only.

    Raises ValueError for one that is called between or inside layers.
    """
    prefix, container = _layer_list(model)
    calls: dict[str, set[str]] = {}
    done = 0

    def record(name: str) -> None:
        place = "before" if done == 0 else "after" if done == len(container) else "between"
        calls.setdefault(name, set()).add(place)

    def count(*_: Any) -> None:
        nonlocal done
        done += 1

    hooks = []
    for name, module in model.named_modules():
        if module._parameters and not name.startswith(prefix + "."):
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: record(name)))
    hooks += [layer.register_forward_hook(count) for layer in container]
    try:
        with torch.no_grad():
            model.logits(batch)
    finally:
        for hook in hooks:
            hook.remove()
    for name, places in calls.items():
        if "between" in places or len(places) > 1:
            raise ValueError(f"parallel.pipeline: the model calls {name} before, between and after its layers")
    return frozenset(name for name, places in calls.items() if places == {"before"})


def _difference(make: Callable[[], LanguageModel], batch: LanguageBatch, plan: SplitPlan) -> str | None:
    """Why a chain of two stages differs from the whole model; None if it does not."""
    whole, stages = make(), [LanguageStage(make(), stage, 2, plan) for stage in (0, 1)]

    def documents(logits: Tensor) -> Tensor:
        return torch.cat([logits.flatten(0, 1)[a:b] for a, b in batch.doc_spans.tolist()])

    expected = documents(whole.logits(batch))
    with stages[1].entry.receiving(stages[0](batch, None)):  # type: ignore[union-attr]
        found = documents(stages[1].model.logits(batch))
    if not (off := _relative(found, expected)) <= TOLERANCE:
        return f"its logits differ by {off:.1g}"
    expected.square().mean().backward()
    found.square().mean().backward()
    gradients: dict[str, Tensor] = {}
    for stage in stages:
        for name, p in stage.stage_parameters().items():
            if p.grad is not None:
                gradients[name] = gradients[name] + p.grad if name in gradients else p.grad
    for name, p in whole.named_parameters():
        if p.grad is not None and not (off := _relative(gradients.get(name, torch.zeros(())), p.grad)) <= TOLERANCE:
            return f"the gradient of {name} differs by {off:.1g}"
    return None


TOLERANCE = 1e-4
"""Largest difference between a chain of stages and the whole miniature that counts as rounding, relative to the largest
element."""


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


class _OtherStage(nn.Module):
    """Stand-in for a layer of another stage: returns its input. The model may read the attributes of the layer."""

    def __init__(self, layer: nn.Module, returns_tuple: bool) -> None:
        super().__init__()
        for name, value in vars(layer).items():
            if name not in vars(self) and not name.startswith("_"):
                setattr(self, name, value)
        self.returns_tuple = returns_tuple

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        return (states,) if self.returns_tuple else states


class _Entry(_OtherStage):
    """Stand-in for the last layer before a stage: returns the states that the stage has received."""

    states: Tensor | None = None

    @contextlib.contextmanager
    def receiving(self, states: Tensor | None) -> Iterator[None]:
        """Context manager in which ``states`` are returned."""
        self.states = states
        try:
            yield
        finally:
            self.states = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return (self.states,) if self.returns_tuple else self.states


class _NoEmbedding(nn.Module):
    """Stand-in for an embedding of another stage: zeros that take no memory, in the dtype of the received states, from
    which a model derives that of its rotary embeddings."""

    def __init__(self, width: int, entry: _Entry) -> None:
        super().__init__()
        self.width, self._entry = width, [entry]  # in a list, so that it is not registered twice

    def forward(self, index: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        states = self._entry[0].states
        assert states is not None
        return states.new_zeros(()).expand(*index.shape, self.width)


class _Unchanged(nn.Module):
    """Stand-in for a module of another stage: returns its first argument."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args else next(iter(kwargs.values()))


def _remove_parameters(model: nn.Module, name: str, module: nn.Module, entry: _Entry | None) -> None:
    """Remove the direct parameters of ``module``, whose results this stage does not use."""
    if isinstance(module, nn.Embedding) or not module._modules:
        stand_in: nn.Module = _Unchanged()
        if isinstance(module, nn.Embedding) and entry is not None:
            stand_in = _NoEmbedding(module.embedding_dim, entry)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, stand_in)
    else:
        for parameter in module._parameters:
            module._parameters[parameter] = None
