"""Names of AlphaFold-Multimer's parameters (``multimer_v3``) in three programs; see ``key_map``.

The left and right projections of a triangle multiplication are joined in AlphaFold (``projection``, ``gate``) and in
OpenFold (``linear_ab_p``, ``linear_ab_g``), so the map has joined tensors. ``JOINED`` names their halves here.

Earlier versions (``model_N_multimer`` and ``_multimer_v2``) are the same function with separate projections, which have
the names of AlphaFold 2. They are read, and written as ``multimer_v3``.
"""

from __future__ import annotations

from ds4sci.models.published_weights import key_map
from ds4sci.models.published_weights.key_map import (
    EMBEDDERS,
    HEADS,
    SINGLE_TEMPLATE,
    TEMPLATES,
    Row,
    entries,
    pair_updates,
    stacks,
    structure_module,
    under,
)


def _joined(incoming: str) -> dict[str, tuple[str, str]]:
    return {
        f"multiplication_{direction}.linear_ab_{kind}.": (
            f"multiplication_{direction}.linear_{first}_{kind}.",
            f"multiplication_{direction}.linear_{second}_{kind}.",
        )
        for direction, (first, second) in (("outgoing", "ab"), ("incoming", incoming))
        for kind in "pg"
    }


JOINED = {"alphafold": _joined("ba"), "openfold": _joined("ab")}
"""Program → part of the name of a joined tensor → those of its two halves along the output channels, in order.

As in ``key_map``, AlphaFold's left is factor a of the outgoing multiplication and b of the incoming one. OpenFold joins
a and b in this order in both.
"""

MULTIPLICATION = (
    Row("layer_norm_in", "layer_norm_in", "left_norm_input", "layer_norm"),
    Row("linear_ab_p", "linear_ab_p", "projection", "linear"),
    Row("linear_ab_g", "linear_ab_g", "gate", "linear"),
    Row("layer_norm_out", "layer_norm_out", "center_norm", "layer_norm"),
    Row("linear_z", "linear_z", "output_projection", "linear"),
    Row("linear_g", "linear_g", "gating_linear", "linear"),
)
PAIR_UPDATES = pair_updates(MULTIPLICATION, MULTIPLICATION)
PROJECTIONS = (
    *(
        Row(f"ipa.linear_{x}", f"ipa.linear_{x}", f"invariant_point_attention/{x}_scalar_projection", "head_scalars",
            split_by="ipa.linear_b")
        for x in "qkv"
    ),
    *(
        Row(f"ipa.linear_{x}_points", f"ipa.linear_{x}_points.linear",
            f"invariant_point_attention/{x}_point_projection/point_projection", "head_points", split_by="ipa.linear_b")
        for x in "qkv"
    ),
    Row("bb_update.linear", "bb_update.linear", "quat_rigid/rigid", "linear"),
)  # fmt: skip
PAIR_FEATURES = (
    ("linear_distance", "dgram_linear", "linear"),
    ("linear_beta_mask", "pseudo_beta_mask_linear", "scalar_linear"),
    ("linear_column_type", "aatype_linear_1", "linear"),
    ("linear_row_type", "aatype_linear_2", "linear"),
    ("linear_x", "x_linear", "scalar_linear"),
    ("linear_y", "y_linear", "scalar_linear"),
    ("linear_z", "z_linear", "scalar_linear"),
    ("linear_backbone_mask", "backbone_mask_linear", "scalar_linear"),
)
"""Linear layers of the pair features of a template: here, in OpenFold, kind; AlphaFold numbers them in this order."""

TEMPLATE_ITERATION = f"{SINGLE_TEMPLATE}template_embedding_iteration/"

TEMPLATE_EMBEDDER = (
    *(
        Row(f"pair_embedder.{here}", f"template_pair_embedder.{openfold}",
            f"{SINGLE_TEMPLATE}template_pair_embedding_{number}", kind)
        for number, (here, openfold, kind) in enumerate(PAIR_FEATURES)
    ),
    Row("linear_query", "template_pair_embedder.query_embedding_linear",
        f"{SINGLE_TEMPLATE}template_pair_embedding_{len(PAIR_FEATURES)}", "linear"),
    Row("layer_norm_query", "template_pair_embedder.query_embedding_layer_norm",
        f"{SINGLE_TEMPLATE}query_embedding_norm", "layer_norm"),
    *under("pair_stack.blocks.{}.pair.", "template_pair_stack.blocks.{}.", TEMPLATE_ITERATION, PAIR_UPDATES),
    Row("layer_norm", "template_pair_stack.layer_norm", f"{SINGLE_TEMPLATE}output_layer_norm", "layer_norm"),
    Row("linear_out", "linear_t", "template_embedding/output_linear", "linear"),
    Row("angle_embedder.linear_1", "template_single_embedder.template_single_embedder", "template_single_embedding",
        "linear"),
    Row("angle_embedder.linear_2", "template_single_embedder.template_projector", "template_projection", "linear"),
)  # fmt: skip

MULTIMER_MODULES = (
    *under("", "", "evoformer/", EMBEDDERS),
    Row("input_embedder.linear_relpos", "input_embedder.linear_relpos",
        "evoformer/~_relative_encoding/position_activations", "linear"),
    *stacks(PAIR_UPDATES),
    *structure_module(PROJECTIONS),
    *HEADS,
    *under(TEMPLATES, TEMPLATES, "evoformer/", TEMPLATE_EMBEDDER),
)  # fmt: skip
"""Every module of AlphaFold-Multimer."""

MULTIMER_ENTRIES = tuple(entries(MULTIMER_MODULES))
"""Every tensor of AlphaFold-Multimer, with templates; halves of triangle multiplications are joined."""

EARLIER_ENTRIES = tuple(
    entries(
        under(
            f"{TEMPLATES}pair_stack.blocks.{{}}.pair.", f"{TEMPLATES}template_pair_stack.blocks.{{}}.",
            f"evoformer/{TEMPLATE_ITERATION}", key_map.PAIR_UPDATES,
        )
    )
)  # fmt: skip
"""Tensors of the template stack of earlier versions. Those of the other stacks have the names of AlphaFold 2."""
