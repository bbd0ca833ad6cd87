"""Schedule of whole samples: selection, weights, pruned epochs, resumes and ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds4sci.data import score_file
from ds4sci.data.loader import shuffled_index
from ds4sci.data.pruning import PruningConfig
from ds4sci.data.sample_order import OrderConfig
from ds4sci.data.sample_record import SampleRecord
from ds4sci.data.sample_schedule import SampleKeys, SampleSchedule

NAMES = [f"sample {number}" for number in range(40)]
STRICT = OrderConfig()


def test_epochs_of_the_kept_samples_with_their_weights(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(40)
    file = tmp_path / "scores.npz"
    score_file.write_scores(file, NAMES, {"el2n": values, "weight": values + 1}, {})
    keys = SampleKeys.model_validate(
        {"selection": {"keep": "lowest", "fraction": 0.5, "scores": file}, "weights": {"scores": file}}
    )
    schedule = SampleSchedule(keys, NAMES, 3)
    assert sorted(schedule.kept) == sorted(np.argsort(values)[:20])
    first, second = ([schedule.at(20 * epoch + i) for i in range(20)] for epoch in range(2))
    assert {sample for sample, _ in first} == set(schedule.kept.tolist()) == {sample for sample, _ in second}
    assert first != second
    assert [schedule.kept[shuffled_index(3, i, 20)] for i in range(20)] == [sample for sample, _ in first]
    mean = (values + 1)[schedule.kept].mean()
    assert all(factor == pytest.approx((values[sample] + 1) / mean) for sample, factor in first)


def walk(
    schedules: list[SampleSchedule], records: list[SampleRecord], steps: range, losses: np.ndarray
) -> list[list[tuple[int, float]]]:
    """Read the steps as ranks do, 3 samples each and step, and record the losses on the rank that read them."""
    size = 3 * len(schedules)
    found = []
    for step in steps:
        own = [[schedule.at(step * size + 3 * rank + i) for i in range(3)] for rank, schedule in enumerate(schedules)]
        for record, read in zip(records, own, strict=True):
            samples = np.array([sample for sample, _ in read])
            record.add(step, samples, np.stack([losses[samples]] + [np.full(3, np.nan)] * 2 + [np.ones(3)], 1))
        found.append([one for read in own for one in read])
    return found


def pruned(ranks: int, steps: int) -> tuple[list[SampleSchedule], list[SampleRecord], list[Any]]:
    schedules: list[SampleSchedule] = []
    records: list[SampleRecord] = []
    epochs: list[Any] = []
    for _ in range(ranks):
        schedule, record = SampleSchedule(SampleKeys(pruning=PruningConfig()), NAMES, 5), SampleRecord(40)
        epochs.append(schedule.prune(record, steps=steps, step_size=3 * ranks, workers=0, order=STRICT))
        schedules.append(schedule)
        records.append(record)
    return schedules, records, epochs


def test_pruned_epochs_and_a_resume() -> None:
    losses = np.random.default_rng(1).random(40)
    (schedules, records, _), steps = pruned(1, 80), 80
    whole = walk(schedules, records, range(steps), losses)
    first = [sample for step in whole for sample, _ in step][:40]
    assert sorted(first) == list(range(40))
    plain = SampleSchedule(SampleKeys(), NAMES, 5)
    assert first == [plain.at(i)[0] for i in range(40)], "the first epoch is that of a run without pruning"
    used = np.bincount([sample for step in whole for sample, _ in step], minlength=40)
    low = losses < losses.mean()
    assert used[low].mean() < 0.8 * used[~low].mean()
    middle = [one for step in whole[20:50] for one in step]
    assert {factor > 1 for sample, factor in middle if low[sample]} == {True}
    assert {factor < 1 for sample, factor in middle if not low[sample]} == {True}, "the scale of a pruned epoch"
    assert {factor for step in whole[-9:] for _, factor in step} == {1.0}, "the last part has all samples"
    for stop in (1, 13, 14, 40, 75):
        (own, own_records, own_epochs) = pruned(1, steps)
        walk(own, own_records, range(stop), losses)
        state = {k: v.copy() for k, v in (own_records[0].state() | own_epochs[0].state()).items()}
        (again, again_records, again_epochs) = pruned(1, steps)
        again_records[0].restore(state)
        again_epochs[0].restore(state)
        assert walk(again, again_records, range(stop, steps), losses) == whole[stop:], stop


def test_an_epoch_begins_on_all_ranks_in_the_same_step() -> None:
    """A rank exchanges losses when an epoch begins: all ranks must do so at the same step, also those whose own samples
    of the step are before the end of the epoch."""
    losses = np.random.default_rng(1).random(40)
    schedules, records, _ = pruned(2, 60)
    calls: list[list[int]] = [[], []]
    now = [0]
    for rank, record in enumerate(records):
        merge = record.merge

        def counted(rank: int = rank, merge: Any = merge) -> SampleRecord:
            calls[rank].append(now[0])
            return merge()

        record.merge = counted  # type: ignore[method-assign]
    for step in range(60):
        now[0] = step
        read = [schedules[rank].at(step * 6 + 3 * rank + i)[0] for rank in range(2) for i in range(3)]
        totals = np.stack([losses[read], *np.full((2, 6), np.nan), np.ones(6)], 1)
        for record in records:  # as if they had exchanged them
            record.add(step, np.array(read), totals)
    assert calls[0] == calls[1]
    assert len(calls[0]) > 5
    assert 6 * calls[0][0] < 40 < 6 * (calls[0][0] + 1), "the first boundary is inside a step"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": 2}, "data.pruning: data.workers = 2: "),
        ({"order": OrderConfig(order="ready")}, 'data.pruning: data.order = "ready"'),
        ({"steps": None}, "the number of steps is unknown"),
        ({"steps": 30}, r"3\.0 epochs of 40 samples, and pruning needs at least 4"),
    ],
)
def test_what_cannot_be_pruned(given: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"steps": 80, "step_size": 4, "workers": 0, "order": STRICT} | given
    schedule = SampleSchedule(SampleKeys(pruning=PruningConfig()), NAMES, 0)
    with pytest.raises(ValueError, match=message):
        schedule.prune(SampleRecord(40), **arguments)
