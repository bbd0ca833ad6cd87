"""The metrics file of a run and the sums of losses over micro-batches and ranks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from ds4sci.train.metric_log import LossSums, MetricLog


def test_metrics_are_truncated_after_the_checkpoint_and_incomplete_lines_removed(tmp_path: Path) -> None:
    file = MetricLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        file.write("train", step, loss=float("nan"), values=np.arange(2), tensor=torch.tensor(1.5))
    with file.path.open("a") as handle:
        handle.write('{"kind": "train", "st')
    file.truncate_after(2)
    lines = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0] == {"kind": "train", "step": 1, "loss": "nan", "values": [0, 1], "tensor": 1.5}


def test_means_are_over_steps_and_the_micro_batches_that_had_the_term() -> None:
    """Two ranks: a step of two micro-batches each, shares 1/8, 3/8 and 1/8, 3/8; then one of one each, 1/4 and 3/4."""
    one, two = LossSums(), LossSums()
    one.add({"loss": 8.0}, 1 / 8)
    one.add({"loss": 16.0, "clash": 6.0}, 3 / 8)
    two.add({"loss": 24.0}, 1 / 8)
    two.add({"loss": 8.0, "clash": 2.0}, 3 / 8)
    assert LossSums.mean([one, two]) == {"loss": 1 + 6 + 3 + 3, "clash": 4.0}
    one.add({"loss": 4.0}, 1 / 4)
    two.add({"loss": 8.0}, 3 / 4)
    assert LossSums.mean([one, two]) == {"loss": (13 + 7) / 2, "clash": 4.0}
    kept = json.loads(json.dumps([one.state(), two.state()]))
    again = [LossSums(), LossSums()]
    for rank, sums in enumerate(again):
        sums.restore(kept, rank, 2)
    assert [sums.state() for sums in again] == kept
    more = [LossSums(), LossSums(), LossSums()]
    for rank, sums in enumerate(more):
        sums.restore(kept, rank, 3)
    assert LossSums.mean(more) == LossSums.mean([one, two])
    nothing = LossSums()
    nothing.add({"loss": 0.0}, 0.0)
    assert LossSums.mean([nothing]) == LossSums.mean([LossSums()]) == {}


def test_ranks_that_share_rows_add_up_to_the_mean() -> None:
    parts = [LossSums(), LossSums()]
    for rank, sums in enumerate(parts):
        sums.add({"loss": 1.0 + rank}, 1.0, parts=2)
    assert LossSums.mean(parts) == {"loss": 3.0}
