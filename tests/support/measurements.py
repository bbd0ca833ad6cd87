"""Check of a benchmark's result: its JSON round trip and its table."""

from __future__ import annotations

import json
from pathlib import Path

from ds4sci.bench import tables
from ds4sci.bench.measurement import Measurement


def saved_rows(measurement: Measurement, folder: Path) -> list[list[object]]:
    """Save the measurement, check the JSON and its table, and return the rows."""
    saved = json.loads(measurement.save(folder).read_text(encoding="utf-8"))
    assert saved["machine"]["cores"] >= 1
    assert saved["machine"]["commit"]
    assert all(len(row) == len(saved["columns"]) for row in saved["rows"])
    assert f"**{saved['title']}**" in tables.section(saved)
    return saved["rows"]
