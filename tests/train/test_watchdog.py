"""The watchdog: records of ranks that were killed, stopped or hang, and of those that fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ds4sci.train import failures, watchdog
from tests.support import rank_processes


def records(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "failures.jsonl").read_text().splitlines()]


def fail(tmp_path: Path, file: Path, fault: str, *more: str) -> tuple[rank_processes.RankResults, dict[tuple, dict]]:
    """Train on two ranks with one fault; return exit codes and output, and the records by rank and kind."""
    arguments = ["--config", str(file), "task.name=tests.support.faulty_task", f"faults=[{fault}]", *more]
    ended = rank_processes.run(2, arguments, tmp_path, code=None)
    found = {(line["rank"], line["kind"]): line for line in records(tmp_path / "runs/run")}
    return ended, found


def test_a_stopped_rank_is_found_and_its_stack_is_recorded(tmp_path, run_file) -> None:
    file = run_file(hang_seconds=5.0, save_every=0)
    ended, found = fail(
        tmp_path, file, '{rank = 1, step = 7, phase = "evaluate", kind = "stop"}', "train.evaluate_every=7"
    )
    assert ended.codes[0] == watchdog.HANG_EXIT_CODE
    assert ended.codes[1] not in (0, None), "the stopped rank continues and loses its connections"
    stopped, waiting = found[1, "stopped"], found[0, "hang"]
    assert (stopped["step"], stopped["phase"], waiting["step"], waiting["phase"]) == (7, "evaluate", 7, "evaluate")
    assert "loop.py" in stopped["stacks"]["all threads"]
    assert "in _evaluate" in stopped["stacks"]["all threads"]
    assert "distributed.py" in waiting["stacks"]["MainThread"]
    assert "rank 1 (process" in waiting["message"]
    assert "is stopped (SIGSTOP, or a debugger)" in ended.outputs[0]
    assert ended.output.count("error:") == 1
    assert "ds4sci train --resume runs/run" in ended.outputs[0]


def test_a_killed_rank_is_recorded_by_another(tmp_path, run_file) -> None:
    ended, found = fail(tmp_path, run_file(), '{rank = 1, step = 5, phase = "save", kind = "kill"}')
    assert ended.codes == [1, -signal.SIGKILL]
    assert (found[1, "killed"]["step"], found[1, "killed"]["phase"]) == (5, "save")
    assert found[0, "lost connection"]["phase"] == "save"
    assert "checkpoint.py" in found[0, "lost connection"]["stacks"]["MainThread"]
    assert "lost the connection to another rank" in ended.outputs[0]
    assert "rank 1 (process" in ended.outputs[0]


def test_a_rank_without_a_neighbour_is_recorded_by_the_next_start(tmp_path, run_file) -> None:
    arguments = ["--config", str(run_file(steps=3)), "task.name=tests.support.faulty_task"]
    arguments.append('faults=[{rank = 0, step = 1, phase = "step", kind = "kill"}]')
    assert rank_processes.run(1, arguments, tmp_path, code=None).codes == [-signal.SIGKILL]
    run = tmp_path / "runs/run"
    assert not (run / "failures.jsonl").exists()
    rank_processes.run(1, arguments, tmp_path)
    (line,) = records(run)
    assert (line["rank"], line["step"], line["phase"], line["kind"], line["attempt"]) == (0, 1, "step", "killed", 0)
    assert [path.name for path in (run / "heartbeats").iterdir()] == ["attempt"], "an orderly end leaves no heartbeat"


def test_an_exception_is_recorded_with_its_stack(tmp_path, run_file) -> None:
    ended, found = fail(tmp_path, run_file(), '{rank = 1, step = 6, phase = "step", kind = "raise"}')
    assert ended.codes == [1, 1]
    line = found[1, "exception"]
    assert (line["step"], line["phase"]) == (6, "step")
    assert line["message"] == "RuntimeError: the faulty task broke on purpose"
    assert "faulty_task.py" in line["stacks"]["MainThread"]
    assert (1, "killed") not in found, "a rank that recorded itself was not killed"


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """Function that starts a watchdog whose exit is recorded, and ``left``, the recorded exit codes."""
    (tmp_path / "heartbeats").mkdir()
    left: list[int] = []
    started = []
    monkeypatch.setattr(watchdog.os, "_exit", lambda code: (left.append(code), started[0]._stopped.set()))

    def start(**arguments):
        one = watchdog.Watchdog(tmp_path, 0, attempt=0, ranks=range(2), **arguments)
        started.append(one)
        one.start()
        return one

    yield SimpleNamespace(start=start, left=left)
    started[0].stop()
    assert list((tmp_path / "heartbeats").glob("rank_00000")) == []


def wait_until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_beats_keep_a_rank_alive_and_their_absence_ends_it(watched, tmp_path) -> None:
    one = watched.start(limit=1.5)
    watchdog.beat("step", 4)
    began = time.monotonic()
    while time.monotonic() < began + 2.0:
        watchdog.beat()
        time.sleep(0.05)
    assert not watched.left
    wait_until(lambda: watched.left)
    assert watched.left == [watchdog.HANG_EXIT_CODE]
    (line,) = records(tmp_path)
    assert (line["rank"], line["step"], line["phase"], line["kind"]) == (0, 4, "step", "hang")
    assert "wait_until" in line["stacks"]["MainThread"]
    assert "no rank is behind" in line["message"]
    assert one.state.beats > 20


def test_a_rank_that_waits_for_a_working_one_is_left_alone(watched, tmp_path) -> None:
    watched.start(limit=1.2)
    watchdog.beat("save", 1)
    other = failures.Heartbeat.of_this_process(1, 0)
    handle = os.open(failures.heartbeat_file(tmp_path, 1), os.O_RDWR | os.O_CREAT)
    end = time.monotonic() + 2.0
    while time.monotonic() < end:
        other.progress = time.time()
        other.write(handle)
        time.sleep(0.05)
    assert not watched.left
    wait_until(lambda: watched.left)
    os.close(handle)


def test_time_in_which_the_process_itself_is_stopped_does_not_count(watched, monkeypatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: clock[0])
    watched.start(limit=10.0)
    watchdog.beat("step", 1)
    for _ in range(3):
        clock[0] += 1000.0  # as after SIGSTOP and SIGCONT
        threshold = time.perf_counter() + 0.3
        while time.perf_counter() < threshold:
            pass
    assert not watched.left


def test_the_start_may_take_longer(watched) -> None:
    watched.start(limit=0.2)
    time.sleep(0.7)
    assert not watched.left, "data are indexed and kernels compiled before the first step"
    watchdog.beat("step", 0)
    wait_until(lambda: watched.left)


def test_a_dead_neighbour_shortens_the_wait(watched, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(watchdog, "DEAD_RANK_SECONDS", 0.3)
    watched.start(limit=10.0)
    child = subprocess.Popen(["sleep", "600"])
    other = failures.Heartbeat.of_this_process(1, 0)
    other.pid, other.born, other.phase = child.pid, failures.psutil.Process(child.pid).create_time(), "step"
    handle = os.open(failures.heartbeat_file(tmp_path, 1), os.O_RDWR | os.O_CREAT)
    other.write(handle)
    watchdog.beat("step", 1)
    child.kill()
    child.wait()
    wait_until(lambda: watched.left)
    kinds = {line["rank"]: line["kind"] for line in records(tmp_path)}
    assert kinds == {0: "hang", 1: "killed"}
