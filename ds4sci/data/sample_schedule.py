"""Schedule of whole samples, and the keys of ``[data]`` that choose, record, weigh and prune samples.

A schedule says which sample is at each position of a run, and the factor of its loss.

Samples are chains or arrays. Packed documents have a schedule of rows instead (``ds4sci.data.language.row_order``).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pydantic import BaseModel, ConfigDict

from ds4sci.data.loader import epoch_order
from ds4sci.data.pruning import PrunedEpochs, PruningConfig
from ds4sci.data.sample_epochs import Epochs, ShuffledEpochs
from ds4sci.data.sample_order import OrderConfig
from ds4sci.data.sample_record import SampleRecord
from ds4sci.data.sample_selection import SelectionConfig, WeightConfig, kept_samples, sample_weights


class SampleKeys(BaseModel):
    """Keys of ``[data]`` that choose, record, weigh and prune training samples."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    selection: SelectionConfig | None = None
    """``[data.selection]``: train on a part of the samples: chains, records, regions of a genome, arrays."""
    weights: WeightConfig | None = None
    """``[data.weights]``: factors of the losses of the samples, such as 1 / size of a homology cluster."""
    pruning: PruningConfig | None = None
    """``[data.pruning]``: leave out a part of the samples with a low loss in each epoch, without bias."""
    record_scores: bool = False
    """Write the loss of every training sample, and EL2N and forgetting where the task predicts classes, from training's
    own forward passes, to ``RUN/scores.npz``."""


class SampleSchedule:
    """Shuffled epochs of the kept samples, or of those that pruning leaves of them.

    kept    int64, numbers of the selected samples
    record  losses of the samples, which pruning needs, or None
    """

    def __init__(
        self, keys: SampleKeys, names: list[str], seed: int, epochs: Callable[[np.ndarray], Epochs] | None = None
    ) -> None:
        """Choose the samples. Raises ValueError like ``kept_samples`` and ``sample_weights``.

        names   of all training samples, in order
        epochs  makes the sequence of the kept samples; by default shuffled epochs of all
        """
        self.keys, self.seed = keys, seed
        self.kept = np.arange(len(names)) if keys.selection is None else kept_samples(keys.selection, names)
        self.factors = None if keys.weights is None else sample_weights(keys.weights, names, self.kept)
        self.epochs = ShuffledEpochs(self.kept, seed) if epochs is None else epochs(self.kept)
        self._pruned: PrunedEpochs[np.ndarray] | None = None
        self._step_size = 1

    def prune(
        self, record: SampleRecord, *, steps: int | None, step_size: int, workers: int, order: OrderConfig
    ) -> PrunedEpochs[np.ndarray]:
        """Begin the epochs of ``[data.pruning]``, whose losses are recorded in ``record``.

        Raises ValueError where samples are taken before the losses of the earlier steps are known, and for a run of too
        few epochs or unknown length.
        """
        assert self.keys.pruning is not None
        if not isinstance(self.epochs, ShuffledEpochs):
            raise ValueError(
                "data.pruning chooses the samples of an epoch, and so do data.sampling and data.distillation; leave "
                "one out"
            )
        if workers or order.order != "strict":
            what = f"data.workers = {workers}" if workers else f'data.order = "{order.order}"'
            raise ValueError(
                f"data.pruning: {what}: the samples of an epoch depend on the losses of the one before, so that they "
                'cannot be prepared in advance; use data.workers = 0 and data.order = "strict"'
            )
        if steps is None:
            raise ValueError("data.pruning: the number of steps is unknown; train with `ds4sci train`")
        self._step_size = step_size
        self._pruned = PrunedEpochs(
            self.kept, np.ones(len(self.kept)), self._shuffle, seed=self.seed, config=self.keys.pruning, record=record,
            positions=steps * step_size, span=step_size, factors=self.factors,
        )  # fmt: skip
        return self._pruned

    def at(self, position: int) -> tuple[int, float]:
        """Return the number of the sample at a position, and the factor of its loss.

        With pruning, positions are those of one step after another: with the first of a step, the epochs of all its
        positions begin, on all ranks alike.
        """
        if self._pruned is None:
            sample = self.epochs.at(position)
            return sample, 1.0 if self.factors is None else float(self.factors[sample])
        self._pruned.begin(position - position % self._step_size + self._step_size - 1)
        epoch = self._pruned.at(position)
        place = int(epoch.content[position - epoch.first])
        return int(self.kept[epoch.items[place]]), self._pruned.weight(epoch, place)

    def _shuffle(self, number: int, items: np.ndarray) -> tuple[np.ndarray, int]:
        """The places of the items in the order of their positions."""
        return epoch_order(self.seed, number, len(items)), len(items)
