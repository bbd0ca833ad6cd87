"""Rules on logs: what the listener writes passes; every mutation fails with its reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ds4sci.mlperf.check import check
from tests.support.mlperf_logs import CLEARED, change, tiny_config, write_log


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_log(tiny_config(tmp_path), tmp_path / "run")


def drop(key: str) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    return lambda line: None if line["key"] == key else line


def assign(key: str, /, **values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda line: line | values if line["key"] == key else line


def reasons(*files: Path) -> str:
    return "\n".join(map(str, check(files)))


def test_logs_of_the_listener_pass(log: Path, passing_logs: Callable[..., list[Path]]) -> None:
    assert check([log]) == []
    assert check(passing_logs(3.0, 2.0, 5.0)) == []


MUTATIONS = {
    "no cache_clear": (drop("cache_clear"), "cache_clear: Required AT_LEAST_ONE occurrence of 'cache_clear'"),
    "cache not cleared": (assign("cache_clear", value=False), "the page cache was not cleared"),
    "low quality": (assign("eval_accuracy", value=-0.6), "no evaluation reached the target"),
    "no quality_target": (drop("quality_target"), "the log states no quality_target"),
    "aborted": (
        lambda line: line | {"metadata": {"status": "aborted"}} if line["key"] == "run_stop" else line,
        "the status of the run must be success",
    ),
    "no status": (assign("run_stop", metadata={}), "the status of the run must be success"),
    "time runs backwards": (assign("eval_stop", time_ms=1), "time runs backwards"),
    "no seed": (drop("seed"), "seed: Required AT_LEAST_ONE occurrence of 'seed'"),
    "seed not a number": (assign("seed", value="abc"), "the seed must be an integer"),
    "no run_stop": (drop("run_stop"), "run_stop: Required EXACTLY_ONE occurrence of 'run_stop' but found 0"),
    "no batch": (drop("global_batch_size"), "global_batch_size: Required EXACTLY_ONE"),
    "wrong direction": (assign("eval_accuracy", key="eval_error"), "expected eval_accuracy"),
    "no evaluation": (drop("eval_accuracy"), "'eval_accuracy'"),
    "text as value": (assign("eval_accuracy", value="high"), "the value must be a number"),
    "bad division": (assign("submission_division", value="half"), "expected closed or open"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutated_log_fails_with_its_reason(log: Path, name: str) -> None:
    edit, expected = MUTATIONS[name]
    found = reasons(change(log, edit))
    assert expected in found, found


def test_a_finding_names_file_and_line(log: Path) -> None:
    lines = change(log, assign("eval_accuracy", value=-0.6)).read_text().splitlines()
    log.write_text("output of the program\n" + "\n".join(lines) + "\n")  # a line that is not part of the log
    number = 1 + next(i for i, line in enumerate(log.read_text().splitlines()) if '"run_stop"' in line)
    (finding,) = check([log])
    assert str(finding).startswith(f"{log}:{number}: run_stop: ")


def test_a_truncated_log_names_the_broken_line(log: Path) -> None:
    text = log.read_text()
    log.write_text(text[: text.index('"run_start"') + 4])
    found = reasons(log)
    assert "not valid JSON" in found
    assert f"{log}:{len(log.read_text().splitlines())}: format:" in found
    assert "Required EXACTLY_ONE occurrence of 'run_stop'" in found


def test_files_that_are_no_logs(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(range(256)) * 10)
    (tmp_path / "b.txt").write_text("")
    (tmp_path / "c.txt").write_text(':::MLLOG [1]\n:::MLLOG {"key": 1}\n')
    for name in "ab":
        assert "not an MLPerf log" in reasons(tmp_path / f"{name}.txt")
    assert "no such file" in reasons(tmp_path / "none.txt")
    assert "without time_ms" in reasons(tmp_path / "c.txt")


def test_a_resumed_run_fails(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    file = write_log(config, tmp_path / "run", [-0.4], resumed_from=10)
    assert "the run was resumed" in reasons(file)


def test_cache_that_could_not_be_dropped_fails(tmp_path: Path) -> None:
    nodes = [CLEARED, CLEARED | {"host": "node1", "cleared": False, "errors": ["x: denied"]}]
    assert "not cleared on this node" in reasons(write_log(tiny_config(tmp_path), tmp_path / "run", cleared=nodes))


def test_equal_seeds_fail_in_both_divisions(tmp_path: Path) -> None:
    for division in ("open", "closed"):
        config = tiny_config(tmp_path, f"benchmark.submission.division={division}")
        files = [write_log(config, tmp_path / division / str(i)) for i in range(2)]
        assert "every run needs a seed of its own" in reasons(*files)
        assert not reasons(files[0])


def test_seeds_are_judged_as_upstream_does(passing_logs: Callable[..., list[Path]]) -> None:
    from mlperf_logging.package_checker.seed_checker import SeedChecker

    files = passing_logs(1.0, 2.0)
    assert SeedChecker("3.0.0").check_seeds(files)
    change(files[1], assign("seed", value=0))
    assert not SeedChecker("3.0.0").check_seeds(files)
    assert "seed" in reasons(*files)


def test_mixed_logs_fail(tmp_path: Path) -> None:
    one = write_log(tiny_config(tmp_path), tmp_path / "a")
    other = tiny_config(tmp_path, "seed=7", "benchmark.name=other")
    found = reasons(one, write_log(other, tmp_path / "b"))
    assert "submission_benchmark: 'other', but" in found


def test_closed_division_requires_the_reference_hyperparameters(tmp_path: Path) -> None:
    closed = "benchmark.submission.division=closed"
    assert not reasons(write_log(tiny_config(tmp_path, closed), tmp_path / "a"))
    found = reasons(write_log(tiny_config(tmp_path, closed, "train.steps=40"), tmp_path / "b"))
    assert "reference_hyperparameter = 40: not the reference value" in found


def test_the_registered_target_is_required(log: Path, tmp_path: Path) -> None:
    registered = tiny_config(tmp_path).benchmark
    assert registered is not None
    assert check([log], {"tiny": registered}) == []
    (finding,) = check([log], {"tiny": registered.model_copy(update={"target": -0.1})})
    assert "requires score ≥ -0.1" in finding.reason


def test_the_registered_hyperparameters_are_required_in_the_closed_division(tmp_path: Path) -> None:
    """A run that changes a hyperparameter together with its reference would otherwise be compared with itself."""
    registered = tiny_config(tmp_path).benchmark
    assert registered is not None
    changes = ("train.steps=40", "benchmark.hyperparameters={'train.steps'=40}")
    logs = {
        division: write_log(
            tiny_config(tmp_path, f"benchmark.submission.division={division}", *changes), tmp_path / division
        )
        for division in ("open", "closed")
    }
    assert not any(reasons(log) for log in logs.values())
    assert check([logs["open"]], {"tiny": registered}) == []
    (finding,) = check([logs["closed"]], {"tiny": registered})
    assert "train.steps: the log states the reference 40, but that of the benchmark tiny is 30" in finding.reason

    more = registered.model_copy(update={"hyperparameters": {**registered.hyperparameters, "seed": 0}})
    log = write_log(tiny_config(tmp_path, "benchmark.submission.division=closed"), tmp_path / "equal")
    assert check([log], {"tiny": registered}) == []
    (finding,) = check([log], {"tiny": more})
    assert "seed: the log states the reference (none)" in finding.reason


def test_target_of_an_official_benchmark_is_fixed(tmp_path: Path) -> None:
    found = reasons(write_log(tiny_config(tmp_path, "benchmark.name=cosmoflow"), tmp_path / "run"))
    assert "not the target of MLPerf HPC" in found
    assert "expected eval_error" in found


def test_upstream_command_line_accepts_our_rule_file(log: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    from ds4sci.mlperf.rules import file

    command = [
        sys.executable, "-m", "mlperf_logging.compliance_checker", "--usage", "hpc", "--ruleset", "3.0.0",
        "--config", file("common"), "--log_output", str(tmp_path / "out.log"), str(log),
    ]  # fmt: skip
    assert subprocess.run(command, capture_output=True).returncode == 0
    change(log, drop("cache_clear"))
    assert subprocess.run(command, capture_output=True).returncode == 1
