"""``ds4sci bench check``, ``score`` and ``submission``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ds4sci.cli.bench import bench_app
from ds4sci.mlperf import submission
from ds4sci.mlperf.reference import Reference, ReferenceRun
from tests.mlperf.conftest import passing_logs  # noqa: F401
from tests.support.mlperf_logs import change


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(bench_app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


@pytest.fixture
def logs(passing_logs: Callable[..., list[Path]]) -> list[Path]:  # noqa: F811
    return passing_logs(3.0, 1.0, 8.0, 4.0, 5.0)


def test_check(logs: list[Path]) -> None:
    runs = logs[0].parents[2]
    assert run("check", runs) == (0, "5 logs passed\n")
    change(logs[1], lambda line: None if line["key"] == "cache_clear" else line)
    code, text = run("check", *logs)
    assert code == 1
    assert f"{logs[1]}: cache_clear: Required AT_LEAST_ONE" in text
    assert "1 rules failed in 1 of 5 logs" in text
    with pytest.raises(ValueError, match="no MLPerf log"):
        run("check", runs / "none")


def test_score(logs: list[Path], tmp_path: Path) -> None:
    runs = logs[0].parents[2]
    code, text = run("score", runs, "--json", tmp_path / "s.json", "--throughput", runs, "--system", 4)
    assert code == 0
    assert "Time to quality of tiny: 4.0000 min\n" in text
    assert "T = 4, S = 1, M′ = 5" in text
    assert json.loads((tmp_path / "s.json").read_text())["time_to_quality"]["minutes"] == 4.0
    change(logs[2], lambda line: None if line["key"] == "cache_clear" else line)  # 8 min: the slowest anyway
    code, text = run("score", runs)
    assert code == 0
    assert "failed (cache_clear: Required" in text
    assert "Time to quality of tiny: 4.0000 min\n" in text
    change(logs[3], lambda line: None if line["key"] == "seed" else line)
    code, text = run("score", runs)
    assert code == 1
    assert "void: 2 of 5 runs failed" in text


def test_score_with_reference_runs(logs: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "tiny.json"

    def write(samples: int, count: int) -> None:
        runs = [
            ReferenceRun(seed=i, batch=64, steps=1, samples=samples + i, seconds=1, machine="m", commit="c")
            for i in range(count)
        ]
        Reference(benchmark="tiny", metric="score", direction="higher", target=-0.5, runs=tuple(runs)).write(file)

    write(1915, 10)
    code, text = run("score", *logs, "--reference", file)
    assert code == 0
    assert "Convergence: passed; 1,920 samples" in text
    assert "provisional" not in text
    write(2500, 10)
    code, text = run("score", *logs, "--reference", file)
    assert code == 1
    assert "converge faster than the reference" in text
    write(2500, 2)
    code, text = run("score", *logs, "--reference", file)
    assert "has 2 runs of batch size 64, and 3 are needed" in text
    write(2500, 5)  # too few to decide
    code, text = run("score", *logs, "--reference", file)
    assert code == 0
    assert "provisional: 5 reference runs; the rules require 10" in text


def test_runs_become_reference_runs(logs: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "tiny.json"
    (logs[1].parents[1] / "commit.txt").write_text("abc\n")
    assert run("score", *logs, "--write-reference", file)[0] == 0
    reference = Reference.read(file)
    assert (reference.benchmark, reference.target, reference.direction) == ("tiny", -0.5, "higher")
    assert [entry.seed for entry in reference.runs] == [0, 1, 2, 3, 4]
    entry = reference.runs[1]
    assert (entry.batch, entry.steps, entry.samples, entry.seconds, entry.commit) == (64, 30, 1920, 60.0, "abc")
    assert run("score", *logs, "--reference", file)[0] == 0
    change(logs[0], lambda line: line | {"metadata": {"status": "aborted"}} if line["key"] == "run_stop" else line)
    with pytest.raises(ValueError, match="not a reference run: status aborted"):
        run("score", *logs, "--write-reference", file)


def test_submission(logs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Upstream's checker itself runs in ``tests/mlperf/test_submission.py``; it takes seconds to start."""
    message = "Skipping benchmark: tiny"
    monkeypatch.setattr(
        submission,
        "_run",
        lambda *_: [submission.PackageFinding("package_checker", message, submission._reason(message))],
    )
    out = tmp_path / "out"
    code, text = run("submission", logs[0].parents[2], "--out", out, "--system", "laptop")
    assert code == 0
    assert "Skipping benchmark: tiny" in text
    assert "reason: upstream checks the names" in text
    assert (out / "results" / "laptop" / "strong" / "tiny" / "result_4.txt").is_file()
