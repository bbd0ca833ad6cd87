"""Packed rows and padded batches are the same documents, and the same numbers."""

from __future__ import annotations

import re

import pytest

from ds4sci.bench import packing


@pytest.mark.slow
def test_packed_beside_padded() -> None:
    small = [
        "model.config.hidden_size=32", "model.config.num_hidden_layers=2", "model.config.num_attention_heads=4",
        "model.config.intermediate_size=32",
    ]  # fmt: skip
    found = packing.measure("configs/lm/protein_tiny.toml", small, documents=20, together=4, rounds=1)
    rows = {row[0]: row for row in found.rows}
    assert list(rows) == [packing.PACKED, packing.PADDED, packing.STOCK]
    assert all(row[1] > 0 for row in found.rows)
    assert rows[packing.STOCK][4] == 1.0
    filled = {name: int(row[3].rstrip("%")) for name, row in rows.items()}
    assert filled[packing.PADDED] == filled[packing.STOCK] <= 100
    apart = re.search(r"differ by at most (\S+) nats", " ".join(found.notes))
    assert apart
    assert float(apart[1]) < 1e-5
