"""The training loop, which is the same for every task.

One step: forward and backward of ``accumulation_steps`` micro-batches, one optimizer step, one EMA update. Between
steps the loop evaluates, saves and stops. The loss of a step is one mean over its tokens or samples on all ranks;
therefore all micro-batches are fetched, and their weights summed over the ranks, before the first forward pass.
Decisions that the ranks take together use one control message per step.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ds4sci.config.run_file import RunConfig
from ds4sci.data import score_file
from ds4sci.data.delivery_ledger import Ledger
from ds4sci.data.sample_order import Delivery
from ds4sci.files import atomic_files
from ds4sci.files.json_values import to_plain
from ds4sci.kernels.machine_peak import peak_rate
from ds4sci.parallel.collective_times import CollectiveTimes
from ds4sci.tasks import SampleScoring, Task, batch_weight
from ds4sci.train import checkpoint, optimizer_slices, rng_state, target, watchdog
from ds4sci.train.ema import Ema
from ds4sci.train.engine import Engine, StepResult
from ds4sci.train.gradient_noise import NoiseSums
from ds4sci.train.metric_log import LossSums, MetricLog, Throughput, peak_memory_mb
from ds4sci.train.progress import Progress
from ds4sci.train.signals import StopRequest
from ds4sci.train.stages import Stages

Observer = Callable[[int, list[tuple[Any, float]], StepResult], None]
"""Function of (step, micro-batches of this rank with their shares of the loss, their result)."""


class TooManyNonfiniteSteps(RuntimeError):
    """More steps had a non-finite loss or gradient than ``train.max_nonfinite`` allows."""


class _Stopped(Exception):
    """Raised on every rank to leave an evaluation that a stop request interrupts."""


@dataclass
class TrainState:
    """State saved in a checkpoint besides weights, optimizer and loss sums; identical on all ranks.

    step            optimizer steps done, including skipped ones; this is the data position
    evaluated_step  step of the last evaluation
    nonfinite       skipped steps so far
    best            {"step", "metric", "value"} of the best evaluation, or None
    seconds         training time so far, including earlier processes of a resumed run
    reached         {"step", "metric", "value", "seconds"} of the evaluation that reached the target, or None
    """

    step: int = 0
    evaluated_step: int = 0
    nonfinite: int = 0
    best: dict[str, Any] | None = None
    seconds: float = 0.0
    reached: dict[str, Any] | None = None


@dataclass
class TrainingLoop:
    """The training loop of one rank.

    run      the run folder
    state    restored from a checkpoint by ``restore``
    sums     loss sums since the last line of metrics; restored as well
    summary  metrics of the last evaluation
    observe  called after every step with the step, this rank's micro-batches and shares, and their result
    stages   receives the stages ``train``, ``eval`` and ``save``
    """

    config: RunConfig
    task: Task
    engine: Engine
    ema: Ema
    run: Path
    stop: StopRequest
    progress: Progress
    state: TrainState = field(default_factory=TrainState)
    sums: LossSums = field(default_factory=LossSums)
    saved_step: int = -1
    summary: dict[str, float] = field(default_factory=dict)
    observe: Observer | None = None
    stages: Stages = field(default_factory=Stages)

    def __post_init__(self) -> None:
        optimizer_slices.check_optimizer(self.engine)  # before the first step, not at the first checkpoint
        self.context, self.group = self.engine.context, self.engine.context.sequence
        self.metrics = MetricLog(self.run / "metrics.jsonl")
        self.ledger = Ledger(self.run / "ledger")
        self._began = time.monotonic() - self.state.seconds
        self._lap = (time.monotonic(), time.process_time(), self.state.step)
        self._throughput = Throughput()
        self._collectives = CollectiveTimes()

    def restore(self, folder: Path) -> None:
        """Restore the checkpoint ``folder`` and remove what the run wrote for later steps."""
        state = {"reached": None} | checkpoint.restore(folder, self.engine, self.ema)  # early checkpoints lack it
        self.task.restore_data_state(checkpoint.read_data_state(folder))
        state["reached"] = target.still_reached(self.config, state["reached"])
        self.state = TrainState(**{name: state[name] for name in TrainState.__dataclass_fields__})
        self.sums.restore(state.get("sums", []), self.context.rank, self.context.world_size)
        self.saved_step = self.state.step
        self.__post_init__()
        if self.context.is_main:
            self.remove_after(self.state.step)
        self.context.barrier()

    def remove_after(self, step: int) -> None:
        """Remove what the run wrote after ``step`` steps; −1: everything. Only rank 0 calls it."""
        self.metrics.truncate_after(step)
        checkpoint.remove_after(self.run, step)
        self.ledger.truncate(max(step, 0))

    def train(self) -> bool:
        """Train to the last step, or to the target of a benchmark, and save a checkpoint.

        Returns False if a stop request ended the loop earlier. A run that has reached its target does nothing.

        Raises TooManyNonfiniteSteps, after saving a checkpoint, OSError if a checkpoint could not be written, and
        ValueError if evaluations lack the metric of the benchmark. All are raised on every rank.
        """
        train = self.config.train
        if self.state.reached is not None:
            return True
        stopped = False
        if self._evaluation_due():  # the run was stopped during the evaluation at the step of the checkpoint
            improved, stopped = self._evaluate_unless_stopped()
            if improved or self._is_complete():
                self.saved_step = -1  # the checkpoint of this step lacks the result of the evaluation
                self.save()
        _, micro, accumulation = self.engine.batch
        first_of_sample = self.group.rank == 0 and self.context.pipeline.is_first
        self.task.delivery = Delivery(self.ledger, train.steps, records=first_of_sample)
        self.task.gather = self.context.gather
        batches = self.task.batches(
            start_step=self.state.step,
            rank=self.group.data_rank,
            world_size=self.group.data_size,
            micro_batch_size=micro,
            accumulation_steps=accumulation,
        )
        self.engine.module.train()
        timed = self._collectives if train.time_collectives else contextlib.nullcontext()
        while not (stopped or self.state.reached or self.state.step == train.steps):
            with timed, self.stages.stage("train", step=self.state.step) as end:
                stopped = self._train_until_evaluation(batches, accumulation)
                end["step"] = self.state.step
            improved = False
            if not stopped and self._evaluation_due():
                improved, stopped = self._evaluate_unless_stopped()
            if self._save_due() or improved or stopped or self.state.reached or self.state.step == train.steps:
                self.save()
        watchdog.beat("end", self.state.step)
        if hasattr(batches, "close"):  # a generator, which may own threads
            batches.close()
        return self._is_complete()

    def _is_complete(self) -> bool:
        """Whether the target is reached, or the last step is done and evaluated."""
        done = self.state.step == self.config.train.steps and not self._evaluation_due()
        return done or self.state.reached is not None

    def _train_until_evaluation(self, batches: Iterator[Any], accumulation: int) -> bool:
        """Do the steps up to the next evaluation or the last step. Returns True if a stop request came first."""
        train = self.config.train
        while True:
            stopped = self._step(batches, accumulation)
            step = self.state.step
            last = step == train.steps
            if step % train.log_every == 0 or last:
                self._log()
            if self.state.nonfinite > train.max_nonfinite:
                self.save()
                raise TooManyNonfiniteSteps(
                    f"{self.state.nonfinite} steps had a non-finite loss or gradient, and train.max_nonfinite = "
                    f"{train.max_nonfinite}; the samples are in {self.run / 'nonfinite'}, the state of step {step} "
                    f"in {checkpoint.checkpoint_folder(self.run, step)}"
                )
            if stopped or last or self._evaluation_due():
                return stopped
            if self._save_due():
                self.save()

    def _step(self, batches: Iterator[Any], accumulation: int) -> bool:
        """Do one optimizer step. Returns whether any rank was asked to stop."""
        engine, step, group = self.engine, self.state.step, self.group
        rate = engine.learning_rate()
        parts = self._fetch_step(batches, accumulation)
        watchdog.beat("step", step)
        result = engine.run_step(self.task, parts, self._seed_micro_batch)
        if self.observe is not None:
            self.observe(step, parts, result)
        stages = self.context.pipeline.size
        for batch, _ in parts:
            if (work := self.task.work(batch)) is not None:
                self._throughput.add(*(amount / stages for amount in work))
        applied = result.applied
        stop, any_bad = self.context.any(bool(self.stop), not all(result.finite))
        if not result.losses:  # a pipeline stage before the last
            parts = []
        if not any_bad:
            for (_, share), values in zip(parts, result.losses, strict=True):
                self.sums.add(values, share, parts=group.size)
        self.state.step = step + 1
        self._rate = rate
        if applied and any_bad:
            raise RuntimeError("a step with a non-finite loss was applied to the weights; the run cannot continue")
        if engine.noise is not None:
            engine.noise.end_step(engine.grad_norm, is_finite=applied)
        if applied:
            self.ema.update()
        elif any_bad or not engine.uses_dynamic_loss_scale:
            seen = [
                {"ids": list(batch.ids), "finite": finite} | values
                for (batch, _), finite, values in zip(parts, result.finite, result.losses, strict=True)
            ]
            self._record_skipped_step(seen, "loss" if any_bad else "gradient")
        self.progress.advance(self.state.step)
        return stop

    def _seed_micro_batch(self, number: int, *passes: int) -> None:
        """Seed the random generators for this rank's micro-batch ``number`` of the step; see ``Engine.run_step``."""
        watchdog.beat()
        group = self.group
        place = number * group.data_size + group.data_rank  # number of the micro-batch in the step, over all ranks
        part = 0 if self.task.shares_random_state else group.rank
        part += self.context.pipeline.stage  # 0 if ranks share rows
        rng_state.seed_all(self.config.seed, rng_state.MICRO_BATCH, self.state.step, place, *passes, part=part)

    def _fetch_step(self, batches: Iterator[Any], count: int) -> list[tuple[Any, float]]:
        """Fetch this rank's micro-batches of the next step, each with its share of the loss.

        The share of a micro-batch is its weight divided by the weight of all micro-batches of the step on all ranks, or
        0 if the total weight is 0.
        """
        made = [next(batches) for _ in range(count)]
        for batch in made:
            if batch.step != self.state.step:
                raise RuntimeError(
                    f"the task returned a batch of step {batch.step} at step {self.state.step}; see Task.batches"
                )
        weights = [batch_weight(self.task, batch) for batch in made]
        total = self.context.all_reduce_sum(sum(weights)) / self.context.ranks_per_sample  # each of them counted it
        return [(batch, weight / total if total else 0.0) for batch, weight in zip(made, weights, strict=True)]

    def _record_skipped_step(self, seen: list[dict[str, Any]], what: str) -> None:
        """Count a step that no rank applied, and write its samples to ``nonfinite/step_NNNNNN.json``."""
        self.state.nonfinite += 1
        everything = self.context.gather(seen)
        if not self.context.is_main:
            return
        step = self.state.step
        rows = [{"rank": rank} | entry for rank, part in enumerate(everything) for entry in part]
        bad_rows = [row for row in rows if not row["finite"]] or rows
        file = self.run / "nonfinite" / f"step_{step:06d}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(
            json.dumps(to_plain({"step": step, "what": what, "samples": bad_rows}), indent=1), encoding="utf-8"
        )
        ids = list(dict.fromkeys(i for row in bad_rows for i in row["ids"]))  # ranks that share a sample each name it
        self.metrics.write("event", step, event="nonfinite", what=what, ids=ids, total=self.state.nonfinite)
        self.progress.log(f"step {step}: the {what} is not finite; skipped on all ranks. Samples: {', '.join(ids)}")

    def _log(self) -> None:
        """Write one line of metrics: means over the steps since the previous line, without those whose loss was not
        finite."""
        now, cpu, step = time.monotonic(), time.process_time(), self.state.step
        began, cpu_began, step_began = self._lap
        self._lap = (now, cpu, step)
        if self._throughput.tokens and self._throughput.measured < 3:  # best of three, since the machine may be busy
            dtype = torch.bfloat16 if self.engine.deepspeed.bfloat16_enabled() else torch.float32
            self._throughput.measured += 1
            self._throughput.peak = (
                max(self._throughput.peak or 0.0, peak_rate(self.context.device, dtype) or 0.0) or None
            )
        waited = self._collectives.reset() / max(step - step_began, 1)
        parts = self.context.gather(
            (
                self.sums, cpu - cpu_began, peak_memory_mb(self.context.device), self._throughput.reset(),
                self.engine.noise.reset() if self.engine.noise is not None else NoiseSums(), waited,
            )
        )  # fmt: skip
        self.sums = LossSums()
        means = LossSums.mean([part[0] for part in parts])
        loss = means.pop("loss", float("nan"))
        speed = self.engine.batch[0] * (step - step_began) / max(now - began, 1e-9)
        memory = max(part[2] for part in parts)
        rates = Throughput.rates([part[3] for part in parts], max(now - began, 1e-9))
        norm = self.engine.grad_norm
        communication = sum(part[5] for part in parts) / len(parts)
        noise = NoiseSums.estimate([part[4] for part in parts], self.engine.batch[0])
        if self.context.is_main:
            self.metrics.write(
                "train", step, progress=step / self.config.train.steps, loss=loss, loss_terms=means, lr=self._rate,
                grad_norm=norm, samples_per_second=speed, seconds=now - self._began,
                cpu_seconds=sum(part[1] for part in parts), memory_mb=memory, **rates,
                **({} if noise is None else {"gradient_noise": noise}),
                **({"communication_seconds": communication} if self.config.train.time_collectives else {}),
            )  # fmt: skip
        values = {"loss": loss} | means
        self.progress.show_losses(values, samples_per_second=speed, memory_mb=memory, rates=rates)
        scalars = {f"Train/{k}": v for k, v in (values | rates).items()} | {
            "Train/lr": self._rate,
            "Train/samples_per_second": speed,
        }
        if norm is not None:
            scalars["Train/grad_norm"] = norm
        self.engine.log(scalars, step * self.engine.batch[0])

    def _save_due(self) -> bool:
        every = self.config.train.save_every
        return bool(every) and self.state.step % every == 0

    def _evaluation_due(self) -> bool:
        step, every = self.state.step, self.config.train.evaluate_every
        wanted = step == self.config.train.steps or bool(every and step and step % every == 0)
        return wanted and self.state.evaluated_step != step

    def _evaluate_unless_stopped(self) -> tuple[bool, bool]:
        """Evaluate. Returns whether the weights are the best so far, and whether a stop request interrupted."""
        try:
            return self._evaluate(), False
        except _Stopped:
            return False, True

    def _evaluate(self) -> bool:
        """Evaluate the EMA weights on held-out data. Returns whether they are the best so far."""
        with self.stages.stage("eval", step=self.state.step) as end:
            improved = self._evaluate_held_out()
            end |= self.summary
        return improved

    def _evaluate_held_out(self) -> bool:
        step, began = self.state.step, time.monotonic()
        calls = itertools.count(1)
        watchdog.beat("evaluate", step)

        def check_for_stop() -> None:
            watchdog.beat()
            self.progress.set_activity(f"evaluating, batch {next(calls)}")
            if self.context.any(bool(self.stop))[0]:
                raise _Stopped

        self.engine.module.eval()
        try:
            with torch.no_grad(), self.ema.swapped():
                rng_state.seed_all(self.config.seed, rng_state.EVALUATION, step, self.group.data_rank)
                rows = self.engine.evaluate(self.task, check_for_stop)
        finally:
            self.engine.module.train()
            self.progress.set_activity("training")
        own = rows if self.group.rank == 0 else []  # all ranks of a sequence group evaluate the same rows
        rows = [row for part in self.context.gather(own) for row in part]
        if all("id" in row for row in rows):
            rows.sort(key=lambda row: str(row["id"]))
        self.stages.message("evaluated", examples=len(rows))
        self.summary = {name: float(value) for name, value in self.task.summarize(rows).items()}
        now = time.monotonic()
        seconds, elapsed = now - began, now - self._began
        metric = self.task.target
        value = self.summary.get(metric)
        if value is None:
            raise RuntimeError(f"task.target = {metric!r} is not in the summary: {', '.join(self.summary)}")
        improved = self.state.best is None or value > self.state.best["value"]
        if improved:
            self.state.best = {"step": step, "metric": metric, "value": value}
        self.state.evaluated_step = step
        reached = target.reached_by(self.config, self.summary, step=step, seconds=elapsed)
        if self.config.benchmark is not None:  # one decision, and one time, for all ranks
            reached = self.context.broadcast(reached)
        self.state.reached = reached
        if self.context.is_main:
            folder = self.run / "evaluations"
            folder.mkdir(exist_ok=True)
            lines = "".join(json.dumps(to_plain(row)) + "\n" for row in rows)
            atomic_files.replace_text(folder / f"step_{step:06d}.jsonl", lines)
            self.metrics.write("eval", step, **self.summary, seconds=seconds, elapsed=elapsed)
        self.progress.show_evaluation(step, self.summary, seconds)
        self.engine.log({f"Eval/{k}": v for k, v in self.summary.items()}, step * self.engine.batch[0])
        return improved

    def save(self) -> None:
        """Save a checkpoint of the current step, unless it exists already."""
        if self.saved_step == self.state.step:
            return
        watchdog.beat("save", self.state.step)
        self.progress.set_activity("saving")
        with self.stages.stage("save", step=self.state.step):
            self._save()
        self.progress.set_activity("training")

    def _save(self) -> None:
        self.state.seconds = time.monotonic() - self._began
        self.ledger.sync(self.group.data_rank)
        state = vars(self.state) | {
            "ema_updates": self.ema.updates,
            "world_size": self.context.world_size,
            "zero_stage": self.engine.zero_stage,
            "train_batch_size": self.engine.batch[0],
        }
        data_state = self.task.data_state()
        checkpoint.save(self.run, self.engine, self.ema, state, self.sums.state(), data_state)
        self.saved_step = self.state.step
        if self.context.is_main:
            if (scores := self.task.recorded_scores()) and isinstance(self.task, SampleScoring):
                about = {"run": str(self.run), "step": self.state.step}
                score_file.write_scores(self.run / "scores.npz", self.task.sample_names(), scores, about)
            best = self.state.best["step"] if self.state.best else None
            checkpoint.prune(self.run, self.config.train.keep_last, best)
