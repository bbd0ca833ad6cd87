"""Bundled protein chains with structure, secondary structure and sequence profile: training and validation set.

Chains of 40 to 128 residues with a complete backbone, one per cluster at 30 % sequence identity, so that no chain of
one file is a homolog of a chain in the other. ``ds4sci.data.structures.chain_set`` reads the files.
"""

from __future__ import annotations

from ds4sci.datasets.dataset import Dataset

DATASET = Dataset(
    name="pdb_chains",
    version="1",
    title="protein chains of 40 to 128 residues: backbone, secondary structure, profile",
    origin="structure database of ProMod3 3.2.1 (Debian package promod3-data), from the Protein Data Bank; converted",
    licence="Apache-2.0 (ProMod3); CC0 (Protein Data Bank)",
    splits={"train": "2,000 chains, 186,263 residues", "valid": "160 chains, 14,798 residues"},
    size=8_915_165,
    files={
        "chains_train.npz": "3ca120aa591e7bf0b1eb34eb75552705846a1cd8e57f3b5a39234af491865bf0",
        "chains_valid.npz": "9e1dabeebe8622736c869ac7f9e6e97dc7f43039078576a23f2ebc654ff97c81",
    },
    bundled="examples/fold/data",
)
