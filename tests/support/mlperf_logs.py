"""MLPerf logs for tests, written by the listener as a training would make it write."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ds4sci.config.run_file import RunConfig
from ds4sci.mlperf.log import Layout, MlperfLog
from ds4sci.train.stages import Stages

CLEARED = {"host": "node0", "files": 1, "bytes": 4096, "method": ["posix_fadvise DONTNEED"], "cleared": True}
BENCHMARK = """
[benchmark]
name = "tiny"
title = "an operator"
metric = "score"
target = -0.5
direction = "higher"
[benchmark.hyperparameters]
"train.steps" = 30
"""
TINY = (
    "train.steps=30", "train.evaluate_every=10", "model.branch=[8]", "model.trunk=[8]", "model.latent=4",
    "data.points=8", "data.boundary_points=4", "data.valid_functions=2",
)  # fmt: skip


def tiny_config(folder: Path, *overrides: str, benchmark: str = BENCHMARK) -> RunConfig:
    """Config of a tiny operator with ``[benchmark]``; its run file is written into ``folder``."""
    file = folder / "tiny.toml"
    file.write_text(Path("configs/operator/reaction_diffusion.toml").read_text() + benchmark)
    return RunConfig.load(file, [*TINY, *overrides])


def write_log(
    config: RunConfig, run: Path, values: Sequence[float] = (-0.9, -0.7, -0.4), *, layout: Layout | None = None,
    resumed_from: int = 0, cleared: Sequence[dict[str, Any]] = (CLEARED,),
) -> Path:  # fmt: skip
    """Return the log of a run in the folder ``run`` whose evaluations gave ``values``."""
    log = MlperfLog(config, run, layout or Layout(1, 0, "", 1, (64, 32, 2)), cleared)
    stages, every, step = Stages(log), config.train.evaluate_every, resumed_from
    metric = config.benchmark.metric
    with stages.stage("init"):
        stages.message("task", step=step, parameters=505, train_samples=1000)
    with stages.stage("run"):
        for value in values:
            with stages.stage("train", step=step) as end:
                step += every
                end["step"] = step
            with stages.stage("eval", step=step) as end:
                stages.message("evaluated", examples=20)
                end[metric] = value
            if config.benchmark.is_reached(value):
                break
    stages.close()
    return log.file


def change(file: Path, edit: Callable[[dict[str, Any]], dict[str, Any] | None]) -> Path:
    """Rewrite every line of a log: ``edit`` returns the new content, or None to remove the line."""
    lines = []
    for text in file.read_text().splitlines():
        mark, _, body = text.partition(" ")
        new = edit(json.loads(body))
        if new is not None:
            lines.append(f"{mark} {json.dumps(new)}")
    file.write_text("\n".join(lines) + "\n")
    return file


def set_duration(file: Path, minutes: float) -> Path:
    """Set the time of ``run_stop`` to ``minutes`` after ``run_start``."""
    start = [0.0]

    def edit(line: dict[str, Any]) -> dict[str, Any]:
        if line["key"] == "run_start":
            start[0] = line["time_ms"]
        if line["key"] == "run_stop":
            line["time_ms"] = start[0] + minutes * 60_000
        return line

    return change(file, edit)
