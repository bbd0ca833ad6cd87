"""Scores: by hand, and as upstream's scorer computes them on logs of the benchmarks that it knows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ds4sci.mlperf.check import check
from ds4sci.mlperf.log import Layout
from ds4sci.mlperf.log_file import LogFile, find_logs
from ds4sci.mlperf.score import as_json, throughput, time_to_quality
from tests.support.mlperf_logs import change, set_duration, tiny_config, write_log

OFFICIAL = """
[benchmark]
name = "cosmoflow"
title = "stands for the 3-D network, since upstream's scorer knows four names only"
metric = "score"
target = 0.124
direction = "lower"
"""


def read(files: Sequence[Path]) -> list[LogFile]:
    return [LogFile.read(file) for file in files]


def abort(file: Path) -> None:
    change(file, lambda line: line | {"metadata": {"status": "aborted"}} if line["key"] == "run_stop" else line)


@pytest.mark.parametrize(
    ("minutes", "failed", "expected"),
    [
        ([3.0, 1.0, 8.0, 4.0, 5.0], [], 4.0),
        ([3.0, 1.0, 8.0, 4.0, 5.0], [2], 4.0),  # the failed run is the slowest
        ([3.0, 1.0, 8.0, 4.0, 5.0], [1], (4 + 5 + 8) / 3),
        ([3.0, 1.0, 8.0, 4.0, 5.0], [0, 1], None),
        ([3.0, 1.0], [], None),
        ([3.0, 1.0, 2.0], [], 2.0),
    ],
)
def test_time_to_quality(
    passing_logs: Callable[..., list[Path]], minutes: list[float], failed: list[int], expected: float | None
) -> None:
    files = passing_logs(*minutes)
    for number in failed:
        abort(files[number])
    score = time_to_quality(read(files))
    assert score.minutes == (None if expected is None else pytest.approx(expected, rel=1e-12))
    assert bool(score.void) == (expected is None)
    assert score.is_official == (expected is not None and len(minutes) == 5)
    assert [run["minutes"] is None for run in as_json(score)["runs"]] == [i in failed for i in range(len(minutes))]


def test_a_log_that_breaks_a_rule_is_a_failed_run(passing_logs: Callable[..., list[Path]]) -> None:
    files = passing_logs(3.0, 1.0, 8.0, 4.0, 5.0)
    score = time_to_quality(read(files), {files[1]: "no cache_clear"})
    assert score.runs[1].failure == "no cache_clear"
    assert score.minutes == pytest.approx((4 + 5 + 8) / 3)


def test_mixed_and_missing_logs_are_refused(tmp_path: Path) -> None:
    logs = [
        write_log(tiny_config(tmp_path, f"benchmark.name={name}"), tmp_path / name) for name in ("one", "two")
    ]  # fmt: skip
    with pytest.raises(ValueError, match="logs of one, two"):
        time_to_quality(read(logs))
    with pytest.raises(ValueError, match="no log"):
        throughput([])


def official_logs(folder: Path, minutes: Sequence[float]) -> list[Path]:
    """Logs named ``cosmoflow`` in ``folder`` that pass the rules of upstream as well."""
    folder.mkdir(parents=True)
    files = []
    for i, length in enumerate(minutes):
        config = tiny_config(folder, f"seed={i}", benchmark=OFFICIAL)
        log = write_log(config, folder / f"run{i}", [0.4, 0.12], layout=Layout(2, 4, "GPU", 8, (64, 8, 1)))
        files.append(set_duration(log, length).rename(folder / f"result_{i}.txt"))
        shutil.rmtree(folder / f"run{i}")
    return files


def test_time_to_quality_as_upstream(tmp_path: Path) -> None:
    from mlperf_logging.result_summarizer.result_summarizer import _compute_strong_score_standalone as upstream

    folder = tmp_path / "cosmoflow"
    files = official_logs(folder, [3.25, 1.125, 8.5, 4.0625, 5.75, 2.2, 9.1, 7.3, 6.6, 3.3])
    assert check(files) == []
    own = time_to_quality(read(find_logs([folder])))
    assert own.is_official
    assert own.minutes == pytest.approx(upstream("cosmoflow", "x", False, str(folder), "hpc", "3.0.0")[0], rel=1e-9)
    # A log without a required key is one that upstream drops. It accepts aborted runs.
    change(files[1], lambda line: None if line["key"] == "cache_clear" else line)
    own = time_to_quality(read(files), {files[1]: "no cache_clear"})
    assert own.minutes == pytest.approx(upstream("cosmoflow", "x", False, str(folder), "hpc", "3.0.0")[0], rel=1e-9)


def test_throughput_as_upstream(tmp_path: Path) -> None:
    from mlperf_logging.result_summarizer.result_summarizer import _compute_weak_score_standalone as upstream

    folder = tmp_path / "cosmoflow"
    files = official_logs(folder, [3.0 + i / 8 for i in range(11)])
    own = throughput(read(files))
    expected, _ = upstream("cosmoflow", "x", False, str(folder), "hpc", "3.0.0")
    assert own.minutes == pytest.approx(expected["cosmoflow:time_to_train_all"], rel=1e-9)
    assert own.models == expected["cosmoflow:number_of_models"] == 11
    assert own.instance == expected["cosmoflow:instance_scale"] == 8
    assert throughput(read(files), system=100).system == 100


def test_throughput_prunes_equal_seeds_and_failed_runs(passing_logs: Callable[..., list[Path]]) -> None:
    files = passing_logs(3.0, 1.0, 8.0, 4.0, 5.0, 6.0, 7.0)
    abort(files[0])
    change(files[1], lambda line: line | {"value": 2} if line["key"] == "seed" else line)
    score = throughput(read(files))
    assert set(score.pruned) == {files[0], files[1]}  # of seed 2, the slower one counts
    assert "seed 2 is also that of" in score.pruned[files[1]]
    assert score.models == 5
    starts = [event.time_ms for log in read(files[2:]) if (event := log.first("run_start"))]
    stops = [event.time_ms for log in read(files[2:]) if (event := log.first("run_stop"))]
    assert score.minutes == (max(stops) - min(starts)) / 60_000
    assert score.models_per_minute == 5 / score.minutes
    assert score.system == 5 * score.instance == 5  # all ran at the same time
    abort(files[2])  # the other run of seed 2 counts
    assert throughput(read(files)).models == 5
    abort(files[3])
    assert "the rules require 5" in throughput(read(files)).void
    assert throughput(read(files)).minutes is None


def test_a_folder_of_runs_and_a_resumed_run(tmp_path: Path, passing_logs: Callable[..., list[Path]]) -> None:
    files = passing_logs(3.0, 1.0, 8.0)
    runs = files[0].parents[2]
    assert find_logs([runs]) == files
    assert find_logs([runs / "0", files[0]]) == files[:1]
    resumed = write_log(tiny_config(tmp_path), runs / "0", [-0.4], resumed_from=10)
    assert resumed.name == "result_1.txt"
    score = time_to_quality(read(find_logs([runs])))
    assert score.runs[0].failure == "resumed from step 10"
    assert score.minutes == 8.0
    with pytest.raises(ValueError, match="no MLPerf log; expected"):
        find_logs([tmp_path / "nothing"])
