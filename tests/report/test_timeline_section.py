"""Timeline in the report: bins of a curve, the section of a real run, many ranks, killed runs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from ds4sci.config.run_file import RunConfig
from ds4sci.monitor.event_log import log_file
from ds4sci.monitor.timeline import read_timeline
from ds4sci.report.run_report import write_report
from ds4sci.report.timeline_figure import binned, panels_of
from ds4sci.report.timeline_section import events_text, timeline_parts


def test_bins_hold_the_mean_of_a_curve() -> None:
    curve = [(0.0, 0.0), (2.0, 4.0), (3.0, 1.0)]  # 4 until 2 s, then 1 until 3 s
    means = binned(curve, np.array([0.0, 1.0, 2.5, 3.5, 4.5]))
    np.testing.assert_allclose(means, [4.0, (4 * 1 + 1 * 0.5) / 1.5, 1.0, math.nan])
    np.testing.assert_allclose(binned(curve, np.linspace(0, 3, 2)), [3.0])
    np.testing.assert_allclose(binned([(5.0, 2.0)], np.array([0.0, 5.0, 10.0])), [2.0, math.nan])


def test_the_report_of_a_run_shows_its_stages(tmp_path: Path) -> None:
    from ds4sci.train.run import train

    overrides = [
        "train.steps=3", "train.evaluate_every=2", "train.monitor_seconds=0.2", f"train.output={str(tmp_path)!r}",
        "model.branch=[8]", "model.trunk=[8]", "model.latent=4", "data.points=8", "data.boundary_points=4",
        "data.valid_functions=2",
    ]  # fmt: skip
    run = train(RunConfig.load("configs/operator/reaction_diffusion.toml", overrides)).run
    timeline = read_timeline(run)
    assert timeline is not None
    assert [(s.name, s.depth) for s in timeline.stages] == [
        ("init", 0), ("run", 0), ("train", 1), ("eval", 1), ("save", 1), ("train", 1), ("eval", 1), ("save", 1)
    ]  # fmt: skip
    assert timeline.stages[3].values["step"] == 2
    assert timeline.stages[3].values["score"] < 0
    assert all(s.counted["cpu_s"] >= 0 and not s.is_open for s in timeline.stages)
    assert timeline.cost[0, 0] < 0.05
    total = sum(one["seconds"] for one in timeline.totals().values())
    outer = [s for s in timeline.stages if s.depth == 0]
    assert total == pytest.approx(sum(s.seconds for s in outer))
    page = write_report(run).read_text(encoding="utf-8")
    assert "<h2>Timeline</h2>" in page
    text = "".join(timeline_parts(run))
    for words in ("<td>train</td>", "<td>eval</td>", "<td>save</td>", "end eval", "begin train  step=2"):
        assert words in text


def test_a_run_without_monitor_has_no_timeline(tmp_path: Path) -> None:
    assert timeline_parts(tmp_path) == []


def test_many_ranks_with_gpus_and_a_kill(tmp_path: Path) -> None:
    for rank in range(20):
        file = log_file(tmp_path, rank)
        file.parent.mkdir(exist_ok=True)
        head = {"rank": rank, "attempt": 0}
        lines = [head | {"kind": "begin", "name": "run", "time": 0.0, "on": "host", "counters": {}}]
        for second in range(1, 20):
            counters = {"cpu_s": second * 0.9, "rss": 1e9, "gpu_memory": 2e9, "gpu_use": 0.8, "read": 0, "written": 0}
            lines.append(head | {"kind": "sample", "time": second} | counters)
        lines.append(head | {"kind": "begin", "name": "a stage of mine", "time": 3.0, "on": "device"})
        lines.append(head | {"kind": "end", "name": "a stage of mine", "time": 7.0, "on": "device"})
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    timeline = read_timeline(tmp_path)
    assert timeline is not None
    assert len(panels_of(timeline)) == 6
    text = "".join(timeline_parts(tmp_path))
    assert "the first 16 of 20 ranks" in text
    assert "killed within a stage" in text
    assert "seconds on the GPU" in text


def test_long_lists_of_events_are_cut(tmp_path: Path) -> None:
    file = log_file(tmp_path, 0)
    file.parent.mkdir()
    events = [
        {"rank": 0, "attempt": 0, "kind": kind, "name": "train", "on": "host", "time": 10.0 + n}
        for n in range(500)
        for kind in ("begin", "end")
    ]
    file.write_text("".join(json.dumps(event) + "\n" for event in events))
    lines = events_text(tmp_path, 0).splitlines()
    assert len(lines) == 301
    assert lines[0] == "      0.00 s  begin train"
    assert "700 lines left out" in lines[150]
    assert lines[-1] == "    499.00 s  end train"
