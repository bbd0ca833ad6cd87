"""Unbiased pruning: expectation of the gradient, epochs of rows, and the state that a resume needs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ds4sci.data.language.packing import Rows, pack
from ds4sci.data.language.row_order import PrunedRows
from ds4sci.data.language.windows import Coverage
from ds4sci.data.pruning import PruningConfig, prune
from ds4sci.data.sample_record import SampleRecord


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.8])
def test_the_expected_gradient_is_that_of_all_samples(ratio: float) -> None:
    """1,000 draws: 20 random projections of the mean gradient are within 3 standard errors, corrected for their
    number; without the weights they are not."""
    rng = np.random.default_rng(0)
    losses = rng.gamma(2.0, size=400)
    gradients = rng.normal(size=(400, 50)) + np.where(losses < losses.mean(), 0.5, -0.3)[:, None]
    projected = gradients @ rng.normal(size=(50, 20))
    limit = 3.8  # two-sided probability of 3 standard errors, divided by 20
    weighted, plain, kept_counts = [], [], []
    for epoch in range(1000):
        kept, weights = prune(PruningConfig(ratio=ratio), losses, 7, epoch)
        weighted.append(weights @ projected[kept] / len(losses))
        plain.append(projected[kept].mean(0))
        kept_counts.append(len(kept))

    def scores(draws: list[np.ndarray]) -> np.ndarray:
        values = np.array(draws) - projected.mean(0)
        found: np.ndarray = np.abs(values.mean(0)) / (values.std(0, ddof=1) / np.sqrt(len(values)))
        return found

    assert scores(weighted).max() < limit
    assert scores(plain).max() > 10 * limit
    low = float((losses < losses.mean()).mean())
    assert np.mean(kept_counts) == pytest.approx(400 * (1 - ratio * low), rel=0.01)


def test_samples_without_a_loss_are_kept() -> None:
    losses = np.array([np.nan, 1.0, 1.0, np.nan, 9.0])
    for epoch in range(50):
        kept, weights = prune(PruningConfig(ratio=0.9), losses, 0, epoch)
        assert {0, 3, 4} <= set(kept.tolist())
        assert weights.tolist() == pytest.approx([10.0 if i in (1, 2) else 1.0 for i in kept])
    kept, weights = prune(PruningConfig(), np.full(4, np.nan), 0, 0)
    assert kept.tolist() == [0, 1, 2, 3]
    assert weights.tolist() == [1.0] * 4
    assert prune(PruningConfig(), np.ones(4), 0, 0)[0].tolist() == [0, 1, 2, 3], "no loss is below the mean"


def rows(count: int = 60, row_tokens: int | None = 64) -> Rows:
    tokens = np.random.default_rng(2).integers(5, 40, count)
    order, offsets = (np.arange(count), np.arange(count + 1))
    if row_tokens is not None:
        order, offsets = pack(tokens, row_tokens, np.random.default_rng(0))
    zero = np.zeros(count, np.int64)
    made = Rows(order, zero, tokens[order], zero, tokens[order], tokens[order], offsets, order, Coverage(0, 0))
    return replace(made)


def walk(order: PrunedRows, first: int, positions: int, losses: np.ndarray) -> list[tuple[list[int], list[float]]]:
    """Read positions, recording the loss of each sample as if it had been trained on."""
    found = []
    for position in range(first, first + positions):
        own, row = order.row(position)
        documents = list(own.documents(row))
        samples = own.region[documents]
        found.append((samples.tolist(), [order.weight(own, document) for document in documents]))
        values = np.stack([losses[samples]] * 3 + [np.ones(len(samples))], axis=1)
        order.epochs.record.add(position, samples, values)
        assert own.tokens[documents].sum() <= 64
    return found


@pytest.mark.parametrize("row_tokens", [64, None])
def test_epochs_of_rows(row_tokens: int | None) -> None:
    """The first epoch has all documents; later ones miss a part of the low ones; the last ones have all again. The
    state of a checkpoint continues the same sequence."""
    made, losses = rows(row_tokens=row_tokens), np.random.default_rng(5).random(60)
    config, total = PruningConfig(ratio=0.5, last=0.25), 12 * len(rows(row_tokens=row_tokens))
    order = PrunedRows(made, row_tokens, 3, config, SampleRecord(60), positions=total)
    whole = walk(order, 0, total, losses)
    first = [sample for samples, _ in whole[: len(made)] for sample in samples]
    assert sorted(first) == list(range(60))
    assert {weight for _, weights in whole[: len(made)] for weight in weights} == {1.0}
    weights = [weight for _, own in whole for weight in own]
    assert max(weights) > 1.5
    used = np.bincount([sample for samples, _ in whole for sample in samples], minlength=60)
    low = losses < losses.mean()
    assert used[low].mean() < 0.85 * used[~low].mean()
    tail = [sample for samples, _ in whole[-2 * len(made) :] for sample in samples]
    assert set(tail) == set(range(60))

    for stop in (1, len(made) - 1, len(made), len(made) + 5, total - 3):
        again = PrunedRows(made, row_tokens, 3, config, SampleRecord(60), positions=total)
        walk(again, 0, stop, losses)
        state = {name: value.copy() for name, value in (again.epochs.record.state() | again.epochs.state()).items()}
        resumed = PrunedRows(made, row_tokens, 3, config, SampleRecord(60), positions=total)
        resumed.epochs.record.restore(state)
        resumed.epochs.restore(state)
        assert walk(resumed, stop, total - stop, losses) == whole[stop:], stop


def test_a_mean_over_an_epoch_keeps_its_size() -> None:
    """Σ over the kept documents of weight · scale · tokens / Σ tokens of the kept is 1 in the mean."""
    made, losses = rows(), np.random.default_rng(6).random(60)
    found = []
    for seed in range(300):
        order = PrunedRows(made, 64, seed, PruningConfig(last=0.0), SampleRecord(60), positions=40 * len(made))
        walk(order, 0, len(made), losses)
        own, _ = order.row(len(made))
        size = own.tokens.sum()
        found.append(sum(order.weight(own, i) * own.tokens[i] for i in range(len(own.tokens))) / size)
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert abs(np.mean(found) - 1) < 4 * error


def test_too_few_epochs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"3\.0 epochs of \d+ rows, and pruning needs at least 4"):
        PrunedRows(rows(), 64, 0, PruningConfig(), SampleRecord(60), positions=3 * len(rows()))


@pytest.mark.parametrize("last", [0.0, 0.125, 0.25, 1.0])
@pytest.mark.parametrize("epochs", [4, 5, 8, 12])
def test_the_last_part_of_a_run_uses_all_samples(last: float, epochs: int) -> None:
    made, losses = rows(row_tokens=None), np.random.default_rng(5).random(60)
    total = epochs * 60
    order = PrunedRows(made, None, 3, PruningConfig(last=last), SampleRecord(60), positions=total)
    whole = walk(order, 0, total, losses)
    full = [weights == [1.0] for _, weights in whole]
    assert all(full[round(total * (1 - last)) :])
    assert all(full) == (last == 1.0), "but not all of it is full"


@pytest.mark.parametrize("span", [1, 7, 64, 200])
def test_a_micro_batch_may_span_epochs(span: int) -> None:
    """Weights are asked for after all rows of a micro-batch are known, also where it is larger than an epoch."""
    made, losses = rows(row_tokens=None), np.random.default_rng(5).random(60)
    order = PrunedRows(made, None, 3, PruningConfig(), SampleRecord(60), positions=1000, span=span)
    values = np.stack([losses] * 3 + [np.ones(60)], axis=1)
    for first in range(0, 1000 - span, span):
        places = [order.row(position) for position in range(first, first + span)]
        for own, row in places:
            assert order.weight(own, row) > 0
        order.epochs.record.add(first, np.arange(60), values)
    assert len(order.epochs.open) <= span // 30 + 3, "old epochs are dropped"
