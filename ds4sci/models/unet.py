"""U-Net (Ronneberger et al. 2015) for images and fields: [b, inputs, h, w] → [b, outputs, h, w] of any size.

Each level has two 3 × 3 convolutions with group normalization and SiLU. The next level has half the resolution (mean of
2 × 2 pixels; odd sizes are padded, and cropped on the way back) and ``growth`` times the channels. There is no batch
normalization, because loss and gradient must not depend on how a batch is divided.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F


class Config(BaseModel):
    """``[model]``: sizes of the U-Net."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    channels: int = Field(24, ge=1)
    """Channels of the first level."""
    levels: int = Field(3, ge=1)
    """Number of resolutions; 1 is a plain convolutional network."""
    growth: float = Field(2.0, ge=1)
    """Factor of the number of channels from one level to the next."""
    groups: int = Field(8, ge=1)
    """Groups of the group normalization; the channels of every level must be multiples of it."""
    periodic: bool = False
    """Whether the last axis is a circle, such as longitude. The network then commutes with shifts by
    2^(levels - 1) columns, if the width is a multiple of that number."""
    residual: bool = False
    """Whether the output is added to the first input channels. The network begins as the identity."""

    @model_validator(mode="after")
    def _divisible(self) -> Config:
        for level, width in enumerate(self.widths()):
            if width % self.groups:
                raise ValueError(f"level {level} has {width} channels; expected a multiple of groups = {self.groups}")
        return self

    def widths(self) -> list[int]:
        """Channels of each level."""
        return [round(self.channels * self.growth**level) for level in range(self.levels)]


def build(config: Config, *, inputs: int, outputs: int, seed: int) -> UNet:
    """A new network with random weights from ``seed``. Raises ValueError if it cannot be residual."""
    if config.residual and outputs > inputs:
        raise ValueError(f"model.residual = true needs at least {outputs} input channels, one per output; has {inputs}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return UNet(config, inputs, outputs)


class Convolution(nn.Module):
    """3 × 3 convolution, zero padding on the vertical axis; zero or circular padding on the horizontal one."""

    def __init__(self, inputs: int, outputs: int, periodic: bool) -> None:
        super().__init__()
        self.periodic = periodic
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=(1, 0 if periodic else 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.periodic:
            x = torch.cat((x[..., -1:], x, x[..., :1]), dim=-1)
        return self.conv(x)


class Block(nn.Sequential):
    """Two convolutions, each followed by group normalization and SiLU."""

    def __init__(self, inputs: int, outputs: int, config: Config) -> None:
        layers: list[nn.Module] = []
        for width in (inputs, outputs):
            layers += [Convolution(width, outputs, config.periodic), nn.GroupNorm(config.groups, outputs), nn.SiLU()]
        super().__init__(*layers)


class UNet(nn.Module):
    """See the module's docstring."""

    def __init__(self, config: Config, inputs: int, outputs: int) -> None:
        super().__init__()
        widths = config.widths()
        self.config = config
        self.down = nn.ModuleList(
            Block(before, width, config) for before, width in zip([inputs, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(wide, width, 2, stride=2) for width, wide in pairwise(widths))
        self.merge = nn.ModuleList(Block(2 * width, width, config) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], outputs, 1)
        if config.residual:
            nn.init.zeros_(self.head.weight)
            self.head.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        features, given = [], x
        for level, block in enumerate(self.down):
            x = block(halve(x, self.config.periodic) if level else x)
            features.append(x)
        features.pop()
        for up, merge in zip(reversed(self.up), reversed(self.merge), strict=True):
            fine = features.pop()
            height, width = fine.shape[-2:]
            x = merge(torch.cat((fine, up(x)[..., :height, :width]), dim=1))
        x = self.head(x)
        return x + given[:, : x.shape[1]] if self.config.residual else x


def halve(x: Tensor, periodic: bool = False) -> Tensor:
    """Mean of 2 × 2 pixels. An odd height or width is extended by its last row or column, or by the first column
    of a circle."""
    height, width = x.shape[-2:]
    if height % 2:
        x = torch.cat((x, x[..., -1:, :]), dim=-2)
    if width % 2:
        x = torch.cat((x, x[..., :1] if periodic else x[..., -1:]), dim=-1)
    return F.avg_pool2d(x, 2)
