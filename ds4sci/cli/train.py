"""The command ``ds4sci train``, and the arguments that it shares with other commands on run files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]…", help="Settings that replace those of the run file, such as train.steps=10.",
        show_default=False,
    ),
]  # fmt: skip

DeepSpeedConfig = Annotated[
    Path | None,
    typer.Option("--deepspeed_config", metavar="JSON", help="DeepSpeed JSON to use instead of the run file's."),
]


def train(
    config: Annotated[str | None, typer.Argument(metavar="CONFIG", help="Run file (TOML).", show_default=False)] = None,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None, typer.Option("--resume", metavar="RUN", help="Resume the run in this folder.")
    ] = None,
    deepspeed_config: DeepSpeedConfig = None,
    ranks: Annotated[
        int | None, typer.Option("--ranks", min=1, help="Number of processes. Default: one per GPU, two on a CPU.")
    ] = None,
    restarts: Annotated[
        int,
        typer.Option(
            "--restarts",
            min=0,
            metavar="N",
            help="Start failed ranks again from the newest checkpoint, at most N times without a new one in between.",
        ),
    ] = 0,
) -> None:
    """Train the model that a run file describes, or resume a run. --resume needs no other argument.

    A run whose train.name exists already is resumed, if its settings are the same.
    """
    changes = list(overrides or [])
    if config is not None and "=" in config and resume is not None:
        changes, config = [config, *changes], None
    if config is None and resume is None:
        raise ValueError("nothing to train: use `ds4sci train CONFIG`, or `ds4sci train --resume RUN`")
    from ds4sci.train import launch

    code = launch.train(
        config, changes, resume=resume, deepspeed_config=deepspeed_config, ranks=ranks, restarts=restarts
    )
    raise typer.Exit(code)
