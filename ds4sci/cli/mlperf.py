"""The commands ``ds4sci bench check``, ``score`` and ``submission``: MLPerf logs, their rules and scores."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ds4sci.config.benchmark import BenchmarkConfig
    from ds4sci.mlperf.log_file import LogFile
    from ds4sci.mlperf.reference import Convergence
    from ds4sci.mlperf.score import Throughput, TimeToQuality

Logs = Annotated[list[Path], typer.Argument(metavar="LOGS…", help="Run folders, MLPerf logs, or folders of either.")]
"""Argument of every command."""


def register(app: typer.Typer, panel: str) -> None:
    """Add the commands to ``ds4sci bench``, in a panel of its help."""
    app.command("check", rich_help_panel=panel)(check)
    app.command("score", rich_help_panel=panel)(score)
    app.command("submission", rich_help_panel=panel)(submission)


def check(logs: Logs) -> None:
    """Check MLPerf logs by the rules of MLPerf HPC, one by one and together. Exit code 1 if a rule fails."""
    from ds4sci.mlperf.check import check as find
    from ds4sci.mlperf.log_file import find_logs

    files = find_logs(logs)
    findings = find(files, registered_benchmarks())
    for finding in findings:
        typer.echo(str(finding))
    failed = len({finding.file for finding in findings})
    if findings:
        typer.echo(f"{len(findings)} rules failed in {failed} of {len(files)} logs")
        raise typer.Exit(1)
    typer.echo(f"{len(files)} logs passed" if len(files) > 1 else f"{files[0]}: passed")


def score(
    logs: Logs,
    throughput: Annotated[
        list[Path] | None,
        typer.Option("--throughput", metavar="DIR", help="Logs of instances that ran at once; may be repeated."),
    ] = None,
    system: Annotated[
        int | None,
        typer.Option("--system", metavar="T", min=1, help="Accelerators of the system, for the throughput."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option("--reference", metavar="JSON", help="Reference runs; by default those of the benchmark."),
    ] = None,
    write_reference: Annotated[
        Path | None, typer.Option("--write-reference", metavar="JSON", help="Write these runs as reference runs.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="OUT", help="JSON file to write to.")] = None,
) -> None:
    """Score the runs of one benchmark: time to quality, throughput of many instances, convergence.

    A log that breaks a rule counts as a failed run. Exit code 1 if there is no score.
    """
    from ds4sci.mlperf import score as scoring
    from ds4sci.mlperf.log_file import LogFile, find_logs
    from ds4sci.mlperf.reference import Reference

    files = [LogFile.read(file) for file in find_logs(logs)]
    time = scoring.time_to_quality(files, _failures(files))
    _show_time(time)
    tree = {"time_to_quality": scoring.as_json(time)}
    void = bool(time.void)
    own = [run.samples if run.minutes is not None and run.samples else float("inf") for run in time.runs]
    compared = _compare(time, own, reference or _registered_reference(time.benchmark))
    if compared is not None and not time.void:
        _show_convergence(compared, time)
        tree["convergence"] = vars(compared) | {"is_provisional": compared.is_provisional}
        void |= not compared.passed and not compared.is_provisional
    if throughput:
        instances = [LogFile.read(file) for file in find_logs(throughput)]
        many = scoring.throughput(instances, _failures(instances, together=False), system=system)
        _show_throughput(many, time)
        tree["throughput"] = scoring.as_json(many)
        void |= bool(many.void)
    if write_reference is not None:
        Reference.of(files).write(write_reference)
        typer.echo(f"wrote {write_reference}")
    if json_file is not None:
        json_file.write_text(json.dumps(tree, indent=1, default=str) + "\n", encoding="utf-8")
        typer.echo(f"wrote {json_file}")
    if void:
        raise typer.Exit(1)


def submission(
    logs: Logs,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write; it must be empty.")],
    system: Annotated[str, typer.Option("--system", metavar="NAME", help="Name of the system, such as 2xH100.")],
    throughput: Annotated[
        list[Path] | None,
        typer.Option("--throughput", metavar="DIR", help="Logs of instances that ran at once; may be repeated."),
    ] = None,
) -> None:
    """Build the submission folder of the runs of one benchmark, and run upstream's checkers on it.

    Each finding is listed with the reason why it stands.
    """
    from ds4sci.mlperf import score as scoring
    from ds4sci.mlperf import submission as package
    from ds4sci.mlperf.log_file import LogFile, find_logs

    files = [LogFile.read(file) for file in find_logs(logs)]
    time = scoring.time_to_quality(files, _failures(files))
    instances = [LogFile.read(file) for file in find_logs(throughput or [])]
    many = scoring.throughput(instances, _failures(instances, together=False)) if instances else None
    described = package.build(out, system, time, many, [log.file for log in instances])
    _show_time(time)
    if many is not None:
        _show_throughput(many, time)
    findings = package.check_folder(out)
    for finding in findings:
        typer.echo(str(finding))
    typer.echo(f"wrote {out}; {len(findings)} findings; describe the system in {described}")


def registered_benchmarks() -> Mapping[str, BenchmarkConfig]:
    """Sections ``[benchmark]`` of the registered workloads, by name."""
    from ds4sci.workloads.registry import catalogue

    return {name: one.benchmark for name, one in catalogue().workloads.items()}


def _registered_reference(benchmark: str) -> Path | None:
    """File of the reference runs of a registered workload, or None."""
    from ds4sci.config.run_file import find_file
    from ds4sci.workloads.registry import catalogue

    workload = catalogue().workloads.get(benchmark)
    if workload is None or workload.benchmark.reference is None:
        return None
    path = workload.benchmark.reference
    return find_file(path, near=workload.file, what="file of reference runs", option="benchmark.reference")


def _failures(logs: Sequence[LogFile], *, together: bool = True) -> dict[Path, str]:
    """Logs that break a rule, with the first reason. Equal seeds of instances are not failures but are pruned."""
    from ds4sci.mlperf import check as rules
    from ds4sci.mlperf import require

    require("scoring MLPerf logs")
    benchmarks = registered_benchmarks()
    findings = [finding for log in logs for finding in rules.check_log(log, benchmarks)]
    findings += rules.check_set(logs) if together else []
    failures: dict[Path, str] = {}
    for finding in findings:
        place = f"line {finding.line}: " if finding.line else ""
        failures.setdefault(finding.file, f"{place}{finding.rule}: {finding.reason}")
    return failures


def _compare(time: TimeToQuality, own: Sequence[float], file: Path | None) -> Convergence | None:
    """Compare with the reference runs of the batch size of the runs; None without a file or with too few runs."""
    from ds4sci.mlperf.reference import Reference, convergence

    if file is None or time.void:
        return None
    reference = Reference.read(file)
    if reference.benchmark != time.benchmark:
        raise ValueError(f"{file}: reference runs of {reference.benchmark}, but the logs are of {time.benchmark}")
    batch = next((run.batch for run in time.runs if run.batch is not None), 0)
    samples = reference.samples(batch)
    if len(samples) < 3:
        typer.echo(f"Convergence: not tested: {file} has {len(samples)} runs of batch size {batch}, and 3 are needed")
        return None
    return convergence(own, samples, time.required)


def _show_time(time: TimeToQuality) -> None:
    for run in time.runs:
        result = f"{run.minutes:.4f} min" if run.minutes is not None else f"failed ({run.failure})"
        typer.echo(f"  seed {run.seed}: {result}  {run.file}")
    if time.minutes is None:
        typer.echo(f"Time to quality of {time.benchmark}: void: {time.void}")
        return
    note = "" if time.is_official else f" (provisional: {len(time.runs)} runs; the rules require {time.required})"
    typer.echo(f"Time to quality of {time.benchmark}: {time.minutes:.4f} min{note}")


def _show_convergence(result: Convergence, time: TimeToQuality) -> None:
    verdict = "passed" if result.passed else "failed: the runs converge faster than the reference allows"
    note = ""
    if result.is_provisional:
        note = f" (provisional: {result.reference_runs} reference runs; the rules require {result.required})"
    typer.echo(
        f"Convergence: {verdict}; {result.own:,.0f} samples, reference {result.mean:,.0f}, limit {result.limit:,.0f}, "
        f"p = {result.p_value:.3f}{note}"
    )
    if result.passed and result.scale > 1 and time.minutes is not None:
        typer.echo(f"Normalized score: {time.minutes * result.scale:.4f} min (× {result.scale:.4f})")


def _show_throughput(many: Throughput, time: TimeToQuality) -> None:
    for file, reason in many.pruned.items():
        typer.echo(f"  not counted: {file}: {reason}")
    if many.minutes is None:
        typer.echo(f"Throughput of {many.benchmark}: void: {many.void}")
        return
    note = "; no score without a time to quality" if time.minutes is None else ""
    typer.echo(
        f"Throughput of {many.benchmark}: T = {many.system}, S = {many.instance}, M′ = {many.models}, "
        f"TTTa = {many.minutes:.4f} min{note}"
    )
