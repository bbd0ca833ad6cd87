"""Counters and stage times of a GPU, with a stand-in for ``torch.cuda``: its work is queued and finishes later."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ds4sci.monitor import gpu
from ds4sci.monitor.event_log import log_file, read_events
from ds4sci.monitor.rank_monitor import RankMonitor


class Cuda:
    """GPU 1 of a machine. ``now`` is the time of its queue in seconds, ``done`` up to where it has worked."""

    def __init__(self) -> None:
        self.now, self.done = 0.0, float("inf")

    def is_initialized(self) -> bool:
        return True

    def current_device(self) -> int:
        return 1

    def memory_allocated(self, index: int) -> int:
        return 1000 + index

    def memory_reserved(self, index: int) -> int:
        return 2000 + index

    @contextlib.contextmanager
    def device(self, index: int) -> Iterator[None]:
        assert index == 1
        yield

    def Event(self, *, enable_timing: bool) -> Any:
        cuda = self

        class Event:
            at = float("nan")

            def record(self) -> None:
                self.at = cuda.now

            def synchronize(self) -> None:
                cuda.done = max(cuda.done, self.at)

            def query(self) -> bool:
                return cuda.done >= self.at

            def elapsed_time(self, other: Any) -> float:
                return 1e3 * (other.at - self.at)

        return Event()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    made = Cuda()
    monkeypatch.setattr(gpu, "loaded_cuda", lambda: made)
    return made


def test_nothing_is_read_without_cuda() -> None:
    counters, timer = gpu.GpuCounters(), gpu.DeviceTimer()
    counters.find()
    timer.begin("run")
    timer.end()
    assert counters.read() == {}
    assert timer.finished() == []


def test_memory_is_that_of_the_gpu_of_the_training_thread(cuda: Cuda) -> None:
    counters = gpu.GpuCounters()
    assert counters.read() == {}, "the GPU is unknown before a stage begins"
    counters.find()
    assert counters.read() == {"gpu_memory": 1001, "gpu_reserved": 2001}


def test_stages_have_the_times_of_the_gpu(cuda: Cuda) -> None:
    timer = gpu.DeviceTimer()
    timer.begin("run")  # at 0 s
    cuda.now = 2.0
    timer.begin("train")
    cuda.now = 5.0
    timer.end()
    cuda.now = 6.0
    timer.end()
    cuda.done = 5.0
    ((stage, first, last),) = timer.finished()
    assert (stage, round(last - first, 6)) == ("train", 3.0)
    assert timer.finished(patience=0.02) == []
    cuda.done = 6.0
    ((stage, first, last),) = timer.finished()
    assert (stage, round(last - first, 6)) == ("run", 6.0)


def test_device_events_are_in_the_same_file(cuda: Cuda, tmp_path: Path) -> None:
    monitor = RankMonitor(tmp_path, 0, seconds=10, samples_machine=False)
    monitor.begin("train", {})
    cuda.now = 4.0
    monitor.end("train", {})
    monitor.close()
    events = [event for event in read_events(log_file(tmp_path, 0)) if event["kind"] in ("begin", "end")]
    assert [(event["on"], event["kind"]) for event in events] == [
        ("host", "begin"), ("host", "end"), ("device", "begin"), ("device", "end"),
    ]  # fmt: skip
    assert events[3]["time"] - events[2]["time"] == pytest.approx(4.0, abs=1e-3)
    assert events[1]["counters"]["gpu_memory"] == 1001
