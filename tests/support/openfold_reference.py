"""Fixture ``published_weights/openfold_small.json``: checksums of what OpenFold's own importer makes of arrays.

    DS4SCI_ORIGINALS=/folder/of/checkouts python -m tests.support.openfold_reference [--published]

The folder contains a checkout ``openfold``. Requires ``ml_collections``. ``--published`` compares the published sizes
with ``ds4sci`` in memory instead of writing the fixture: 93 million parameters, tensor by tensor.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tests.support.original_models import original
from tests.support.synthetic_weights import CHECKSUMS, PUBLISHED, SMALL, parameters, shapes

SMALL_SIZES = {
    "model.input_embedder": {"c_z": 8, "c_m": 12},
    "model.recycling_embedder": {"c_z": 8, "c_m": 12},
    "model.extra_msa.extra_msa_embedder": {"c_out": 6},
    "model.extra_msa.extra_msa_stack": {
        "c_m": 6, "c_z": 8, "c_hidden_msa_att": 3, "c_hidden_opm": 5, "c_hidden_mul": 7, "c_hidden_pair_att": 4,
        "no_heads_msa": 2, "no_heads_pair": 2, "no_blocks": 2,
    },
    "model.evoformer_stack": {
        "c_m": 12, "c_z": 8, "c_hidden_msa_att": 6, "c_hidden_opm": 5, "c_hidden_mul": 7, "c_hidden_pair_att": 4,
        "c_s": 10, "no_heads_msa": 2, "no_heads_pair": 2, "no_blocks": 2,
    },
    "model.structure_module": {
        "c_s": 10, "c_z": 8, "c_ipa": 4, "c_resnet": 6, "no_heads_ipa": 3, "no_qk_points": 2, "no_v_points": 3,
        "no_blocks": 2,
    },
    "model.heads.lddt": {"c_in": 10, "c_hidden": 7},
    "model.heads.distogram": {"c_z": 8},
    "model.heads.tm": {"c_z": 8},
    "model.heads.masked_msa": {"c_m": 12},
    "model.heads.experimentally_resolved": {"c_s": 10},
    "model.template.template_pair_embedder": {"c_out": 8},
    "model.template.template_single_embedder": {"c_out": 12},
    "model.template.template_pair_stack": {
        "c_t": 8, "c_hidden_tri_att": 4, "c_hidden_tri_mul": 6, "no_blocks": 2, "no_heads": 2, "pair_transition_n": 2,
    },
    "model.template.template_pointwise_attention": {"c_t": 8, "c_z": 8, "c_hidden": 3, "no_heads": 4},
}  # fmt: skip
"""The sizes of ``alphafold_small.json`` in OpenFold's configuration."""


MULTIMER_SIZES = {
    section: sizes
    for section, sizes in SMALL_SIZES.items()
    if section not in ("model.template.template_pointwise_attention", "model.template.template_pair_embedder")
} | {
    "model.template": {"c_t": 8, "c_z": 8},
    "model.template.template_pair_embedder": {"c_in": 8, "c_out": 8},
}
"""The sizes of ``alphafold_small_multimer.json``."""


def imported(
    arrays: dict[str, np.ndarray], sizes: dict[str, dict[str, int]], *, preset: str = "model_1_ptm"
) -> dict[str, Tensor]:
    """Return the state dict of OpenFold's model ``preset`` after its own importer has read ``arrays``."""
    config = original("openfold.config").model_config(preset)
    for section, values in sizes.items():
        place: Any = config
        for part in section.split("."):
            place = place[part]
        for key, value in values.items():
            assert key in place, f"{section}.{key}"
            place.unlock()
            place[key] = value
    model = original("openfold.model.model").AlphaFold(config)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"params_{preset}.npz"
        np.savez(file, **arrays)
        original("openfold.utils.import_weights").import_jax_weights_(model, str(file), version=preset)
    return dict(model.state_dict())


def checksum(tensor: Tensor) -> str:
    """Return the SHA-256 of the float32 values of ``tensor`` in row-major order."""
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def checksums(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Return the first 16 digits of ``checksum`` by name, and of all of them under ``all``."""
    each = {name: checksum(tensor)[:16] for name, tensor in sorted(tensors.items())}
    return {"all": hashlib.sha256(json.dumps(each).encode()).hexdigest()} | each


def compare_published() -> None:
    """Compare our translation of the published tree with OpenFold's importer. Raises AssertionError."""
    import torch

    from ds4sci.models.published_weights.translation import from_alphafold, to_openfold

    arrays = parameters(shapes(PUBLISHED))
    expected = imported(arrays, {})
    tensors, _, unknown = from_alphafold({name: torch.from_numpy(array) for name, array in arrays.items()})
    found, without_place = to_openfold(tensors)
    assert not unknown
    assert not without_place
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    print(f"{len(found):,} tensors, {sum(t.numel() for t in found.values()):,} parameters: all equal")


if __name__ == "__main__":
    if "--published" in sys.argv:
        compare_published()
    else:
        table = checksums(imported(parameters(shapes(SMALL)), SMALL_SIZES))
        CHECKSUMS.write_text(json.dumps(table, indent=0) + "\n", encoding="utf-8")
        print(f"{CHECKSUMS}: {len(table) - 1} tensors")
