"""Logs of scaling measurements: one JSON file per mode and number of ranks, and run folders read as such.

Logs that are compared must be of one machine and one run file; a log of another is refused by file and reason.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ds4sci.config.run_file import RunConfig
from ds4sci.files.atomic_files import replace_text

FORMAT = "ds4sci scaling log 1"
WARMUP = 5
"""Steps at the beginning of a run that are left out."""
CHANGED_BY_RUNS = ("train", "deepspeed", "seed", "benchmark")
"""Sections of a run file that runs of one measurement may differ in: batch size, steps and names."""
SAME_MACHINE = ("cpu", "cores", "gpus")


@dataclass(frozen=True)
class Repeat:
    """One training: seconds of each step after the warm-up, seconds of collectives in it (empty if not measured), and
    the 1-minute load before it."""

    step_seconds: list[float]
    communication_seconds: list[float] = field(default_factory=list)
    load: float | None = None


@dataclass(frozen=True)
class ScalingLog:
    """Measurement of one mode and number of ranks.

    mode          ``strong``, ``weak``, or ``run`` for an ordinary run folder
    name          name of the run file
    fingerprint   of the settings that all logs of a report share
    batch         samples of a step; ``micro`` and ``accumulation`` are those of a rank
    threads       threads of a rank, None if unknown
    cores         ranks that run without sharing a core or a GPU
    ranks_per_node  ranks of a node
    model_flops   FLOPs of the model in a step, over all ranks, without recomputation; None if unknown
    peak          FLOP/s of a rank at most, measured; None if unknown
    memory_mb     largest peak memory of a rank
    file          where the log was read from; not stored
    """

    mode: str
    name: str
    fingerprint: str
    ranks: int
    batch: int
    micro: int
    accumulation: int
    repeats: list[Repeat]
    memory_mb: float
    threads: int | None = None
    cores: int | None = None
    ranks_per_node: int | None = None
    model_flops: float | None = None
    peak: float | None = None
    dtype: str = "fp32"
    machine: dict[str, Any] = field(default_factory=dict)
    date: str = ""
    command: str = ""
    file: str = ""

    @property
    def seconds(self) -> float:
        """Median seconds of a step: over the repeats, of the median of each."""
        return statistics.median(statistics.median(one.step_seconds) for one in self.repeats)

    @property
    def communication(self) -> float | None:
        """Median seconds of a step in collectives, or None if not measured."""
        known = [statistics.median(r.communication_seconds) for r in self.repeats if r.communication_seconds]
        return statistics.median(known) if known else None

    @property
    def is_oversubscribed(self) -> bool:
        """Whether ranks share cores or GPUs, so that times say nothing about a machine with enough of them."""
        return self.cores is not None and self.ranks > self.cores

    def save(self, file: Path) -> None:
        """Write the log."""
        tree = {"format": FORMAT} | {k: v for k, v in asdict(self).items() if k != "file"}
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_text(file, json.dumps(tree, indent=1) + "\n")


def fingerprint(resolved: dict[str, Any]) -> str:
    """Hash of the settings of a run file (``RunConfig.resolved``) without those that runs may differ in."""
    kept = {key: value for key, value in resolved.items() if key not in CHANGED_BY_RUNS}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def read_logs(paths: Sequence[Path]) -> list[ScalingLog]:
    """Read log files, folders of log files, and run folders, and check that they belong together.

    Raises ValueError, with the file and the reason, for a file that is not a log, a log of another run file or machine,
    and two logs of the same mode, ranks and batch.
    """
    logs: list[ScalingLog] = []
    for path in paths:
        logs += _read(path)
    first = logs[0]
    seen: dict[tuple[Any, ...], str] = {}
    for one in logs:
        if (one.mode == "run") != (first.mode == "run"):
            raise ValueError(
                f"{one.file}: mixes run folders with logs of `ds4sci scaling run` ({first.file}); give one kind"
            )
        if one.fingerprint != first.fingerprint:
            raise ValueError(
                f"{one.file}: a log of another run ({one.name}, settings {one.fingerprint}) than {first.file} "
                f"({first.name}, settings {first.fingerprint}); logs of a report differ in ranks and batch only"
            )
        for key in SAME_MACHINE:
            if one.machine.get(key) != first.machine.get(key):
                raise ValueError(
                    f"{one.file}: measured on another machine than {first.file} ({key}: {one.machine.get(key)!r}, not "
                    f"{first.machine.get(key)!r}); compare logs of one machine"
                )
        key_of = (one.mode, one.ranks, one.batch)
        if key_of in seen:
            raise ValueError(f"{one.file}: {one.mode} scaling on {one.ranks} ranks is in {seen[key_of]} already")
        seen[key_of] = one.file
    return sorted(logs, key=lambda one: (one.mode, one.ranks))


def _read(path: Path) -> list[ScalingLog]:
    if path.is_dir():
        if (path / "config.json").is_file():
            return [read_run(path)]
        files = sorted(path.glob("*.json"))
        runs = [] if files else sorted(file.parent for file in path.glob("*/config.json"))
        if not files and not runs:
            raise ValueError(f"{path}: no logs (*.json) and no run folders; make them with: ds4sci scaling run CONFIG")
        return [read_log(file) for file in files] or [read_run(run) for run in runs]
    return [read_log(path)]


def read_log(file: Path) -> ScalingLog:
    """Read one log file. Raises ValueError if it is not one."""
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}; expected a log of `ds4sci scaling run`, or a run folder") from None
    except ValueError as error:
        raise ValueError(f"{file}: not JSON ({error}); expected a log of `ds4sci scaling run`") from None
    if not isinstance(tree, dict) or tree.pop("format", None) != FORMAT:
        raise ValueError(f"{file}: not a scaling log (no format {FORMAT!r}); make one with: ds4sci scaling run CONFIG")
    try:
        repeats = [Repeat(**one) for one in tree.pop("repeats")]
        made = ScalingLog(**tree, repeats=repeats, file=str(file))
        if not repeats or not all(one.step_seconds and min(one.step_seconds) > 0 for one in repeats):
            raise ValueError("no steps were timed")
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{file}: damaged scaling log: {error}; measure it again") from None
    return made


def read_run(run: Path, *, warmup: int = WARMUP) -> ScalingLog:
    """Read the metrics of an ordinary run folder as a log of mode ``run``.

    Step times are means between two lines of ``metrics.jsonl`` without an evaluation in between. Raises ValueError if
    the lines after the warm-up do not suffice.
    """
    from ds4sci.report.run_artifacts import read_artifacts
    from ds4sci.train import checkpoint

    artifacts = read_artifacts(run)
    if artifacts.config is None:
        raise ValueError(f"{run}: config.json is missing or damaged; expected a run folder of `ds4sci train`")
    config = RunConfig.load(run / "config.json")
    state = next(
        (checkpoint.read_state(checkpoint.checkpoint_folder(run, s)) for s in checkpoint.checkpoint_steps(run)), None
    )
    if state is None:
        raise ValueError(f"{run}: no checkpoint, which records the number of ranks; expected a run that saved one")
    seconds, communication = step_seconds(artifacts.train, artifacts.evaluations, warmup)
    if not seconds:
        raise ValueError(
            f"{run}: metrics.jsonl has no two lines after step {warmup} without an evaluation between them; train "
            "longer or with a smaller train.log_every"
        )
    ranks, batch = int(state["world_size"]), int(state["train_batch_size"])
    data_ranks = ranks // (config.parallel.sequence * config.parallel.pipeline)
    micro = int(config.deepspeed_config().get("train_micro_batch_size_per_gpu") or batch // data_ranks)
    machine = artifacts.machine or {}
    memory = max(float(line.get("memory_mb") or 0.0) for line in artifacts.train)
    return ScalingLog(
        "run", config.task.name, fingerprint(config.resolved()), ranks, batch, micro,
        max(1, batch // (micro * data_ranks)), [Repeat(seconds, communication)], memory,
        cores=len(machine.get("gpus") or []) or machine.get("cores"), machine=machine, file=str(run),
    )  # fmt: skip


def step_seconds(
    train: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]], warmup: int
) -> tuple[list[float], list[float]]:
    """Seconds per step, and seconds in collectives, between the lines of ``metrics.jsonl`` after ``warmup`` steps.

    Intervals with an evaluation or a resume in between are left out: ``seconds`` of a line is the training time so far.
    """
    evaluated = {int(line["step"]) for line in evaluations}
    seconds, communication = [], []
    for before, after in itertools.pairwise(train):
        steps = int(after["step"]) - int(before["step"])
        crosses = any(int(before["step"]) <= step < int(after["step"]) for step in evaluated)
        if int(before["step"]) < warmup or steps <= 0 or crosses:
            continue
        passed = (float(after["seconds"]) - float(before["seconds"])) / steps
        if passed > 0:
            seconds.append(passed)
            if "communication_seconds" in after:
                communication.append(float(after["communication_seconds"]))
    return seconds, communication
