"""Batches of crops of a real entry with its real alignment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ds4sci.data.alignments import msa
from ds4sci.data.loader import make_rng
from ds4sci.data.structures.batch import collate
from ds4sci.data.structures.features import FeatureConfig, featurize
from ds4sci.data.structures.parsers import mmcif
from ds4sci.types import Batch

FIXTURES = Path(__file__).parents[1] / "fixtures"


def crops(*lengths: int) -> Batch:
    """Crops of 2q2k chain A with these lengths, padded: 2 MSA rows, 4 extra rows, half helix and half strand."""
    record = mmcif.read(FIXTURES / "mmcif" / "2q2k.cif.gz", "A")
    dssp = "H" * (len(record.sequence) // 2)
    dssp = dssp.ljust(len(record.sequence), "E")
    record = replace(record, dssp=dssp, msa=msa.read(FIXTURES / "msa" / "bfd_uniclust_hits.a3m"))
    features = FeatureConfig(msa_input="msa", max_clusters=2, max_extra=4)
    return collate([featurize(record, features, make_rng(0, 2, i), crop=n) for i, n in enumerate(lengths)])
