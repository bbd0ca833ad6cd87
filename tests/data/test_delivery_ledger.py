"""Ledger of delivered samples: order over ranks, truncation, and ledgers that do not tell what was delivered."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from ds4sci.data.delivery_ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Three steps of 4 samples on two ranks; position 3 and 10 are late."""
    ledger = Ledger(tmp_path / "ledger")
    for step, parts in enumerate((([0, 2], [1, 4]), ([5, 7], [6, 3]), ([8, 9], [11, 13]))):
        for rank, positions in enumerate(parts):
            ledger.append(step, rank, 2, 1, positions, [f"s{position}" for position in positions])
    return ledger


def test_steps_have_the_order_of_the_global_batch(ledger: Ledger) -> None:
    entries = list(ledger.steps())
    assert [entry.positions for entry in entries] == [(0, 1, 2, 4), (5, 6, 7, 3), (8, 11, 9, 13)]
    assert entries[1].ids == ("s5", "s6", "s7", "s3")


def test_remaining_is_the_order_without_the_ledger(ledger: Ledger) -> None:
    assert list(islice(ledger.remaining(3, 4), 4)) == [10, 12, 14, 15]
    assert list(islice(ledger.remaining(2, 4), 4)) == [8, 9, 10, 11]
    assert list(islice(ledger.remaining(1, 4), 4)) == [3, 5, 6, 7]


def test_strict_steps_before_the_ledger_are_delivered(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert list(islice(ledger.remaining(5, 4), 2)) == [20, 21]
    ledger.append(5, 0, 1, 4, [20, 23, 22, 25], list("abcd"))
    assert list(islice(ledger.remaining(6, 4), 3)) == [21, 24, 26]


def test_truncation_removes_later_steps_and_torn_lines(ledger: Ledger) -> None:
    file = ledger.folder / "rank_0001.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole[:-9])  # killed within a write
    with pytest.raises(ValueError, match=r"step 2 has the lines of the ranks \[0\]; expected those of ranks 0 to 1"):
        list(ledger.steps())
    ledger.truncate(2)
    assert len(list(ledger.steps())) == 2
    assert file.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    ledger.truncate(0)
    assert not ledger.exists()
    ledger.sync(0)
    ledger.sync(7)  # a rank without a file


def test_ledgers_that_leave_samples_unknown_are_refused(ledger: Ledger) -> None:
    with pytest.raises(ValueError, match="ends after step 2, and the checkpoint is that of step 5"):
        ledger.remaining(5, 4)
    with pytest.raises(ValueError, match="step 0 has 4 samples; expected 8"):
        ledger.remaining(3, 8)
    ledger.append(3, 0, 1, 4, [10, 12, 8, 14], list("abcd"))
    with pytest.raises(ValueError, match="step 3 has the position 8 a second time"):
        ledger.remaining(4, 4)
    ledger.truncate(3)
    ledger.append(4, 0, 1, 4, [10, 12, 14, 15], list("abcd"))
    with pytest.raises(ValueError, match="the lines of step 3 are missing"):
        ledger.remaining(5, 4)
    (ledger.folder / "rank_0000.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match=r"rank_0000\.jsonl, line 1: not a line of a ledger"):
        ledger.remaining(5, 4)
