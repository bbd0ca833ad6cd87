"""Timeline of a run: the events and samples of all ranks, merged.

Times are those of each machine's clock. The ranks of one machine share it; machines of a cluster are assumed to be
synchronised by NTP, to about a millisecond. A run that was resumed has one attempt after another: the pauses between
them are cut out, and the times are seconds since the run began.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ds4sci.monitor.event_log import FOLDER, LINE_KEYS, read_events

COUNTED = ("cpu_s", "read", "written")
"""Counters of a process of which a stage has a difference."""
RATES = {
    "cores": "cpu_s", "read": "read", "written": "written", "machine_cores": "machine_cpu_s",
    "disk_read": "disk_read", "disk_written": "disk_written",
}  # fmt: skip
"""Rate per second → counter."""
LEVELS = ("rss", "available", "gpu_memory", "gpu_reserved", "gpu_total", "gpu_use")


@dataclass
class Stage:
    """One stage of a rank.

    begin, end  seconds since the run began; ``end`` is the last sign of life of the process if the stage never ended
    depth       number of stages around it
    on          ``host`` or ``device``
    is_open     whether the process ended within the stage
    values      values of its begin and its end
    counted     difference of each of ``COUNTED`` between begin and end
    """

    name: str
    rank: int
    attempt: int
    begin: float
    end: float
    depth: int
    on: str = "host"
    is_open: bool = False
    values: dict[str, Any] = field(default_factory=dict)
    counted: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return self.end - self.begin


@dataclass
class Message:
    """An event without duration."""

    name: str
    rank: int
    time: float
    values: dict[str, Any]


Curve = list[tuple[float, float]]
"""Points (seconds since the run began, value). A rate belongs to the time since the point before."""


@dataclass
class Timeline:
    """All ranks of a run on one time axis.

    ranks    numbers of the ranks
    hosts    rank → machine of its last attempt
    seconds  length of the axis
    starts   seconds at which each attempt begins
    stages   in order of their begin
    curves   (rank, name) → values of a rank, or of its machine for the names that begin with ``machine_``, ``disk_`` or
             ``net_`` and for ``available``: bytes, bytes per second, cores
    cost     (rank, attempt) → CPU time of the sampling thread relative to wall time
    """

    ranks: list[int]
    hosts: dict[int, str]
    seconds: float
    starts: list[float]
    stages: list[Stage]
    messages: list[Message]
    curves: dict[tuple[int, str], Curve]
    cost: dict[tuple[int, int], float]

    def names(self) -> list[str]:
        """Names of the curves."""
        return list(dict.fromkeys(name for _, name in self.curves))

    def totals(self, *, on: str = "host") -> dict[str, dict[str, float]]:
        """Sums over all stages of a name: ``count``, ``seconds`` and ``COUNTED``, without the stages nested in them.

        Sums over the ranks; divide by the number of ranks for a mean.
        """
        found: dict[str, dict[str, float]] = {}
        for (_, _), group in itertools.groupby(
            sorted((s for s in self.stages if s.on == on), key=lambda s: (s.rank, s.attempt)),
            key=lambda s: (s.rank, s.attempt),
        ):
            around: list[Stage] = []
            for stage in sorted(group, key=lambda s: (s.begin, s.depth)):
                del around[stage.depth :]
                figures = {"seconds": stage.seconds} | stage.counted
                own = found.setdefault(stage.name, {"count": 0})
                own["count"] += 1
                for key, value in figures.items():
                    own[key] = own.get(key, 0.0) + value
                    if around and (key == "seconds" or key in around[-1].counted):
                        found[around[-1].name][key] -= value
                around.append(stage)
        return found


def read_timeline(run: Path) -> Timeline | None:
    """The timeline of the run folder ``run``, or None if no rank has written anything."""
    events = [event for file in sorted((run / FOLDER).glob("rank_*.jsonl")) for event in read_events(file)]
    if not events:
        return None
    starts, shifts, seconds = _axis(events)
    merged = Timeline(sorted({event["rank"] for event in events}), {}, seconds, starts, [], [], {}, {})
    ordered = sorted(events, key=lambda event: (event["attempt"], event["rank"], event["time"]))
    for (attempt, rank), group in itertools.groupby(ordered, key=lambda event: (event["attempt"], event["rank"])):
        _merge(merged, rank, attempt, list(group), shifts[attempt])
    merged.stages.sort(key=lambda stage: (stage.begin, stage.rank, stage.depth))
    merged.messages.sort(key=lambda message: message.time)
    return merged


def _axis(events: list[dict[str, Any]]) -> tuple[list[float], dict[int, float], float]:
    """Begin of each attempt on the axis, attempt → seconds to subtract from its times, and the length of the axis."""
    at, starts, shifts = 0.0, [], {}
    for attempt in sorted({event["attempt"] for event in events}):
        times = [event["time"] for event in events if event["attempt"] == attempt]
        starts.append(at)
        shifts[attempt] = min(times) - at
        at += max(times) - min(times)
    return starts, shifts, at


def _merge(merged: Timeline, rank: int, attempt: int, events: list[dict[str, Any]], shift: float) -> None:
    """Add the events of one rank in one attempt, in order of their times."""
    for on in ("host", "device"):
        merged.stages += _stages([e for e in events if e.get("on") == on], rank, attempt, shift, events[-1]["time"])
    for event in events:
        if event["kind"] == "message":
            values = {key: value for key, value in event.items() if key not in LINE_KEYS}
            name = str(event.get("name", ""))
            merged.messages.append(Message(name, rank, event["time"] - shift, values))
            if name == "monitor":
                merged.hosts[rank] = str(values.get("host", ""))
            elif name == "monitor_cost" and values.get("seconds"):
                merged.cost[rank, attempt] = values["cpu_seconds"] / values["seconds"]
    samples = [event for event in events if event["kind"] == "sample"]
    for name, points in _curves(samples, shift):
        merged.curves.setdefault((rank, name), []).extend(points)


def _stages(events: list[dict[str, Any]], rank: int, attempt: int, shift: float, last: float) -> list[Stage]:
    """Stages from their begins and ends. An end without a begin is left out."""
    found: list[Stage] = []
    open_stages: list[tuple[Stage, dict[str, float]]] = []
    for event in events:
        name, counters = str(event.get("name", "")), event.get("counters") or {}
        values = {key: value for key, value in event.items() if key not in LINE_KEYS}
        if event["kind"] == "begin":
            stage = Stage(
                name, rank, attempt, event["time"] - shift, last - shift, len(open_stages), event["on"], True, values
            )
            open_stages.append((stage, counters))
            found.append(stage)
        elif event["kind"] == "end" and any(stage.name == name for stage, _ in open_stages):
            while True:  # stages within it that have no end of their own end with it
                stage, before = open_stages.pop()
                stage.end = event["time"] - shift
                if stage.name == name:
                    break
            stage.is_open = False
            stage.values |= values
            stage.counted = {key: counters[key] - before[key] for key in COUNTED if key in before and key in counters}
    return found


def _curves(samples: list[dict[str, Any]], shift: float) -> Iterable[tuple[str, Curve]]:
    """Yield the curves of the samples of one rank in one attempt."""
    for name in LEVELS:
        points = [(sample["time"] - shift, float(sample[name])) for sample in samples if name in sample]
        if points:
            yield name, points
    for name, key in RATES.items():
        if rates := _rates([(sample["time"] - shift, float(sample[key])) for sample in samples if key in sample]):
            yield name, rates
    for interface in dict.fromkeys(one for sample in samples for one in sample.get("net", {})):
        for way, place in (("received", 0), ("sent", 1)):
            counts = [
                (sample["time"] - shift, float(sample["net"].get(interface, (0, 0))[place]))
                for sample in samples
                if "net" in sample
            ]
            if rates := _rates(counts):
                yield f"net_{interface}_{way}", rates


def _rates(counts: Curve) -> Curve:
    """Rate per second between two readings of a counter, at the end of each interval. A counter that was reset, or a
    child process that has ended, gives 0."""
    return [
        (b, max(0.0, (after - before) / (b - a))) for (a, before), (b, after) in itertools.pairwise(counts) if b > a
    ]
