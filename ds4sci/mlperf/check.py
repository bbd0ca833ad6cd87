"""Rules of MLPerf HPC on one log and on the logs of a submission.

Each log is checked by upstream's checker with the rule files of ``ds4sci.mlperf.rules`` and, for the benchmarks of
MLPerf HPC, with upstream's own. Upstream has no rule for the order of times and compares seeds in the closed division
only; both are checked here, as well as what the logs of one submission must have in common.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ds4sci.config.benchmark import BenchmarkConfig
from ds4sci.config.hyperparameters import Hyperparameter
from ds4sci.mlperf import OFFICIAL, RULES_VERSION, require, rules
from ds4sci.mlperf.log_file import Finding, LogFile

SAME = (
    "submission_benchmark", "submission_division", "quality_target", "global_batch_size", "number_of_nodes",
    "accelerators_per_node", "train_samples", "eval_samples", "opt_name", "opt_base_learning_rate",
)  # fmt: skip
"""Keys whose value all logs of a submission share."""


def check(files: Sequence[Path], benchmarks: Mapping[str, BenchmarkConfig] | None = None) -> list[Finding]:
    """Return what is wrong with the logs ``files``, one by one and together; an empty list if nothing is.

    benchmarks  registered benchmarks by name; the target that a log states must be theirs, and in the closed division
                the reference hyperparameters

    Raises ValueError if ``mlperf-logging`` is not installed.
    """
    require("checking an MLPerf log")
    logs, findings = [], []
    for file in files:
        try:
            log = LogFile.read(file)
        except ValueError as error:
            findings.append(Finding(file, None, "format", str(error).removeprefix(f"{file}: ")))
            continue
        logs.append(log)
        findings += check_log(log, benchmarks or {})
    return findings + check_set(logs)


def check_log(log: LogFile, benchmarks: Mapping[str, BenchmarkConfig]) -> list[Finding]:
    """Return what is wrong with one log."""
    from ds4sci.mlperf.upstream import apply_rules

    findings = [*log.errors, *_backward_times(log)]
    if (benchmark := benchmarks.get(str(log.value("submission_benchmark")))) is not None:
        findings += _other_target(log, benchmark) + _other_references(log, benchmark)
    findings += apply_rules(log, rules.file("common"))
    if log.value("submission_benchmark") in OFFICIAL:
        findings += apply_rules(log, f"hpc_{RULES_VERSION}/common.yaml")
    return _sorted(findings)


def check_set(logs: Sequence[LogFile]) -> list[Finding]:
    """Return what is wrong with the logs of one submission together."""
    findings = _repeated_seeds(logs)
    for key in SAME:
        values: dict[str, Path] = {}
        for log in logs:
            if (event := log.first(key)) is not None:
                values.setdefault(repr(event.value), log.file)
                if len(values) > 1:
                    first = next(iter(values))
                    reason = f"{event.value!r}, but {values[first]} has {first}; the logs of a submission agree"
                    findings.append(Finding(log.file, event.line, key, reason))
                    break
    return findings


def _repeated_seeds(logs: Iterable[LogFile]) -> list[Finding]:
    """Seeds that two logs have in common, by the line of the source that logged them, as upstream compares them."""
    seen: dict[tuple[Any, ...], Path] = {}
    findings = []
    for log in logs:
        for event in log.all("seed"):
            key = event.metadata.get("file"), event.metadata.get("lineno"), str(event.value)
            if seen.setdefault(key, log.file) != log.file:
                reason = f"seed {event.value} is also that of {seen[key]}; every run needs a seed of its own"
                findings.append(Finding(log.file, event.line, "seed", reason))
    return findings


def _backward_times(log: LogFile) -> list[Finding]:
    findings, latest = [], log.events[0] if log.events else None
    for event in log.events[1:]:
        assert latest is not None
        if event.time_ms < latest.time_ms:
            lag = latest.time_ms - event.time_ms
            reason = f"{event.key} is {lag:g} ms earlier than {latest.key} in line {latest.line}; time runs backwards"
            findings.append(Finding(log.file, event.line, "time_ms", reason))
        latest = max(latest, event, key=lambda e: e.time_ms)
    return findings


def _other_target(log: LogFile, benchmark: BenchmarkConfig) -> list[Finding]:
    """A stated target that differs from the registered one."""
    event = log.first("quality_target")
    if event is None:
        return []
    stated = event.metadata.get("metric", ""), event.value, event.metadata.get("direction", "")
    registered = benchmark.metric, benchmark.target, benchmark.direction
    if stated == registered:
        return []
    reason = (
        f"the log states {_target_text(*stated)}, but the benchmark {benchmark.name} requires "
        f"{_target_text(*registered)}"
    )
    return [Finding(log.file, event.line, "quality_target", reason)]


def _target_text(metric: str, value: Any, direction: str) -> str:
    return f"{metric} {'≥' if direction == 'higher' else '≤'} {value}"


def _other_references(log: LogFile, benchmark: BenchmarkConfig) -> list[Finding]:
    """Reference hyperparameters of a log of the closed division that are not the registered ones, or are absent.

    A run file can state its own; the rule ``value == reference`` would then compare the run with itself.
    """
    if log.value("submission_division") != "closed":
        return []
    stated = {str(event.metadata.get("name")): event for event in log.all("reference_hyperparameter")}
    findings = []
    for key, registered in benchmark.hyperparameters.items():
        event = stated.get(key)
        reference = None if event is None else event.metadata.get("reference")
        if event is not None and Hyperparameter(key, registered, reference).is_equal:
            continue
        reason = (
            f"{key}: the log states the reference {'(none)' if event is None else repr(reference)}, but that of the "
            f"benchmark {benchmark.name} is {registered!r}; take `benchmark.hyperparameters` as registered"
        )
        findings.append(Finding(log.file, event.line if event else None, "reference_hyperparameter", reason))
    return findings


def _sorted(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(dict.fromkeys(findings), key=lambda finding: finding.line or 10**9)
