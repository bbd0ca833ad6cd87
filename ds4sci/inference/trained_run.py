"""Loading of a trained run for inference, and the evaluation files that its folder holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ds4sci.config.run_file import RunConfig
from ds4sci.nn.quantized_weights import Format, quantize_weights
from ds4sci.tasks import Task
from ds4sci.tasks.build import build_task
from ds4sci.train import checkpoint
from ds4sci.train.initial_weights import load_initial_weights

UNTRAINED = "untrained"
"""In place of a checkpoint name: the model with the weights before the first step, random or of ``train.weights``."""

RUN_FILE = "train.weights"
"""The checkpoint of a run file, which has weights but no run folder."""


@dataclass(frozen=True)
class TrainedRun:
    """A task with the weights of a checkpoint, in evaluation mode, on the GPU if there is one.

    folder      the run folder, or the run file
    config      its configuration, with overrides
    task        the task with the EMA weights
    checkpoint  ``best``, ``latest``, ``step_NNNNNN``, N or ``untrained``, as given; ``train.weights`` for a run file
    step        step of the weights; 0 for ``untrained`` and for a run file
    messages    what was loaded from ``train.weights``, and its license
    """

    folder: Path
    config: RunConfig
    task: Task
    checkpoint: str
    step: int
    messages: tuple[str, ...] = ()

    @classmethod
    def load(
        cls, run: Path | str, which: str = "best", overrides: Sequence[str] = (), *, quantize: Format | None = None
    ) -> TrainedRun:
        """Load the checkpoint ``which`` of the folder ``run``, or ``train.weights`` of the run file ``run`` (TOML).

        overrides  ``key=value`` over the configuration of the run, such as ``data.evaluation_recycling=3``
        quantize   compress the weights of linear layers to ``int8`` or ``nf4`` (``ds4sci.nn.quantized_weights``)

        Raises ValueError if there is no such run or checkpoint, for a run file without ``train.weights``, and if the
        model has nothing to compress.
        """
        run = Path(run)
        messages: tuple[str, ...] = ()
        if _is_run_file(run):
            config = read_config(run, which, overrides)
            task, which, step = build_task(config), RUN_FILE, 0
            loaded = load_initial_weights(task, config.train)
            messages = () if loaded is None else tuple(loaded.messages())
            task.model.eval()
        elif which == UNTRAINED:
            config = read_config(run, which, overrides)
            task = build_task(config)
            load_initial_weights(task, config.train)
            task.model.eval()
            step = 0
        else:
            config, task = checkpoint.load_run(run, which=which, overrides=overrides)
            step = int(checkpoint.select_checkpoint(run, which).name.removeprefix("step_"))
        if quantize is not None:
            quantize_weights(task.model, quantize)
        task.model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(run, config, task, which, step, messages)

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.task.model.parameters()).device

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.config.train.name or (self.folder.stem if self.checkpoint == RUN_FILE else self.folder.name)

    def lacks(self, capability: str, methods: str) -> ValueError:
        """Return the error for a command that needs a capability which the task does not have.

        capability  what the command does, such as ``predict structures``
        methods     methods that a task needs for it
        """
        return ValueError(
            f"{self.folder}: its task {self.config.task.name!r} cannot {capability}; the task needs {methods} (see "
            "ds4sci.tasks.capabilities)"
        )


def read_config(run: Path | str, which: str = "best", overrides: Sequence[str] = ()) -> RunConfig:
    """Return the configuration that ``TrainedRun.load`` has for these arguments, without reading weights.

    Raises ValueError if there is no such run or checkpoint, and for a run file without ``train.weights``.
    """
    run = Path(run)
    if not _is_run_file(run):
        selected = checkpoint.select_checkpoint(run, "latest" if which == UNTRAINED else which)
        return RunConfig.load(selected / "config.json", list(overrides))
    config = RunConfig.load(run, list(overrides))
    if config.train.weights is None:
        raise ValueError(
            f"{run}: a run file has no trained weights; add train.weights=FILE, or give the folder of a run"
        )
    return config


def _is_run_file(run: Path) -> bool:
    return run.suffix == ".toml" and run.is_file()


def evaluation_files(run: Path) -> dict[str, Path]:
    """Return the files that the report of ``run`` reads: ``held_out``, ``untrained``, ``baselines``,
    ``predictions``."""
    folder = run / "evaluations"
    return {
        "held_out": folder / "held_out.json",
        UNTRAINED: folder / "untrained.json",
        "baselines": folder / "baselines.json",
        "predictions": folder / "predictions.npz",
    }
