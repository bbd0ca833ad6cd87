"""The varlen_attention benchmark measures every method on the same inputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ds4sci.bench import varlen_attention
from ds4sci.bench.varlen_attention import QUICK, Row, measure, proteins, run


@pytest.mark.nightly
def test_quick_run_measures_every_method(tmp_path: Path) -> None:
    out = tmp_path / "attention.json"
    measured = run("cpu", quick=True, out=out)
    assert all(len(row) == len(measured.columns) for row in measured.rows)
    packed = {row[2] for row in measured.rows if row[0] == QUICK[0].name}
    assert packed == {
        "ds4sci", "SDPA, row with a mask", "SDPA, documents one by one", "SDPA, padded batch with a mask",
    }  # fmt: skip
    figures = json.loads(out.read_text())["measured"]
    assert len(figures) == 2 * len(measured.rows)
    assert all(row["seconds"] > 0 for row in figures)


def test_wrong_outputs_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that attends across documents must not be compared."""
    monkeypatch.setattr(varlen_attention, "_sdpa", lambda q, k, v, mask, causal: q)
    with pytest.raises(ValueError, match="the output of SDPA, row with a mask differs"):
        measure(QUICK[0], torch.float32, torch.device("cpu"), 1)


def test_proteins_fill_the_row() -> None:
    lengths = proteins(8192, 200)
    assert sum(lengths) == 8192
    assert max(lengths) <= 300
    row = Row("two", (3, 2), True, h=1, d=4)
    assert row.doc_spans.tolist() == [[0, 3], [3, 5]]
    assert row.scores == 6 + 3
