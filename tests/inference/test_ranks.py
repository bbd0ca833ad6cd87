"""Processes that share work on a trained run: results in order, and a rank that fails while another waits for it."""

from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist

from ds4sci.inference import ranks
from ds4sci.train.distributed import DistributedContext
from tests.support import rank_processes


def total(context: DistributedContext, offset: int) -> tuple[int, float]:
    return context.rank, context.all_reduce_sum(context.rank + offset)


def fail_on_one(context: DistributedContext) -> None:
    if context.rank == 1:
        raise ValueError("sample 7 has nothing to predict")
    dist.all_reduce(torch.zeros(1))


def test_results_are_in_order_and_the_first_failure_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "get_context", rank_processes.forked_from_server)
    assert ranks.run_ranks(total, 2, 10) == [(0, 21.0), (1, 21.0)]
    began = time.monotonic()
    with pytest.raises(ValueError, match="sample 7 has nothing to predict"):
        ranks.run_ranks(fail_on_one, 2)
    assert time.monotonic() - began < 60
