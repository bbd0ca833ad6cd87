"""Architectures of transformers give the original model's output or are refused (``tests/support/model_zoo.py``).

A sample by default, all of them in the nightly test.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers

from tests.support import model_zoo

SAMPLE = {
    ("esm, absolute positions", "masked"): "correct",
    ("big_bird", "masked"): "refused",
    ("modernbert", "masked"): "correct unpacked",
    ("granite", "causal"): "correct",
    ("lfm2", "causal"): "correct unpacked",
    ("deepseek_v3", "causal"): "correct",
    ("mistral", "causal"): "correct",
    ("mixtral, output_router_logits", "causal"): "refused",
}
"""Positions from padding_idx + 1, sparse and windowed attention, scaled logits, convolutions, values narrower than
keys, windows, auxiliary losses."""


def verdict_of(row: str) -> str:
    return re.split(r"[:;.] ", row)[0]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", SAMPLE, ids=lambda one: one[0])
def test_sample_is_correct_or_refused(name: tuple[str, str], tmp_path: Path) -> None:
    model_zoo.quiet()
    (given,) = [one for one in model_zoo.architectures() if one[:2] == name]
    row = model_zoo.row_of(*given, tmp_path)
    assert row.correct, row
    assert verdict_of(row.verdict) == SAMPLE[name]


def table_verdicts() -> dict[tuple[str, str], str]:
    rows = [line.strip("| ").split(" | ") for line in model_zoo.TABLE.read_text("utf-8").splitlines() if " | " in line]
    rows = [cells for cells in rows if len(cells) == 8]  # the first one is the header
    return {(cells[0], cells[1]): verdict_of(cells[7]) for cells in rows[1:]}


def test_table_lists_every_architecture() -> None:
    table = table_verdicts()
    if f"transformers {transformers.__version__}," in model_zoo.TABLE.read_text("utf-8"):
        assert set(table) == {one[:2] for one in model_zoo.architectures()}
    assert not [name for name, verdict in table.items() if verdict.startswith("fails")]


@pytest.mark.nightly
def test_every_architecture_is_correct_or_refused(tmp_path: Path) -> None:
    rows = model_zoo.examine_all([], tmp_path)
    assert not [row for row in rows if not row.correct]
    found = {(row.name, row.kind): verdict_of(row.verdict) for row in rows}
    table = table_verdicts()
    if f"transformers {transformers.__version__}," in model_zoo.TABLE.read_text("utf-8"):
        assert found == table
