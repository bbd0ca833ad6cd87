"""A batch of a complex, two equal chains and another one, and a small multimer model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ds4sci.data.alignments import msa
from ds4sci.data.loader import make_rng
from ds4sci.data.structures.batch import collate
from ds4sci.data.structures.features import FeatureConfig, featurize
from ds4sci.data.structures.parsers import mmcif
from ds4sci.models.fold import Config, FoldModel
from ds4sci.types import Batch, Features, in_double
from tests.support.small_fold import SMALL
from tests.support.template_batches import with_templates

FIXTURES = Path(__file__).parents[1] / "fixtures"

MULTIMER = Config.model_validate(
    SMALL.model_dump()
    | {
        "kind": "multimer",
        "heads": ["masked_msa", "experimentally_resolved", "tm"],
        "template": {"blocks": 1, "c_t": 8, "heads_pair": 2, "d_pair": 4, "c_multiplication": 8, "dropout": 0.0},
    }
)
"""A small model with every part of AlphaFold-Multimer."""


def complex_features(equal: int = 8, other: int = 6) -> Features:
    """Chains A and B with the same residues of 2q2k chain A, at different places, and C with others; two templates."""
    record = mmcif.read(FIXTURES / "mmcif" / "2q2k.cif.gz", "A")
    record = with_templates(replace(record, msa=msa.read(FIXTURES / "msa" / "bfd_uniclust_hits.a3m")), 2)
    config = FeatureConfig(msa_input="msa", max_clusters=2, max_extra=4, max_templates=2)
    whole = featurize(record, config, make_rng(0, 2, 0))
    rows = np.concatenate([np.arange(20, 20 + equal)] * 2 + [np.arange(60, 60 + other)])
    asym = np.repeat([1, 2, 3], [equal, equal, other])
    changes = {
        name: np.take(getattr(whole, name), rows, axis)
        for name, axis in (
            ("aatype", 0), ("residue_index", 0), ("atom_positions", 0), ("atom_mask", 0), ("secondary", 0),
            ("msa_feat", 1), ("msa_mask", 1), ("extra_msa_feat", 1), ("extra_msa_mask", 1), ("true_msa", 1),
            ("masked_msa", 1), ("template_aatype", 1), ("template_positions", 1), ("template_atom_mask", 1),
        )
    }  # fmt: skip
    turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]], np.float32)
    places = np.where((asym == 2)[:, None, None], changes["atom_positions"] @ turn + 15, changes["atom_positions"])
    changes["atom_positions"] = places.astype(np.float32) * changes["atom_mask"][..., None]
    return replace(
        whole, **changes, asym_id=asym, entity_id=np.where(asym == 3, 2, 1), sym_id=np.where(asym == 2, 2, 1)
    )


def complex_batch(equal: int = 8, other: int = 6) -> Batch:
    """``complex_features`` as a batch in fp64."""
    return in_double(collate([complex_features(equal, other)]))


def complex_model(seed: int = 0) -> FoldModel:
    """A model in fp64 with random parameters: those of a new model that are 0 would give every chain the same place."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FoldModel(MULTIMER).double()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def as_complex(batch: Batch) -> Batch:
    """The thirds of each chain as the chains A, A and B of a complex; numbers of residues count from 0 in each."""
    length = batch.token_mask.sum(-1, keepdim=True)
    place = torch.arange(batch.aatype.shape[1]).expand(batch.aatype.shape)
    asym = torch.where(batch.token_mask, 1 + (3 * place // length).clamp(max=2), 0)
    start = torch.stack([(asym < k).logical_and(batch.token_mask).sum(-1) for k in range(4)], -1).gather(-1, asym)
    index = torch.where(batch.token_mask, place - start, 0)
    entity, sym = (torch.tensor(numbers)[asym] for numbers in ([0, 1, 1, 2], [0, 1, 2, 1]))
    return replace(batch, residue_index=index, asym_id=asym, entity_id=entity, sym_id=sym)
