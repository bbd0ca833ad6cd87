"""Configuration of a small structure model with every part of the published one."""

from __future__ import annotations

from ds4sci.models.fold import Config

SMALL = Config.model_validate(
    {
        "c_m": 32, "c_z": 16, "c_s": 24, "c_plddt": 16,
        "heads": ["masked_msa", "experimentally_resolved", "secondary", "tm"],
        "evoformer": {"blocks": 2, "heads_msa": 2, "d_msa": 8, "heads_pair": 2, "d_pair": 8, "c_outer": 6,
                      "c_multiplication": 12, "dropout_msa": 0.0, "dropout_pair": 0.0},
        "extra_msa": {"blocks": 1, "c_e": 16},
        "structure": {"iterations": 2, "heads": 3, "c_angle": 16, "dropout": 0.0},
    }
)  # fmt: skip
