"""Architectures of transformers, each right or refused: a sample, and by night all of them
(``tests/support/model_zoo.py``)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers

from tests.support import model_zoo

SAMPLE = {
    ("esm, absolute positions", "masked"): "right",
    ("big_bird", "masked"): "refused",
    ("modernbert", "masked"): "right, `data.packing = false`",
    ("granite", "causal"): "right",
    ("lfm2", "causal"): "right, `data.packing = false`",
    ("deepseek_v3", "causal"): "right",
    ("mistral", "causal"): "right",
    ("mixtral, output_router_logits", "causal"): "refused",
}
"""Positions from padding_idx + 1, sparse and windowed attention, scaled logits, convolutions, values narrower than
keys, windows, further losses."""


def verdict_of(row: str) -> str:
    return re.split(r"[:;.] ", row)[0]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", SAMPLE, ids=lambda one: one[0])
def test_a_sample_is_right_or_refused(name: tuple[str, str], tmp_path: Path) -> None:
    model_zoo.quiet()
    (given,) = [one for one in model_zoo.architectures() if one[:2] == name]
    row = model_zoo.row_of(*given, tmp_path)
    assert row.right, row
    assert verdict_of(row.verdict) == SAMPLE[name]


def committed() -> dict[tuple[str, str], str]:
    lines = [line.strip("| ").split(" | ") for line in model_zoo.TABLE.read_text("utf-8").splitlines() if " | " in line]
    return {(cells[0], cells[1]): verdict_of(cells[7]) for cells in lines[1:]}


def test_the_table_has_every_architecture() -> None:
    table = committed()
    if f"transformers {transformers.__version__}," in model_zoo.TABLE.read_text("utf-8"):
        assert set(table) == {one[:2] for one in model_zoo.architectures()}
    assert not [name for name, verdict in table.items() if verdict.startswith("fails")]


@pytest.mark.nightly
def test_every_architecture_is_right_or_refused(tmp_path: Path) -> None:
    rows = model_zoo.examine_all([], tmp_path)
    assert not [row for row in rows if not row.right]
    found = {(row.name, row.kind): verdict_of(row.verdict) for row in rows}
    table = committed()
    if f"transformers {transformers.__version__}," in model_zoo.TABLE.read_text("utf-8"):
        assert found == table
