"""Comparison of two checkouts: ``ds4sci bench commits``."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds4sci.bench import commits


@pytest.mark.nightly
def test_two_checkouts_take_turns() -> None:
    root = str(Path(__file__).resolve().parents[2])
    found = commits.compare(root, only=["layer_norm, c 128, n 128, float32"], rounds=1)
    assert [row["case"].rpartition(", ")[2] for row in found["rows"]] == ["forward", "forward + backward"]
    assert found["geometric_mean"].keys() >= {"seconds", "cpu_seconds"}
    assert found["worst"]["seconds"]["ratio"] >= found["geometric_mean"]["seconds"] > 0
    with pytest.raises(ValueError, match="matches no case"):
        commits.compare(root, only=["convolution"])


def test_unknown_commit_is_rejected() -> None:
    with pytest.raises(ValueError, match="--against nowhere: not a folder and not a commit"):
        commits.compare("nowhere")
