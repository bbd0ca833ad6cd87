"""Task: learn the solution operator of a differential equation from its residuals, without solutions to train on.

Input functions are drawn without end, each from (seed, its number). Collocation points are drawn at every step, the
same for all functions and ranks. The held-out functions come from a stream of their own and are scored against a
reference solution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from ds4sci.models import neural_operator
from ds4sci.physics import METHODS, Fields, differentiate, pdes
from ds4sci.physics.fields import bind_functions
from ds4sci.physics.pdes import Pde, grid_points
from ds4sci.tasks import Evaluation, Task
from ds4sci.tasks.evaluations.functions import function_evaluation
from ds4sci.tasks.miniatures import operator_miniature
from ds4sci.types import OperatorBatch

TRAIN, VALID, TEST, POINTS = range(4)
"""Streams of random numbers: training functions, held-out functions of evaluations during training, test functions of
``ds4sci eval``, collocation points."""


class DataConfig(BaseModel):
    """``[data]``: functions and points. The micro-batch size of the DeepSpeed JSON counts functions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    points: int = Field(1000, ge=2)
    """Points inside the domain, drawn at every step."""
    boundary_points: int = Field(100, ge=2)
    """Points on each part of the boundary."""
    train_functions: int | None = Field(None, ge=1)
    """Number of different training functions; by default every step draws new ones."""
    valid_functions: int = Field(20, ge=1)
    """Held-out functions that evaluations during training score."""
    valid_seed: int | None = Field(None, ge=0)
    """Seed of the held-out functions; by default the run's seed. Runs that are compared need the same functions."""


class LossConfig(BaseModel):
    """``[loss]``: Σ weight · mean square of each residual of the equation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    derivatives: str = "zcs"
    """Method for derivatives with respect to coordinates: zcs, zcs_reverse, zcs_forward, func_loop or data_vect."""
    hard_constraints: bool = False
    """Whether the network satisfies initial and boundary conditions by construction, where the equation defines
    ``constrain``; their residuals are then zero."""
    weights: dict[str, float] = {}
    """Residual → weight; the equation defines the defaults."""

    @field_validator("derivatives")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in METHODS:
            raise ValueError(f"expected one of {', '.join(METHODS)}")
        return name


class Config(BaseModel):
    """The run file's sections that this task owns."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    pde: dict[str, Any]
    """``name`` (reaction_diffusion, burgers, plate, stokes, or a dotted module) and the options of that equation."""
    model: neural_operator.Config = neural_operator.Config()
    """The network."""
    data: DataConfig = DataConfig()
    """Functions and points."""
    loss: LossConfig = LossConfig()
    """Weights of the residuals and method of the derivatives."""


class Constrained(nn.Module):
    """A network whose u satisfies the conditions of the equation exactly."""

    def __init__(self, network: nn.Module, pde: Any) -> None:
        super().__init__()
        self.network, self.pde = network, pde

    def bind(self, functions: Tensor) -> Callable[[Tensor], Tensor]:
        """Return the function points → u for ``functions``, which are encoded once."""
        call = bind_functions(self.network, functions)
        return lambda points: self.pde.constrain(call(points), functions, points)

    def forward(self, functions: Tensor, points: Tensor) -> Tensor:
        return self.bind(functions)(points)


class ResidualModel(nn.Module):
    """The network and the equation: returns the residuals of a batch, in the order of ``pde.weights``, or u on a grid.

    The derivatives with respect to the coordinates are computed inside ``forward``, so that the module that the engine
    wraps contains the whole graph of the step.
    """

    why_not_zero3 = (
        "a model that differentiates itself by its inputs: the backward pass of those derivatives needs parameters "
        "that DeepSpeed 0.19 has already released, also below stage3_param_persistence_threshold; take stage 0, 1 or "
        "2 (operator networks are small)"
    )

    def __init__(self, network: nn.Module, pde: Pde, derivatives: str) -> None:
        super().__init__()
        self.network, self.pde, self.derivatives = network, pde, derivatives

    def forward(self, batch: OperatorBatch) -> Tensor | tuple[Tensor, ...]:
        if not batch.residuals:
            return self.network(batch.functions, batch.points["grid"])
        cache: dict[str, Fields] = {}

        def fields_at(name: str) -> Fields:
            if name not in cache:
                cache[name] = self.fields(batch.functions, batch.points[name], self.pde.orders[name])
            return cache[name]

        residuals = self.pde.residuals(fields_at, batch.given)
        return tuple(residuals[name] for name in self.pde.weights)  # DeepSpeed's hooks see tuples, not dictionaries

    def fields(self, functions: Tensor, points: Tensor, orders: tuple[str, ...]) -> Fields:
        """Return u and its derivatives at one set of points."""
        return differentiate(
            self.network, functions, points, names=self.pde.names, orders=orders, method=self.derivatives
        )


def miniature(config: Config, folder: Path) -> dict[str, Any]:
    """Return the sections of a tiny run file. See ``ds4sci.tasks.miniatures``."""
    return operator_miniature(config, folder)


def build(config: Config, *, seed: int, steps: int) -> NeuralOperatorTask:
    """Return the task with its network, initialised from ``seed``.

    Raises ValueError for an unknown equation, option or residual.
    """
    return NeuralOperatorTask(config, seed)


class NeuralOperatorTask(Task):
    """Operator learning. See ``ds4sci.tasks.Task`` for the methods."""

    target = "score"

    def __init__(self, config: Config, seed: int) -> None:
        self.config, self.seed = config, seed
        self.pde = pdes.build(config.pde)
        unknown = set(config.loss.weights) - set(self.pde.weights)
        if unknown:
            raise ValueError(
                f"loss.weights has {', '.join(sorted(unknown))}; {config.pde['name']} has {', '.join(self.pde.weights)}"
            )
        self.weights = {**self.pde.weights, **config.loss.weights}
        network: nn.Module = neural_operator.build(
            config.model, sensors=len(self.pde.sensors), coordinates=len(self.pde.names),
            components=len(self.pde.components), seed=seed,
        )  # fmt: skip
        if config.loss.hard_constraints:
            if not hasattr(self.pde, "constrain"):
                raise ValueError(
                    f"loss.hard_constraints: {config.pde['name']} defines no network that satisfies its conditions; "
                    "remove the key"
                )
            network = Constrained(network, self.pde)
        self.model: nn.Module = ResidualModel(network, self.pde, config.loss.derivatives)
        self._at_sensors = self.pde.space.basis(self.pde.sensors)
        self._references: dict[tuple[int, int, int], np.ndarray] = {}

    def coefficients(self, stream: int, numbers: list[int]) -> np.ndarray:
        """Return the coefficients of functions of a random stream, float64 [m, k]."""
        valid_seed = self.config.data.valid_seed
        seed = self.seed if stream != VALID or valid_seed is None else valid_seed
        return np.stack([self.pde.space.sample(seed, stream, number) for number in numbers])

    def batches(
        self, *, start_step: int, rank: int, world_size: int, micro_batch_size: int, accumulation_steps: int
    ) -> Iterator[OperatorBatch]:
        data, step = self.config.data, start_step
        step_size = world_size * micro_batch_size * accumulation_steps
        while True:
            rng = np.random.default_rng([self.seed, POINTS, step])
            points = self.pde.points(rng, data.points, data.boundary_points)
            for k in range(accumulation_steps):
                first = step * step_size + (k * world_size + rank) * micro_batch_size
                numbers = [first + i for i in range(micro_batch_size)]
                if data.train_functions is not None:
                    numbers = [number % data.train_functions for number in numbers]
                coefficients = self.coefficients(TRAIN, numbers)
                yield OperatorBatch(
                    ids=tuple(f"function {number}" for number in numbers),
                    functions=_float(coefficients @ self._at_sensors),
                    points={name: _float(x) for name, x in points.items()},
                    given={name: _float(x) for name, x in self.pde.known_values(coefficients, points).items()},
                    step=step,
                )  # fmt: skip
            step += 1

    def train_samples(self) -> int | None:
        return self.config.data.train_functions

    def loss(self, output: tuple[Tensor, ...], batch: OperatorBatch) -> tuple[Tensor, dict[str, Tensor]]:
        squares = {name: r.square().mean() for name, r in zip(self.pde.weights, output, strict=True)}
        total = torch.stack([self.weights[name] * square for name, square in squares.items()]).sum()
        return total, {name: square.detach() for name, square in squares.items()}

    def test_coefficients(self, count: int) -> np.ndarray:
        """Return the first ``count`` functions that only ``ds4sci eval`` uses, float64 [count, k]."""
        return self.coefficients(TEST, list(range(count)))

    def evaluations(self) -> dict[str, Evaluation]:
        return {"functions": function_evaluation(self)}

    def predict_solutions(self, model: nn.Module, coefficients: np.ndarray, device: torch.device) -> np.ndarray:
        """Return u on the grid of the reference solution, float64 [m, …, c]."""
        points = {"grid": _float(grid_points(self.pde.axes))}
        batch = OperatorBatch((), _float(coefficients @ self._at_sensors), points, {}, residuals=False)
        with torch.no_grad():
            u = model(batch.to(device))
        return u.double().cpu().numpy().reshape(len(coefficients), *map(len, self.pde.axes), len(self.pde.components))

    def errors(self, predicted: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """Return the relative L2 error of each function and component, [m, c]."""
        return relative_l2(predicted, reference, [name in self.pde.up_to_constant for name in self.pde.components])

    def evaluate(self, model: nn.Module, *, rank: int, world_size: int, device: torch.device) -> list[dict[str, Any]]:
        count = self.config.data.valid_functions
        numbers = list(range(rank, count, world_size)) or [rank % count]
        key = (rank, world_size, count)
        coefficients = self.coefficients(VALID, numbers)
        if key not in self._references:
            self._references[key] = self.pde.solve(coefficients)
        errors = self.errors(self.predict_solutions(model, coefficients, device), self._references[key])
        rows = [
            {"id": f"function {number}", "errors": dict(zip(self.pde.components, map(float, own), strict=True))}
            for number, own in zip(numbers, errors, strict=True)
        ]
        return rows if rank < count else []

    def summarize(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        if not rows:
            raise ValueError("no function was evaluated, so there is no error to report; increase data.valid_functions")
        each = {name: float(np.mean([row["errors"][name] for row in rows])) for name in self.pde.components}
        mean = float(np.mean(list(each.values())))
        metrics = {"relative_l2": mean, "score": -mean}
        return metrics | ({f"relative_l2_{name}": x for name, x in each.items()} if len(each) > 1 else {})


def relative_l2(predicted: np.ndarray, reference: np.ndarray, free: Sequence[bool] | None = None) -> np.ndarray:
    """Return ‖u - reference‖₂ / ‖reference‖₂ of each function and component: [m, c] of [m, …, c].

    free  components that are known up to a constant (a pressure): compared after subtracting their means
    """
    m, c = reference.shape[0], reference.shape[-1]
    ours, true = predicted.reshape(m, -1, c), reference.reshape(m, -1, c)
    if free is not None:
        ours, true = (np.where(free, x - x.mean(1, keepdims=True), x) for x in (ours, true))
    return np.linalg.norm(ours - true, axis=1) / np.linalg.norm(true, axis=1)


def _float(x: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
