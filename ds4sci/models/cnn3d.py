"""Convolutional network that regresses numbers from volumes: [b, c, n, n, n] → [b, outputs].

Stages of convolutions at halving resolution, as in CosmoFlow (Mathuriya et al. 2018), and a multilayer perceptron on
features of the last stage (``flatten``, as in CosmoFlow) or of all stages (``energy``). The energy of a filter is the
variance of its response over the volume. For a linear filter w that is its band power, ∫ |w(k)|² P(k) d³k / (2π)³, so
the network learns which bands of the power spectrum matter; deeper stages add statistics beyond it.

The output is nearly linear in log-energies, as a ridge regression on them shows (mean absolute error 0.19 with random
filters), so a linear layer on the same features is added to the perceptron: without it, 200 steps of ``cosmo`` reach
0.316, with it 0.228.

With periodic padding and ``energy``, the output does not change if a periodic volume is shifted by 2^(stages - 1)
cells. Group normalisation is within one example, so examples do not depend on each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from ds4sci.nn.linear import wide
from ds4sci.types import ArrayBatch

EPSILON = 1e-6
"""Added to an energy before its logarithm."""
SHRINKAGE = 1e-2
"""Added to the eigenvalues of the features' correlation matrix before whitening; smaller ones are mostly noise."""
SLOPE = 0.1
"""Of the leaky rectifier for negative values."""


class Config(BaseModel):
    """``[model]``: architecture of the network."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    channels: tuple[int, ...] = Field((8, 16, 32, 64), min_length=1)
    """Filters of each stage. The resolution halves after every stage but the last."""
    convolutions: int = Field(1, ge=1)
    """Convolutions per stage."""
    channel_filters: Literal["mixed", "shared"] = "mixed"
    """``mixed``: the first filters combine all channels. ``shared``: the same filters are applied to each channel
    separately, and the perceptron combines them. For channels that show the same volume at several times, the ratio of
    two energies of one filter is then the growth between the times, without the randomness of the volume."""
    kernel: int = Field(3, ge=1)
    """Side of the filters in cells, odd."""
    padding: Literal["periodic", "zeros"] = "periodic"
    """Values beyond the edges of the volume."""
    features: Literal["energy", "flatten"] = "energy"
    """Input of the perceptron. ``energy``: log-energy and mean activation of all filters. ``flatten``: every cell of
    the last stage."""
    norm_groups: int = Field(0, ge=0)
    """Groups of the group normalisation between a convolution and its activation; 0 = no normalisation. Energies are
    measured before it."""
    hidden: tuple[int, ...] = (128, 64)
    """Widths of the hidden layers of the perceptron; empty = a linear layer only."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout in the hidden layers."""
    whitening_examples: int = Field(256, ge=0)
    """Training examples from which the first linear layer on ``energy`` features is initialised: it whitens them (ZCA).
    Energies of neighbouring bands are almost proportional, and the differences matter. 0 = random initialisation."""
    input_shift: tuple[float, ...] = ()
    """Subtracted from each input channel; empty = 0."""
    input_scale: tuple[float, ...] = ()
    """Factor of each input channel, after the shift; empty = 1."""

    @model_validator(mode="after")
    def _check(self) -> Config:
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel = {self.kernel}: expected an odd number, so that the output has the input's size")
        if self.norm_groups and (wrong := [c for c in self.channels if c % self.norm_groups]):
            raise ValueError(f"norm_groups = {self.norm_groups} does not divide {wrong[0]} channels")
        return self


def build(config: Config, *, channels: int, outputs: int, size: int, seed: int) -> VolumeNet:
    """Return a new network with random weights from ``seed`` for volumes of ``size``³ cells.

    Raises ValueError if the volume is too small for the stages, or a list of the config does not fit ``channels``.
    """
    for name in ("input_shift", "input_scale"):
        given = getattr(config, name)
        if given and len(given) != channels:
            raise ValueError(f"model.{name} has {len(given)} numbers; expected {channels}, one per channel of the data")
    halvings = len(config.channels) - 1
    smallest, margin = size >> halvings, config.kernel // 2
    if size % (1 << halvings) or smallest < max(margin, 1):
        raise ValueError(
            f"model.channels has {halvings + 1} stages: volumes of {size}³ cells cannot be halved {halvings} times to "
            f"at least {max(margin, 1)} cells; use fewer stages"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return VolumeNet(config, channels=channels, outputs=outputs, smallest=smallest)


class Stage(nn.Module):
    """Convolutions at one resolution."""

    def __init__(self, config: Config, channels: int, width: int) -> None:
        super().__init__()
        self.has_energies = config.features == "energy"
        mode: Literal["circular", "zeros"] = "circular" if config.padding == "periodic" else "zeros"
        inputs = (channels, *[width] * (config.convolutions - 1))
        self.convolutions = nn.ModuleList(
            nn.Conv3d(each, width, config.kernel, padding=config.kernel // 2, padding_mode=mode) for each in inputs
        )
        groups = config.norm_groups
        self.norms = nn.ModuleList(nn.GroupNorm(groups, width) if groups else nn.Identity() for _ in inputs)
        for convolution in self.convolutions:
            assert isinstance(convolution, nn.Conv3d)
            nn.init.kaiming_normal_(convolution.weight, a=SLOPE)
            assert convolution.bias is not None
            nn.init.zeros_(convolution.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the activated volume and the features [b, f] of this stage; f = 0 without energies."""
        features = []
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            assert isinstance(convolution, nn.Conv3d)
            response = convolution(x.to(convolution.weight.dtype))
            x = nn.functional.leaky_relu(norm(response), SLOPE)
            if self.has_energies:
                features += [log_energy(response), wide(x).mean(dim=(2, 3, 4))]
        return x, torch.cat(features, dim=1) if features else x.new_empty(len(x), 0)


def log_energy(response: Tensor) -> Tensor:
    """Return log(variance over the volume + ``EPSILON``), [b, c] of [b, c, n, n, n], in fp32 at least.

    bf16 would round log-energies to 1 %.
    """
    return (wide(response).flatten(2).var(dim=2, correction=0) + EPSILON).log()


def _halved(x: Tensor) -> Tensor:
    """Return the means of blocks of 2³ cells. Average pooling with a kernel lacks bf16 on CPUs in torch 2.13."""
    return nn.functional.adaptive_avg_pool3d(x, x.shape[-1] // 2)


class Whitening(nn.Module):
    """Linear layer y = W (x - centre), computed in fp32 at least and initialised by data."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(features))
        self.centre = nn.Parameter(torch.zeros(features))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Set W so that the outputs for ``x`` [m, f] are uncorrelated: W = (C + ε)^(-1/2) / σ, C the correlations.

        The symmetric square root (ZCA) does not depend on signs and order of eigenvectors.
        """
        x = x.double()
        centred = x - x.mean(dim=0)
        spread = centred.square().mean(dim=0).sqrt().clamp_min(1e-8)
        scaled = centred / spread
        values, vectors = torch.linalg.eigh(scaled.T @ scaled / len(x))
        root = vectors * (values.clamp_min(0) + SHRINKAGE).rsqrt() @ vectors.T
        self.weight.copy_(root / spread)
        self.centre.copy_(x.mean(dim=0))

    def forward(self, x: Tensor) -> Tensor:
        own = wide(x)
        return ((own - self.centre.to(own.dtype)) @ self.weight.to(own.dtype).T).to(self.weight.dtype)


class VolumeNet(nn.Module):
    """The network. Called with an ``ArrayBatch`` or volumes [b, c, n, n, n]; returns [b, outputs]."""

    input_shift: Tensor
    input_scale: Tensor

    def __init__(self, config: Config, *, channels: int, outputs: int, smallest: int) -> None:
        super().__init__()
        for name, default in (("input_shift", 0.0), ("input_scale", 1.0)):
            numbers = torch.tensor(getattr(config, name) or (default,) * channels)
            self.register_buffer(name, numbers.view(-1, 1, 1, 1), persistent=False)
        self.is_shared = config.channel_filters == "shared"
        first, copies = (1, channels) if self.is_shared else (channels, 1)
        self.stages = nn.ModuleList(Stage(config, a, b) for a, b in pairwise((first, *config.channels)))
        if config.features == "energy":
            width = copies * 2 * config.convolutions * sum(config.channels)
        else:
            width = copies * config.channels[-1] * smallest**3
        self.whitening = Whitening(width) if config.features == "energy" and config.whitening_examples else None
        layers: list[nn.Module] = []
        for a, b in pairwise((width, *config.hidden)):
            layers += [nn.Linear(a, b), nn.LeakyReLU(SLOPE)]
            layers += [nn.Dropout(config.dropout)] if config.dropout else []
        last = nn.Linear((width, *config.hidden)[-1], outputs)
        nn.init.normal_(last.weight, std=1e-2)  # the first predictions are about 0
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(*layers, last)
        self.linear = None
        if config.features == "energy" and config.hidden:
            self.linear = nn.Linear(width, outputs, bias=False)
            nn.init.zeros_(self.linear.weight)

    def features(self, volumes: Tensor) -> Tensor:
        """Return the input of the perceptron, before it is whitened: [b, f]."""
        shift, scale = self.input_shift.to(volumes.dtype), self.input_scale.to(volumes.dtype)
        x = (volumes - shift) * scale
        if self.is_shared:
            x = x.flatten(0, 1).unsqueeze(1)
        features = []
        for number, stage in enumerate(self.stages):
            x, own = stage(_halved(x) if number else x)
            features.append(own)
        found = torch.cat(features, dim=1)
        return (found if found.shape[1] else x.flatten(1)).reshape(len(volumes), -1)

    def forward(self, batch: ArrayBatch | Tensor) -> Tensor:
        found = self.features(batch if isinstance(batch, Tensor) else batch.inputs)
        if self.whitening is not None:
            found = self.whitening(found)
        found = found.to(next(self.head.parameters()).dtype)
        return self.head(found) if self.linear is None else self.head(found) + self.linear(found)

    @torch.no_grad()
    def whiten(self, volumes: Iterable[Tensor]) -> None:
        """Initialise the whitening layer from batches of volumes."""
        assert self.whitening is not None
        self.whitening.fit(torch.cat([self.features(part) for part in volumes]))
