"""The commands ``ds4sci scaling run``, ``report`` and ``predict``."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ds4sci.cli.train import Overrides
from ds4sci.config.number_lists import whole_numbers

scaling_app = typer.Typer(
    no_args_is_help=True,
    help="Measure how a training scales, report it, and predict its time and cost on a cluster.",
)
Config = Annotated[str, typer.Argument(metavar="CONFIG", help="Run file (TOML).", show_default=False)]


class Modes(StrEnum):
    """``strong``: fixed global batch. ``weak``: fixed batch of a rank."""

    strong = "strong"
    weak = "weak"
    both = "both"


@scaling_app.command("run")
def run(
    config: Config,
    overrides: Overrides = None,
    ranks: Annotated[str, typer.Option("--ranks", metavar="N,N,…", help="Numbers of ranks.")] = "1,2",
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the logs and runs.")] = Path(
        "runs/scaling"
    ),
    mode: Annotated[Modes, typer.Option("--mode", help="Strong scaling, weak scaling, or both.")] = Modes.both,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps to time in each training.")] = 10,
    warmup: Annotated[int, typer.Option("--warmup", min=1, help="Steps before them, which are left out.")] = 5,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Trainings of each mode and number of ranks.")] = 3,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Global batch of strong scaling. Default: that of the JSON.")
    ] = None,
    per_rank: Annotated[
        int | None, typer.Option("--per-rank", min=1, help="Batch of a rank in weak scaling. Default: a micro-batch.")
    ] = None,
) -> None:
    """Train on each number of ranks, and write DIR/MODE_RANKS.json with step times, machine, versions and commit.

    Ranks above the cores or GPUs share them: they are measured and labelled oversubscribed.
    """
    from ds4sci.scaling import page
    from ds4sci.scaling.batch_plan import MODES
    from ds4sci.scaling.measure import MeasurementPlan, measure

    modes = MODES if mode is Modes.both else (("strong",) if mode is Modes.strong else ("weak",))
    plan = MeasurementPlan(
        config, tuple(overrides or ()), whole_numbers("--ranks", ranks), out, modes, steps, warmup, repeats, batch,
        per_rank,
    )  # fmt: skip
    logs = measure(plan, typer.echo, command=" ".join(["ds4sci", *sys.argv[1:]]))
    typer.echo(page.as_text(logs))
    typer.echo(f"logs in {out}; page: ds4sci scaling report {out}")


@scaling_app.command("report")
def report(
    logs: Annotated[
        list[Path], typer.Argument(metavar="LOG…", help="Logs, folders of logs, or run folders of `ds4sci train`.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="HTML", help="Page to write. Default: scaling.html beside the first log."),
    ] = None,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures as JSON.")
    ] = None,
) -> None:
    """Print strong and weak efficiency, utilization, communication, memory and cost, and write a page with plots.

    A log of another run file or machine is refused.
    """
    from dataclasses import asdict

    from ds4sci.files.atomic_files import replace_text
    from ds4sci.scaling import efficiency, page
    from ds4sci.scaling.logs import read_logs

    found = read_logs(logs)
    typer.echo(page.as_text(found))
    file = out or (logs[0] if logs[0].is_dir() else logs[0].parent) / "scaling.html"
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_text(file, page.html(found))
    typer.echo(file)
    if json_out is not None:
        replace_text(json_out, json.dumps([asdict(one) for one in efficiency.rows(found)], indent=1) + "\n")
        typer.echo(json_out)


@scaling_app.command("predict")
def predict(
    config: Config,
    cluster: Annotated[Path, typer.Option("--cluster", metavar="FILE", help="Cluster file (TOML): configs/clusters/.")],
    overrides: Overrides = None,
    ranks: Annotated[
        str | None, typer.Option("--ranks", metavar="N,N,…", help="Numbers of ranks. Default: a node, then fourfold.")
    ] = None,
    mode: Annotated[Modes, typer.Option("--mode", help="strong: fixed global batch; weak: fixed batch of a rank.")] = (
        Modes.weak
    ),
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Global batch (strong) or batch of a rank (weak).")
    ] = None,
    quality: Annotated[
        list[Path] | None,
        typer.Option(
            "--quality", metavar="DIR", help="Runs of `ds4sci bench run`, at several batch sizes; repeatable."
        ),
    ] = None,
    sample_bytes: Annotated[
        float, typer.Option("--sample-bytes", min=0.0, help="Bytes that a sample reads from storage.")
    ] = 0.0,
    undivided: Annotated[
        float,
        typer.Option("--undivided", min=0.0, max=1.0, help="Fraction of an example's work that its ranks repeat."),
    ] = 0.0,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write everything as JSON.")
    ] = None,
) -> None:
    """Predict time per step, utilization, and time and cost to quality on a cluster, without running there.

    FLOPs and the bytes of every collective are counted by tracing one micro-batch; times follow from the cluster file.
    """
    from ds4sci.files.atomic_files import replace_text
    from ds4sci.scaling import cluster as clusters
    from ds4sci.scaling import predict as predictions
    from ds4sci.scaling.batch_plan import plan
    from ds4sci.scaling.samples_to_quality import fit, read_points
    from ds4sci.scaling.workload import Counter

    if mode is Modes.both:
        raise ValueError("--mode both: a prediction has one mode; expected strong or weak")
    machine = clusters.load(cluster)
    law = fit(read_points(quality)) if quality else None
    counter = Counter(config, tuple(overrides or ()), machine)
    each = counter.config.parallel.sequence * counter.config.parallel.pipeline
    chosen = (
        default_ranks(machine.gpus_per_node, machine.nodes, each) if ranks is None else whole_numbers("--ranks", ranks)
    )
    largest = machine.nodes * machine.gpus_per_node
    if max(chosen) > largest:
        raise ValueError(
            f"--ranks {max(chosen):,}: {machine.name} has {machine.nodes:,} nodes with {largest:,} ranks in all"
        )
    plans = [
        plan(counter.config, "weak" if mode is Modes.weak else "strong", one, batch=batch) for one in chosen
    ]  # before minutes of tracing
    counted = [counter.count(one, sample_bytes=sample_bytes, undivided=undivided) for one in plans]
    found = predictions.predict(counted, machine, law)
    typer.echo(predictions.as_text(found, machine, law))
    if json_out is not None:
        replace_text(json_out, json.dumps(predictions.as_json(found, machine, law), indent=1) + "\n")
        typer.echo(json_out)


def default_ranks(per_node: int, nodes: int, shared: int) -> tuple[int, ...]:
    """A node, then four times as many up to the cluster, in multiples of the ranks that share an example."""
    first = -(-per_node // shared) * shared
    return tuple(first * 4**k for k in range(12) if first * 4**k <= nodes * per_node) or (first,)
