"""Neural operators u = network(functions, points), which map a function given by its values at sensors to another one.

``functions`` [m, q] and ``points`` [n, d] give u [m, n], or [m, n, c] for c > 1 components. Points [m, n, d] are
separate for each function. Every point is treated independently, and all activation functions are smooth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh, "silu": nn.functional.silu, "gelu": nn.functional.gelu, "sin": torch.sin,
}  # fmt: skip


class Config(BaseModel):
    """``[model]``: architecture of the neural operator."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["deeponet", "mlp"] = "deeponet"
    """``deeponet``: inner product of a branch network and a trunk network. ``mlp``: one network of the encoded function
    and the point, which is more general and costs functions × points."""
    branch: tuple[int, ...] = Field(default=(128, 128, 128), min_length=1)
    """Hidden widths of the branch network, which encodes the function."""
    trunk: tuple[int, ...] = Field(default=(128, 128, 128), min_length=1)
    """Hidden widths of the trunk network, which encodes the point."""
    latent: int = Field(128, ge=1)
    """Terms of the inner product per component; for ``mlp`` the size of the encoded function."""
    activation: Literal["tanh", "silu", "gelu", "sin"] = "tanh"
    """Activation function. Only smooth ones, because high-order derivatives are taken."""
    gated: bool = False
    """Gated trunk (Wang, Teng and Perdikaris 2021): hidden layers mix two encodings of the point, h ← (1 - h)·a + h·b.
    Learns sharper solutions at the cost of two more layers. All trunk widths must be equal."""
    period: tuple[float, ...] = ()
    """Period of each coordinate, 0 = not periodic. A periodic coordinate is encoded by ``num_harmonics`` sines and
    cosines, so that u is exactly periodic. Empty = no periodic coordinate."""
    num_harmonics: int = Field(4, ge=1)
    """Number of sines and cosines of a periodic coordinate."""
    num_fourier_features: int = Field(0, ge=0)
    """Random Fourier features of the point, in addition to its coordinates (Tancik et al. 2020); 0 = none."""
    fourier_scale: float = Field(1.0, gt=0)
    """Standard deviation of their frequencies, in periods per unit length."""


def build(config: Config, *, sensors: int, coordinates: int, components: int, seed: int) -> DeepONet | MLPOperator:
    """A new network with random weights from ``seed``. Raises ValueError for an inconsistent config."""
    if config.period and len(config.period) != coordinates:
        raise ValueError(f"model.period = {list(config.period)}: expected {coordinates} numbers, one per coordinate")
    if config.gated and (config.kind != "deeponet" or len(set(config.trunk)) > 1):
        raise ValueError('model.gated = true needs kind = "deeponet" and equal trunk widths')
    kind = DeepONet if config.kind == "deeponet" else MLPOperator
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config, sensors=sensors, coordinates=coordinates, components=components)


class MLP(nn.Module):
    """Linear layers of the given ``sizes`` with activations between them and Glorot initialization."""

    def __init__(self, sizes: Sequence[int], activation: str, *, gated: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_linear(a, b) for a, b in pairwise(sizes))
        self.codes = nn.ModuleList(_linear(sizes[0], sizes[1]) for _ in range(2 * gated))
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        codes = [self.activation(code(x)) for code in self.codes]
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
            if codes:
                x = torch.lerp(codes[0], codes[1], x)
        return self.layers[-1](x)


def _linear(width: int, out: int) -> nn.Linear:
    layer = nn.Linear(width, out)
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Embedding(nn.Module):
    """Encoding of coordinates in [0, 1]^d for the trunk: [..., d] → [..., ``size``]."""

    harmonics: Tensor
    random: Tensor

    def __init__(self, config: Config, coordinates: int) -> None:
        super().__init__()
        period = config.period or (0.0,) * coordinates
        self.plain = [axis for axis, length in enumerate(period) if not length]
        self.periodic = [(axis, 2 * math.pi / length) for axis, length in enumerate(period) if length]
        # Integers are exact in any dtype, so that u is periodic to rounding.
        self.register_buffer("harmonics", torch.arange(1.0, config.num_harmonics + 1), persistent=False)
        self.register_buffer(
            "random", 2 * math.pi * config.fourier_scale * torch.randn(coordinates, config.num_fourier_features)
        )
        if config.num_fourier_features and self.periodic:
            raise ValueError(
                "model.num_fourier_features: random features of a periodic coordinate would not be periodic; set "
                "only one of num_fourier_features and period"
            )
        self.size = len(self.plain) + 2 * config.num_harmonics * len(self.periodic) + 2 * config.num_fourier_features

    def forward(self, points: Tensor) -> Tensor:
        parts = [2 * points[..., self.plain] - 1] if self.plain else []
        for axis, angular_frequency in self.periodic:
            phase = (angular_frequency * points[..., axis, None]) * self.harmonics
            parts += [phase.cos(), phase.sin()]
        if self.random.shape[1]:
            phase = points @ self.random
            parts += [phase.cos(), phase.sin()]
        return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


class DeepONet(nn.Module):
    """Unstacked DeepONet (Lu et al. 2021): u_c = Σ_k branch_ck(function) · trunk_ck(point) + bias_c."""

    def __init__(self, config: Config, *, sensors: int, coordinates: int, components: int) -> None:
        super().__init__()
        self.components, self.latent = components, config.latent
        self.embedding = Embedding(config, coordinates)
        out = components * config.latent
        self.branch = MLP([sensors, *config.branch, out], config.activation)
        self.trunk = MLP([self.embedding.size, *config.trunk, out], config.activation, gated=config.gated)
        self.bias = nn.Parameter(torch.zeros(components))

    def bind(self, functions: Tensor) -> Callable[[Tensor], Tensor]:
        """The map points → u of ``functions``, which the branch encodes once."""
        codes = self.branch(functions).unflatten(-1, (self.components, self.latent)) / math.sqrt(self.latent)

        def call(points: Tensor) -> Tensor:
            basis = self.trunk(self.embedding(points)).unflatten(-1, (self.components, self.latent))
            if self.components == 1:
                code, component = codes[:, 0], basis[..., 0, :]
                # matrix product: einsum would copy its inputs to another order of axes
                u = code @ component.T if points.dim() == 2 else torch.einsum("mk,mnk->mn", code, component)
                return u + self.bias
            pattern = "mck,nck->mnc" if points.dim() == 2 else "mck,mnck->mnc"
            return torch.einsum(pattern, codes, basis) + self.bias

        return call

    def forward(self, functions: Tensor, points: Tensor) -> Tensor:
        return self.bind(functions)(points)


class MLPOperator(nn.Module):
    """Nonlinear decoder, as in NOMAD (Seidman et al. 2022): u = MLP(A code(function) + B point) for all (m, n)."""

    def __init__(self, config: Config, *, sensors: int, coordinates: int, components: int) -> None:
        super().__init__()
        self.components = components
        self.embedding = Embedding(config, coordinates)
        self.branch = MLP([sensors, *config.branch, config.latent], config.activation)
        self.code = nn.Linear(config.latent, config.trunk[0])
        self.point = nn.Linear(self.embedding.size, config.trunk[0], bias=False)
        self.decoder = MLP([*config.trunk, components], config.activation)
        self.activation = ACTIVATIONS[config.activation]

    def bind(self, functions: Tensor) -> Callable[[Tensor], Tensor]:
        """The map points → u of ``functions``, which are encoded once."""
        codes = self.code(self.branch(functions))

        def call(points: Tensor) -> Tensor:
            u = self.decoder(self.activation(codes[:, None] + self.point(self.embedding(points))))
            return u[..., 0] if self.components == 1 else u

        return call

    def forward(self, functions: Tensor, points: Tensor) -> Tensor:
        return self.bind(functions)(points)
