"""The command ``ds4sci plan``."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ds4sci.cli.train import DeepSpeedConfig, Overrides

if TYPE_CHECKING:
    from ds4sci.planner.layouts import Planner


def plan(
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="Run file (TOML).", show_default=False)],
    overrides: Overrides = None,
    gpus: Annotated[int, typer.Option("--gpus", min=1, help="GPUs, one rank each.")] = 1,
    gpu_memory: Annotated[float, typer.Option("--gpu-memory", help="Memory of each GPU in GB (2^30 bytes).")] = 80.0,
    host_memory: Annotated[
        float | None,
        typer.Option("--host-memory", help="Host memory in GB for all GPUs. Default: no limit.", show_default=False),
    ] = None,
    pipeline: Annotated[
        int | None,
        typer.Option(
            "--pipeline",
            min=2,
            show_default=False,
            help="Print parameters, FLOPs and activations of this many pipeline stages instead of a plan.",
        ),
    ] = None,
    deepspeed_config: DeepSpeedConfig = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="JSON", help="DeepSpeed JSON to write. Default: NAME_plan.json, from CONFIG."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    json_out: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the whole plan as JSON.")
    ] = None,
) -> None:
    """Plan a run: memory and communication per rank, and the cheapest layout that fits, without GPU or data.

    Traces a training step with weights that have no memory, and adds the states of ZeRO by formula. Writes the
    DeepSpeed JSON of the choice and prints the command that trains with it.
    """
    from ds4sci.config.run_file import RunConfig
    from ds4sci.files.atomic_files import replace_text
    from ds4sci.planner.layouts import GB, Machine, Planner
    from ds4sci.planner.report import as_json, as_text

    for option, value in (("--gpu-memory", gpu_memory), ("--host-memory", host_memory)):
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{option} {value:g}: expected a number of GB above 0")
    changes = list(overrides or [])
    name = Path(config).stem
    file = out or Path(f"{name}_plan.json")
    for one in (file, json_out) if pipeline is None else ():
        if one is not None and one.exists() and not overwrite:
            raise ValueError(f"{one} exists; choose another file (--out, --json) or replace it with --overwrite")
        if one is not None and not one.absolute().parent.is_dir():
            raise ValueError(f"{one}: the folder {one.parent} does not exist; create it or choose another file")
    host = None if host_memory is None else int(host_memory * GB)
    copies = gpus if pipeline is None else max(1, gpus // pipeline)
    machine = Machine(copies, int(gpu_memory * GB), host)
    planner = Planner(lambda more: RunConfig.load(config, [*changes, *more], deepspeed=deepspeed_config), machine)
    if pipeline is not None:
        if gpus != 1 and gpus % pipeline:
            raise ValueError(f"--pipeline {pipeline} does not divide --gpus {gpus}")
        _print_stages(planner, pipeline)
        return
    estimates = planner.choose()
    typer.echo(as_text(planner, estimates))
    if json_out is not None:
        replace_text(json_out, json.dumps(as_json(planner, estimates), indent=2) + "\n")
    chosen = estimates[-1]
    if not chosen.fits:
        typer.echo("\nNo layout fits: use more or larger GPUs, shorter examples, or a smaller model.", err=True)
        raise typer.Exit(1)
    replace_text(file, json.dumps(planner.deepspeed_config(chosen.layout), indent=2) + "\n")
    settings = [*changes, *planner.overrides(chosen.layout)]
    command = ["ds4sci", "train", config, "--deepspeed_config", str(file), "--ranks", str(gpus), *settings]
    typer.echo(f"\nWrote {file}. Train with:\n  {shlex.join(command)}")


def _print_stages(planner: Planner, stages: int) -> None:
    """Print the stages of a pipeline. Raises ValueError if the model cannot be divided."""
    from ds4sci.planner.batches import largest_batch
    from ds4sci.planner.pipeline import as_table, plan_stages

    if planner.sequence > 1:
        raise ValueError(
            f"--pipeline {stages} with parallel.sequence = {planner.sequence}: a run has one of them; remove the other"
        )
    accumulation = planner.batch // (planner.machine.gpus * planner.micro)
    typer.echo(f"Micro-batch {planner.micro}, {accumulation} micro-batches per step\n")
    typer.echo(as_table(plan_stages(planner.task, largest_batch(planner.task, planner.micro), stages, accumulation)))
