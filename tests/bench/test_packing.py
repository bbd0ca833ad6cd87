"""Packed rows and padded batches hold the same documents and give the same log-probabilities."""

from __future__ import annotations

import re

import pytest

from ds4sci.bench import packing


@pytest.mark.slow
def test_packed_and_padded() -> None:
    small = [
        "model.config.hidden_size=32", "model.config.num_hidden_layers=2", "model.config.num_attention_heads=4",
        "model.config.intermediate_size=32",
    ]  # fmt: skip
    found = packing.measure("configs/lm/protein_tiny.toml", small, documents=20, batch_size=4, rounds=1)
    rows = {row[0]: row for row in found.rows}
    assert list(rows) == [packing.PACKED, packing.PADDED, packing.TRANSFORMERS]
    assert all(row[1] > 0 for row in found.rows)
    assert rows[packing.TRANSFORMERS][4] == 1.0
    filled = {name: int(row[3].rstrip("%")) for name, row in rows.items()}
    assert filled[packing.PADDED] == filled[packing.TRANSFORMERS] <= 100
    difference = re.search(r"differ by at most (\S+) nats", " ".join(found.notes))
    assert difference
    assert float(difference[1]) < 1e-5
