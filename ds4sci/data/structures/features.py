"""Features of one training example from a ``Record`` (AlphaFold 2 supplement 1.2.6–1.2.9 and Table 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, overload

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ds4sci.chemistry.chains import chain_slices
from ds4sci.chemistry.residue_codes import GAP, MASK, UNKNOWN, encode, secondary_classes
from ds4sci.data.alignments.profile import MsaInput, msa_profile
from ds4sci.data.structures.crops import Window, crop_chain, crop_complex
from ds4sci.data.structures.template_features import template_features
from ds4sci.types import Features, Msa, MsaSample, Record

PassRng = Callable[[int], np.random.Generator]
"""Number of a recycling pass, from 0 → the random generator of its sample."""

ClusterWeights = Literal["rows", "residues"]
"""Weights of extra rows in the statistics of their clusters (``FeatureConfig.cluster_weights``)."""

MsaDraw = tuple[MsaSample, np.ndarray, np.ndarray]
"""A sample, its residue codes before BERT masking (uint8 [s, n]), and masked-MSA targets (bool [s, n])."""


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
    cluster_weights: ClusterWeights = "rows"
    """Weights of extra rows in the profile and mean deletions of their clusters. ``rows`` (AlphaFold 2): 1, in the
    first of the most similar clusters. ``residues`` (AlphaFold-Multimer): the number of residues, divided among all of
    the most similar clusters. The centre of a cluster has the weight 1."""
    masked_msa_probability: float = Field(default=0.15, ge=0.0, le=1.0)
    """Fraction of the ``msa_feat`` residues that the masked-MSA head must predict."""
    prediction_masked_msa_probability: float = Field(default=0.0, ge=0.0, le=1.0)
    """The same in evaluation and prediction, where the seed of the run draws the residues (published models: 0.15)."""
    masked_msa_uniform: float = Field(default=0.1, ge=0.0, le=1.0)
    """Fraction of the masked residues replaced by a uniformly sampled amino acid."""
    masked_msa_profile: float = Field(default=0.1, ge=0.0, le=1.0)
    """Fraction of the masked residues replaced by an amino acid sampled from the column's profile."""
    masked_msa_same: float = Field(default=0.1, ge=0.0, le=1.0)
    """Fraction of the masked residues left unchanged. All others (0.7 by default) become the mask token."""
    resample_msa: bool = False
    """Draw new clusters, masked residues and extra sequences for each recycling pass, in training, evaluation and
    prediction, as the published models do; otherwise all passes see the sample of the last one."""
    max_templates: int = Field(default=0, ge=0)
    """Number of templates of each example (AF2: 4), for models with ``model.template.blocks``. Chains with fewer get
    absent templates, which have no effect."""
    subsample_templates: bool = True
    """Choose templates at random in training, as AF2 does; otherwise, and in evaluations, the first ones."""
    spatial_crop_probability: float = Field(default=0.5, ge=0.0, le=1.0)
    """Fraction of the crops of complexes that are around a residue of an interface; the others are consecutive residues
    of the chains (AlphaFold-Multimer: 0.5)."""
    interface_distance: float = Field(default=10.0, gt=0.0)
    """A residue is in an interface if one of its atoms is closer than this, in Å, to an atom of another chain."""

    @model_validator(mode="after")
    def _shares(self) -> FeatureConfig:
        shares = self.masked_msa_uniform + self.masked_msa_profile + self.masked_msa_same
        if shares > 1.0 + 1e-9:
            raise ValueError(
                f"masked_msa_uniform + masked_msa_profile + masked_msa_same must be at most 1; got {shares}"
            )
        return self


def featurize(
    record: Record,
    settings: FeatureConfig,
    rng: np.random.Generator,
    *,
    crop: int | None = None,
    earlier_passes: int = 0,
    pass_rng: PassRng | None = None,
    on_request: bool = False,
) -> Features:
    """Return one example of ``record`` with n = min(length, crop) residues (``ds4sci.data.structures.crops``).

    Residues of a single chain are consecutive. Those of a complex are consecutive in each chain, or the nearest ones to
    a residue of an interface. Crops without a residue that has N, CA and C have no training signal and are not drawn.
    Where a row of a complex's alignment has only gaps in a chain, they are no targets of the masked-MSA head: that the
    row has no partner there cannot be predicted. The alignment is sampled, masked and clustered at full length and then
    cropped, as in AF2.

    ``rng`` draws the crop, the templates and the sample of the alignment for the last pass. With
    ``settings.resample_msa`` and ``pass_rng``, ``earlier_msa`` has the samples of the ``earlier_passes`` recycling
    passes before it. ``on_request`` draws each when its pass begins: a prediction of many passes then holds one at a
    time, and draws none for passes that do not take place.

    Memory: 4 · (49 s + 25 e + 120 t) · n bytes with t templates. Time with ``"msa"``: one matrix product of rows ×
    clusters × (21 · length).
    Raises ``ValueError`` if the record does not have the input that ``settings.msa_input`` selects.
    """
    length = len(record.sequence)
    window: Window = slice(0, length)
    if crop is not None and crop < length:
        window = (
            crop_chain(record.atom_mask, crop, rng)
            if record.chain_ids is None
            else crop_complex(
                record, crop, rng, spatial=settings.spatial_crop_probability, interface=settings.interface_distance
            )
        )
    aatype = np.minimum(encode(record.sequence), UNKNOWN)
    ids = record.chain_ids
    draw: Callable[[np.random.Generator], MsaDraw]
    if settings.msa_input == "msa":
        draw = partial(_clustered, _require_msa(record), None if ids is None else ids.asym_id, settings, window)
    else:
        draw = partial(_one_row, aatype, _profile(record, aatype, settings), settings, window)
    sample, true, hidden = draw(rng)
    earlier: Sequence[MsaSample] | None = None
    if pass_rng is not None and earlier_passes and is_resampled(record, settings):
        earlier = _SamplesOnRequest(draw, pass_rng, earlier_passes)
        earlier = earlier if on_request else tuple(earlier)
    return Features(
        id=record.id,
        aatype=aatype[window].astype(np.int64),
        residue_index=record.residue_index[window].astype(np.int64),
        **_msa_features(sample),
        true_msa=true.astype(np.int64),
        masked_msa=hidden,
        earlier_msa=earlier,
        atom_positions=record.atom_positions[window],
        atom_mask=record.atom_mask[window],
        secondary=secondary_classes(record.dssp or "?" * length)[window],
        resolution=np.array(record.resolution or 0.0, np.float32),
        is_predicted=record.is_predicted,
        **template_features(record, window, settings.max_templates, rng, subsample=settings.subsample_templates),
        **({} if ids is None else {key.name: getattr(ids, key.name)[window] for key in fields(ids)}),
    )


def is_resampled(record: Record, settings: FeatureConfig) -> bool:
    """Return whether the recycling passes of ``record`` see different samples.

    Without masking, samples of an alignment that fits in the clusters differ only in the order of the rows, which
    changes no result beyond rounding: all passes then have the same sample.
    """
    depth = 1 if record.msa is None or settings.msa_input != "msa" else len(record.msa.sequences)
    return settings.resample_msa and (depth > settings.max_clusters or settings.masked_msa_probability > 0)


@dataclass(frozen=True)
class _SamplesOnRequest(Sequence[MsaSample]):
    """Samples of the first ``passes`` recycling passes, each drawn when it is requested."""

    draw: Callable[[np.random.Generator], MsaDraw]
    pass_rng: PassRng
    passes: int

    def __len__(self) -> int:
        return self.passes

    @overload
    def __getitem__(self, number: int) -> MsaSample: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[MsaSample]: ...
    def __getitem__(self, number: int | slice) -> MsaSample | Sequence[MsaSample]:
        chosen = range(self.passes)[number]
        return self._sample(chosen) if isinstance(chosen, int) else [self._sample(one) for one in chosen]

    def _sample(self, number: int) -> MsaSample:
        return self.draw(self.pass_rng(number))[0]


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
    aatype: np.ndarray, profile: np.ndarray, settings: FeatureConfig, window: Window, rng: np.random.Generator
) -> MsaDraw:
    """Return a sample of ``"profile"`` and ``"sequence"``: s = 1, e = 0, no deletions."""
    true = aatype[None]
    shown, hidden = _mask_letters(true, np.concatenate([profile[:, :20], np.zeros((len(aatype), 2))], 1), settings, rng)
    zeros = np.zeros((1, len(aatype[window])), np.float32)
    sample = MsaSample(
        letters=shown[:, window],
        deletion_values=zeros,
        profile=profile[None, window],
        deletion_means=zeros,
        extra_letters=np.zeros((0, zeros.shape[1]), np.uint8),
        extra_deletion_values=zeros[:0],
    )
    return sample, true[:, window], hidden[:, window]


def _clustered(
    msa: Msa, asym_id: np.ndarray | None, settings: FeatureConfig, window: Window, rng: np.random.Generator
) -> MsaDraw:
    """Return a sample of ``"msa"`` (supplement 1.2.7): cluster centres, masking, assignment, cluster statistics."""
    depth = len(msa.sequences)
    order = np.concatenate([[0], 1 + rng.permutation(depth - 1)])
    centres, others = order[: settings.max_clusters], order[settings.max_clusters :]
    true = msa.sequences[centres]
    shown, hidden = _mask_letters(true, _column_frequencies(msa.sequences), settings, rng)
    if asym_id is not None:
        hidden = hidden & _has_partner(true, asym_id)
    cluster, row, weight = assign_rows(shown, msa.sequences[others], settings.cluster_weights)

    letters = shown[:, window]
    deletions = msa.deletions[:, window][centres].astype(np.float32)
    other_letters = msa.sequences[:, window][others]
    other_deletions = msa.deletions[:, window][others].astype(np.float32)
    members = 1 + np.bincount(cluster, weight, len(centres))[:, None].astype(np.float32)
    # count (centre, column, letter) with one bincount, which is much faster than np.add.at
    n = letters.shape[1]
    cells, weights = cluster[:, None] * n + np.arange(n), np.repeat(weight, n)
    counts = np.bincount((cells * 23 + other_letters[row]).ravel(), weights, letters.size * 23)
    profile = _one_hot(letters, 23) + counts.reshape(*letters.shape, 23).astype(np.float32)
    deleted = np.bincount(cells.ravel(), weights * other_deletions[row].ravel(), letters.size)
    deletion_mean = deletions + deleted.reshape(letters.shape).astype(np.float32)

    extra = slice(0, settings.max_extra)  # ``others`` is in random order
    sample = MsaSample(
        letters=letters.copy(),  # views would keep residues and rows that are not in the sample
        deletion_values=_squash(deletions),
        profile=profile / members[..., None],
        deletion_means=_squash(deletion_mean / members),
        extra_letters=other_letters[extra].copy(),
        extra_deletion_values=_squash(other_deletions[extra]),
    )
    return sample, true[:, window], hidden[:, window]


def _msa_features(sample: MsaSample) -> dict[str, Any]:
    """Return the features that ``sample`` stands for, and their masks."""
    deletions, extra = sample.deletion_values, sample.extra_deletion_values
    return {
        "msa_feat": np.concatenate(
            [
                _one_hot(sample.letters, 23),
                _deletion_features(deletions),
                sample.profile,
                sample.deletion_means[..., None],
            ],
            axis=2,
        ),
        "msa_mask": np.ones(deletions.shape, bool),
        "extra_msa_feat": np.concatenate([_one_hot(sample.extra_letters, 23), _deletion_features(extra)], axis=2),
        "extra_msa_mask": np.ones(extra.shape, bool),
    }


def _has_partner(rows: np.ndarray, asym_id: np.ndarray) -> np.ndarray:
    """Return bool [s, n]: the row has a residue in the chain of this column."""
    has = np.zeros(rows.shape, bool)
    for own in chain_slices(asym_id):
        has[:, own] = (rows[:, own] != GAP).any(1, keepdims=True)
    return has


def assign_rows(
    centres: np.ndarray, others: np.ndarray, weights: ClusterWeights
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return clusters and rows that belong together, int64 [k] each, and weights of the rows there, float64 [k].

    A row of ``others`` [rows, n] belongs to the centres [s, n] with most identical residues: to the first of these with
    the weight 1 (``rows``), or to all t of them with the weight n / t (``residues``). Gaps and mask tokens never match
    (weight 0 in AF2). AlphaFold-Multimer's code multiplies its soft assignment, which divides a row equally among t
    centres, by the number of residues that two rows share, so that the rows outweigh the centre.
    Memory: 4 · 21 · n · (s + 256) bytes: one-hot matrix products with 256 rows of ``others`` at a time.
    """
    hot = _one_hot(centres, 23)[..., :GAP].reshape(len(centres), -1)
    parts = [np.zeros((2, 0), np.int64)]
    for begin in range(0, len(others), 256):
        rows = _one_hot(others[begin : begin + 256], 23)[..., :GAP]
        identical = rows.reshape(len(rows), -1) @ hot.T
        if weights == "rows":
            row, cluster = np.arange(len(rows)), identical.argmax(1)
        else:
            row, cluster = np.nonzero(identical == identical.max(1, keepdims=True))
        parts.append(np.stack([cluster, begin + row]))
    cluster, row = np.concatenate(parts, axis=1)
    whole = 1.0 if weights == "rows" else float(centres.shape[1])
    return cluster, row, whole / np.bincount(row, minlength=len(others))[row]


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


def _deletion_features(values: np.ndarray) -> np.ndarray:
    """Return float32 [s, n, 2]: has_deletion, deletion_value; the value of no deletion is 0."""
    return np.stack([(values > 0).astype(np.float32), values], axis=2)
