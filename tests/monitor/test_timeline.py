"""Timeline merged from the files of several ranks: stages, rates, attempts, killed processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ds4sci.monitor.event_log import log_file
from ds4sci.monitor.timeline import read_timeline

Event = dict[str, Any]


def write(run: Path, rank: int, *events: Event) -> None:
    file = log_file(run, rank)
    file.parent.mkdir(exist_ok=True)
    lines = (json.dumps({"rank": rank, "attempt": 0} | event) for event in events)
    with file.open("a") as handle:
        handle.write("".join(f"{line}\n" for line in lines))


def stage(kind: str, name: str, time: float, **more: Any) -> Event:
    return {"kind": kind, "name": name, "time": time, "on": "host"} | more


def sample(time: float, **counters: Any) -> Event:
    return {"kind": "sample", "time": time} | counters


def test_no_monitor_gives_no_timeline(tmp_path: Path) -> None:
    assert read_timeline(tmp_path) is None


def test_ranks_are_merged_on_one_axis(tmp_path: Path) -> None:
    for rank, shift in ((0, 0.0), (1, 0.5)):
        write(
            tmp_path, rank,
            {"kind": "message", "name": "monitor", "time": 100 + shift, "host": f"node{rank}"},
            stage("begin", "run", 101 + shift, counters={"cpu_s": 1.0, "read": 10}),
            stage("begin", "train", 102 + shift, counters={"cpu_s": 1.5, "read": 10}, step=3),
            stage("begin", "save", 104 + shift, counters={"cpu_s": 3.0, "read": 10}),
            stage("end", "save", 105 + shift, counters={"cpu_s": 3.1, "read": 10}),
            stage("end", "train", 107 + shift, counters={"cpu_s": 6.1, "read": 50}, loss=0.5),
            stage("end", "run", 108 + shift, counters={"cpu_s": 6.2, "read": 50}),
            {"kind": "message", "name": "monitor_cost", "time": 108 + shift, "cpu_seconds": 0.004, "seconds": 8.0},
        )  # fmt: skip
    timeline = read_timeline(tmp_path)
    assert timeline is not None
    assert timeline.ranks == [0, 1]
    assert timeline.hosts == {0: "node0", 1: "node1"}
    assert timeline.seconds == pytest.approx(8.5)
    own = {s.name: s for s in timeline.stages if s.rank == 1}
    assert [(s.name, s.begin, s.end, s.depth) for s in own.values()] == [
        ("run", 1.5, 8.5, 0), ("train", 2.5, 7.5, 1), ("save", 4.5, 5.5, 2)
    ]  # fmt: skip
    assert own["train"].values == {"step": 3, "loss": 0.5}
    assert own["train"].counted == pytest.approx({"cpu_s": 4.6, "read": 40})
    assert not any(s.is_open for s in timeline.stages)
    assert timeline.cost == {(0, 0): 0.0005, (1, 0): 0.0005}
    totals = timeline.totals()
    assert totals["save"] == pytest.approx({"count": 2, "seconds": 2.0, "cpu_s": 0.2, "read": 0})
    assert totals["train"] == pytest.approx({"count": 2, "seconds": 8.0, "cpu_s": 9.0, "read": 80})
    assert totals["run"] == pytest.approx({"count": 2, "seconds": 4.0, "cpu_s": 1.2, "read": 0})


def test_rates_are_differences_of_counters(tmp_path: Path) -> None:
    net = [{"lo": [0, 0]}, {"lo": [4000, 4000], "eth0": [0, 600]}, {"lo": [4000, 5000], "eth0": [10, 600]}]
    times = (10.0, 12.0, 16.0)
    cpu, rss = (1.0, 4.0, 2.0), (5e6, 6e6, 7e6)
    write(
        tmp_path, 0,
        *(sample(t, cpu_s=c, rss=r, net=n) for t, c, r, n in zip(times, cpu, rss, net, strict=True)),
    )  # fmt: skip
    timeline = read_timeline(tmp_path)
    assert timeline is not None
    assert timeline.curves[0, "cores"] == [(2.0, 1.5), (6.0, 0.0)], "a counter that was reset gives no negative rate"
    assert timeline.curves[0, "rss"] == [(0.0, 5e6), (2.0, 6e6), (6.0, 7e6)]
    assert timeline.curves[0, "net_lo_sent"] == [(2.0, 2000.0), (6.0, 250.0)]
    assert timeline.curves[0, "net_eth0_sent"] == [(2.0, 300.0), (6.0, 0.0)]
    assert (0, "disk_read") not in timeline.curves


def test_pauses_between_attempts_are_cut_out(tmp_path: Path) -> None:
    write(tmp_path, 0, stage("begin", "run", 100.0), sample(101.0, cpu_s=5.0), sample(103.0, cpu_s=7.0))
    later = [stage("begin", "run", 9000.0), sample(9001.0, cpu_s=1.0), stage("end", "run", 9002.0)]
    write(tmp_path, 0, *({**event, "attempt": 1} for event in later))
    write(tmp_path, 1, *({**event, "attempt": 1, "time": event["time"] + 1} for event in later))
    timeline = read_timeline(tmp_path)
    assert timeline is not None
    assert timeline.starts == [0.0, 3.0]
    assert timeline.seconds == pytest.approx(6.0)
    runs = [(s.rank, s.attempt, s.begin, s.end, s.is_open) for s in timeline.stages]
    assert runs == [(0, 0, 0.0, 3.0, True), (0, 1, 3.0, 5.0, False), (1, 1, 4.0, 6.0, False)]
    assert timeline.curves[0, "cores"] == [(3.0, 1.0)], "no rate across a pause"


def test_a_stage_without_end_ends_with_the_one_around_it(tmp_path: Path) -> None:
    write(
        tmp_path, 0, stage("end", "lost", 0.0), stage("begin", "run", 1.0), stage("begin", "train", 2.0),
        stage("end", "run", 4.0), stage("begin", "eval", 5.0), sample(8.0),
    )  # fmt: skip
    timeline = read_timeline(tmp_path)
    assert timeline is not None
    assert [(s.name, s.end, s.depth, s.is_open) for s in timeline.stages] == [
        ("run", 4.0, 0, False), ("train", 4.0, 1, True), ("eval", 8.0, 0, True)
    ]  # fmt: skip
