"""n-gram models on sources of known entropy, and against an implementation with dictionaries."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds4sci.baselines import ngrams
from ds4sci.baselines.ngrams import fit, measure_ngrams

BASES = np.frombuffer(b"ACGT", np.uint8)
TRANSITION = np.array([[0.7, 0.1, 0.1, 0.1], [0.05, 0.05, 0.8, 0.1], [0.3, 0.3, 0.2, 0.2], [0.1, 0.5, 0.2, 0.2]])


def markov(seed: int, chains: int, length: int) -> list[np.ndarray]:
    """Sequences of the first-order source ``TRANSITION`` in its stationary state."""
    rng = np.random.default_rng(seed)
    state = rng.choice(4, chains, p=stationary())
    columns = [state]
    cumulative = TRANSITION.cumsum(axis=1)
    for _ in range(length - 1):
        state = np.minimum((rng.random(chains)[:, None] > cumulative[state]).sum(axis=1), 3)
        columns.append(state)
    return list(BASES[np.stack(columns, axis=1)])


def stationary() -> np.ndarray:
    values, vectors = np.linalg.eig(TRANSITION.T)
    vector = np.real(vectors[:, np.argmax(np.real(values))])
    return vector / vector.sum()


@pytest.mark.parametrize("method", ["absolute", "jelinek_mercer"])
def test_a_markov_source_is_measured_at_its_entropy(method: ngrams.Method) -> None:
    pi = stationary()
    entropy = [-float(pi @ np.log(pi)), -float((pi[:, None] * TRANSITION * np.log(TRANSITION)).sum())]
    train, test = markov(0, 100, 3000), markov(1, 50, 2000)
    result = measure_ngrams(train, test, 5, method=method)
    nats = [result["nats"][str(m)] for m in range(6)]
    # 100,000 test residues: the mean of −log p has a standard error of about 0.003.
    assert nats[0] == pytest.approx(entropy[0], abs=0.01)
    assert nats[1] == pytest.approx(entropy[1], abs=0.01)
    # Longer contexts carry no more information, and interpolation keeps their cost small. A discount below 1 cannot
    # return the mass of a frequent context to the lower order, so absolute discounting costs 3 · 4⁵ / (2 · 300,000).
    cost = {"absolute": 0.012, "jelinek_mercer": 0.002}[method]
    assert all(entropy[1] - 0.01 < value < nats[1] + cost for value in nats[2:])
    assert result["best_order"] >= 1
    json.dumps(result)
    by_class = result["per_class"]
    total = sum(by_class[letter]["nats"] * by_class[letter]["count"] for letter in "ACGT")
    assert total / 100_000 == pytest.approx(nats[result["best_order"]])


def test_a_source_without_memory_is_measured_at_its_entropy() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(20))
    draws = rng.choice(20, 60_000, p=p).astype(np.int32)
    model = fit([draws[:50_000]], 2, method="jelinek_mercer")
    means = model.losses([draws[50_000:]]).mean(axis=1)
    assert means[0] == pytest.approx(-float(p @ np.log(p)), abs=0.02)
    assert means[2] < means[0] + 0.02


@pytest.mark.parametrize("method", ["absolute", "jelinek_mercer"])
@given(data=st.data())
@settings(max_examples=25)
def test_probabilities_are_the_formula_and_sum_to_one(method: ngrams.Method, data: st.DataObject) -> None:
    texts = data.draw(st.lists(st.text("ACG", min_size=4, max_size=30), min_size=1, max_size=6))
    train = [np.frombuffer(text.encode(), np.uint8) for text in texts]
    symbols = np.frombuffer(b"ACGT", np.uint8)  # T is never seen, and must keep a probability
    model = fit(train, 2, method=method, symbols=symbols)
    context = data.draw(st.text("ACGT", max_size=4))
    total = np.zeros(3)
    for letter in "ACGT":
        losses = model.losses([np.frombuffer((context + letter).encode(), np.uint8)])[:, -1]
        total += np.exp(-losses)
        for order, loss in enumerate(losses):
            usable = context[max(0, len(context) - order) :]
            assert math.exp(-loss) == pytest.approx(_expected(model, texts, usable, letter))
    np.testing.assert_allclose(total, 1)


def _expected(model: ngrams.NgramModel, texts: list[str], context: str, letter: str) -> float:
    """The formula of the module docstring, with dictionaries."""
    if len(context) > model.order:
        context = context[-model.order :]
    lower = _expected(model, texts, context[1:], letter) if context else 1 / len(model.symbols)
    grams = Counter(text[i : i + len(context) + 1] for text in texts for i in range(len(text) - len(context)))
    follow = {gram[-1]: count for gram, count in grams.items() if gram[:-1] == context}
    n = sum(follow.values())
    if not n:
        return lower
    theta = float(model.levels[len(context)].theta[int(math.log2(n))])
    seen = follow.get(letter, 0)
    if model.method == "absolute":
        return max(seen - theta, 0) / n + theta * len(follow) / n * lower
    return theta * seen / n + (1 - theta) * lower


def test_the_fitted_weights_maximise_the_likelihood() -> None:
    rng = np.random.default_rng(0)
    alpha, ceiling = rng.uniform(0.05, 0.4, 500), rng.uniform(0.05, 0.9, 500)
    beta, bucket = ceiling - alpha, rng.integers(0, 3, 500)
    theta = ngrams._maximum_likelihood(alpha, beta, bucket)
    grid = np.linspace(1e-6, 1 - 1e-6, 2001)
    for b in range(3):
        own = bucket == b
        likelihood = np.log(alpha[own, None] + grid * beta[own, None]).sum(axis=0)
        assert theta[b] == pytest.approx(grid[likelihood.argmax()], abs=1e-3)
    assert theta[60] == theta[2]  # an empty bucket takes the value of the nearest one


def test_counted_and_held_out_chunks_partition_the_sequences() -> None:
    sequences = [np.full(n, i, np.uint8) for i, n in enumerate((5, 20_000, 1, 12_345, 8192))]
    counted, held_out = ngrams._split(sequences, 0.1, seed=3)
    assert 0.05 < sum(map(len, held_out)) / 40_543 < 0.3
    sizes = Counter()
    for chunk in itertools.chain(counted, held_out):
        sizes[int(chunk[0])] += len(chunk)
    assert sizes == {0: 5, 1: 20_000, 2: 1, 3: 12_345, 4: 8192}
    assert all(part for part in ngrams._split([np.zeros(2, np.uint8)], 0.5, 0))


def test_contexts_stop_at_the_ends_of_sequences() -> None:
    """CA never occurs inside a sequence; it must not be counted across the end of one."""
    train = [np.frombuffer(b"AAAAC", np.uint8)] * 200
    model = fit(train, 1)
    (level,) = model.levels[1:]
    assert level.grams.tolist() == [0, 1]  # AA, AC
    assert level.gram_counts.tolist() == [600, 200]


def test_orders_longer_than_every_sequence_add_nothing() -> None:
    short = [np.frombuffer(b"ACG", np.uint8), np.frombuffer(b"GCA", np.uint8)] * 9
    losses = fit(short, 5).losses([np.frombuffer(b"ACGCACGA", np.uint8)])
    assert not np.array_equal(losses[1], losses[0])
    for row in losses[3:]:
        np.testing.assert_array_equal(row, losses[2])


def test_sorting_and_the_table_give_the_same_counts() -> None:
    keys = np.random.default_rng(0).integers(0, 5000, 20_000)
    for left, right in zip(ngrams._count_keys(keys, 5000), ngrams._count_keys(keys, 10**9), strict=True):
        np.testing.assert_array_equal(left, right)


def test_errors_name_the_problem_and_its_place() -> None:
    train = [np.frombuffer(b"ACGTACGTACGT", np.uint8)]
    with pytest.raises(ValueError, match=r"sequence 1, position 2: the symbol 78"):
        fit(train, 1).losses([train[0], np.frombuffer(b"ACNT", np.uint8)])
    with pytest.raises(ValueError, match="below 2\\^63"):
        fit(train, 40)
    with pytest.raises(ValueError, match="method = 'kneser'"):
        fit(train, 1, method="kneser")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"got \|S1"):
        fit([train[0].view("S1")], 1)
    with pytest.raises(ValueError, match="0 residues"):
        fit([], 1)
    with pytest.raises(ValueError, match="no residues"):
        fit(train, 1).losses([])
