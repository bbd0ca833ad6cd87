"""Submission folders, and what upstream's checkers report about them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ds4sci.mlperf.log_file import LogFile
from ds4sci.mlperf.score import throughput, time_to_quality
from ds4sci.mlperf.submission import build, check_folder
from ds4sci.mlperf.system import FIELDS, UNKNOWN
from tests.mlperf.test_score import official_logs
from tests.support.mlperf_logs import change


def test_a_folder_of_an_own_benchmark(tmp_path: Path, passing_logs: Callable[..., list[Path]]) -> None:
    files = passing_logs(3.0, 1.0, 8.0, 4.0, 5.0, 6.0)
    run = files[0].parents[1]
    (run / "config.json").write_text("{}")
    logs = [LogFile.read(file) for file in files]
    change(files[5], lambda line: line | {"value": 4} if line["key"] == "seed" else line)
    many = throughput([LogFile.read(file) for file in files])
    out = tmp_path / "submission"
    system = build(out, "laptop", time_to_quality(logs[:5]), many, files)
    strong, weak = (out / "results" / "laptop" / kind / "tiny" for kind in ("strong", "weak"))
    assert [(strong / f"result_{i}.txt").read_bytes() for i in range(5)] == [file.read_bytes() for file in files[:5]]
    assert len(list(weak.glob("result_*.txt"))) == 5
    assert len(list((weak / "pruned_results").iterdir())) == 1
    assert (out / "benchmarks" / "tiny" / "implementations" / "ds4sci" / "config.json").read_text() == "{}"
    fields = json.loads(system.read_text())
    assert tuple(fields) == FIELDS
    assert all(isinstance(value, str) for value in fields.values())
    assert fields["submitter"] == "unnamed"
    assert fields["accelerator_model_name"] == "none"
    assert fields["host_processor_model_name"] == UNKNOWN  # the logs are of host node0
    findings = check_folder(out)
    by_source = {finding.source: finding for finding in findings}
    assert "Skipping benchmark: tiny" in by_source["package_checker"].message
    assert "checks the names cosmoflow" in by_source["package_checker"].reason
    assert "cooling" in "".join(finding.reason for finding in findings)
    assert any("another host" in finding.message for finding in findings)


def test_upstream_finds_what_is_missing(tmp_path: Path) -> None:
    files = official_logs(tmp_path / "logs", [3.0, 1.0, 8.0])
    out = tmp_path / "submission"
    system = build(out, "s", time_to_quality([LogFile.read(file) for file in files]))
    fields = json.loads(system.read_text())
    del fields["cooling"]
    system.write_text(json.dumps(fields))
    for number in range(2):
        log = out / "results" / "s" / "strong" / "cosmoflow" / f"result_{number}.txt"
        change(log, lambda line: None if line["key"] == "cache_clear" else line)
    findings = check_folder(out)
    texts = [str(finding) for finding in findings]
    for expected in ("found 3, expected 10", "the rules require this number of runs", "Missing field cooling",
                     "occurrence of 'cache_clear'", "directory cannot be accepted"):  # fmt: skip
        assert any(expected in text for text in texts), (expected, texts)
    assert not [text for text in texts if "not known to ds4sci" in text]


def test_bad_arguments(tmp_path: Path, passing_logs: Callable[..., list[Path]]) -> None:
    files = passing_logs(3.0, 1.0, 8.0)
    logs = [LogFile.read(file) for file in files]
    with pytest.raises(ValueError, match="not empty"):
        build(files[0].parent, "s", time_to_quality(logs))
    with pytest.raises(ValueError, match="is a folder name"):
        build(tmp_path / "x", "../s", time_to_quality(logs))
    with pytest.raises(ValueError, match="not submitted without a time to quality"):
        build(tmp_path / "x", "s", time_to_quality(logs[:1]), throughput(logs), files)
