"""Keys that the closed division of MLPerf HPC names for ``openfold``, with their values in a run of the task ``fold``.

The keys describe a training that starts from a published checkpoint, on chains with release dates. What a run of ds4sci
does not have is listed as missing, with the reason, so that the log claims nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ds4sci.config.run_file import RunConfig
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.text_files import resolve_data_path

MISSING = {
    "train_max_pdb_release_date": "chain sets do not record release dates",
    "val_min_cameo_submission_date": "the validation set is not CAMEO",
    "val_max_cameo_submission_date": "the validation set is not CAMEO",
}
"""Keys that no run of ds4sci can state, with the reason."""


def closed_keys(config: RunConfig, parameters: int) -> Iterator[tuple[str, Any]]:
    """Yield (key, value) of every key that the closed division adds, besides optimizer and sizes.

    parameters  of the model
    """
    assert config.benchmark is not None
    settings: Any = config.settings
    features, plan, loss = settings.data.features, settings.data.plan, settings.loss
    crops = sorted({crop for phase in plan.phases for crop in phase.crops})
    yield "target_avg_lddt_ca_value", config.benchmark.target
    yield "val_every_iters", config.train.evaluate_every
    yield "model_parameters_count", parameters
    yield "train_sequence_crop_size", crops[0] if len(crops) == 1 else crops
    yield "num_recycling_iters", plan.max_recycling
    yield "max_msa_clusters", features.max_clusters
    yield "max_extra_msa", features.max_extra
    yield "templates_enabled", False
    yield "max_templates", 0
    yield "fape_loss_weight", 1.0
    yield "fape_loss_backbone_weight", loss.backbone_fape
    yield "fape_loss_sidechain_weight", loss.sidechain_fape
    yield "supervised_chi_loss_weight", loss.torsion
    yield "distogram_loss_weight", loss.distogram
    yield "masked_msa_loss_weight", loss.masked_msa
    yield "plddt_loss_weight", loss.plddt
    yield "swa_enabled", config.train.ema_decay > 0
    yield "swa_decay_rate", config.train.ema_decay
    yield "initial_training_dataloader_type", "ds4sci.data.loader, samples in order"
    valid = resolve_data_path(settings.data.valid)
    if valid.is_file():
        yield "val_max_sequence_length", int(ChainSet.open(valid).lengths.max())
    if (file := _weights(config)) is not None:
        with file.open("rb") as handle:
            yield "init_checkpoint_sha256sum", hashlib.file_digest(handle, "sha256").hexdigest()


def missing_keys(config: RunConfig) -> dict[str, str]:
    """Keys of the closed division that the log does not have, with the reason."""
    settings: Any = config.settings
    missing = dict(MISSING)
    if _weights(config) is None:
        missing["init_checkpoint_sha256sum"] = "training starts from random weights (train.weights names no file)"
    if not resolve_data_path(settings.data.valid).is_file():
        missing["val_max_sequence_length"] = f"{settings.data.valid} does not exist"
    deepspeed = config.deepspeed_config()
    if str(deepspeed["optimizer"]["type"]).lower() != "adam":
        missing |= {f"opt_adam_{name}": "the optimizer is not Adam" for name in ("beta_1", "beta_2", "epsilon")}
    if not deepspeed.get("gradient_clipping"):
        missing["opt_gradient_clip_norm"] = "gradients are not clipped"
    if "warmup_min_lr" not in deepspeed.get("scheduler", {}).get("params", {}):
        missing["opt_learning_rate_warmup_init"] = "the schedule names no warmup_min_lr"
    return missing


def _weights(config: RunConfig) -> Path | None:
    """File of the initial weights, if ``train.weights`` names a file."""
    weights = config.train.weights
    return weights if weights is not None and weights.is_file() else None
