"""Features of one training example from a ``Record`` (AlphaFold 2 supplement 1.2.6–1.2.9 and Table 1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ds4sci.chemistry.residue_codes import GAP, MASK, UNKNOWN, encode, secondary_classes
from ds4sci.data.alignments.profile import MsaInput, msa_profile
from ds4sci.data.structures.template_features import template_features
from ds4sci.types import Features, Msa, Record


class FeatureConfig(BaseModel):
    """MSA input of the model: source, size and masking."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    msa_input: MsaInput = "profile"
    """``msa``: rows sampled from the alignment. ``profile``: one row with the record's profile as cluster profile
    (computed from the alignment if the record has no profile). ``sequence``: one row with the one-hot sequence as
    cluster profile."""
    max_clusters: int = Field(default=128, ge=1)
    """Maximum number of rows of ``msa_feat`` (AF2: N_clust). The first row is always the query."""
    max_extra: int = Field(default=1024, ge=0)
    """Maximum number of rows of ``extra_msa_feat`` (AF2: N_extra_seq)."""
    masked_msa_probability: float = Field(default=0.15, ge=0.0, le=1.0)
    """Fraction of the ``msa_feat`` residues that the masked-MSA head must predict."""
    masked_msa_uniform: float = Field(default=0.1, ge=0.0, le=1.0)
    """Fraction of the masked residues replaced by a uniformly sampled amino acid."""
    masked_msa_profile: float = Field(default=0.1, ge=0.0, le=1.0)
    """Fraction of the masked residues replaced by an amino acid sampled from the column's profile."""
    masked_msa_same: float = Field(default=0.1, ge=0.0, le=1.0)
    """Fraction of the masked residues left unchanged. All others (0.7 by default) become the mask token."""
    max_templates: int = Field(default=0, ge=0)
    """Number of templates of each example (AF2: 4), for models with ``model.template.blocks``. Chains with fewer get
    absent templates, which have no effect."""
    subsample_templates: bool = True
    """Choose templates at random in training, as AF2 does; otherwise, and in evaluations, the first ones."""

    @model_validator(mode="after")
    def _shares(self) -> FeatureConfig:
        shares = self.masked_msa_uniform + self.masked_msa_profile + self.masked_msa_same
        if shares > 1.0 + 1e-9:
            raise ValueError(
                f"masked_msa_uniform + masked_msa_profile + masked_msa_same must be at most 1; got {shares}"
            )
        return self


def featurize(
    record: Record, settings: FeatureConfig, rng: np.random.Generator, *, crop: int | None = None
) -> Features:
    """Return one example of ``record`` with n = min(length, crop) consecutive residues.

    The start of the crop is uniform over the windows that contain at least one residue with N, CA and C (other windows
    have no training signal). The alignment is sampled, masked and clustered at full length and then cropped, as in AF2.

    Memory: 4 · (49 s + 25 e + 120 t) · n bytes with t templates. Time with ``"msa"``: one matrix product of rows ×
    clusters × (21 · length).
    Raises ``ValueError`` if the record does not have the input that ``settings.msa_input`` selects.
    """
    length = len(record.sequence)
    window = _window(record.atom_mask, crop, rng) if crop is not None and crop < length else slice(0, length)
    aatype = np.minimum(encode(record.sequence), UNKNOWN)
    if settings.msa_input == "msa":
        msa = _require_msa(record)
        rows = _clustered(msa, settings, rng, window)
    else:
        rows = _one_row(aatype, _profile(record, aatype, settings), settings, rng, window)
    return Features(
        id=record.id,
        aatype=aatype[window].astype(np.int64),
        residue_index=record.residue_index[window].astype(np.int64),
        **rows,
        atom_positions=record.atom_positions[window],
        atom_mask=record.atom_mask[window],
        secondary=secondary_classes((record.dssp or "?" * length)[window]),
        resolution=np.array(record.resolution or 0.0, np.float32),
        is_predicted=record.is_predicted,
        **template_features(record, window, settings.max_templates, rng, subsample=settings.subsample_templates),
    )


def _window(atom_mask: np.ndarray, crop: int, rng: np.random.Generator) -> slice:
    if crop < 1:
        raise ValueError(f"crop must be at least 1 residue; got {crop}")
    resolved = np.concatenate([[0], np.cumsum(atom_mask[:, :3].all(1))])  # atom37 begins with N, CA, C
    starts = np.flatnonzero(resolved[crop:] > resolved[:-crop])
    start = int(rng.choice(starts)) if len(starts) else int(rng.integers(len(atom_mask) - crop + 1))
    return slice(start, start + crop)


def _require_msa(record: Record) -> Msa:
    if record.msa is None:
        raise ValueError(
            f"{record.id}: msa_input='msa' needs an alignment, but the record has none; build the set with"
            " `ds4sci data build … --msa DIR`, or use msa_input='profile' or 'sequence'"
        )
    return record.msa


def _profile(record: Record, aatype: np.ndarray, settings: FeatureConfig) -> np.ndarray:
    if settings.msa_input == "sequence":
        return _one_hot(aatype, 23)
    profile = record.profile
    if profile is None and record.msa is not None:
        profile = msa_profile(record.msa)
    if profile is None:
        raise ValueError(
            f"{record.id}: msa_input='profile' needs a profile or an alignment, but the record has neither; use"
            " msa_input='sequence', build the set with `ds4sci data build … --msa DIR`, or, to predict from the"
            " sequence only, create an approximate profile with ds4sci.data.alignments.profile."
            "with_msa_input(record, 'profile')"
        )
    return np.concatenate([profile, np.zeros((len(profile), 3), np.float32)], axis=1)


def _one_row(
    aatype: np.ndarray, profile: np.ndarray, settings: FeatureConfig, rng: np.random.Generator, window: slice
) -> dict[str, Any]:
    """Return the features of ``"profile"`` and ``"sequence"``: s = 1, e = 0, no deletions."""
    true = aatype[None]
    shown, hidden = _mask_letters(true, np.concatenate([profile[:, :20], np.zeros((len(aatype), 2))], 1), settings, rng)
    n = window.stop - window.start
    zeros = np.zeros((1, n, 1), np.float32)
    return {
        "msa_feat": np.concatenate(
            [_one_hot(shown[:, window], 23), zeros, zeros, profile[None, window], zeros], axis=2
        ),
        "msa_mask": np.ones((1, n), bool),
        "extra_msa_feat": np.zeros((0, n, 25), np.float32),
        "extra_msa_mask": np.zeros((0, n), bool),
        "true_msa": true[:, window].astype(np.int64),
        "masked_msa": hidden[:, window],
    }


def _clustered(msa: Msa, settings: FeatureConfig, rng: np.random.Generator, window: slice) -> dict[str, Any]:
    """Return the features of ``"msa"`` (supplement 1.2.7): cluster centres, masking, assignment, cluster statistics."""
    depth = len(msa.sequences)
    order = np.concatenate([[0], 1 + rng.permutation(depth - 1)])
    centres, others = order[: settings.max_clusters], order[settings.max_clusters :]
    true = msa.sequences[centres]
    shown, hidden = _mask_letters(true, _column_frequencies(msa.sequences), settings, rng)
    nearest = nearest_centre(shown, msa.sequences[others])

    letters = shown[:, window]
    deletions = msa.deletions[centres, window].astype(np.float32)
    other_letters = msa.sequences[others, window]
    other_deletions = msa.deletions[others, window].astype(np.float32)
    members = 1 + np.bincount(nearest, minlength=len(centres))[:, None].astype(np.float32)
    # count (centre, column, letter) with one bincount, which is much faster than np.add.at
    cells = nearest[:, None] * letters.shape[1] + np.arange(letters.shape[1])
    counts = np.bincount((cells * 23 + other_letters).ravel(), minlength=letters.size * 23)
    profile = _one_hot(letters, 23) + counts.reshape(*letters.shape, 23).astype(np.float32)
    deleted = np.bincount(cells.ravel(), weights=other_deletions.ravel(), minlength=letters.size)
    deletion_mean = deletions + deleted.reshape(letters.shape).astype(np.float32)

    extra = slice(0, settings.max_extra)  # ``others`` is in random order
    return {
        "msa_feat": np.concatenate(
            [
                _one_hot(letters, 23),
                _deletion_features(deletions),
                profile / members[..., None],
                _squash(deletion_mean / members)[..., None],
            ],
            axis=2,
        ),
        "msa_mask": np.ones(letters.shape, bool),
        "extra_msa_feat": np.concatenate(
            [_one_hot(other_letters[extra], 23), _deletion_features(other_deletions[extra])], axis=2
        ),
        "extra_msa_mask": np.ones(other_letters[extra].shape, bool),
        "true_msa": true[:, window].astype(np.int64),
        "masked_msa": hidden[:, window],
    }


def nearest_centre(centres: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return, for each row of ``others`` [rows, n], the index of the centre [s, n] with most identical residues.

    The result is int64 [rows]. Gaps and mask tokens never match (weight 0 in AF2). Ties go to the first centre.
    Memory: 4 · 21 · n · (s + 256) bytes: one-hot matrix products with 256 rows of ``others`` at a time.
    """
    hot = _one_hot(centres, 23)[..., :GAP].reshape(len(centres), -1)
    chunks = [
        (_one_hot(others[at : at + 256], 23)[..., :GAP].reshape(len(others[at : at + 256]), -1) @ hot.T).argmax(1)
        for at in range(0, len(others), 256)
    ]
    return np.concatenate(chunks) if chunks else np.zeros(0, np.int64)


def _mask_letters(
    true: np.ndarray, frequencies: np.ndarray, settings: FeatureConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the masked residues [s, n] and the target mask [s, n]; ``frequencies`` [n, 22] of each column."""
    hidden = rng.random(true.shape) < settings.masked_msa_probability
    rows, columns = np.nonzero(hidden)
    kind = rng.random(len(rows))
    uniform = rng.integers(20, size=len(rows), dtype=np.uint8)
    cumulative = np.cumsum(frequencies[columns], axis=1)
    draw = rng.random((len(rows), 1)) * cumulative[:, -1:]
    likely = (draw >= cumulative).sum(1).clip(max=UNKNOWN + 1).astype(np.uint8)
    first = settings.masked_msa_uniform
    second = first + settings.masked_msa_profile
    third = second + settings.masked_msa_same
    shown = true.copy()
    shown[rows, columns] = np.select(
        [kind < first, kind < second, kind < third], [uniform, likely, true[rows, columns]], default=np.uint8(MASK)
    )
    return shown, hidden


def _column_frequencies(sequences: np.ndarray) -> np.ndarray:
    return np.stack([(sequences == letter).mean(0) for letter in range(GAP + 1)], axis=1)


def _one_hot(letters: np.ndarray, classes: int) -> np.ndarray:
    return _EYE[:, :classes][letters]


_EYE = np.eye(23, dtype=np.float32)


def _squash(deletions: np.ndarray) -> np.ndarray:
    """Map a deletion count d to [0, 1): 2/π · arctan(d / 3)."""
    return (np.float32(2.0 / np.pi) * np.arctan(deletions / np.float32(3.0))).astype(np.float32)


def _deletion_features(deletions: np.ndarray) -> np.ndarray:
    """Return float32 [s, n, 2]: has_deletion, deletion_value."""
    return np.stack([(deletions > 0).astype(np.float32), _squash(deletions)], axis=2)
