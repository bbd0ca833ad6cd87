"""MLPerf log of a run: a listener to the stages of rank 0.

``RUN/mlperf/result_0.txt`` is the log of the process that began the run. A process that resumes the run writes the next
number, with the event ``resumed_from_step``: the time to quality is that of one process from the first step to the
target, so the rules refuse such a log. A resumed run counts as a failed one.

Conventions:

- ``epoch_num`` counts training samples, as in the reference implementation of ``openfold``, because samples are drawn
  by seed and step, not by epoch. A block is the training between two evaluations; ``epoch_count`` are its samples.
- A metric of which higher is better is ``eval_accuracy``, one of which lower is better ``eval_error``;
  ``quality_target`` names metric, target and direction.
- ``run_stop`` is logged at the evaluation that reaches the target, before its checkpoint is saved. Its status is
  ``success`` only then; every other end is ``aborted``.
- ``init`` includes the import of the model's code, reading or indexing of the data and the engine, but not the start of
  the interpreter.
- Times are a monotonic clock that is set to the time of day once, so no adjustment of the clock changes a duration.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds4sci.config.hyperparameters import compare
from ds4sci.config.run_file import RunConfig
from ds4sci.machine import processor
from ds4sci.mlperf import hyperparameters, openfold, require
from ds4sci.mlperf.log_file import run_logs


@dataclass(frozen=True)
class Layout:
    """Ranks and batch of a run.

    nodes                  machines
    accelerators_per_node  GPUs that the run uses on each; 0 on CPUs
    accelerator            model of the GPU, or empty
    ranks                  processes
    batch                  (samples per step, micro-batch, accumulation steps)
    """

    nodes: int
    accelerators_per_node: int
    accelerator: str
    ranks: int
    batch: tuple[int, int, int]

    @property
    def platform(self) -> str:
        """Default name of the system."""
        part = f"{self.accelerators_per_node} {self.accelerator}" if self.accelerators_per_node else ""
        return f"{self.nodes}x {part or processor.model_name()}"


class MlperfLog:
    """Writer of the log of this process. Only rank 0 has one.

    config   of the run, with ``benchmark``
    run      run folder
    layout   ranks and batch
    cleared  what each node did to its page cache (``page_cache.drop``), before the run began
    """

    def __init__(self, config: RunConfig, run: Path, layout: Layout, cleared: Sequence[Mapping[str, Any]]) -> None:
        require("an MLPerf log")
        from mlperf_logging.mllog.mllog import MLLogger

        if config.benchmark is None:
            raise ValueError(f"{config.source}: an MLPerf log needs the section [benchmark]")
        self.config, self.benchmark, self.layout = config, config.benchmark, layout
        self.cleared = cleared
        self._epoch, self._monotonic = time.time(), time.monotonic()
        self._is_stopped = self._has_run = False
        self._has_eval_samples = False
        folder = run / "mlperf"
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / f"result_{len(run_logs(run))}.txt"
        self._handler = logging.FileHandler(self.file, mode="x", encoding="utf-8")
        sink = logging.Logger("ds4sci.mlperf", logging.INFO)  # not registered: no other handler gets the lines
        sink.addHandler(self._handler)
        root = Path(__file__).resolve().parents[2]
        self._logger = MLLogger(sink, root_dir=re.escape(str(root)))

    def begin(self, stage: str, values: Mapping[str, Any]) -> None:
        """See ``StageListener``."""
        if stage == "init":
            self._begin_init()
        elif stage == "staging":
            self._write("staging_start", interval="start")
        elif stage == "run":
            self._has_run = True
            self._write("run_start", interval="start")
        elif stage == "train":
            step, train = values["step"], self.config.train
            every = train.evaluate_every or train.steps
            count = min((step // every + 1) * every, train.steps) - step
            self._write(
                "block_start", interval="start", first_epoch_num=self._samples(step), epoch_count=self._samples(count)
            )
            self._block = step
        elif stage == "eval":
            self._write("eval_start", interval="start", epoch_num=self._samples(values["step"]))
            self._evaluated = values["step"]

    def end(self, stage: str, values: Mapping[str, Any]) -> None:
        """See ``StageListener``."""
        if stage == "init" and "error" not in values:
            self._write("init_stop", interval="end")
        elif stage == "staging":
            self._write("staging_stop", interval="end", **{f"staging_{key}": value for key, value in values.items()})
        elif stage == "train":
            self._write("block_stop", interval="end", first_epoch_num=self._samples(self._block))
        elif stage == "eval":
            self._end_evaluation(values)
        elif stage == "run":
            self._stop("aborted")

    def message(self, key: str, values: Mapping[str, Any]) -> None:
        """See ``StageListener``. ``task`` has step, parameters and train_samples; ``evaluated`` has examples."""
        if key == "task":
            self._write_task(values)
        elif key == "evaluated" and not self._has_eval_samples:
            self._has_eval_samples = True
            self._write("eval_samples", values["examples"])

    def close(self) -> None:
        """Close the file. It is removed if the run did not begin: init failed, or the target was already reached."""
        self._handler.close()
        if not self._has_run:
            self.file.unlink(missing_ok=True)

    def _begin_init(self) -> None:
        submission, layout = self.benchmark.submission, self.layout
        for node in self.cleared:
            self._write("cache_clear", bool(node["cleared"]), **{k: v for k, v in node.items() if k != "cleared"})
        self._write("init_start", interval="start")
        self._write("submission_benchmark", self.benchmark.name)
        self._write("submission_org", submission.org)
        self._write("submission_division", submission.division)
        self._write("submission_status", submission.status)
        self._write("submission_platform", submission.platform or layout.platform)
        self._write("seed", self.config.seed)
        self._write(
            "quality_target",
            self.benchmark.target,
            metric=self.benchmark.metric,
            direction=self.benchmark.direction,
        )
        self._write("number_of_nodes", layout.nodes)
        self._write("accelerators_per_node", layout.accelerators_per_node)
        self._write("number_of_ranks", layout.ranks)
        total, micro, accumulation = layout.batch
        self._write("global_batch_size", total)
        self._write("micro_batch_size", micro)
        self._write("gradient_accumulation_steps", accumulation)
        for key, value in hyperparameters.of_deepspeed(self.config.deepspeed_config()):
            self._write(key, value)
        for one in compare(self.config):
            self._write("reference_hyperparameter", one.own, name=one.key, reference=one.reference)

    def _write_task(self, values: Mapping[str, Any]) -> None:
        if values["step"]:
            self._write("resumed_from_step", values["step"])
        samples = values["train_samples"]
        if samples is None:
            self._write("train_samples", self._samples(self.config.train.steps), generated=True)
        else:
            self._write("train_samples", samples)
        if self.benchmark.name == "openfold" and self.config.task.name == "fold":
            for key, value in openfold.closed_keys(self.config, values["parameters"]):
                self._write(key, value)
            for key, reason in openfold.missing_keys(self.config).items():
                self._write("missing_key", key, reason=reason)
        else:
            self._write("model_parameters_count", values["parameters"])

    def _end_evaluation(self, values: Mapping[str, Any]) -> None:
        samples, metric = self._samples(self._evaluated), self.benchmark.metric
        reached = False
        if "error" not in values and metric in values:  # the training loop refuses an unknown metric
            key = "eval_accuracy" if self.benchmark.direction == "higher" else "eval_error"
            self._write(key, values[metric], epoch_num=samples, step_num=self._evaluated, metric=metric)
            reached = self.benchmark.is_reached(values[metric])
        self._write("eval_stop", interval="end", epoch_num=samples)
        if reached:
            self._stop("success")

    def _stop(self, status: str) -> None:
        """Log ``run_stop``, once. Nothing is logged afterwards."""
        if self._has_run:
            self._write("run_stop", interval="end", status=status)
        self._is_stopped = True

    def _samples(self, steps: int) -> int:
        return steps * self.layout.batch[0]

    def _write(self, key: str, value: Any = None, *, interval: str = "", **metadata: Any) -> None:
        if self._is_stopped:
            return
        write = {"start": self._logger.start, "end": self._logger.end}.get(interval, self._logger.event)
        time_ms = int((self._epoch + time.monotonic() - self._monotonic) * 1000)
        write(key, value, metadata=metadata, time_ms=time_ms, stack_offset=2)
