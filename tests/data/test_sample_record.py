"""Records of samples: order of steps and ranks, forgetting, and what a resume restores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ds4sci.data.sample_record import SampleRecord


def totals(*means: list[float], weight: float = 8.0) -> np.ndarray:
    """Totals with these mean losses, errors and accuracies."""
    return np.array([[weight * value for value in one] + [weight] for one in means])


def test_a_sample_that_occurs_twice_in_a_step_has_one_loss() -> None:
    """Documents of one record on two ranks: their tokens count, in whatever order."""
    first, second = (0, np.array([4, 4]), totals([1.0, 0.0, 1.0], [3.0, 0.0, 1.0], weight=1.0)), (
        0, np.array([4]), totals([6.0, 0.0, 0.0], weight=2.0),
    )  # fmt: skip
    found = []
    for order in ([first, second], [second, first]):
        record = SampleRecord(5, lambda value, order=order: [[one] for one in order])  # type: ignore[misc]
        record.merge()
        found.append((record.loss[4], record.seen[4], record.is_learned[4]))
    assert found[0] == found[1] == (4.0, 1, False)
    record = SampleRecord(2)
    record.add(0, np.array([1]), totals([0.0, 0.0, 0.0], weight=0.0))
    assert record.merge().seen.tolist() == [0, 0], "nothing to predict"


def test_what_ranks_add_is_merged_by_step_and_by_number() -> None:
    """Numbers that are no integers of bfloat16 or float32 stay apart; the last step decides."""
    size = 2**24 + 2
    other = SampleRecord(size)
    other.add(5, np.array([257, 2**24 + 1]), totals([1.0, 0.5, 1.0], [2.0, 0.25, 0.0]))
    other.add(9, np.array([3]), totals([4.0, 1.0, 0.2]))
    own = SampleRecord(size, lambda value: [other._pending, value])
    own.add(7, np.array([3, 256]), totals([6.0, 3.0, 0.9], [np.inf, 0.0, 0.0]))
    own.merge()
    assert np.flatnonzero(np.isfinite(own.loss)).tolist() == [3, 257, 2**24 + 1]
    assert own.loss[[3, 257, 2**24 + 1]].tolist() == [4.0, 1.0, 2.0]
    scores = own.scores()
    assert scores["loss_mean"][3] == 5.0
    assert scores["el2n"][3] == 2.0
    assert scores["forgetting"][[3, 257, 2**24 + 1]].tolist() == [1.0, 0.0, 2.0]
    assert np.isnan(scores["forgetting"][256])
    assert own.seen[256] == 0, "a loss that is not finite is none"


@pytest.mark.parametrize(
    ("accuracies", "events"),
    [([1, 1, 1], 0), ([0, 0], 3), ([1, 0, 1, 0], 2), ([0, 1], 0), ([1, 0], 1), ([0.5, 0.6, 0.4], 1)],
)
def test_forgetting(accuracies: list[float], events: int) -> None:
    record = SampleRecord(1)
    for step, accuracy in enumerate(accuracies):
        record.add(step, np.array([0]), totals([1.0, np.nan, accuracy]))
    found = record.merge().scores()
    assert found["forgetting"].tolist() == [events]
    assert "el2n" not in found, "errors were not measured"


def test_a_restored_record_goes_on() -> None:
    def fill(record: SampleRecord, steps: Any) -> None:
        for step in steps:
            values = np.random.default_rng(step).random((4, 4))
            record.add(step, np.random.default_rng(step).permutation(20)[:4], values)

    whole, first, second = (SampleRecord(20) for _ in range(3))
    fill(whole, range(30))
    fill(first, range(11))
    second.restore(first.state())
    fill(second, range(11, 30))
    for name, value in whole.merge().scores().items():
        np.testing.assert_array_equal(value, second.merge().scores()[name])


def test_errors_that_are_measured_later_have_their_own_mean() -> None:
    record = SampleRecord(2)
    record.add(0, np.array([0, 1]), totals([1.0, np.nan, 1.0], [1.0, np.nan, 1.0]))
    record.add(1, np.array([0]), totals([1.0, 0.5, 1.0]))
    record.add(2, np.array([0]), totals([1.0, 0.7, 1.0]))
    found = record.merge().scores()["el2n"]
    assert found[0] == pytest.approx(0.6)
    assert np.isnan(found[1])
