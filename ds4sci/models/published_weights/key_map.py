"""Names of AlphaFold's parameters in three programs: here, in OpenFold, and in AlphaFold's ``.npz`` files.

``MODULES`` is the whole map of AlphaFold 2, one row per module; ``ENTRIES`` is the same per tensor. That of
AlphaFold-Multimer is in ``multimer_key_map``. Both directions of every conversion read them (``translation``). Sources:
the names of the modules in AlphaFold's code and in OpenFold's.

Where the programs differ in more than spelling:

- A linear layer is ``y = x W + b`` in AlphaFold and ``y = x Wᵀ + b`` in torch. Attention weights have an axis of heads.
- AlphaFold stacks the parameters of all blocks along a first axis. ``{}`` stands for the number of the block elsewhere.
- AlphaFold's "left" is factor a of the outgoing triangle multiplication (Algorithm 11), but b of the incoming one
  (Algorithm 12): its equation there is ``kjc,kic->ijc``.
- Points of invariant point attention have no axis of their own: x of all points, then y, then z, in all three programs.
  In AlphaFold-Multimer they have an axis of heads, and x, y, z follow each other in each head.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ds4sci.nn.template import POINTWISE_HEADS

ALPHAFOLD_PREFIX = "alphafold/alphafold_iteration/"
"""Beginning of every name in AlphaFold's files."""

TEMPLATES = "template_embedder."
"""Beginning of the names of templates, which models 1 and 2 have."""


class Parameter(NamedTuple):
    """A tensor of a torch module, the array of the Haiku module, and their axes as a pattern of einops."""

    tensor: str
    array: str
    axes: str


class Kind(NamedTuple):
    """Parameters of a kind of module.

    split  axis whose size torch's shapes do not show, because it is merged with another
    """

    parameters: tuple[Parameter, ...]
    split: str = ""


OUTPUT = (
    Parameter("linear_o.weight", "output_w", "h d c -> c (h d)"),
    Parameter("linear_o.bias", "output_b", "c -> c"),
)
GATE = (
    Parameter("linear_g.weight", "gating_w", "c h d -> (h d) c"),
    Parameter("linear_g.bias", "gating_b", "h d -> (h d)"),
)
ATTENTION = (
    Parameter("linear_q.weight", "query_w", "c h d -> (h d) c"),
    Parameter("linear_k.weight", "key_w", "c h d -> (h d) c"),
    Parameter("linear_v.weight", "value_w", "c h d -> (h d) c"),
    *OUTPUT,
)
GLOBAL_ATTENTION = (  # heads share keys and values
    Parameter("linear_q.weight", "query_w", "c h d -> (h d) c"),
    Parameter("linear_k.weight", "key_w", "c d -> d c"),
    Parameter("linear_v.weight", "value_w", "c d -> d c"),
    *OUTPUT,
)

KINDS: dict[str, Kind] = {
    "linear": Kind((Parameter("weight", "weights", "i o -> o i"), Parameter("bias", "bias", "o -> o"))),
    "layer_norm": Kind((Parameter("weight", "scale", "c -> c"), Parameter("bias", "offset", "c -> c"))),
    "pair_bias": Kind((Parameter("weight", "feat_2d_weights", "c h -> h c"),)),
    "scalar_linear": Kind((Parameter("weight", "weights", "o -> o 1"), Parameter("bias", "bias", "o -> o"))),
    "head_scalars": Kind((Parameter("weight", "weights", "i h d -> (h d) i"),), split="h"),
    "head_points": Kind(
        (Parameter("weight", "weights", "i h d -> (h d) i"), Parameter("bias", "bias", "h d -> (h d)")), split="h"
    ),
    "point_weights": Kind((Parameter("head_weights", "trainable_point_weights", "h -> h"),)),
    "outer_product": Kind(
        (Parameter("weight", "output_w", "a b c -> c (a b)"), Parameter("bias", "output_b", "c -> c")), split="a"
    ),
    "attention": Kind(ATTENTION, split="h"),
    "gated_attention": Kind(ATTENTION + GATE, split="h"),
    "global_attention": Kind(GLOBAL_ATTENTION + GATE, split="d"),
}
"""Kinds of modules and their parameters."""


class Row(NamedTuple):
    """A module in the three programs.

    kind      key of ``KINDS``
    split_by  size of the axis ``split`` of the kind: the first size of the weight of this module, which is named as in
              the first column, or a number
    """

    here: str
    openfold: str
    alphafold: str
    kind: str
    split_by: str | int = 0


def under(here: str, openfold: str, alphafold: str, rows: Iterable[Row]) -> tuple[Row, ...]:
    """Return ``rows`` as parts of the module with these names."""
    return tuple(
        Row(
            f"{here}{row.here}", f"{openfold}{row.openfold}", f"{alphafold}{row.alphafold}", row.kind,
            f"{here}{row.split_by}" if isinstance(row.split_by, str) else row.split_by,
        )
        for row in rows
    )  # fmt: skip


def _triangle_multiplication(left: str, right: str) -> tuple[Row, ...]:
    return (
        Row("layer_norm_in", "layer_norm_in", "layer_norm_input", "layer_norm"),
        Row(f"linear_{left}_p", f"linear_{left}_p", "left_projection", "linear"),
        Row(f"linear_{left}_g", f"linear_{left}_g", "left_gate", "linear"),
        Row(f"linear_{right}_p", f"linear_{right}_p", "right_projection", "linear"),
        Row(f"linear_{right}_g", f"linear_{right}_g", "right_gate", "linear"),
        Row("layer_norm_out", "layer_norm_out", "center_layer_norm", "layer_norm"),
        Row("linear_z", "linear_z", "output_projection", "linear"),
        Row("linear_g", "linear_g", "gating_linear", "linear"),
    )


TRANSITION = (
    Row("layer_norm", "layer_norm", "input_layer_norm", "layer_norm"),
    Row("linear_1", "linear_1", "transition1", "linear"),
    Row("linear_2", "linear_2", "transition2", "linear"),
)
TRIANGLE_ATTENTION = (
    Row("layer_norm", "layer_norm", "query_norm", "layer_norm"),
    Row("linear", "linear", "", "pair_bias"),
    Row("mha", "mha", "attention", "gated_attention", split_by="linear"),
)


def pair_updates(outgoing: Iterable[Row], incoming: Iterable[Row]) -> tuple[Row, ...]:
    """Return the pair updates of a block with these parts of the triangle multiplications."""
    return (
        *under("multiplication_outgoing.", "tri_mul_out.", "triangle_multiplication_outgoing/", outgoing),
        *under("multiplication_incoming.", "tri_mul_in.", "triangle_multiplication_incoming/", incoming),
        *under("attention_starting.", "tri_att_start.", "triangle_attention_starting_node/", TRIANGLE_ATTENTION),
        *under("attention_ending.", "tri_att_end.", "triangle_attention_ending_node/", TRIANGLE_ATTENTION),
        *under("transition.", "pair_transition.", "pair_transition/", TRANSITION),
    )


PAIR_UPDATES = pair_updates(_triangle_multiplication("a", "b"), _triangle_multiplication("b", "a"))

ROW_ATTENTION = (
    Row("layer_norm_m", "layer_norm_m", "query_norm", "layer_norm"),
    Row("layer_norm_z", "layer_norm_z", "feat_2d_norm", "layer_norm"),
    Row("linear_z", "linear_z", "", "pair_bias"),
    Row("mha", "mha", "attention", "gated_attention", split_by="linear_z"),
)
COLUMN_ATTENTION = (
    Row("msa.column_attention.layer_norm", "msa_att_col._msa_att.layer_norm_m", "msa_column_attention/query_norm",
        "layer_norm"),
    Row("msa.column_attention.mha", "msa_att_col._msa_att.mha", "msa_column_attention/attention", "gated_attention",
        split_by="msa.row_attention.linear_z"),
)  # fmt: skip
COLUMN_GLOBAL_ATTENTION = (
    Row("msa.column_global_attention.layer_norm", "msa_att_col.layer_norm_m", "msa_column_global_attention/query_norm",
        "layer_norm"),
    Row("msa.column_global_attention", "msa_att_col.global_attention", "msa_column_global_attention/attention",
        "global_attention", split_by="msa.column_global_attention.linear_k"),
)  # fmt: skip
OUTER_PRODUCT_MEAN = (
    Row("layer_norm", "layer_norm", "layer_norm_input", "layer_norm"),
    Row("linear_1", "linear_1", "left_projection", "linear"),
    Row("linear_2", "linear_2", "right_projection", "linear"),
    Row("linear_out", "linear_out", "", "outer_product", split_by="linear_1"),
)


def _block(column_attention: Iterable[Row], pair: Iterable[Row]) -> tuple[Row, ...]:
    return (
        *under("msa.row_attention.", "msa_att_row.", "msa_row_attention_with_pair_bias/", ROW_ATTENTION),
        *column_attention,
        *under("msa.transition.", "msa_transition.", "msa_transition/", TRANSITION),
        *under("pair.outer_product_mean.", "outer_product_mean.", "outer_product_mean/", OUTER_PRODUCT_MEAN),
        *under("pair.", "pair_stack.", "", pair),
    )


def stacks(pair: Iterable[Row]) -> tuple[Row, ...]:
    """Return the blocks of the extra MSA stack and of the Evoformer, with these pair updates."""
    extra, main = _block(COLUMN_GLOBAL_ATTENTION, pair), _block(COLUMN_ATTENTION, pair)
    return (
        *under("extra_msa_stack.blocks.{}.", "extra_msa_stack.blocks.{}.", "evoformer/extra_msa_stack/", extra),
        *under("evoformer.blocks.{}.", "evoformer.blocks.{}.", "evoformer/evoformer_iteration/", main),
    )


EMBEDDERS = (
    Row("input_embedder.linear_tf_m", "input_embedder.linear_tf_m", "preprocess_1d", "linear"),
    Row("input_embedder.linear_msa_m", "input_embedder.linear_msa_m", "preprocess_msa", "linear"),
    Row("input_embedder.linear_tf_z_i", "input_embedder.linear_tf_z_i", "left_single", "linear"),
    Row("input_embedder.linear_tf_z_j", "input_embedder.linear_tf_z_j", "right_single", "linear"),
    Row("recycling_embedder.linear", "recycling_embedder.linear", "prev_pos_linear", "linear"),
    Row("recycling_embedder.layer_norm_m", "recycling_embedder.layer_norm_m", "prev_msa_first_row_norm", "layer_norm"),
    Row("recycling_embedder.layer_norm_z", "recycling_embedder.layer_norm_z", "prev_pair_norm", "layer_norm"),
    Row("extra_msa_embedder.linear", "extra_msa_embedder.linear", "extra_msa_activations", "linear"),
    Row("linear_single", "evoformer.linear", "single_activations", "linear"),
)
RELATIVE_POSITIONS = (
    Row(
        "input_embedder.linear_relpos", "input_embedder.linear_relpos", "pair_activiations", "linear"
    ),  # their spelling
)
PROJECTIONS = (
    Row("ipa.linear_q", "ipa.linear_q", "invariant_point_attention/q_scalar", "linear"),
    Row("ipa.linear_kv", "ipa.linear_kv", "invariant_point_attention/kv_scalar", "linear"),
    Row("ipa.linear_q_points", "ipa.linear_q_points.linear", "invariant_point_attention/q_point_local", "linear"),
    Row("ipa.linear_kv_points", "ipa.linear_kv_points.linear", "invariant_point_attention/kv_point_local", "linear"),
    Row("bb_update.linear", "bb_update.linear", "affine_update", "linear"),
)
ITERATION = (
    Row("ipa.linear_b", "ipa.linear_b", "invariant_point_attention/attention_2d", "linear"),
    Row("ipa", "ipa", "invariant_point_attention/", "point_weights"),
    Row("ipa.linear_out", "ipa.linear_out", "invariant_point_attention/output_projection", "linear"),
    Row("layer_norm_ipa", "layer_norm_ipa", "attention_layer_norm", "layer_norm"),
    Row("transition.layers.0.linear_1", "transition.layers.0.linear_1", "transition", "linear"),
    Row("transition.layers.0.linear_2", "transition.layers.0.linear_2", "transition_1", "linear"),
    Row("transition.layers.0.linear_3", "transition.layers.0.linear_3", "transition_2", "linear"),
    Row("transition.layer_norm", "transition.layer_norm", "transition_layer_norm", "layer_norm"),
    *under("angle_resnet.", "angle_resnet.", "rigid_sidechain/", (
        Row("linear_in", "linear_in", "input_projection", "linear"),
        Row("linear_initial", "linear_initial", "input_projection_1", "linear"),
        Row("layers.0.linear_1", "layers.0.linear_1", "resblock1", "linear"),
        Row("layers.0.linear_2", "layers.0.linear_2", "resblock2", "linear"),
        Row("layers.1.linear_1", "layers.1.linear_1", "resblock1_1", "linear"),
        Row("layers.1.linear_2", "layers.1.linear_2", "resblock2_1", "linear"),
        Row("linear_out", "linear_out", "unnormalized_angles", "linear"),
    )),
)  # fmt: skip


def structure_module(projections: Iterable[Row]) -> tuple[Row, ...]:
    """Return the structure module with these projections of its attention and this backbone update."""
    rows = (
        Row("layer_norm_s", "layer_norm_s", "single_layer_norm", "layer_norm"),
        Row("layer_norm_z", "layer_norm_z", "pair_layer_norm", "layer_norm"),
        Row("linear_in", "linear_in", "initial_projection", "linear"),
        *under("", "", "fold_iteration/", (*projections, *ITERATION)),
    )
    return under("structure_module.", "structure_module.", "structure_module/", rows)


HEADS = (
    Row("plddt.layer_norm", "aux_heads.plddt.layer_norm", "predicted_lddt_head/input_layer_norm", "layer_norm"),
    Row("plddt.linear_1", "aux_heads.plddt.linear_1", "predicted_lddt_head/act_0", "linear"),
    Row("plddt.linear_2", "aux_heads.plddt.linear_2", "predicted_lddt_head/act_1", "linear"),
    Row("plddt.linear_3", "aux_heads.plddt.linear_3", "predicted_lddt_head/logits", "linear"),
    Row("distogram.linear", "aux_heads.distogram.linear", "distogram_head/half_logits", "linear"),
    Row("heads.masked_msa", "aux_heads.masked_msa.linear", "masked_msa_head/logits", "linear"),
    Row("heads.experimentally_resolved", "aux_heads.experimentally_resolved.linear",
        "experimentally_resolved_head/logits", "linear"),
    Row("heads.tm", "aux_heads.tm.linear", "predicted_aligned_error_head/logits", "linear"),
)  # fmt: skip
SINGLE_TEMPLATE = "template_embedding/single_template_embedding/"
TEMPLATE_EMBEDDER = (
    Row("pair_embedder", "template_pair_embedder.linear", f"{SINGLE_TEMPLATE}embedding2d", "linear"),
    *under("pair_stack.blocks.{}.pair.", "template_pair_stack.blocks.{}.",
           f"{SINGLE_TEMPLATE}template_pair_stack/__layer_stack_no_state/", PAIR_UPDATES),
    Row("layer_norm", "template_pair_stack.layer_norm", f"{SINGLE_TEMPLATE}output_layer_norm", "layer_norm"),
    Row("attention", "template_pointwise_att.mha", "template_embedding/attention", "attention",
        split_by=POINTWISE_HEADS),
    Row("angle_embedder.linear_1", "template_single_embedder.linear_1", "template_single_embedding", "linear"),
    Row("angle_embedder.linear_2", "template_single_embedder.linear_2", "template_projection", "linear"),
)  # fmt: skip


MODULES = (
    *under("", "", "evoformer/", (*EMBEDDERS, *RELATIVE_POSITIONS)),
    *stacks(PAIR_UPDATES),
    *structure_module(PROJECTIONS),
    *HEADS,
    *under(TEMPLATES, TEMPLATES, "evoformer/", TEMPLATE_EMBEDDER),
)
"""Every module of AlphaFold 2's monomer models."""


class Entry(NamedTuple):
    """A tensor in the three programs; ``{}`` in a name is the number of the block, over which AlphaFold stacks.

    axes      pattern of einops, from the array of AlphaFold, without the axis of blocks, to torch's tensor
    split     axis of ``axes`` whose size torch's shape does not show, or empty
    split_by  its size: the first size of this tensor, which is named as in ``here``, or a number
    """

    here: str
    openfold: str
    alphafold: str
    axes: str
    split: str
    split_by: str | int

    @property
    def is_stacked(self) -> bool:
        """Whether there is one tensor per block."""
        return "{}" in self.here


def entries(modules: Iterable[Row]) -> Iterator[Entry]:
    """Yield the tensors of ``modules``."""
    for row in modules:
        kind = KINDS[row.kind]
        module = row.alphafold.rstrip("/")
        split_by = f"{row.split_by}.weight" if isinstance(row.split_by, str) else row.split_by
        for tensor, array, axes in kind.parameters:
            names = f"{row.here}.{tensor}", f"{row.openfold}.{tensor}", f"{ALPHAFOLD_PREFIX}{module}//{array}"
            yield Entry(*names, axes, kind.split if "(" in axes else "", split_by)


ENTRIES = tuple(entries(MODULES))
"""Every tensor of AlphaFold 2's monomer models, with templates and the head of predicted aligned errors."""
