"""Loading of the original code of OpenFold, OpenFold3, Boltz and Protenix from the user's checkouts.

    DS4SCI_ORIGINALS=/folder/of/checkouts pytest -m nightly tests/integrations/test_original_models.py

The folder contains any of ``openfold``, ``openfold-3``, ``boltz`` and ``Protenix``, as ``git clone`` names them.
Imports that a machine without a GPU does not have (CUDA extensions, RDKit, Lightning) are replaced by mocks: the tests
create modules and do not run data pipelines. Requires ``ml_collections`` (OpenFold3) and ``optree`` (Protenix).
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from torch import nn

FOLDER = "DS4SCI_ORIGINALS"
ROOTS = {"openfold": "openfold", "openfold3": "openfold-3", "boltz": "boltz/src", "protenix": "Protenix"}
"""Package → its path in the folder of checkouts."""


class Mocked(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import hook that replaces missing packages by mocks."""

    names = ("attn_core_inplace_cuda", "modelcif", "rdkit", "fairscale", "pytorch_lightning", "tree", "Bio")

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        known = fullname.partition(".")[0] in self.names
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if known else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return mock.MagicMock(name=spec.name, __spec__=spec, __path__=[], __name__=spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def original(module: str) -> ModuleType:
    """Import a module of one of the packages in ``ROOTS``. Skips the test if there is no checkout."""
    package = module.partition(".")[0]
    named = os.environ.get(FOLDER)
    if not named:
        pytest.skip(f"{FOLDER} is not set to a folder with checkouts of the models")
    root = Path(named) / ROOTS[package]
    if not root.is_dir():
        pytest.skip(f"the folder of {FOLDER} has no {ROOTS[package]}")
    os.environ.setdefault("LAYERNORM_TYPE", "openfold")  # Protenix' default is compiled for GPUs at import
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    if not any(isinstance(finder, Mocked) for finder in sys.meta_path):
        sys.meta_path.append(Mocked())
    return importlib.import_module(module)


def evoformer_block(**changes: Any) -> nn.Module:
    settings = {
        "c_m": 24, "c_z": 32, "c_hidden_msa_att": 8, "c_hidden_opm": 6, "c_hidden_mul": 16, "c_hidden_pair_att": 8,
        "no_heads_msa": 3, "no_heads_pair": 4, "transition_n": 2, "msa_dropout": 0.15, "pair_dropout": 0.25,
        "no_column_attention": False, "opm_first": False, "fuse_projection_weights": False, "inf": 1e9, "eps": 1e-8,
    }  # fmt: skip
    return original("openfold.model.evoformer").EvoformerBlock(**settings | changes)


def openfold3_block(**changes: Any) -> nn.Module:
    settings = {
        "c_s": 24, "c_z": 32, "c_hidden_pair_bias": 6, "no_heads_pair_bias": 4, "c_hidden_mul": 16,
        "c_hidden_pair_att": 8, "no_heads_pair": 4, "transition_type": "swiglu", "transition_n": 2,
        "pair_dropout": 0.25, "fuse_projection_weights": False, "inf": 1e9,
    }  # fmt: skip
    return original("openfold3.core.model.latent.pairformer").PairFormerBlock(**settings | changes)


def boltz_layer() -> nn.Module:
    layers = original("boltz.model.layers.pairformer")
    return layers.PairformerLayer(24, 32, 4, pairwise_head_width=8, pairwise_num_heads=4, v2=True)


def boltz1_layer() -> nn.Module:
    layer: nn.Module = original("boltz.model.modules.trunk").PairformerLayer(
        24, 32, 4, pairwise_head_width=8, pairwise_num_heads=4
    )
    return layer


def boltz_msa_layer(version: int) -> nn.Module:
    trunk = original("boltz.model.modules.trunk" if version == 1 else "boltz.model.modules.trunkv2")
    layer: nn.Module = trunk.MSALayer(24, 32, 0.15, 0.25, pairwise_head_width=8, pairwise_num_heads=4)
    return layer


def extra_msa_block() -> nn.Module:
    return original("openfold.model.evoformer").ExtraMSABlock(
        c_m=24, c_z=32, c_hidden_msa_att=8, c_hidden_opm=6, c_hidden_mul=16, c_hidden_pair_att=8, no_heads_msa=3,
        no_heads_pair=4, transition_n=2, msa_dropout=0.15, pair_dropout=0.25, opm_first=False,
        fuse_projection_weights=False, inf=1e9, eps=1e-8, ckpt=False,
    )  # fmt: skip


def protenix_msa_block() -> nn.Module:
    blocks = original("protenix.model.modules.pairformer")
    return blocks.MSABlock(c_m=24, c_z=32, c_hidden=6, msa_chunk_size=4, msa_max_size=8)


def boltz_outer_product_mean() -> nn.Module:
    return original("boltz.model.layers.outer_product_mean").OuterProductMean(24, 8, 32)


def protenix_block() -> nn.Module:
    blocks = original("protenix.model.modules.pairformer")
    return blocks.PairformerBlock(
        n_heads=4, c_z=32, c_s=24, c_hidden_mul=32, c_hidden_pair_att=8, no_heads_pair=4
    )  # fmt: skip


Make = Callable[..., nn.Module]
