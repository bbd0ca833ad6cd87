"""The benchmark of language models compares like with like."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch

from ds4sci.bench import lm_step
from ds4sci.models import language


@pytest.mark.parametrize("kind", lm_step.KINDS)
def test_both_sides_have_the_same_loss(kind) -> None:
    row = {name: x[None] for name, x in lm_step.example(kind, 64).items()}
    model = lm_step.hf_model(kind).eval()
    theirs = float(model(**row).loss.detach())
    config = language.Config(config={"model_type": "llama"})
    ours = language.LanguageModel(lm_step.hf_model(kind), config, kind).eval()(lm_step.our_batch(kind, 64, None))
    mean = (ours.losses * ours.weights).sum() / ours.weights.sum()
    assert float(mean.detach()) == pytest.approx(theirs, rel=1e-5)


def test_documents_of_the_search_cover_the_row() -> None:
    batch = lm_step.our_batch("causal_lm", 100, 40)
    assert batch.doc_spans.tolist() == [[0, 40], [40, 80], [80, 100]]
    assert batch.position_ids[0, 40] == 0
    assert (batch.labels[0, [39, 79, 99]] == -100).all()
    masked = lm_step.our_batch("masked_lm", 100, None)
    assert masked.doc_spans.tolist() == [[0, 75]]


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("limit", [17_000, 300_000])
def test_the_search_finds_the_last_length_that_fits(limit, power) -> None:
    """Of memory that grows as a line or as a parabola, over what a process has anyway."""
    base = 0.05 * lm_step.LIMIT
    asked = []

    def peak(n: int) -> int:
        asked.append(n)
        return int(base + (lm_step.LIMIT - base) * (n / limit) ** power)

    found = lm_step._longest(peak)
    assert limit * 0.93 <= found <= limit
    assert len(asked) <= 10


def test_attention_that_only_keeps_has_the_shapes_of_the_real_one() -> None:
    q, k, v = (torch.randn(1, 2, 5, 4, requires_grad=True) for _ in range(3))
    lm_step.stand_in(q, k, v).sum().backward()
    assert all(x.grad is not None and x.grad.shape == x.shape for x in (q, k, v))


@pytest.mark.nightly
def test_memory_does_not_depend_on_what_the_search_leaves_out() -> None:
    """One whole document against documents; and the Trainer with torch's attention against the stand-in."""

    def fresh(function, *arguments):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()

    for kind in lm_step.KINDS:
        whole = fresh(lm_step.our_steps, kind, 24576, 2)[1]
        assert fresh(lm_step.our_steps, kind, 24576, 2, lm_step.DOCUMENT)[1] == pytest.approx(whole, rel=0.03)
    real = fresh(lm_step.trainer_steps, "causal_lm", 8192, False, 2)[1]
    assert fresh(lm_step._plain_memory, "causal_lm", 8192, False) == pytest.approx(real, rel=0.03)


@pytest.mark.nightly
def test_the_whole_benchmark_runs(tmp_path) -> None:
    lm_step.run(out=tmp_path / "lm.json", quick=True)
    rows = json.loads((tmp_path / "lm.json").read_text())["rows"]
    assert [(row[0], row[2]) for row in rows] == [(kind, way) for kind in lm_step.KINDS for way in lm_step.WAYS]
    assert all(row[3] > 0 and row[5] > 100 for row in rows)
