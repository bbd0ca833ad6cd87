"""The language-model benchmark compares the same model on the same data."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch

from ds4sci.bench import lm_step, lm_training, longest_rows
from ds4sci.models import language


@pytest.mark.parametrize("kind", lm_training.KINDS)
def test_trainer_and_ds4sci_have_the_same_loss(kind) -> None:
    row = {name: x[None] for name, x in lm_training.example(kind, 64).items()}
    model = lm_training.hf_model(kind).eval()
    trainer_loss = float(model(**row).loss.detach())
    config = language.Config(config={"model_type": "llama"})
    ours = language.LanguageModel(lm_training.hf_model(kind), config, kind).eval()(
        lm_training.ds4sci_batch(kind, 64, None)
    )
    mean = (ours.losses * ours.weights).sum() / ours.weights.sum()
    assert float(mean.detach()) == pytest.approx(trainer_loss, rel=1e-5)


def test_documents_cover_the_row() -> None:
    batch = lm_training.ds4sci_batch("causal_lm", 100, 40)
    assert batch.doc_spans.tolist() == [[0, 40], [40, 80], [80, 100]]
    assert batch.position_ids[0, 40] == 0
    assert (batch.labels[0, [39, 79, 99]] == -100).all()
    masked = lm_training.ds4sci_batch("masked_lm", 100, None)
    assert masked.doc_spans.tolist() == [[0, 75]]


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("limit", [17_000, 300_000])
def test_search_finds_the_longest_row_that_fits(limit, power) -> None:
    """For memory that grows linearly or quadratically, on top of a constant."""
    base = 0.05 * longest_rows.MEMORY_LIMIT
    calls = []

    def peak(n: int) -> int:
        calls.append(n)
        return int(base + (longest_rows.MEMORY_LIMIT - base) * (n / limit) ** power)

    found = longest_rows.find_longest(peak)
    assert limit * 0.93 <= found <= limit
    assert len(calls) <= 10


def test_attention_stand_in_has_the_shapes_of_attention() -> None:
    q, k, v = (torch.randn(1, 2, 5, 4, requires_grad=True) for _ in range(3))
    longest_rows.attention_stand_in(q, k, v).sum().backward()
    assert all(x.grad is not None and x.grad.shape == x.shape for x in (q, k, v))


@pytest.mark.nightly
def test_simplifications_of_the_search_do_not_change_memory() -> None:
    """One document and several documents; Trainer with torch's attention and with the stand-in."""

    def fresh(function, *arguments):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()

    for kind in lm_training.KINDS:
        whole = fresh(lm_training.ds4sci_steps, kind, 24576, 2)[1]
        assert fresh(lm_training.ds4sci_steps, kind, 24576, 2, longest_rows.DOCUMENT)[1] == pytest.approx(
            whole, rel=0.03
        )
    real = fresh(lm_training.trainer_steps, "causal_lm", 8192, False, 2)[1]
    assert fresh(longest_rows.trainer_memory, "causal_lm", 8192, False) == pytest.approx(real, rel=0.03)


@pytest.mark.nightly
def test_benchmark_runs(tmp_path) -> None:
    lm_step.run(out=tmp_path / "lm.json", quick=True)
    rows = json.loads((tmp_path / "lm.json").read_text())["rows"]
    assert [(row[0], row[2], row[3]) for row in rows] == [
        (kind, dtype, method) for kind in lm_training.KINDS for dtype in lm_step.DTYPES for method in lm_step.METHODS
    ]
    assert all(row[4] > 0 and row[6] > 100 for row in rows)
