"""Sampling of training chains as in AlphaFold 2: by cluster and length, mixed with predicted structures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ds4sci.data.sample_epochs import DrawnEpochs, Epochs, MixedEpochs, ShuffledEpochs
from ds4sci.data.sample_selection import scores_in_order
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.text_files import resolve_data_path
from ds4sci.types import Record


class SamplingConfig(BaseModel):
    """``[data.sampling]``: probability of a chain to be in an epoch (AlphaFold 2 supplement 1.2.5).

    It is proportional to 1 / size of its cluster (with ``scores``) times its length, limited to ``lengths``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    scores: Path | None = None
    """File of scores with 1 / size of the cluster of each chain; see ``ds4sci select clusters``. Without it, all chains
    count alike."""
    score: str = "weight"
    """Name of the score in the file."""
    lengths: tuple[int, int] | None = (256, 512)
    """Residues: shorter and longer chains count as if they had these lengths; None: the length does not count."""

    @model_validator(mode="after")
    def _check_lengths(self) -> SamplingConfig:
        if self.lengths is not None and not 1 <= self.lengths[0] <= self.lengths[1]:
            raise ValueError(
                f"lengths must be two increasing numbers of residues, such as [256, 512]; got {self.lengths}"
            )
        return self


class DistillationConfig(BaseModel):
    """``[data.distillation]``: predicted structures of sequences without a known one, mixed with those of ``train``.

    They have no loss of confidence: pLDDT, aligned errors and resolved atoms.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    chains: Path
    """Chain set of the predicted structures; build it with ``min_plddt=50``, which masks uncertain residues."""
    probability: float = Field(0.75, gt=0, lt=1)
    """Fraction of the samples that are predicted structures (AF2: 0.75), exact in every 100 samples."""


def sampling_weights(config: SamplingConfig, names: Sequence[str], lengths: np.ndarray) -> np.ndarray:
    """Return the relative probabilities of chains, float64 [chains]. Raises ValueError like ``scores_in_order``."""
    weights = (
        np.ones(len(names)) if config.scores is None else scores_in_order(config.scores, config.score, list(names))
    )
    return weights if config.lengths is None else weights * np.clip(lengths, *config.lengths) / config.lengths[1]


def chain_epochs(
    kept: np.ndarray,
    known: ChainSet,
    sampling: SamplingConfig | None,
    distillation: DistillationConfig | None,
    seed: int,
) -> Epochs:
    """Return the sequence of the chains ``kept``, whose numbers from ``len(known)`` on are of predicted structures.

    ``sampling`` is for known structures. Predicted ones are all in each of their epochs. Raises ValueError if no chain
    of a set is kept.
    """
    count = len(known)
    first, second = kept[kept < count], kept[kept >= count]
    if not len(first) or (distillation is not None and not len(second)):
        which = "data.train" if not len(first) else "data.distillation.chains"
        raise ValueError(f"{which}: data.selection keeps none of its chains; keep a larger fraction")
    epochs: Epochs = ShuffledEpochs(first, seed)
    if sampling is not None:
        epochs = DrawnEpochs(first, sampling_weights(sampling, known.ids, known.lengths)[first], seed)
    if distillation is None:
        return epochs
    return MixedEpochs(epochs, ShuffledEpochs(second, seed), distillation.probability, seed)


class TrainingChains(Sequence[Record]):
    """Known structures, and predicted ones after them; ``ids`` are the names of all.

    Raises ValueError for a name in both.
    """

    def __init__(self, known: ChainSet, predicted: Path) -> None:
        self.known, self.predicted = known, ChainSet.open(resolve_data_path(predicted))
        self.ids = [*known.ids, *self.predicted.ids]
        if twice := set(known.ids) & set(self.predicted.ids):
            raise ValueError(
                f"data.distillation.chains = {str(predicted)!r}: {min(twice)} is also in data.train; chains of the two "
                "sets need different names"
            )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        if index < len(self.known):
            return self.known[index]
        return replace(self.predicted[index - len(self.known)], is_predicted=True)
