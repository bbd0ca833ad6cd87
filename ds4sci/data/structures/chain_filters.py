"""Which chains a built set takes, and why not the others."""

from __future__ import annotations

from collections import Counter

from pydantic import BaseModel, ConfigDict, Field

from ds4sci.types import Record


class BuildSettings(BaseModel):
    """Which chains are taken."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_length: int = Field(default=16, ge=1)
    """Residues of the entity at least."""
    max_length: int = Field(default=4096, ge=1)
    """Residues of the entity at most."""
    min_resolved: float = Field(default=0.25, ge=0.0, le=1.0)
    """Share of residues with N, CA and C at least."""
    max_resolution: float = Field(default=9.0, gt=0.0)
    """Å; entries without a resolution (NMR, predicted) are taken (AF2, supplement 1.2.5: 9 Å)."""
    max_single_residue: float = Field(default=0.8, gt=0.0, le=1.0)
    """Share of the commonest amino acid at most (AF2, supplement 1.2.5: 80 %)."""
    keep_duplicates: bool = False
    """Take chains whose sequence an earlier chain of the same entry has."""
    max_msa_rows: int = Field(default=16384, ge=1)
    """Rows of an alignment that are kept, from the top."""


def rejection_reason(chain: Record, resolved: int, settings: BuildSettings) -> tuple[str, str] | None:
    """(kind, reason) of a refusal, or None; ``resolved`` residues have N, CA and C."""
    n = len(chain.sequence)
    commonest = Counter(chain.sequence).most_common(1)[0]
    if n < settings.min_length:
        return "too short", f"{n} residues; at least {settings.min_length} are asked for"
    if n > settings.max_length:
        return "too long", f"{n} residues; at most {settings.max_length} are asked for"
    if resolved == 0:
        return "no coordinates", f"none of {n} residues has N, CA and C"
    if resolved < settings.min_resolved * n:
        return (
            "few coordinates",
            f"{resolved} of {n} residues have N, CA and C; {settings.min_resolved:.0%} are asked for",
        )
    if chain.resolution is not None and chain.resolution > settings.max_resolution:
        return "resolution", f"{chain.resolution} Å; at most {settings.max_resolution} Å is asked for"
    if commonest[1] > settings.max_single_residue * n:
        return "low complexity", f"{commonest[0]} is {commonest[1]} of {n} residues"
    return None
