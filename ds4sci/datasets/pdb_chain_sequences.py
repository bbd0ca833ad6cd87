"""Bundled sequences of the 2,000 training chains of ``pdb_chains``, as FASTA.

They are enough to see a protein language model learn within minutes; ``pdb_sequences`` has 110 times as many residues.
"""

from __future__ import annotations

from ds4sci.datasets.dataset import Dataset

DATASET = Dataset(
    name="pdb_chain_sequences",
    version="1",
    title="sequences of the training chains of pdb_chains",
    origin="structure database of ProMod3 3.2.1 (Debian package promod3-data), from the Protein Data Bank",
    licence="Apache-2.0 (ProMod3); CC0 (Protein Data Bank)",
    splits={"all": "2,000 chains, 186,263 residues"},
    size=120_896,
    files={"proteins.fasta.gz": "a8746f72d6fdd443090a3e354ea433c82c77faa95df569e428813f6dd6996c4c"},
    bundled="examples/protein_lm/data",
)
