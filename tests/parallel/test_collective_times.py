"""Time in collective operations: nested calls count once, waits count, and the functions are restored."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch.distributed as dist

from ds4sci.parallel.collective_times import CollectiveTimes


class Work:
    def wait(self) -> str:
        time.sleep(0.02)
        return "done"

    def is_completed(self) -> bool:
        return True


def test_times_of_calls_and_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_reduce(*args: Any, **kwargs: Any) -> Work | None:
        time.sleep(0.01)
        return Work() if kwargs.get("async_op") else None

    def all_gather(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.01)
        return dist.all_reduce()  # an operation that is made of others

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(dist, "all_gather", all_gather)
    times = CollectiveTimes()
    with times:
        assert dist.all_reduce() is None
        assert 0.01 <= times.seconds < 0.2
        dist.all_gather()
        assert times.calls == 2
        assert 0.03 <= times.reset() < 0.3
        work: Any = dist.all_reduce(async_op=True)
        assert work.is_completed()
        assert work.wait() == "done"
        assert 0.03 <= times.reset() < 0.3
        assert times.seconds == 0
    assert dist.all_reduce is all_reduce
    with pytest.raises(RuntimeError), times:
        raise RuntimeError
    assert dist.all_gather is all_gather, "restored after an error"
