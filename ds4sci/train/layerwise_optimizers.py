"""LAMB and LARS on every ZeRO stage: optimizers that scale the step of each parameter by a ratio of two norms.

With w the weights of one parameter, g its gradient, λ the weight decay and γ the learning rate:

    LAMB   m ← β₁ m + (1 − β₁) g,  v ← β₂ v + (1 − β₂) g²,  u = m̂ / (√v̂ + ε) + λ w
           w ← w − γ · clip(‖w‖ / ‖u‖, min_coeff, max_coeff) · u
    LARS   u = η ‖w‖ / (‖g‖ + λ ‖w‖ + ε) · (g + λ w),  b ← momentum · b + γ u
           w ← w − b

The ratio is 1 where ‖w‖ or the other norm is 0. The norms are those of whole parameters: where ZeRO divides parameters
among ranks, each rank adds up the squares of its fragments, and one all-reduce per step adds up those of the ranks.
DeepSpeed's own LAMB takes the norm of a rank's flat buffer of many parameters instead, so that its steps depend on the
ZeRO stage and on the number of ranks (DeepSpeed issues 88 and 490).

Sources: You et al., arXiv 1904.00962 (LAMB), where the decayed weights are part of the norm; arXiv 1708.03888 (LARS).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """Consecutive elements of a flattened tensor that belong to one parameter.

    index       number of the parameter, the same on all ranks
    start       first element in the tensor
    numel       number of elements
    dimensions  of the whole parameter
    """

    index: int
    start: int
    numel: int
    dimensions: int

    def of(self, tensor: Tensor) -> Tensor:
        """The elements in ``tensor``, as a view."""
        return tensor.view(-1).narrow(0, self.start, self.numel)


@dataclass(frozen=True)
class _Layout:
    """Segments of the tensors of a step: (number of the tensor, segment), whether each has a ratio, and both as tensors
    on the device of the weights."""

    tensors: list[Tensor]
    places: list[tuple[int, Segment]]
    is_adapted: list[bool]
    index: Tensor
    adapted_mask: Tensor


class LayerwiseOptimizer(torch.optim.Optimizer):
    """Base of LAMB and LARS. As it is made, every tensor is a whole parameter; ``divide`` changes that.

    A step needs the memory of one more copy of the weights.
    """

    decays_before_norm: bool
    """Whether the decayed weights are part of the vector whose norm divides."""

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)
        for group in self.param_groups:
            _check_values(type(self).__name__, group)
        self._segments: Mapping[Tensor, list[Segment]] | None = None
        self._count = 0
        self._process_group: Any = None
        self._layouts: dict[tuple[Any, ...], _Layout] = {}

    def divide(self, segments: Mapping[Tensor, list[Segment]], count: int, process_group: Any) -> None:
        """Set what the tensors of ``param_groups`` hold: parts of parameters that the ranks of a group share.

        segments       tensor → its segments of parameters; elements outside them are padding
        count          number of parameters on all ranks
        process_group  the ranks that together hold each parameter once; None: all, or this process alone where
                       torch.distributed was not initialized
        """
        self._segments, self._count, self._process_group = segments, count, process_group
        self._layouts.clear()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step. With divided parameters every rank of the group calls this for the same parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if any(p.grad is not None for p in group["params"]):
                self._step_group(group)
        return loss

    def _step_group(self, group: dict[str, Any]) -> None:
        tensors = [p for p in group["params"] if p.grad is not None]
        vectors = [self.vector(p, group) for p in tensors]
        layout = self._layout(tensors, group)
        weights, parts = ([one.of(of[number]) for number, one in layout.places] for of in (tensors, vectors))
        pairs = zip(parts, weights, strict=True)
        decayed = [pair for pair, adapted in zip(pairs, layout.is_adapted, strict=True) if adapted]

        def decay() -> None:
            if decayed and group["weight_decay"]:
                torch._foreach_add_(*map(list, zip(*decayed, strict=True)), alpha=group["weight_decay"])

        if self.decays_before_norm:
            decay()
        count = len(tensors) if self._segments is None else self._count
        squares = tensors[0].new_zeros(2, count, dtype=torch.float64)
        for row, of in zip(squares, (weights, parts), strict=True):
            if of:
                row.index_add_(0, layout.index, torch.stack(torch._foreach_norm(of, 2, dtype=torch.float64)).square_())
        if self._segments is not None and dist.is_initialized():
            dist.all_reduce(squares, group=self._process_group)
        norms = squares.sqrt_()[:, layout.index]
        has_ratio = layout.adapted_mask & (norms > 0).all(0)
        ratios = torch.where(has_ratio, self.ratio(norms[0], norms[1], group), 1.0).to(tensors[0].dtype)
        if not self.decays_before_norm:
            decay()
        if parts:
            torch._foreach_mul_(parts, list(ratios.unbind()))
        self.apply(tensors, vectors, group)

    def _layout(self, tensors: list[Tensor], group: dict[str, Any]) -> _Layout:
        """The segments of these tensors, with their index on the device: made once, not copied there at each step."""
        device = tensors[0].device
        key = (*map(id, tensors), device, group["exclude_one_dimensional"])
        if key not in self._layouts:
            places = [(number, one) for number, p in enumerate(tensors) for one in self._segments_of(p, number)]
            is_adapted = [one.dimensions > 1 or not group["exclude_one_dimensional"] for _, one in places]
            self._layouts[key] = _Layout(  # holds the tensors, so that no other tensor gets an id of the key
                tensors, places, is_adapted,
                torch.tensor([one.index for _, one in places], dtype=torch.long, device=device),
                torch.tensor(is_adapted, dtype=torch.bool, device=device),
            )  # fmt: skip
        return self._layouts[key]

    def _segments_of(self, p: Tensor, number: int) -> list[Segment]:
        return [Segment(number, 0, p.numel(), p.dim())] if self._segments is None else self._segments[p]

    def vector(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """Return a new tensor of the shape of ``p``: the step before decay and ratio. Updates the moments."""
        raise NotImplementedError

    def ratio(self, weight: Tensor, vector: Tensor, group: dict[str, Any]) -> Tensor:
        """Return the ratios of parameters with these norms, both positive."""
        raise NotImplementedError

    def apply(self, tensors: list[Tensor], vectors: list[Tensor], group: dict[str, Any]) -> None:
        """Update the weights with the scaled vectors."""
        raise NotImplementedError


class LAMB(LayerwiseOptimizer):
    """LAMB; see the module.

    lr             γ
    betas          β₁, β₂ in [0, 1)
    eps            ε
    weight_decay   λ
    bias_correction  divide the moments by 1 − βᵗ at step t
    min_coeff, max_coeff  limits of the ratio
    exclude_one_dimensional  biases and scales of norms have the ratio 1 and no decay, as in the paper's own code;
                             DeepSpeed's JSON has no such key, and treats all parameters alike
    """

    decays_before_norm = True

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6,
        weight_decay: float = 0.0, bias_correction: bool = True, min_coeff: float = 0.01, max_coeff: float = 10.0,
        exclude_one_dimensional: bool = False,
    ) -> None:  # fmt: skip
        """Raises ValueError for a value outside its range."""
        super().__init__(
            params,
            {
                "lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay,
                "bias_correction": bias_correction, "min_coeff": min_coeff, "max_coeff": max_coeff,
                "exclude_one_dimensional": exclude_one_dimensional,
            },
        )  # fmt: skip

    def vector(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """m̂ / (√v̂ + ε)."""
        grad, state = _dense_gradient(p), self.state[p]
        if not state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        state["step"] += 1
        first, second = state["exp_avg"], state["exp_avg_sq"]
        beta1, beta2 = group["betas"]
        first.lerp_(grad, 1 - beta1)
        second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        scale1 = scale2 = 1.0
        if group["bias_correction"]:
            scale1, scale2 = (1 - beta ** state["step"] for beta in (beta1, beta2))
        return second.div(scale2).sqrt_().add_(group["eps"]).reciprocal_().mul_(first).div_(scale1)

    def ratio(self, weight: Tensor, vector: Tensor, group: dict[str, Any]) -> Tensor:
        """clip(‖w‖ / ‖u‖)."""
        return (weight / vector).clamp(group["min_coeff"], group["max_coeff"])

    def apply(self, tensors: list[Tensor], vectors: list[Tensor], group: dict[str, Any]) -> None:
        """w ← w − γ · ratio · u."""
        torch._foreach_add_(tensors, vectors, alpha=-float(group["lr"]))


class LARS(LayerwiseOptimizer):
    """LARS; see the module.

    lr                γ
    momentum          of the scaled steps
    weight_decay      λ
    trust_coefficient  η
    eps               ε, above the rounding errors of gradients: without weight decay the ratio makes any gradient, also
                      one of rounding errors, as long as η ‖w‖
    exclude_one_dimensional  biases and scales of norms have the ratio 1 and no decay, as is usual with LARS: their
                             weights begin at 0, where a ratio would stop them
    """

    decays_before_norm = False

    def __init__(
        self, params: Iterable[Any], lr: float = 1.0, momentum: float = 0.9, weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3, eps: float = 1e-8, exclude_one_dimensional: bool = True,
    ) -> None:  # fmt: skip
        """Raises ValueError for a value outside its range."""
        super().__init__(
            params,
            {
                "lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust_coefficient": trust_coefficient,
                "eps": eps, "exclude_one_dimensional": exclude_one_dimensional,
            },
        )  # fmt: skip

    def vector(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """The gradient."""
        return _dense_gradient(p).clone()

    def ratio(self, weight: Tensor, vector: Tensor, group: dict[str, Any]) -> Tensor:
        """η ‖w‖ / (‖g‖ + λ ‖w‖ + ε)."""
        return group["trust_coefficient"] * weight / (vector + group["weight_decay"] * weight + group["eps"])

    def apply(self, tensors: list[Tensor], vectors: list[Tensor], group: dict[str, Any]) -> None:
        """b ← momentum · b + γ u, w ← w − b."""
        for p, vector in zip(tensors, vectors, strict=True):
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
            state["momentum_buffer"].mul_(group["momentum"]).add_(vector, alpha=float(group["lr"]))
            p.sub_(state["momentum_buffer"])


OPTIMIZERS: dict[str, type[LayerwiseOptimizer]] = {"lamb": LAMB, "lars": LARS}
"""``optimizer.type`` of a DeepSpeed JSON in lower case → class."""


def _dense_gradient(p: Tensor) -> Tensor:
    assert p.grad is not None
    if p.grad.is_sparse:
        raise ValueError("LAMB and LARS need dense gradients; remove sparse_gradients from the DeepSpeed JSON")
    return p.grad if p.grad.dtype == p.dtype else p.grad.to(p.dtype)


def _check_values(name: str, group: Mapping[str, Any]) -> None:
    """Raise ValueError for a setting outside its range."""
    for key in ("lr", "eps", "weight_decay", "min_coeff"):
        if key in group and not 0 <= group[key] < math.inf:
            raise ValueError(f"{name}: {key} must be at least 0, got {group[key]}")
    if "betas" in group and not (len(group["betas"]) == 2 and all(0 <= beta < 1 for beta in group["betas"])):
        raise ValueError(f"{name}: betas must be two numbers in [0, 1), got {group['betas']}")
    if "momentum" in group and not 0 <= group["momentum"] < 1:
        raise ValueError(f"{name}: momentum must be in [0, 1), got {group['momentum']}")
    if "trust_coefficient" in group and not 0 < group["trust_coefficient"] < math.inf:
        raise ValueError(f"{name}: trust_coefficient must be positive, got {group['trust_coefficient']}")
    if not isinstance(group["exclude_one_dimensional"], bool):
        raise ValueError(
            f"{name}: exclude_one_dimensional must be true or false, got {group['exclude_one_dimensional']}"
        )
    if "max_coeff" in group and not group["min_coeff"] <= group["max_coeff"]:
        raise ValueError(f"{name}: max_coeff = {group['max_coeff']} is less than min_coeff = {group['min_coeff']}")
