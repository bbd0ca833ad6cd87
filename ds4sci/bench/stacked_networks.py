"""Many small networks of one shape, trained side by side: products of a stack instead of a loop over networks.

A step of a network with 50,000 weights takes less time than the calls that start it. With the weights of K networks in
one tensor per layer, [K, in, out], a step of all costs the calls of one. The networks share nothing: each has its own
samples, order and trust ratios of LAMB, and gets the weights that it would get alone, up to the rounding of sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ds4sci.train.layerwise_optimizers import LAMB, Segment

RATE, RATE_BATCH, WARMUP = 0.02, 512, 0.1
"""Learning rate of LAMB at a batch of ``RATE_BATCH``, scaled with the square root of the batch; warm-up, part of the
steps."""
WEIGHT_DECAY = 0.01
ROWS_AT_ONCE = 65_536
"""Samples of a step in memory: with large batches fewer networks are trained at once."""


@dataclass(frozen=True)
class Job:
    """Training of one network.

    x, y   samples [n, features] and targets [n]
    rows   int64, numbers of the samples to train on
    seed   of the weights and of the order
    """

    x: Tensor
    y: Tensor
    rows: np.ndarray
    seed: int


Observer = Callable[[int, int, np.ndarray, Tensor, Tensor], None]
"""Called with the number of the job, the step, the numbers of its samples, the network's outputs and the targets."""


class NetworkStack(nn.Module):
    """K multilayer perceptrons with SiLU between their layers; x [K, b, in] → [K, b, out]."""

    def __init__(self, networks: Sequence[nn.Sequential]) -> None:
        """Copy the weights of networks that have the same shapes."""
        super().__init__()
        layers = [[m for m in network if isinstance(m, nn.Linear)] for network in networks]
        stacks = [torch.stack([linear.weight.detach().T for linear in level]) for level in zip(*layers, strict=True)]
        biases = [torch.stack([linear.bias.detach()[None] for linear in level]) for level in zip(*layers, strict=True)]
        self.weights, self.biases = nn.ParameterList(stacks), nn.ParameterList(biases)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs of all networks, each on its own rows."""
        for number, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, F.silu(x) if number else x, weight)
        return x

    def copy_to(self, networks: Sequence[nn.Sequential]) -> None:
        """Copy the weights back."""
        with torch.no_grad():
            for number, network in enumerate(networks):
                linears = [m for m in network if isinstance(m, nn.Linear)]
                for linear, weight, bias in zip(linears, self.weights, self.biases, strict=True):
                    linear.weight.copy_(weight[number].T)
                    linear.bias.copy_(bias[number, 0])

    def segments(self) -> dict[Tensor, list[Segment]]:
        """Whole parameters of the single networks, for the trust ratios of LAMB."""
        tensors = [*self.weights, *self.biases]
        return {
            p: [
                Segment(number * len(p) + k, k * p[0].numel(), p[0].numel(), 2 if p[0].shape[0] > 1 else 1)
                for k in range(len(p))
            ]
            for number, p in enumerate(tensors)
        }


def mlp(sizes: Sequence[int], seed: int) -> nn.Sequential:
    """A new network with these widths, SiLU between its layers, from the seed."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def train(
    networks: Sequence[nn.Sequential], jobs: Sequence[Job], batch: int, steps: int,
    loss_of: Callable[..., Tensor] = F.cross_entropy, observe: Observer | None = None,
) -> None:  # fmt: skip
    """Train each network on its job with LAMB: linear warm-up, then a cosine to zero.

    batch, steps  of every network; epochs are shuffled from the job's seed
    loss_of       (outputs [b, …], targets [b], reduction="sum") → loss of one network
    observe       called for each job and step, before the step
    """
    at_once = max(1, ROWS_AT_ONCE // batch)
    for first in range(0, len(jobs), at_once):
        chosen = slice(first, first + at_once)
        _train_together(networks[chosen], jobs[chosen], batch, steps, loss_of, observe, first)


def _train_together(
    networks: Sequence[nn.Sequential], jobs: Sequence[Job], batch: int, steps: int, loss_of: Callable[..., Tensor],
    observe: Observer | None, first: int,
) -> None:  # fmt: skip
    stack = NetworkStack(networks)
    rate = RATE * math.sqrt(batch / RATE_BATCH)
    optimizer = LAMB(stack.parameters(), lr=rate, weight_decay=WEIGHT_DECAY)
    segments = stack.segments()
    optimizer.divide(segments, sum(map(len, segments.values())), None)
    orders = [_shuffled(job.rows, batch, job.seed) for job in jobs]
    warmup = max(1, round(WARMUP * steps))
    for step in range(steps):
        progress = (step - warmup) / max(1, steps - warmup)
        factor = (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * progress))
        optimizer.param_groups[0]["lr"] = rate * factor
        rows = [next(order) for order in orders]
        x, y = (
            torch.stack([getattr(job, name)[own] for job, own in zip(jobs, rows, strict=True)]) for name in ("x", "y")
        )
        outputs = stack(x)
        optimizer.zero_grad()
        (loss_of(outputs.flatten(0, 1), y.flatten(0, 1), reduction="sum") / batch).backward()
        if observe is not None:
            for number, own in enumerate(rows):
                observe(first + number, step, own, outputs[number].detach(), y[number])
        optimizer.step()
    stack.copy_to(networks)


def _shuffled(rows: np.ndarray, batch: int, seed: int) -> Iterator[np.ndarray]:
    """Endless batches of one shuffled epoch after another."""
    rng = np.random.default_rng((seed, 2))
    waiting = np.zeros(0, np.int64)
    while True:
        while len(waiting) < batch:
            waiting = np.concatenate([waiting, rows[rng.permutation(len(rows))]])
        yield waiting[:batch]
        waiting = waiting[batch:]
