"""Variant effects: parsing of a CSV file, scores from language-model log-probabilities, and rank correlation."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ds4sci.types import RESIDUES

_MUTATION = re.compile(r"([A-Za-z*]?)(-?\d+)([A-Za-z*]?)", re.ASCII)


@dataclass(frozen=True)
class Mutation:
    """A substitution. ``position`` is zero-based; ``wild`` and ``mutant`` are letters of ``RESIDUES``."""

    wild: str
    position: int
    mutant: str


@dataclass(frozen=True)
class Variant:
    """One row of a CSV file: its text, its mutations, and the measured value (NaN without such a column)."""

    text: str
    mutations: tuple[Mutation, ...]
    measured: float = math.nan


def parse_variant(text: str, sequence: str, *, first: int = 1) -> tuple[Mutation, ...]:
    """Mutations of a variant such as ``A24G`` or ``A24G:K30R``.

    first  number of the first residue of ``sequence``

    Raises ValueError for a malformed variant, a letter that is not an amino acid, a position outside the sequence, a
    wild type that differs from the sequence, and a repeated position. The caller adds file and line to the message.
    """
    mutations: list[Mutation] = []
    for part in text.strip().split(":"):
        match = _MUTATION.fullmatch(part.strip())
        if not match or not match[1] or not match[3]:
            raise ValueError(f"{part!r} is not a substitution; expected a form such as A24G, or A24G:K30R for several")
        wild, number, mutant = match[1].upper(), int(match[2]), match[3].upper()
        for letter, what in ((wild, "wild type"), (mutant, "mutant")):
            if letter not in RESIDUES:
                raise ValueError(f"{part!r}: {what} {letter!r} is not an amino acid; expected one of {RESIDUES}")
        position = number - first
        if not 0 <= position < len(sequence):
            raise ValueError(
                f"{part!r}: position {number} is outside the sequence, which has residues"
                f" {first} to {first + len(sequence) - 1}"
            )
        if sequence[position].upper() != wild:
            raise ValueError(
                f"{part!r}: the sequence has {sequence[position]!r} at {number}, not {wild!r};"
                " check the sequence, and the number of its first residue (first=)"
            )
        if any(position == other.position for other in mutations):
            raise ValueError(f"{text!r}: position {number} is repeated")
        mutations.append(Mutation(wild, position, mutant))
    return tuple(mutations)


def read_variants(
    path: str | Path,
    sequence: str,
    *,
    variant_column: str = "mutant",
    measured_column: str | None = "DMS_score",
    first: int = 1,
) -> list[Variant]:
    """The variants of ``sequence`` in a CSV file with a header. The default column names are ProteinGym's.

    Raises ValueError, with file, line and column, for a missing column, an invalid variant (``parse_variant``), a
    measured value that is not a finite number, and a file without rows.
    """
    try:
        content = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; expected comma-separated text in UTF-8") from None
    reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    variants = []
    try:
        columns = reader.fieldnames or []
        for column in (variant_column, measured_column):
            if column is not None and column not in columns:
                raise ValueError(f"{path}: line 1: no column {column!r}; the file has {', '.join(columns) or 'none'}")
        for row in reader:
            place = f"{path}: line {reader.line_num}: column"
            text, value = row[variant_column] or "", math.nan
            try:
                mutations = parse_variant(text, sequence, first=first)
            except ValueError as error:
                raise ValueError(f"{place} {variant_column!r}: {error}") from None
            if measured_column is not None:
                value = _number(row[measured_column], f"{place} {measured_column!r}")
            variants.append(Variant(text.strip(), mutations, value))
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.reader.line_num}: {error}; expected comma-separated values") from None
    if not variants:
        raise ValueError(f"{path}: no variants below the header")
    return variants


def _number(text: str | None, place: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{place}: {text!r} is not a finite number; remove such rows")
    return value


def mutated_positions(variants: Sequence[Variant]) -> np.ndarray:
    """Positions that any variant changes, int64, ascending: those to mask for masked marginals."""
    return np.unique(np.array([m.position for v in variants for m in v.mutations], np.int64))


def marginal_scores(log_probability: np.ndarray, variants: Sequence[Variant]) -> np.ndarray:
    """Score of each variant, float64 [v], nats: Σ over mutations of log p(mutant) − log p(wild type) (Meier et al.
    2021).

    Higher means fitter. log_probability [n, 20] is in nats, with columns in the order of ``RESIDUES``. *Masked
    marginals*: row i is from a forward pass with residue i masked; only rows of ``mutated_positions`` are needed,
    others may be NaN. *Wild-type marginals*: all rows are from one forward pass over the unmasked sequence.

    Raises ValueError for another shape, and for a variant with a NaN among its log-probabilities.
    """
    log_probability = np.asarray(log_probability, np.float64)
    if log_probability.ndim != 2 or log_probability.shape[1] != len(RESIDUES):
        raise ValueError(
            f"expected log-probabilities [n, 20] in the order {RESIDUES}; got {list(log_probability.shape)}"
        )
    scores = np.zeros(len(variants))
    for i, variant in enumerate(variants):
        for m in variant.mutations:
            if m.position >= len(log_probability):
                raise ValueError(
                    f"{variant.text}: position {m.position} (zero-based) is beyond the log-probabilities of "
                    f"{len(log_probability)} residues"
                )
            row = log_probability[m.position]
            scores[i] += row[RESIDUES.index(m.mutant)] - row[RESIDUES.index(m.wild)]
        if math.isnan(scores[i]):
            raise ValueError(f"{variant.text}: its log-probabilities are NaN; was each of its positions masked?")
    return scores


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation ρ, −1 to 1: Pearson's correlation of the ranks; ties have their mean rank.

    x, y [n]. NaN if either is constant or n < 2. Raises ValueError for different lengths or a NaN.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"expected two arrays of equal length; got {list(x.shape)} and {list(y.shape)}")
    if np.isnan(x).any() or np.isnan(y).any():
        raise ValueError("NaN has no rank; remove such pairs")
    a, b = (ranks - ranks.mean() if len(ranks) else ranks for ranks in (_ranks(x), _ranks(y)))
    scale = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / scale if scale else math.nan


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks float64 [n] from 0; equal values have the mean of their ranks."""
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count + 1) / 2)[group]
