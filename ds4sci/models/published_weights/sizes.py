"""Sizes of a structure model and its parts, read from the shapes of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ds4sci.models.fold import Config, FoldModel, TemplateConfig
from ds4sci.models.published_weights.key_map import TEMPLATES
from ds4sci.models.published_weights.translation import BLOCK, is_multimer
from ds4sci.nn.template import POINTWISE_HEADS

HEADS = ("masked_msa", "experimentally_resolved", "tm")
"""Optional heads of ``Config`` that AlphaFold has; ``tm`` only in its ``_ptm`` and multimer models."""

PUBLISHED_WITH_TEMPLATES = Config(template=TemplateConfig(blocks=2))
"""Sizes of models 1 and 2."""

PUBLISHED_MULTIMER = Config(kind="multimer", template=TemplateConfig(blocks=2), heads=HEADS)
"""Sizes of the multimer models."""


@dataclass(frozen=True)
class Contents:
    """Parts of a published model that a file holds.

    config               sizes of the structure model; what shapes do not show (iterations, dropout) has its default
    is_earlier_multimer  whether the file has the names of AlphaFold-Multimer v1 and v2
    """

    config: Config
    is_earlier_multimer: bool = False

    @property
    def presets(self) -> tuple[str, ...]:
        """Published models with these shapes; empty for other sizes."""
        if self.config == PUBLISHED_MULTIMER:
            versions = ("_v2", "") if self.is_earlier_multimer else ("_v3",)
            return tuple(f"model_{number}_multimer{version}" for version in versions for number in (1, 2, 3, 4, 5))
        without_tm = self.config.model_copy(update={"heads": tuple(head for head in self.config.heads if head != "tm")})
        if without_tm == PUBLISHED_WITH_TEMPLATES:
            numbers: tuple[int, ...] = (1, 2)
        elif without_tm == Config():
            numbers = (3, 4, 5)
        else:
            return ()
        return tuple(f"model_{number}{'_ptm' if 'tm' in self.config.heads else ''}" for number in numbers)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return names and shapes of the structure model."""
        with torch.device("meta"):
            model = FoldModel(self.config)
        return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def read_contents(tensors: Mapping[str, Tensor]) -> Contents:
    """Return what ``tensors``, which are named as in ``FoldModel``, are the parameters of.

    Raises ValueError naming the missing tensors if there are too few to tell.
    """
    shape = _Shapes(tensors)
    evoformer, extra = "evoformer.blocks.0.", "extra_msa_stack.blocks.0."
    c_m, c_z = shape["input_embedder.linear_tf_m.bias"][0], shape["input_embedder.linear_tf_z_i.bias"][0]
    heads_msa = shape[f"{evoformer}msa.row_attention.linear_z.weight"][0]
    heads_pair = shape[f"{evoformer}pair.attention_starting.linear.weight"][0]
    sizes: dict[str, Any] = {
        "kind": "multimer" if is_multimer(tensors) else "monomer",
        "c_m": c_m,
        "c_z": c_z,
        "c_s": shape["linear_single.weight"][0],
        "c_plddt": shape["plddt.linear_1.weight"][0],
        "heads": [head for head in HEADS if any(name.startswith(f"heads.{head}.") for name in tensors)],
        "evoformer": {
            "blocks": _count_blocks("evoformer.", tensors),
            "heads_msa": heads_msa,
            "d_msa": shape[f"{evoformer}msa.row_attention.mha.linear_q.weight"][0] // heads_msa,
            "heads_pair": heads_pair,
            "d_pair": shape[f"{evoformer}pair.attention_starting.mha.linear_q.weight"][0] // heads_pair,
            "c_outer": shape[f"{evoformer}pair.outer_product_mean.linear_1.weight"][0],
            "c_multiplication": shape[f"{evoformer}pair.multiplication_outgoing.linear_a_p.weight"][0],
            "transition_factor": shape[f"{evoformer}msa.transition.linear_1.weight"][0] // c_m,
        },
        "extra_msa": {"blocks": _count_blocks("extra_msa_stack.", tensors)},
    }
    if sizes["extra_msa"]["blocks"]:
        sizes["extra_msa"] |= {
            "c_e": shape["extra_msa_embedder.linear.bias"][0],
            "d_msa": shape[f"{extra}msa.column_global_attention.linear_k.weight"][0],
        }
    if any(name.startswith(TEMPLATES) for name in tensors):
        sizes["template"] = _template_sizes(shape)
    sizes["structure"] = _structure_sizes(shape)
    return Contents(Config.model_validate(sizes))


def _structure_sizes(shape: _Shapes) -> dict[str, int]:
    ipa = "structure_module.ipa."
    heads = shape[f"{ipa}head_weights"][0]
    qk_points = shape[f"{ipa}linear_q_points.bias"][0] // (3 * heads)
    if is_multimer(shape.tensors):
        v_points = shape[f"{ipa}linear_v_points.bias"][0] // (3 * heads)
    else:
        v_points = shape[f"{ipa}linear_kv_points.bias"][0] // (3 * heads) - qk_points
    sizes = {
        "heads": heads,
        "d_ipa": shape[f"{ipa}linear_q.weight"][0] // heads,
        "qk_points": qk_points,
        "v_points": v_points,
        "c_angle": shape["structure_module.angle_resnet.linear_in.bias"][0],
    }
    if wrong := [f"{key} = {size}" for key, size in sizes.items() if size < 1]:
        raise ValueError(f"not the parameters of a structure model: the shapes of {ipa}* give {', '.join(wrong)}")
    return sizes


def _template_sizes(shape: _Shapes) -> dict[str, int]:
    block = f"{TEMPLATES}pair_stack.blocks.0.pair."
    c_t = shape[f"{TEMPLATES}layer_norm.bias"][0]
    heads = shape[f"{block}attention_starting.linear.weight"][0]
    attention = {}
    if not is_multimer(shape.tensors):  # which averages the templates
        attention = {"d_attention": shape[f"{TEMPLATES}attention.linear_q.weight"][0] // POINTWISE_HEADS}
    return attention | {
        "blocks": _count_blocks(f"{TEMPLATES}pair_stack.", shape.tensors),
        "c_t": c_t,
        "heads_pair": heads,
        "d_pair": shape[f"{block}attention_starting.mha.linear_q.weight"][0] // heads,
        "c_multiplication": shape[f"{block}multiplication_outgoing.linear_a_p.weight"][0],
        "transition_factor": shape[f"{block}transition.linear_1.weight"][0] // c_t,
    }


class _Shapes:
    """Shapes of tensors by name. Raises ValueError for a tensor that is missing or empty."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def __getitem__(self, name: str) -> tuple[int, ...]:
        if name not in self.tensors or not self.tensors[name].numel() or not self.tensors[name].dim():
            raise ValueError(f"not the parameters of a structure model: {name} is missing or empty")
        return tuple(self.tensors[name].shape)


def _count_blocks(stack: str, tensors: Mapping[str, Tensor]) -> int:
    """Return how many different numbers of blocks the names have: a damaged number must not build a huge model."""
    found = [BLOCK.search(name) for name in tensors if name.startswith(f"{stack}blocks.")]
    return len({number.group() for number in found if number})


SIZES: dict[str, tuple[str, ...]] = {
    "": ("kind", "c_m", "c_z", "c_s", "c_plddt"),
    "evoformer": (
        "blocks", "heads_msa", "d_msa", "heads_pair", "d_pair", "c_outer", "c_multiplication", "transition_factor",
    ),
    "extra_msa": ("blocks", "c_e", "d_msa"),
    "template": (
        "blocks", "c_t", "heads_pair", "d_pair", "c_multiplication", "transition_factor", "d_attention",
    ),
    "structure": ("d_ipa", "heads", "qk_points", "v_points", "c_angle"),
}  # fmt: skip
"""Keys of ``Config`` that decide the shapes of tensors, by section."""


def differing_sizes(found: Config, expected: Config) -> str:
    """Return overrides of ``[model]`` that give a model ``expected`` the shapes of ``found``; empty if it has them."""
    overrides = []
    for section, keys in SIZES.items():
        new, old = (getattr(config, section) if section else config for config in (found, expected))
        name = f"model.{section}." if section else "model."
        if not getattr(new, "blocks", 1):  # the other sizes of an absent part say nothing
            keys = ("blocks",)
        overrides += [f"{name}{key}={getattr(new, key)}" for key in keys if getattr(new, key) != getattr(old, key)]
    return " ".join(overrides)
