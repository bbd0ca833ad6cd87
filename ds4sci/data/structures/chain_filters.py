"""Criteria that a chain must meet to be included in a chain set."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ds4sci.data.alignments.pairing import MAX_ROWS
from ds4sci.data.structures.assemblies import ASYMMETRIC_UNIT
from ds4sci.types import Record


class BuildSettings(BaseModel):
    """Criteria for chains, and limits of their alignments."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_length: int = Field(default=16, ge=1)
    """Minimum number of residues of the entity."""
    max_length: int = Field(default=4096, ge=1)
    """Maximum number of residues of the entity, and of a complex."""
    min_resolved: float = Field(default=0.25, ge=0.0, le=1.0)
    """Minimum fraction of residues with N, CA and C."""
    max_resolution: float = Field(default=9.0, gt=0.0)
    """Maximum resolution in Å (AF2, supplement 1.2.5: 9 Å). Entries without a resolution (NMR, predicted) pass."""
    max_single_residue: float = Field(default=0.8, gt=0.0, le=1.0)
    """Maximum fraction of the most frequent amino acid (AF2, supplement 1.2.5: 80 %)."""
    min_plddt: float = Field(default=0.0, ge=0.0, le=100.0)
    """For predicted structures, with pLDDT (0–100) as B-factors: residues whose atoms have no pLDDT above this are
    masked (AF2: 50, for self-distillation). 0: B-factors are not read."""
    keep_duplicates: bool = False
    """Include chains with the same sequence as an earlier chain of the entry."""
    complexes: bool = False
    """Make one record of all accepted chains of a file, copies included, instead of one of each distinct chain."""
    assembly: str = ASYMMETRIC_UNIT
    """Chains of a complex: those of the file (``asymmetric_unit``, as OpenFold reads mmCIF files), or of the biological
    assembly with this id, or of the ``first`` one in the file."""
    max_chains: int = Field(default=20, ge=1)
    """Maximum number of chains of a complex; a file with more accepted chains is rejected."""
    max_complex_rows: int = Field(default=MAX_ROWS, ge=1)
    """Maximum number of alignment rows of each chain of a complex, of which at most half are paired."""
    max_msa_rows: int = Field(default=16384, ge=1)
    """Maximum number of alignment rows; the first rows are kept."""

    @model_validator(mode="after")
    def _check_assembly(self) -> BuildSettings:
        if self.assembly != ASYMMETRIC_UNIT and not self.complexes:
            raise ValueError(f"assembly {self.assembly!r} is for complexes; add --complexes (complexes=true)")
        return self


def mask_low_confidence(chain: Record, min_plddt: float) -> Record:
    """Return a predicted chain without the atoms of residues that have no pLDDT above ``min_plddt``.

    Raises ``ValueError`` if the B-factors are not pLDDT from 0 to 100: absent, all 0, above 100, or at most 1.
    """
    found = np.zeros(0) if chain.b_factors is None else chain.b_factors[chain.atom_mask]
    if not len(found) or not 1 < found.max() <= 100 or found.min() < 0:
        written = "no B-factors" if not len(found) else f"B-factors from {found.min():g} to {found.max():g}"
        raise ValueError(
            f"{chain.id}: {written}; min_plddt is for predicted structures, whose B-factors are pLDDT from 0 to 100"
        )
    assert chain.b_factors is not None
    confident = np.where(chain.atom_mask, chain.b_factors, 0.0).max(1) > min_plddt
    mask = chain.atom_mask & confident[:, None]
    return replace(chain, atom_mask=mask, atom_positions=np.where(mask[..., None], chain.atom_positions, 0.0))


def chain_size(chain: Record) -> dict[str, Any]:
    """Return what the report of a build says about any chain: residues, those with N, CA and C, unknown ones, atoms."""
    return {
        "length": len(chain.sequence),
        "resolved": int(chain.atom_mask[:, :3].all(1).sum()),
        "unknown": chain.sequence.count("X"),
        "atoms_kept": int(chain.atom_mask.sum()),
    }


def rejection_reason(chain: Record, resolved: int, settings: BuildSettings) -> tuple[str, str] | None:
    """Return (kind, reason) if the chain is rejected, else None. ``resolved``: number of residues with N, CA and C."""
    n = len(chain.sequence)
    most_frequent = Counter(chain.sequence).most_common(1)[0]
    if n < settings.min_length:
        return "too short", f"{n} residues; expected at least {settings.min_length}"
    if n > settings.max_length:
        return "too long", f"{n} residues; expected at most {settings.max_length}"
    if resolved == 0:
        return "no coordinates", f"none of {n} residues has N, CA and C"
    if resolved < settings.min_resolved * n:
        return (
            "few coordinates",
            f"{resolved} of {n} residues have N, CA and C; expected at least {settings.min_resolved:.0%}",
        )
    if chain.resolution is not None and chain.resolution > settings.max_resolution:
        return "resolution", f"{chain.resolution} Å; expected at most {settings.max_resolution} Å"
    if most_frequent[1] > settings.max_single_residue * n:
        return "low complexity", f"{most_frequent[0]} is {most_frequent[1]} of {n} residues"
    return None
