"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) of linear layers whose weights fused kernels read.

    W' = W + (alpha / rank) B A,  A [rank, c_in], B [c_out, rank], B = 0 at the start

W is frozen, A and B are trained. The fused kernels take weights, and do not call the layers, so a layer's ``weight`` is
W', computed in fp32 where it is read and rounded once. ``state_dict`` keeps W under its name and has ``lora_a`` and
``lora_b`` besides.
"""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ds4sci.nn.linear import Linear, wide
from ds4sci.nn.name_patterns import matching

ADAPTERS = ("lora_a", "lora_b")
"""Names of an adapter's parameters in its layer."""


class LowRankConfig(BaseModel):
    """Low-rank adapters of linear layers: W + (alpha / rank) B A. All other weights are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    rank: int = Field(8, ge=1)
    """Rank of the update: columns of B and rows of A."""
    alpha: float = Field(16.0, gt=0)
    """Scale of the update; it is multiplied by alpha / rank."""
    target_modules: tuple[str, ...] = ("evoformer.*", "structure_module.*")
    """Linear layers with an adapter: patterns of their names, such as ``*.attention_*.*``."""
    train: tuple[str, ...] = ()
    """Parameters that are trained as well, whole: patterns such as ``heads.tm.*``."""


class LowRankLinear(Linear):
    """A linear layer with an adapter. ``adapt`` makes it of a layer."""

    scale: float
    lora_a: nn.Parameter
    lora_b: nn.Parameter

    @classmethod
    def adapt(cls, layer: nn.Linear, rank: int, alpha: float) -> LowRankLinear:
        """Give ``layer`` an adapter, in place: it keeps its parameters and their names."""
        w = layer.weight
        layer.lora_a = nn.Parameter(w.new_empty(rank, layer.in_features))
        layer.lora_b = nn.Parameter(w.new_zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(layer.lora_a, a=math.sqrt(5))
        layer.__class__ = cls
        adapted = cast(LowRankLinear, layer)
        adapted.scale = alpha / rank
        return adapted

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W', in the dtype of W."""
        return cast(Tensor, _Merged.apply(self._parameters["weight"], self.lora_a, self.lora_b, self.scale))


class _Merged(torch.autograd.Function):
    """W + s B A, without saving W or wide copies of A and B."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.scale = scale
        return torch.addmm(wide(w), wide(b), wide(a), alpha=scale).to(w.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        a, b = ctx.saved_tensors
        scaled = ctx.scale * wide(grad)
        grad_w = grad if ctx.needs_input_grad[0] else None
        return grad_w, (wide(b).T @ scaled).to(a.dtype), (scaled @ wide(a).T).to(b.dtype), None


def add_low_rank(model: nn.Module, config: LowRankConfig) -> None:
    """Give the linear layers of ``config`` adapters, and freeze all other parameters but those of ``config.train``.

    Raises ValueError for a pattern that matches nothing.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    names = [name for name, _ in model.named_parameters()]
    targets = matching(config.target_modules, layers, "model.lora.target_modules", "linear layer")
    trained = matching(config.train, names, "model.lora.train", "parameter")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    for name in targets:
        LowRankLinear.adapt(layers[name], config.rank, config.alpha)


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return name.rpartition(".")[2] in ADAPTERS


@torch.no_grad()
def merge_low_rank(model: nn.Module) -> None:
    """Replace every layer with an adapter, in place, by a linear layer of the weights W'."""
    for layer in model.modules():
        if isinstance(layer, LowRankLinear):
            merged, plain = layer.weight, cast(nn.Module, layer)
            for name in ADAPTERS:
                delattr(layer, name)
            plain.__class__ = Linear
            plain.get_parameter("weight").copy_(merged)


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """``model.state_dict()`` with the weights W' in place of W and its adapters."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not is_adapter(name)}
    for name, module in model.named_modules():
        if isinstance(module, LowRankLinear):
            state[f"{name}.weight"] = module.weight
    return state
