"""Ranks of a selftest with planted faults."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from ds4sci.selftest import rank_program
from ds4sci.train import engine, loop, run, slice_files


@contextlib.contextmanager
def wrong_factor() -> Iterator[None]:
    """Multiply every gradient by the number of ranks."""
    scale = engine.gradient_scale
    with mock.patch.object(engine, "gradient_scale", lambda config, context: scale(config, context) / 2):
        yield


@contextlib.contextmanager
def dropped_share() -> Iterator[None]:
    """Leave the second micro-batch of rank 1 out of the loss."""
    fetch = loop.TrainingLoop._fetch_step

    def without_one(self: Any, batches: Any, count: int) -> Any:
        parts = fetch(self, batches, count)
        if self.context.rank == 1:
            parts[1] = (parts[1][0], 0.0)
        return parts

    with mock.patch.object(loop.TrainingLoop, "_fetch_step", without_one):
        yield


@contextlib.contextmanager
def wrong_parameter() -> Iterator[None]:
    """Double the gradient of one parameter."""
    build = run.build_task

    def build_wrong(config: Any) -> Any:
        task = build(config)
        name, parameter = list(task.model.named_parameters())[2]
        print("doubled", name)
        parameter.register_hook(lambda grad: 2 * grad)
        return task

    with mock.patch.object(run, "build_task", build_wrong):
        yield


@contextlib.contextmanager
def lost_moment() -> Iterator[None]:
    """Restore zeros instead of the second moments of Adam."""
    read = slice_files.SliceReader.read_into

    def forget(self: Any, target: Any, kind: str, name: str, start: int) -> None:
        read(self, target, kind, name, start)
        if kind == "exp_avg_sq":
            target.zero_()

    with mock.patch.object(slice_files.SliceReader, "read_into", forget):
        yield


@contextlib.contextmanager
def dead_rank() -> Iterator[None]:
    """End rank 1 before it trains."""
    if os.environ["RANK"] == "1":
        print("no memory left", flush=True)
        os._exit(9)
    yield


FAULTS = {
    "": contextlib.nullcontext, "wrong_factor": wrong_factor, "dropped_share": dropped_share,
    "wrong_parameter": wrong_parameter, "lost_moment": lost_moment, "dead_rank": dead_rank,
}  # fmt: skip


def train(cases_file: str) -> None:
    """``rank_program.train`` with a fault for each case: the names in the file ``faults`` beside the cases."""
    file = Path(cases_file)
    names = json.loads(file.with_name("faults").read_text())
    for number, (case, name) in enumerate(zip(json.loads(file.read_text()), names, strict=True)):
        # every rank has its own copy, since a faster one must not replace the file that another reads
        own = file.with_name(f"case_{number}_{os.environ['RANK']}.json")
        own.write_text(json.dumps([case]))
        with FAULTS[name]():
            rank_program.train(str(own))
