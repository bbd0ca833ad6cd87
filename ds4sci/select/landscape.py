"""The loss of a trained model around its weights: curvature, and slices to look at.

Everything is computed from gradients in fp64, in evaluation mode, on fixed samples: Hessian-vector products are central
differences (∇L(θ + εv) − ∇L(θ − εv)) / 2ε. They need no second derivatives of fused kernels, and err by about ε² and
10⁻¹⁶/ε.

    λ_max    largest eigenvalue of the Hessian, by power iteration; with a shift where a negative one is larger
    trace    Hutchinson's estimate E vᵀHv over v = ±1, with its standard error
    slices   L(θ + a d) and L(θ + a d + b e) along random directions whose filters have the norms of those of θ; vectors
             (biases, scales of norms) stay (Li et al., arXiv 1712.09913)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ds4sci.parallel.groups import SINGLE_RANK, SequenceGroup
from ds4sci.tasks import batch_weight
from ds4sci.train import rng_state
from ds4sci.types import in_double

STEP = 1e-4
"""ε ‖θ‖ of the differences, for ‖v‖ = 1 relative to ‖θ‖."""


@dataclass(frozen=True)
class Curvature:
    """Curvature of the loss.

    largest      largest eigenvalue of the Hessian
    residual     ‖Hv − λv‖ / |λ| of its vector
    iterations   of the power iteration
    trace        Hutchinson's estimate
    trace_error  its standard error
    """

    largest: float
    residual: float
    iterations: int
    trace: float
    trace_error: float


class LossSurface:
    """Loss of a task on fixed batches as a function of its trainable weights, in fp64.

    The loss is one mean over all batches, weighted by ``Task.weight``; what a loss draws at random is the same at every
    call.
    """

    def __init__(
        self, task: Any, batches: Sequence[Any], device: torch.device, factors: Sequence[float] | None = None,
        ranks: SequenceGroup = SINGLE_RANK,
    ) -> None:  # fmt: skip
        """Raises ValueError if no batch has anything to predict.

        batches  the same on all ranks
        factors  of the losses of the batches, as ``[data.weights]`` gives them in training; by default 1
        ranks    that share the batches, each with a copy of the model
        """
        weights = [batch_weight(task, batch) for batch in batches]
        if not sum(weights) > 0:
            raise ValueError("the samples have nothing to predict, so there is no loss; choose others")
        self.task, self.model, self.ranks = task, task.model.to(device).double().eval(), ranks
        self.samples = len(batches)
        factors = factors or [1.0] * len(weights)
        self.shares = [factor * weight / sum(weights) for weight, factor in zip(weights, factors, strict=True)]
        own = range(ranks.rank, len(batches), ranks.size)
        self.batches = {number: in_double(batches[number].to(device)) for number in own}
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.start = self._flat([p.detach() for p in self.parameters])

    def loss(self, theta: Tensor) -> float:
        """L(θ)."""
        with torch.no_grad():
            own = sum(self._losses(theta), start=theta.new_zeros(()))
        return float(self.ranks.all_reduce_sum(own))

    def gradient(self, theta: Tensor) -> Tensor:
        """∇L(θ), flat."""
        total = torch.zeros_like(theta)
        for part in self._losses(theta):
            found = torch.autograd.grad(part, self.parameters, allow_unused=True)
            total += self._flat(
                [torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, found, strict=True)]
            )
        return self.ranks.all_reduce_sum(total)

    def times_hessian(self, vector: Tensor, theta: Tensor | None = None) -> Tensor:
        """H v at θ, by default at the trained weights."""
        theta = self.start if theta is None else theta
        step = STEP * float(theta.norm()) / max(float(vector.norm()), 1e-300)
        return (self.gradient(theta + step * vector) - self.gradient(theta - step * vector)) / (2 * step)

    def direction(self, seed: int) -> Tensor:
        """A random direction whose filters (rows of matrices) have the norms of those of the trained weights."""
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for p in self._parts(self.start):
            drawn = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.device)
            if p.dim() < 2:
                parts.append(torch.zeros_like(p))
                continue
            rows = drawn.flatten(1)
            scale = p.flatten(1).norm(dim=1) / rows.norm(dim=1).clamp(min=1e-300)
            parts.append((rows * scale[:, None]).view_as(p))
        return self._flat(parts)

    def _losses(self, theta: Tensor) -> Any:
        with torch.no_grad():
            for p, value in zip(self.parameters, self._parts(theta), strict=True):
                p.copy_(value)
        for number, batch in self.batches.items():
            rng_state.seed_all(0, rng_state.EVALUATION, number)
            yield self.task.loss(self.model(batch), batch)[0] * self.shares[number]

    def _parts(self, theta: Tensor) -> list[Tensor]:
        sizes = [p.numel() for p in self.parameters]
        return [part.view_as(p) for part, p in zip(theta.split(sizes), self.parameters, strict=True)]

    @staticmethod
    def _flat(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.reshape(-1) for part in parts])


def curvature(
    surface: LossSurface, *, iterations: int = 100, tolerance: float = 1e-3, probes: int = 16, seed: int = 0
) -> Curvature:
    """Largest eigenvalue and trace of the Hessian at the trained weights.

    iterations, tolerance  the power iteration ends when λ changes by less than this part, twice in a row
    probes                 vectors of the trace; 0: it is NaN
    """
    value, residual, used = power_iteration(surface.times_hessian, surface.start, iterations, tolerance, seed)
    if value < 0:  # a negative eigenvalue has the largest size: shift it to zero
        shift = -value

        def shifted(vector: Tensor) -> Tensor:
            return surface.times_hessian(vector) + shift * vector

        value, residual, more = power_iteration(shifted, surface.start, iterations, tolerance, seed + 1)
        residual *= abs(value) / max(abs(value - shift), 1e-300)
        value, used = value - shift, used + more
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(probes):
        signs = torch.randint(0, 2, surface.start.shape, generator=generator).to(surface.start) * 2 - 1
        found.append(float(signs @ surface.times_hessian(signs)))
    error = float(np.std(found, ddof=1) / np.sqrt(probes)) if probes > 1 else float("nan")
    return Curvature(value, residual, used, float(np.mean(found)) if found else float("nan"), error)


def power_iteration(
    times: Callable[[Tensor], Tensor], like: Tensor, iterations: int, tolerance: float, seed: int
) -> tuple[float, float, int]:
    """Return the eigenvalue of largest size of a symmetric operator, ‖Hv − λv‖ / |λ|, and the number of products."""
    vector = torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(like)
    vector /= vector.norm()
    value, settled, product = 0.0, 0, vector
    for used in range(1, iterations + 1):
        product = times(vector)
        before, value = value, float(vector @ product)
        settled = settled + 1 if abs(value - before) <= tolerance * abs(value) else 0
        if settled == 2 or not float(product.norm()) > 0:
            break
        if used < iterations:
            vector = product / product.norm()
    residual = float((product - value * vector).norm()) / max(abs(value), 1e-300)
    return value, residual, used


def line(surface: LossSurface, places: Sequence[float], seed: int = 0) -> list[float]:
    """L(θ + a d) at each a of ``places``."""
    direction = surface.direction(seed)
    return [surface.loss(surface.start + a * direction) for a in places]


def plane(surface: LossSurface, places: Sequence[float], seed: int = 0) -> list[list[float]]:
    """L(θ + a d + b e) at each a (rows) and b (columns) of ``places``."""
    one, two = surface.direction(seed), surface.direction(seed + 1)
    return [[surface.loss(surface.start + a * one + b * two) for b in places] for a in places]
