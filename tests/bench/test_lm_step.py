"""The language-model benchmark compares the same model on the same data."""

from __future__ import annotations

import json

import pytest

from ds4sci.bench import lm_step, lm_training
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


@pytest.mark.nightly
def test_benchmark_runs(tmp_path) -> None:
    lm_step.run(out=tmp_path / "lm.json", quick=True)
    rows = json.loads((tmp_path / "lm.json").read_text())["rows"]
    assert [(row[0], row[2], row[3]) for row in rows] == [
        (kind, dtype, method) for kind in lm_training.KINDS for dtype in lm_step.DTYPES for method in lm_step.METHODS
    ]
    assert all(row[4] > 0 and row[6] > 100 for row in rows)
