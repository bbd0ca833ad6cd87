"""Network of a surrogate: parameters [b, p] → scalars [b, s] and a field, all in normalized units.

A trunk of linear layers with SiLU, then one linear layer for the scalars and one for the cells of the field:

    h₀ = x,  hᵢ = SiLU(Wᵢ hᵢ₋₁ + bᵢ),  output = (W_s h + b_s, W_f h + b_f).

The layers have the names ``trunk.0``, ``trunk.1``, …, ``scalars`` and ``field``. A surrogate of a simulation is adapted
to experiments by training some of them and freezing the others (Kustowski et al. 2022, Mach. Learn.: Sci. Technol. 3
015035).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ds4sci.nn.name_patterns import freeze_parameters
from ds4sci.types import ArrayBatch


class Config(BaseModel):
    """``[model]``: sizes of the network, and the layers that are not trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    hidden: tuple[int, ...] = Field((96, 96, 96), min_length=1)
    """Widths of the layers of the trunk."""
    freeze: tuple[str, ...] = ()
    """Parameters that are not trained, as patterns such as ``trunk.*``: for partial retraining, together with
    ``train.weights``. The layers are ``trunk.0``, ``trunk.1``, …, ``scalars`` and ``field``."""


def build(config: Config, *, parameters: int, scalars: int, cells: int, seed: int) -> SurrogateNet:
    """Return a new network with random weights from ``seed``. Raises ValueError for a pattern that matches nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SurrogateNet(config, parameters, scalars, cells)
    freeze_parameters(model, config.freeze)
    return model


class SurrogateNet(nn.Module):
    """See the module. Called with an ``ArrayBatch`` or parameters [b, p]; returns [b, s + cells]."""

    def __init__(self, config: Config, parameters: int, scalars: int, cells: int) -> None:
        super().__init__()
        self.trunk = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise((parameters, *config.hidden)))
        self.scalars = nn.Linear(config.hidden[-1], scalars) if scalars else None
        self.field = nn.Linear(config.hidden[-1], cells) if cells else None

    def features(self, parameters: Tensor) -> Tensor:
        """Return the output of the trunk, [b, c]."""
        x = parameters
        for layer in self.trunk:
            assert isinstance(layer, nn.Linear)
            x = nn.functional.silu(layer(x.to(layer.weight.dtype)))
        return x

    def forward(self, batch: ArrayBatch | Tensor) -> Tensor:
        x = self.features(batch if isinstance(batch, Tensor) else batch.inputs)
        return torch.cat([head(x) for head in (self.scalars, self.field) if head is not None], dim=-1)
