"""Sequences of 78,233 protein chains of the PDB, from the package sidechainnet."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ds4sci.datasets.archives import extract
from ds4sci.datasets.dataset import Dataset, Source

FILE = "pdb_sequences.fasta"
MIN_LENGTH = 30
LETTERS = set("ACDEFGHIKLMNPQRSTVWYXBZUO")
_ANNOTATIONS = "sidechainnet/resources/full_protein_dssp_annotations.json"

DATASET = Dataset(
    name="pdb_sequences",
    version="1",
    title="unique sequences of protein chains, 30 residues or longer",
    origin="sidechainnet 1.0.1 (King and Koes, Proteins 89:1489, 2021), from the Protein Data Bank",
    licence="BSD-3-Clause (sidechainnet); CC0 (Protein Data Bank)",
    splits={"all": "78,233 chains, 20,554,211 residues"},
    size=21_415_951,
    sources=(
        Source(
            kind="wheel",
            package="sidechainnet",
            version="1.0.1",
            sha256="604f57ffb2ae35e293aaf2cdb3e5bbb79907930dddf963da602d4f9445429d78",
            size=47_675_214,
        ),
    ),
    files={FILE: "b7076e342633c71da9cf99ea3b6e5d9d9db563c45b2badc5b7e6a03bbec84d10"},
)


def make(folder: Path, sources: Mapping[str, Path]) -> None:
    """Write the FASTA file: the first chain of each distinct sequence, in the order of the package."""
    with tempfile.TemporaryDirectory() as scratch:
        (annotations,) = extract(sources["sidechainnet"], Path(scratch), [_ANNOTATIONS])
        chains = json.loads(annotations.read_bytes())
    first: dict[str, str] = {}
    for name, chain in chains.items():
        sequence = chain["Sequence"].upper()
        if len(sequence) >= MIN_LENGTH and set(sequence) <= LETTERS:
            first.setdefault(sequence, name)
    text = "".join(f">{name}\n{sequence}\n" for sequence, name in first.items())
    (folder / FILE).write_text(text, encoding="ascii", newline="\n")
