"""The commands ``ds4sci bench list``, ``info``, ``verify``, ``run`` and ``report``, for workloads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ds4sci.cli.train import DeepSpeedConfig, Overrides

if TYPE_CHECKING:
    from ds4sci.workloads.registry import Workload
    from ds4sci.workloads.results import RunOutcome
    from ds4sci.workloads.training import Plan

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A workload of `ds4sci bench list`, a run file, or a folder with one.")
]
OUT = Path("runs/benchmarks")


class Mode(StrEnum):
    """``training``: train to the target. ``inference``: measure the trained model."""

    training = "training"
    inference = "inference"


def list_workloads(
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[DIR]…", help="More folders of run files.", show_default=False)
    ] = None,
) -> None:
    """List the workloads (whole trainings to a target) and the benchmarks of kernels and components."""
    from ds4sci.bench.registry import find_benchmarks
    from ds4sci.workloads.registry import catalogue

    found = catalogue(folders or [])
    rows = [("name", "target", "datasets", "title")]
    for name, workload in sorted(found.workloads.items()):
        benchmark = workload.benchmark
        title = benchmark.title if workload.origin == "ds4sci" else f"{benchmark.title} [{workload.origin}]"
        target = f"{benchmark.metric} {benchmark.condition}"
        rows.append((name, target, ", ".join(benchmark.datasets) or "–", title))
    typer.echo("Workloads: whole trainings to a target (ds4sci bench run NAME)")
    _echo_columns(rows)
    typer.echo("\nKernels and components: time and memory (ds4sci bench NAME)")
    _echo_columns(
        [(name, one.help.strip().splitlines()[0] if one.help else "") for name, one in find_benchmarks().items()]
    )
    for problem in found.problems:
        typer.secho(f"could not be used: {problem}", fg="yellow", err=True)


def info(name: Name) -> None:
    """Show what a workload trains, its data and their licence, metric, target, hyperparameters and reference runs."""
    from ds4sci.config import hyperparameters
    from ds4sci.config.run_file import RunConfig
    from ds4sci.workloads.registry import find

    workload = find(name)
    benchmark = workload.benchmark
    typer.echo(f"{benchmark.name}: {benchmark.title}")
    typer.echo(f"  run file     {workload.file} ({workload.origin})")
    typer.echo(f"  target       {benchmark.metric} {benchmark.condition} ({benchmark.direction} is better)")
    for line in _datasets(workload):
        typer.echo(f"  {line}")
    config = RunConfig.load(workload.file)
    typer.echo(
        f"  training     task {config.task.name}, at most {config.train.steps:,} steps, an evaluation every "
        f"{config.train.evaluate_every or config.train.steps:,}, DeepSpeed JSON {config.deepspeed}"
    )
    entries = hyperparameters.compare(config)
    typer.echo(f"  reference hyperparameters, which the closed division requires: {'none' if not entries else ''}")
    for entry in entries:
        note = "" if entry.is_equal else f"   (the run file has {entry.own!r})"
        typer.echo(f"    {entry.key} = {entry.reference!r}{note}")
    typer.echo(f"  reference runs  {_reference(workload)}")


def verify(name: Name) -> None:
    """Check a workload: its run file, its datasets, and one training step. Exit code 1 if a check fails."""
    from ds4sci.workloads.registry import find
    from ds4sci.workloads.verification import verify as checks

    failed = False
    for check in checks(find(name)):
        failed = failed or bool(check.problems)
        typer.echo(f"{'FAILED' if check.problems else 'ok    '}  {check.name}")
        for problem in check.problems:
            typer.secho(f"        {problem}", fg="red", err=True)
    if failed:
        raise typer.Exit(1)


def run(
    name: Name,
    overrides: Overrides = None,
    mode: Annotated[Mode, typer.Option("--mode", help="Train to the target, or measure the trained model.")] = (
        Mode.training
    ),
    seeds: Annotated[
        list[int] | None, typer.Option("--seed", min=0, metavar="N", help="Seed; repeat it for several runs.")
    ] = None,
    ranks: Annotated[
        int | None, typer.Option("--ranks", min=1, help="Number of processes. Default: one per GPU, two on a CPU.")
    ] = None,
    instances: Annotated[
        int | None, typer.Option("--instances", min=1, help="Train this many seeds at once, the ranks divided equally.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A run is DIR/NAME/seed_N.")] = OUT,
    deepspeed_config: DeepSpeedConfig = None,
) -> None:
    """Train a workload until it reaches its target, and print the time to quality.

    Datasets are made if they are absent. A run that exists is resumed. Exit code 0: every run reached the target. 1:
    some did not. 2: the input cannot be used.
    """
    from ds4sci.workloads import training
    from ds4sci.workloads.registry import find
    from ds4sci.workloads.verification import obtain_datasets

    workload = find(name)
    chosen = tuple(seeds or range(instances or 1))
    if instances is not None and len(chosen) != instances:
        raise ValueError(f"--instances {instances}, but {len(chosen)} seeds; give one --seed per instance, or none")
    plan = training.Plan(workload, out, chosen, tuple(overrides or ()), deepspeed_config)
    if mode is Mode.inference:
        if instances is not None or overrides or ranks is not None or deepspeed_config is not None:
            raise ValueError(
                "--mode inference measures the model of a run as it was trained, on one device: it takes --seed and "
                "--out only"
            )
        _measure_inference(plan)
        return
    _print_division(plan)
    obtain_datasets(workload, typer.echo)
    if instances is None:
        outcomes = training.train_seeds(plan, ranks=ranks, log=typer.echo)
    else:
        outcomes, seconds = training.train_instances(plan, ranks=ranks, log=typer.echo)
        reached = sum(one.is_reached for one in outcomes)
        typer.echo(f"{reached} of {instances} instances reached the target; all ended after {seconds / 60:.2f} min")
    _print_outcomes(plan, outcomes)
    if len(outcomes) < len(chosen) or not all(one.is_reached for one in outcomes):
        raise typer.Exit(1)


def report(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER…", help="Runs of a workload, runs/benchmarks/NAME, or of several.")
    ],
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write a table, a row per workload; rows of others in FILE stay."),
    ] = None,
) -> None:
    """Write FOLDER/report.html: quality over time of every run, times to quality, machine and hyperparameters."""
    from ds4sci.bench import measurement
    from ds4sci.bench.workload_results import summarize
    from ds4sci.workloads.page import write_page

    table = None if json_file is None else summarize(json_file, folders)
    for folder in folders:
        typer.echo(write_page(folder))
    if json_file is not None and table is not None:
        measurement.write(json_file, asdict(table))
        typer.echo(json_file)


def register(app: typer.Typer, panel: str) -> None:
    """Add the commands to ``app``, in the help panel ``panel``."""
    app.command("list", rich_help_panel=panel)(list_workloads)
    app.command("info", rich_help_panel=panel)(info)
    app.command("verify", rich_help_panel=panel)(verify)
    app.command("run", rich_help_panel=panel)(run)
    app.command("report", rich_help_panel=panel)(report)


def _datasets(workload: Workload) -> list[str]:
    """One line for each dataset: title, licence, size, origin, whether it is stored."""
    from ds4sci.datasets import registry, store

    lines = []
    for name in workload.benchmark.datasets:
        dataset = registry.find(name).dataset
        state, folder = store.state(name)
        lines.append(f"dataset      {name} {dataset.version}: {dataset.title}")
        lines.append(f"             {state}, {folder}, {dataset.size / 1e6:,.1f} MB")
        lines.append(f"             licence: {dataset.licence}; from: {dataset.origin}")
    return lines or ["dataset      none: the data are generated during training, or the run file names the files"]


def _reference(workload: Workload) -> str:
    """The file of reference runs, or that there is none."""
    from ds4sci.config.run_file import find_file

    reference = workload.benchmark.reference
    if reference is None:
        return "none"
    try:
        return str(find_file(reference, near=workload.file, what="file of reference runs", option="reference"))
    except ValueError as error:
        return f"missing: {error}"


def _measure_inference(plan: Plan) -> None:
    from ds4sci.workloads.inference import measure

    missed = False
    for seed in plan.seeds:
        result = measure(plan.run(seed))
        missed = missed or not result.reached
        typer.echo(
            f"seed {seed}: {result.examples_per_second:.4g} examples/s ({result.examples} held-out examples in "
            f"{result.seconds:.3g} s, spread {result.spread:.0%}), {result.metric} {result.value:.4g} at step "
            f"{result.step:,}, target {'reached' if result.reached else 'NOT reached'}"
        )
    if missed:
        raise typer.Exit(1)


def _print_division(plan: Plan) -> None:
    """Print the division of the runs, with the differences from the reference hyperparameters."""
    from ds4sci.config import hyperparameters

    benchmark = plan.workload.benchmark
    config = plan.config(plan.seeds[0])
    found = hyperparameters.differences(config, benchmark)
    if found:
        typer.echo("open division, because of other hyperparameters than the reference:")
        for text in found:
            typer.echo(f"  {text}")
    elif benchmark.hyperparameters:
        typer.echo("closed division: all hyperparameters are those of the reference")


def _print_outcomes(plan: Plan, outcomes: list[RunOutcome]) -> None:
    rows = [("seed", "outcome", plan.workload.benchmark.metric, "step", "minutes to quality", "run")]
    for one in outcomes:
        value = "–" if one.value is None else f"{one.value:.4g}"
        taken = f"{one.seconds / 60:.2f}" if one.is_reached and one.seconds is not None else "–"
        rows.append((str(one.seed), one.outcome, value, f"{one.step:,}", taken, str(one.run)))
    _echo_columns(rows)
    for one in outcomes:
        if one.outcome == "failed":
            typer.secho(f"seed {one.seed} failed: {one.error or 'no checkpoint'}", fg="red", err=True)
        if one.outcome == "stopped":
            typer.echo(f"seed {one.seed} was stopped; resume it with the same command")


def _echo_columns(rows: Sequence[Sequence[str]]) -> None:
    """Print a table without lines, each column as wide as its longest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        typer.echo("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
