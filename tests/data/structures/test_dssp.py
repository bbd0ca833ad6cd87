"""Assigned secondary structure compared with the DSSP strings of the bundled chains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ds4sci.chemistry.residue_codes import secondary_classes
from ds4sci.data.sequences import fasta_records
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.structures.dssp import assign_secondary_structure
from ds4sci.data.structures.parsers import mmcif

BUNDLED = Path(__file__).parents[3] / "examples" / "fold" / "data" / "chains_valid.npz"
MMCIF = Path(__file__).parents[2] / "fixtures" / "mmcif"


def test_against_dssp_on_160_chains() -> None:
    """Measured agreement on 14,798 residues: 96.4 %, both in three classes and in eight states.

    Of the 533 differences, 525 are strands or bridges that only DSSP has, because they pair with chains that are not in
    the file. Therefore 99.9 % of the residues without a strand in either must agree, and only DSSP may have a strand
    that the other lacks.
    """
    chains = ChainSet.open(BUNDLED)
    assigned = "".join(assign_secondary_structure([record])[0] for record in chains)
    reference = "".join(record.dssp or "" for record in chains)
    classes = secondary_classes(assigned) == secondary_classes(reference)
    assert classes.mean() >= 0.95
    single = np.array([a not in "EB" and b not in "EB" for a, b in zip(assigned, reference, strict=True)])
    same = np.array(list(assigned)) == np.array(list(reference))
    assert same[single].mean() >= 0.999
    false_strands = (secondary_classes(assigned) == 1) & (secondary_classes(reference) != 1)
    assert not false_strands.any()


def test_strands_pair_across_chains_of_an_entry() -> None:
    together = assign_secondary_structure(mmcif.read(MMCIF / "2q2k.cif.gz"))
    separately = [assign_secondary_structure([record])[0] for record in mmcif.read(MMCIF / "2q2k.cif.gz")]
    assert [letters.count("E") for letters in separately] == [0, 0]
    assert [letters.count("E") for letters in together] == [9, 9]  # the sheet of the ribbon–helix–helix dimer


def test_gaps_and_chains_without_atoms() -> None:
    record = mmcif.read(MMCIF / "1ubq.cif.gz", "A")
    mask = record.atom_mask.copy()
    mask[28, 1] = False  # inside the helix 23–34
    broken = assign_secondary_structure([replace(record, atom_mask=mask)])[0]
    assert broken[28] == "?"
    assert len(broken) == 76
    whole = assign_secondary_structure([record])[0]
    assert whole[22:34] == "HHHHHHHHHHHH"
    assert broken[40:] == whole[40:]
    assert assign_secondary_structure([fasta_records.make_record("x", "ACD")]) == ["???"]
    assert [
        len(letters) for letters in assign_secondary_structure([fasta_records.make_record("x", "ACD"), record])
    ] == [
        3,
        76,
    ]
