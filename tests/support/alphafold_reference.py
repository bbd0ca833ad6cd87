"""Fixtures ``published_weights/alphafold_*``, made by AlphaFold's own code from a checkout.

    python -m tests.support.alphafold_reference /folder/of/alphafold

Requires jax, dm-haiku, dm-tree, ml_collections, scipy and Biopython, which ds4sci does not; an environment of its own
runs it. Names and shapes are those of ``modules.AlphaFold``; outputs are those of its forward pass in fp32.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from tests.support.synthetic_weights import (
    MULTIMER,
    MULTIMER_OUTPUTS,
    OUTPUTS,
    PUBLISHED,
    RECYCLING,
    SMALL,
    SMALL_MULTIMER,
    TEMPLATE_OUTPUTS,
    N,
    chain_inputs,
    inputs,
    parameters,
    shapes,
    template_inputs,
)

SMALL_SIZES = {
    "embeddings_and_evoformer.evoformer_num_block": 2,
    "embeddings_and_evoformer.extra_msa_stack_num_block": 2,
    "embeddings_and_evoformer.msa_channel": 12,
    "embeddings_and_evoformer.pair_channel": 8,
    "embeddings_and_evoformer.seq_channel": 10,
    "embeddings_and_evoformer.extra_msa_channel": 6,
    "embeddings_and_evoformer.evoformer.msa_row_attention_with_pair_bias.num_head": 2,
    "embeddings_and_evoformer.evoformer.msa_column_attention.num_head": 2,
    "embeddings_and_evoformer.evoformer.outer_product_mean.num_outer_channel": 5,
    "embeddings_and_evoformer.evoformer.triangle_attention_starting_node.num_head": 2,
    "embeddings_and_evoformer.evoformer.triangle_attention_ending_node.num_head": 2,
    "embeddings_and_evoformer.evoformer.triangle_multiplication_outgoing.num_intermediate_channel": 7,
    "embeddings_and_evoformer.evoformer.triangle_multiplication_incoming.num_intermediate_channel": 7,
    "heads.structure_module.num_layer": 2,
    "heads.structure_module.num_channel": 10,
    "heads.structure_module.num_head": 3,
    "heads.structure_module.num_scalar_qk": 4,
    "heads.structure_module.num_scalar_v": 4,
    "heads.structure_module.num_point_qk": 2,
    "heads.structure_module.num_point_v": 3,
    "heads.structure_module.sidechain.num_channel": 6,
    "heads.predicted_lddt.num_channels": 7,
    "num_recycle": RECYCLING,
}


def features() -> dict[str, np.ndarray]:
    """Return ``inputs`` and ``template_inputs`` as AlphaFold takes them: one copy per recycling pass."""
    given = inputs()
    batch = {
        "aatype": given["aatype"], "residue_index": given["residue_index"], "seq_mask": np.ones(N, np.float32),
        "seq_length": np.array(N),
        "target_feat": np.eye(22, dtype=np.float32)[given["aatype"] + 1], "msa_feat": given["msa_feat"],
        "msa_mask": given["msa_mask"], "msa_row_mask": given["msa_mask"].max(1), "extra_msa": given["extra_msa"],
        "extra_msa_mask": given["extra_mask"], "extra_msa_row_mask": given["extra_mask"].max(1),
        "extra_has_deletion": given["has_deletions"], "extra_deletion_value": given["deletions"],
    }  # fmt: skip
    template = template_inputs()
    aatype, positions, masks = (template[f"template_{name}"] for name in ("aatype", "positions", "atom_mask"))
    from alphafold.model import modules

    beta, beta_mask = modules.pseudo_beta_fn(aatype, positions, masks.astype(np.float32))
    batch |= {
        "template_aatype": aatype, "template_all_atom_masks": masks.astype(np.float32),
        "template_all_atom_positions": positions, "template_mask": template["template_mask"].astype(np.float32),
        "template_pseudo_beta": beta, "template_pseudo_beta_mask": beta_mask,
    }  # fmt: skip
    from alphafold.common import residue_constants

    atom14 = [[residue_constants.atom_order.get(atom, 0) for atom in names] for names in _atom14_names()]
    exists14 = [[bool(atom) for atom in names] for names in _atom14_names()]
    to14, mask14 = np.array(atom14)[given["aatype"]], np.array(exists14, np.float32)[given["aatype"]]
    to37, mask37 = np.zeros((N, 37), np.int64), np.zeros((N, 37), np.float32)
    for i in range(N):
        for j in np.flatnonzero(mask14[i]):
            to37[i, to14[i, j]], mask37[i, to14[i, j]] = j, 1
    batch |= {
        "residx_atom14_to_atom37": to14, "residx_atom37_to_atom14": to37,
        "atom14_atom_exists": mask14, "atom37_atom_exists": mask37,
    }  # fmt: skip
    return {name: np.stack([np.asarray(array)] * (RECYCLING + 1)) for name, array in batch.items()}


def _atom14_names() -> list[list[str]]:
    from alphafold.common import residue_constants as constants

    three = [constants.restype_1to3[one] for one in constants.restypes]
    return [constants.restype_name_to_atom14_names[name] for name in [*three, "UNK"]]


def network(sizes: dict[str, Any], *, templates: bool, aligned_errors: bool) -> Any:
    """Return the transformed Haiku function of AlphaFold's monomer model."""
    import haiku
    from alphafold.model import config, modules

    settings = config.model_config(f"model_{1 if templates else 3}{'_ptm' if aligned_errors else ''}").model
    settings.update_from_flattened_dict({"global_config.deterministic": True, **sizes})
    if sizes:
        settings.embeddings_and_evoformer.template.attention.update(key_dim=12, value_dim=12)
        make_templates_small(settings)
    else:
        settings.num_recycle = RECYCLING

    def forward(batch: dict[str, Any]) -> Any:
        model = modules.AlphaFold(settings)
        return model(
            batch, is_training=False, compute_loss=False, ensemble_representations=True, return_representations=True
        )

    return haiku.transform(forward)


def make_templates_small(settings: Any) -> None:
    """Set the sizes of the pair stack of templates, some of which AlphaFold's configuration does not have."""
    stack = settings.embeddings_and_evoformer.template.template_pair_stack
    for attention in (stack.triangle_attention_starting_node, stack.triangle_attention_ending_node):
        attention.update(key_dim=8, value_dim=8, num_head=2)
    for multiplication in (stack.triangle_multiplication_outgoing, stack.triangle_multiplication_incoming):
        multiplication.num_intermediate_channel = 6


def multimer_features() -> dict[str, np.ndarray]:
    """Return the inputs as AlphaFold-Multimer takes them, with the features that it would sample from an alignment."""
    given, template = inputs(), template_inputs()
    extra = np.eye(23, dtype=np.float32)[given["extra_msa"]]
    numbers = [given[name][..., None] for name in ("has_deletions", "deletions")]
    return chain_inputs() | {
        "aatype": given["aatype"], "seq_mask": np.ones(N, np.float32), "msa_feat": given["msa_feat"],
        "msa_mask": given["msa_mask"], "msa": np.zeros(given["msa_mask"].shape, np.int64),
        "extra_msa_feat": np.concatenate([extra, *numbers], -1).astype(np.float32),
        "extra_msa_mask": given["extra_mask"], "all_atom_positions": np.zeros((N, 37, 3), np.float32),
        "template_aatype": template["template_aatype"],
        "template_all_atom_positions": template["template_positions"],
        "template_all_atom_mask": template["template_atom_mask"].astype(np.float32),
    }  # fmt: skip


def multimer_network(sizes: dict[str, Any]) -> Any:
    """Return the transformed Haiku function of AlphaFold-Multimer, in fp32 and without sampling of the alignment.

    The direction from a template's residue to itself is the normalized rounding noise of a zero vector in AlphaFold;
    here it is 0.
    """
    import haiku
    from alphafold.model import config, geometry, modules_multimer

    def normalized(self: Any, epsilon: float = 1e-6) -> Any:
        length = self.norm(epsilon)
        return self * ((length > 1e-3) / length)

    geometry.Vec3Array.normalized = normalized

    modules_multimer.sample_msa = lambda key, batch, max_seq: batch
    modules_multimer.make_masked_msa = lambda batch, key, config: batch
    modules_multimer.nearest_neighbor_clusters = lambda batch: (None, None)
    modules_multimer.create_msa_feat = lambda batch: batch["msa_feat"]
    modules_multimer.create_extra_msa_feature = lambda batch, count: (batch["extra_msa_feat"], batch["extra_msa_mask"])
    settings = config.model_config("model_1_multimer_v3").model
    settings.update_from_flattened_dict({
        "global_config.deterministic": True, "global_config.bfloat16": False, "recycle_early_stop_tolerance": -1.0,
        "num_recycle": RECYCLING, **sizes,
    })  # fmt: skip
    if sizes:
        settings.embeddings_and_evoformer.template.num_channels = 8
        make_templates_small(settings)
    return haiku.transform(
        lambda batch: modules_multimer.AlphaFold(settings)(batch, is_training=False, return_representations=True)
    )


def main(checkout: str) -> None:
    sys.path.insert(0, checkout)
    import jax

    # AlphaFold's code is older than these changes of jax.
    clip = jax.numpy.clip
    jax.numpy.clip = lambda a, a_min=None, a_max=None: clip(a, a_min, a_max)
    jax.tree_map = jax.tree_util.tree_map

    every = [
        (PUBLISHED, network({}, templates=True, aligned_errors=True), features()),
        (SMALL, network(SMALL_SIZES, templates=True, aligned_errors=True), features()),
        (MULTIMER, multimer_network({}), multimer_features()),
        (SMALL_MULTIMER, multimer_network(SMALL_SIZES), multimer_features()),
    ]
    for file, made, given in every:
        tree = jax.eval_shape(made.init, jax.random.PRNGKey(0), given)
        names = {f"{module}//{name}": list(x.shape) for module, arrays in tree.items() for name, x in arrays.items()}
        print(f"{file}: {len(names)} arrays, {sum(int(np.prod(shape)) for shape in names.values()):,} parameters")
        lines = [f"{json.dumps(name)}: {json.dumps(shape)}" for name, shape in sorted(names.items())]
        file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

    for file, outputs in (
        (OUTPUTS, run(templates=False)), (TEMPLATE_OUTPUTS, run(templates=True)), (MULTIMER_OUTPUTS, run_multimer()),
    ):  # fmt: skip
        np.savez_compressed(file, **outputs)
        print(file, {name: (array.shape, float(np.abs(array).max())) for name, array in outputs.items()})


def run(*, templates: bool) -> dict[str, np.ndarray]:
    """Return outputs of the small model_1_ptm or model_3_ptm."""
    made = network(SMALL_SIZES, templates=templates, aligned_errors=True)
    return apply(made, shapes(SMALL, templates=templates), features())


def run_multimer() -> dict[str, np.ndarray]:
    """Return outputs of the small multimer model."""
    return apply(multimer_network(SMALL_SIZES), shapes(SMALL_MULTIMER), multimer_features())


def apply(made: Any, tree: dict[str, tuple[int, ...]], given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return outputs of a network with the parameters of the names and shapes ``tree``."""
    import jax

    weights: dict[str, dict[str, np.ndarray]] = {}
    for name, array in parameters(tree).items():
        module, _, parameter = name.partition("//")
        weights.setdefault(module, {})[parameter] = array
    found = made.apply(weights, jax.random.PRNGKey(0), given)
    outputs = {
        "atom37": found["structure_module"]["final_atom_positions"],
        "plddt_logits": found["predicted_lddt"]["logits"],
        "distogram_logits": found["distogram"]["logits"],
        "masked_msa_logits": found["masked_msa"]["logits"],
        "resolved_logits": found["experimentally_resolved"]["logits"],
        "pair": found["representations"]["pair"],
        "msa0": found["representations"]["msa_first_row"],
    }
    if "asym_id" in given:
        outputs["aligned_error_logits"] = found["predicted_aligned_error"]["logits"]
    return {name: np.asarray(array, np.float32) for name, array in outputs.items()}


if __name__ == "__main__":
    main(sys.argv[1])
