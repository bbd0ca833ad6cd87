"""Alignments of synthetic complexes, and what AlphaFold-Multimer's own code makes of them.

``python -m tests.support.alphafold_pairing /path/to/alphafold`` writes ``tests/fixtures/alignments/
alphafold_pairing.npz`` with the functions of google-deepmind/alphafold c77e5d2 (``feature_processing.pair_and_merge``),
in an environment with its requirements.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.types import Msa

FIXTURE = Path(__file__).parents[1] / "fixtures" / "alignments" / "alphafold_pairing.npz"

CASES: dict[str, dict[str, Any]] = {
    "heterodimer": {"lengths": (12, 9), "chains": (0, 1)},
    "copies": {"lengths": (12, 9, 7), "chains": (0, 0, 1, 2)},
    "few_rows": {"lengths": (12, 9, 7), "chains": (0, 1, 1, 2), "max_rows": 40},
    "homotrimer": {"lengths": (10,), "chains": (0, 0, 0)},
    "homodimer_few_rows": {"lengths": (10,), "chains": (0, 0), "max_rows": 20},
    "four_chains": {"lengths": (10, 8, 6, 5), "chains": (0, 1, 2, 3), "max_rows": 30},
    "large_species": {"lengths": (6, 7), "chains": (0, 0, 1), "depth": 1900, "species": 2, "max_rows": 60},
}
"""Name → arguments of ``synthetic_entities``, entity of each chain, and the limit of rows (2048 by default)."""


def synthetic_entities(case: str) -> list[tuple[Msa, Msa]]:
    """The alignment and the pairing alignment of each entity of a case: gaps, deletions, rows in both, some species."""
    given = CASES[case]
    random = np.random.default_rng(list(CASES).index(case))
    depth, species = given.get("depth", 40), given.get("species", 8)
    entities = []
    for n in given["lengths"]:
        query = random.integers(0, 20, n)
        made: list[Msa] = []
        for _ in range(2):
            rows = np.where(random.random((depth, n)) < 0.6, query, random.integers(0, 22, (depth, n)))
            rows[0] = query
            if made:
                rows[5:10] = made[0].sequences[3:8]
            rows = rows[np.sort(np.unique(rows, axis=0, return_index=True)[1])]
            deletions = np.where(random.random(rows.shape) < 0.1, random.integers(1, 5, rows.shape), 0)
            deletions[0] = 0
            names = ["query"]
            for row in range(1, len(rows)):
                # the first species is twice as frequent
                code = "" if random.random() < 0.2 else f"SP{max(random.integers(-1, species), 0)}"
                names.append(f"tr|A0A{row:04d}|A0A{row:04d}_{code}/1-{n}" if code else f"UniRef90_{row}")
            made.append(Msa(rows.astype(np.uint8), deletions.astype(np.int32), tuple(names)))
        entities.append((made[0], made[1]))
    return entities


def _alphafold(case: str) -> dict[str, np.ndarray]:
    """Alignment and deletions of a case by AlphaFold's functions."""
    from alphafold.common import residue_constants
    from alphafold.data import feature_processing, msa_identifiers, pipeline_multimer

    given, entities = CASES[case], synthetic_entities(case)
    feature_processing.MSA_CROP_SIZE = given.get("max_rows", 2048)
    to_file_order = np.argsort(residue_constants.MAP_HHBLITS_AATYPE_TO_OUR_AATYPE)
    chains = {}
    for number, entity in enumerate(given["chains"]):
        own, pairing = entities[entity]
        identifiers = [msa_identifiers.get_identifiers(name).species_id.encode() for name in pairing.names]
        n = own.sequences.shape[1]
        chains[str(number)] = {
            "msa": to_file_order[own.sequences].astype(np.int32), "deletion_matrix_int": own.deletions,
            "num_alignments": np.array(len(own.names)), "seq_length": np.array(n), "residue_index": np.arange(n),
            "msa_all_seq": to_file_order[pairing.sequences].astype(np.int32),
            "deletion_matrix_int_all_seq": pairing.deletions,
            "msa_species_identifiers_all_seq": np.array(identifiers, object),
            "aatype": own.sequences[0].astype(np.int32), "sequence": str(own.sequences[0]),
        }  # fmt: skip
    chains = pipeline_multimer.add_assembly_features(chains)
    for chain in chains.values():
        del chain["sequence"]
    made = feature_processing.pair_and_merge(chains)
    return {
        "sequences": made["msa"].astype(np.uint8), "deletions": made["deletion_matrix"].astype(np.uint8),
        **{name: made[name].astype(np.uint8) for name in ("asym_id", "entity_id", "sym_id")},
    }  # fmt: skip


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    np.savez_compressed(
        FIXTURE, **{f"{case}/{name}": array for case in CASES for name, array in _alphafold(case).items()}
    )
