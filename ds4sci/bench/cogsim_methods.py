"""Corrections of a surrogate of a simulation by a few experiments, for many draws of experiments at once.

Predictions and outputs are in normalized units (``ds4sci.data.surrogate_variables``). Networks of equal size are
trained together: their weights have a leading axis, and their gradients do not mix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap

from ds4sci.models.surrogate import SurrogateNet

PENALTIES = tuple(10.0**power for power in range(-4, 4))


@dataclass(frozen=True)
class Training:
    """Settings of gradient training on the experiments, among which cross-validation chooses.

    rates  learning rates of Adam
    steps  numbers of steps, ascending
    folds  parts of the experiments, each of which is left out once
    """

    rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2)
    steps: tuple[int, ...] = (0, 5, 10, 20, 50, 100, 200)
    folds: int = 5


def affine(predicted: Tensor, measured: Tensor, probe: Tensor) -> Tensor:
    """Return a + b · ``probe`` [m, t], where a and b of each output fit ``measured`` [n, t] by least squares to
    ``predicted`` [n, t]. An output that does not vary among the experiments is shifted only."""
    centred = predicted - predicted.mean(0)
    variance = centred.square().sum(0)
    slope = (centred * (measured - measured.mean(0))).sum(0) / variance.clamp_min(1e-12)
    slope = torch.where(variance > 1e-9, slope, torch.ones_like(slope))
    return measured.mean(0) + slope * (probe - predicted.mean(0))


@dataclass(frozen=True)
class Retrained:
    """Output layers retrained on experiments.

    probe      [m, t], predictions
    residuals  [n, t], errors on each experiment of the layers that are retrained without it
    """

    probe: Tensor
    residuals: Tensor


def retrain_heads(
    features: Tensor,
    predicted: Tensor,
    measured: Tensor,
    probe_features: Tensor,
    probe: Tensor,
    blocks: Sequence[slice],
) -> Retrained:
    """Retrain the output layers of a surrogate, the trunk being frozen, as close as possible to the source's weights.

    With the c features h of the trunk, standardized over the source's training data, and the residuals r of the source
    model, the change W of a layer's weights minimizes Σ |r - W h - b|² + λ c |W|²; the intercept b is free. λ of each
    layer is that of the smallest leave-one-out error, which is exact: (r - H r)ᵢ / (1 - Hᵢᵢ).

    features, probe_features  [n, c] and [m, c]
    predicted, probe          [n, t] and [m, t], outputs of the source model
    measured                  [n, t]
    blocks                    outputs of each layer
    """
    n = len(features)
    residual = (measured - predicted).double()
    centre = features.mean(0)
    h, others = (features - centre).double(), (probe_features - centre).double()
    kernel = h @ h.T / h.shape[1]
    identity = torch.eye(n, dtype=torch.float64)
    middle = identity - 1 / n
    found, left_out = probe.double().clone(), torch.empty_like(residual)
    for block in blocks:
        r = residual[:, block]
        best: tuple[float, Tensor, Tensor] | None = None
        for penalty in PENALTIES:
            solve = torch.linalg.inv(kernel + penalty * identity)
            hat = kernel @ solve @ middle + 1 / n
            errors = (r - hat @ r) / (1 - hat.diagonal()).clamp_min(1e-9)[:, None]
            score = float(errors.square().mean())
            if best is None or score < best[0]:
                best = score, errors, solve
        assert best is not None
        left_out[:, block] = best[1]
        found[:, block] += r.mean(0) + (others @ h.T / h.shape[1]) @ best[2] @ (r - r.mean(0))
    return Retrained(found.float(), left_out.float())


def fine_tune(
    models: Sequence[SurrogateNet], x: Tensor, y: Tensor, used: Tensor, weights: Tensor, rate: float,
    steps: Sequence[int], probe: Tensor,
) -> dict[int, Tensor]:  # fmt: skip
    """Train all layers of every model on its own experiments with Adam, and predict at ``probe``.

    models   e networks; not changed
    x, y     [e, n, p] and [e, n, t]
    used     bool [e, n], True: the experiment is trained on
    weights  [t], weights of the squared errors
    steps    numbers of steps after which to predict, ascending
    probe    [e, m, p]

    Returns steps → [e, m, t]. The biases of the outputs begin at the mean residual of the experiments.
    """
    base = models[0]
    stacked, _ = stack_module_state(list(models))
    parameters = {name: p.detach().clone() for name, p in stacked.items()}

    def one(own: dict[str, Tensor], inputs: Tensor) -> Tensor:
        found: Tensor = functional_call(base, own, (inputs,))
        return found

    predict: Callable[[dict[str, Tensor], Tensor], Tensor] = vmap(one)
    share = used.float() / used.sum(1, keepdim=True)
    with torch.no_grad():
        shift = torch.einsum("en,ent->et", share, y - predict(parameters, x))
        count = 0 if base.scalars is None else base.scalars.out_features
        for name, part in (("scalars.bias", shift[:, :count]), ("field.bias", shift[:, count:])):
            if name in parameters:
                parameters[name] += part
    trained = [p.requires_grad_() for p in parameters.values()]
    optimizer = torch.optim.Adam(trained, lr=rate, fused=True)  # the default reads the weights ten times
    found: dict[int, Tensor] = {}
    for step in range(steps[-1] + 1):
        if step in steps:
            with torch.no_grad():
                found[step] = predict(parameters, probe)
        if step == steps[-1]:
            break
        errors = ((predict(parameters, x) - y).square() * weights).sum(-1)
        optimizer.zero_grad()
        (errors * share).sum().backward()  # gradients of different models do not mix
        optimizer.step()
    return found


def fine_tuned(
    start: Callable[[int, int], SurrogateNet], members: int, x: Tensor, y: Tensor, weights: Tensor, training: Training,
    probe: Tensor,
) -> tuple[Tensor, list[Mapping[str, float]]]:  # fmt: skip
    """Fine-tune an ensemble on each of d draws of experiments, with rate and steps chosen by cross-validation.

    start    (draw, member) → network with the initial weights
    members  k; cross-validation uses the first
    x, y     [d, n, p] and [d, n, t]
    probe    [m, p]

    Returns predictions [d, k, m, t] and the choice of each draw.
    """
    draws, n = x.shape[:2]
    fold = torch.arange(n) % training.folds
    used = torch.stack([fold != held for held in range(training.folds)])
    models = [start(draw, 0) for draw in range(draws) for _ in range(training.folds)]
    own_x, own_y = (tensor.repeat_interleave(training.folds, 0) for tensor in (x, y))
    errors: dict[tuple[float, int], Tensor] = {}
    for rate in training.rates:
        found = fine_tune(models, own_x, own_y, used.repeat(draws, 1), weights, rate, training.steps, own_x)
        for step, predicted in found.items():
            squares = ((predicted - own_y).square() * weights).sum(-1).view(draws, training.folds, n)
            errors[rate, step] = (squares * ~used).sum((1, 2)) / n
    choices = list(errors)
    chosen = torch.stack([errors[choice] for choice in choices]).argmin(0).tolist()
    result = torch.empty(draws, members, len(probe), y.shape[-1])
    for rate in training.rates:
        own = [draw for draw in range(draws) if choices[chosen[draw]][0] == rate]
        if not own:
            continue
        models = [start(draw, member) for draw in own for member in range(members)]
        own_x, own_y = (tensor[own].repeat_interleave(members, 0) for tensor in (x, y))
        everything = torch.ones(own_x.shape[:2], dtype=torch.bool)
        places = probe.expand(len(models), -1, -1)
        found = fine_tune(models, own_x, own_y, everything, weights, rate, training.steps, places)
        for number, draw in enumerate(own):
            result[draw] = found[choices[chosen[draw]][1]][number * members : (number + 1) * members]
    return result, [{"rate": choices[c][0], "steps": choices[c][1]} for c in chosen]


def train_source(
    model: SurrogateNet, x: Tensor, y: Tensor, weights: Tensor, *, steps: int, batch: int, seed: int, rate: float = 3e-3
) -> SurrogateNet:
    """Train ``model`` on examples [n, p], [n, t] in this process with Adam: for studies of the smallest size."""
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        chosen = torch.from_numpy(rng.integers(len(x), size=batch))
        loss = ((model(x[chosen]) - y[chosen]).square() * weights).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()
