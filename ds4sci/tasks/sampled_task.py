"""Base of the tasks that choose, record, weigh and prune their training samples: ``SampleKeys`` of a run file."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ds4sci.data.pruning import PrunedEpochs
from ds4sci.data.sample_order import OrderConfig, Share
from ds4sci.data.sample_record import SampleRecord
from ds4sci.data.sample_schedule import SampleKeys, SampleSchedule
from ds4sci.data.sample_selection import identity_of, require_a_step
from ds4sci.parallel.groups import SINGLE_RANK, SequenceGroup
from ds4sci.tasks.task import Task


class SampledTask(Task):
    """A task with a fixed set of training samples."""

    seed: int
    _record: SampleRecord | None = None
    _pruned: PrunedEpochs[Any] | None = None
    _restored: dict[str, np.ndarray] | None = None

    @property
    @abstractmethod
    def samples(self) -> SampleKeys:
        """What the run file says about training samples."""

    @abstractmethod
    def sample_names(self) -> list[str]:
        """See ``ds4sci.tasks.SampleScoring``."""

    def data_state(self) -> dict[str, np.ndarray]:
        """See ``Task.data_state``: the record of the samples, and the epoch of the pruned order."""
        recorded = {} if self._record is None else self._record.state()
        return recorded | ({} if self._pruned is None else self._pruned.state())

    def restore_data_state(self, state: dict[str, np.ndarray]) -> None:
        """See ``Task.restore_data_state``."""
        self._restored = state

    def recorded_scores(self) -> dict[str, np.ndarray]:
        """See ``Task.recorded_scores``."""
        return {} if self._record is None else self._record.scores()

    def fixed_inputs(self) -> dict[str, str]:
        """See ``Task.fixed_inputs``: what selects, weighs and prunes samples."""
        keys = self.samples
        return identity_of(selection=keys.selection, weights=keys.weights, pruning=keys.pruning)

    def start_record(self) -> SampleRecord | None:
        """Return the record of the samples of a run, if the run file asks for one, as a checkpoint left it."""
        if self.samples.pruning is None and not self.samples.record_scores:
            return None
        self._record = SampleRecord(len(self.sample_names()), self.gather)
        if self._restored:
            self._record.restore(self._restored)
        return self._record

    def start_pruning(self, epochs: PrunedEpochs[Any]) -> None:
        """Continue the epochs of a checkpoint, and keep them for the next."""
        self._pruned = epochs
        if self._restored:
            epochs.restore(self._restored)

    def start_schedule(
        self, schedule: SampleSchedule, share: Share, *, workers: int, order: OrderConfig
    ) -> SampleSchedule:
        """Prepare the record and the pruned epochs of a run whose samples are whole: chains, arrays.

        Raises ValueError if a selection leaves less than a step, and like ``SampleSchedule.prune``.
        """
        require_a_step(self.samples.selection, len(schedule.kept), share.step_size)
        record = self.start_record()
        if self.samples.pruning is not None:
            assert record is not None
            steps, size = self.delivery.steps, share.step_size
            self.start_pruning(schedule.prune(record, steps=steps, step_size=size, workers=workers, order=order))
        return schedule

    def mean_loss(
        self, losses: Tensor, batch: Any, *, errors: Tensor | None = None, correct: Tensor | None = None,
        sizes: Tensor | None = None, group: SequenceGroup = SINGLE_RANK,
    ) -> Tensor:  # fmt: skip
        """Return the mean loss of the samples of a batch, with their factors, and record them.

        losses   [b], of each sample; with several ranks in ``group``, this rank's parts of them
        errors   [b], mean distances of predicted probabilities from one-hot labels; None where there are no classes
        correct  [b], parts of the labels that are predicted
        sizes    [b], what each loss is a mean over, if the mean over the batch counts that (``Task.weight``)
        """
        if self._record is not None and batch.sample is not None:
            whole = group.all_reduce_sum(losses)
            none = torch.full_like(whole, float("nan"))
            columns = (whole, none if errors is None else errors, none if correct is None else correct)
            is_seen = torch.ones_like(whole) if sizes is None else sizes > 0
            totals = torch.stack([*(x.detach().double() for x in columns), is_seen.double()], dim=1)
            if group.rank == 0:
                self._record.add(batch.step, batch.sample.cpu().numpy(), totals.cpu().numpy())
        if batch.factor is not None:
            losses = losses * batch.factor.to(losses.dtype)
        return losses.mean() if sizes is None else (losses * sizes).sum() / sizes.sum().clamp(min=1)
