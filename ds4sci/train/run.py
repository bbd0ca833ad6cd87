"""A rank's part in a run: join the other ranks, build, restore, train, and report an error once."""

from __future__ import annotations

import traceback
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ds4sci.config import deepspeed_json
from ds4sci.config.run_file import RunConfig
from ds4sci.nn.activation_budget import log_decisions
from ds4sci.tasks import ASSETS_DIR, Pipelined, SequenceParallel, Task
from ds4sci.tasks.build import build_task, default_kernels
from ds4sci.train import checkpoint, data_staging, deepspeed_schema, failures, listeners, rng_state, run_folder, target
from ds4sci.train import engine as engines
from ds4sci.train.distributed import DistributedContext, local_ranks, set_rank_environment
from ds4sci.train.ema import Ema
from ds4sci.train.initial_weights import load_initial_weights
from ds4sci.train.loop import Observer, TooManyNonfiniteSteps, TrainingLoop
from ds4sci.train.pipeline_engine import PipelineEngine
from ds4sci.train.progress import Progress
from ds4sci.train.signals import StopRequest
from ds4sci.train.stages import Stages
from ds4sci.train.watchdog import Watchdog, claim_error_file


@dataclass(frozen=True)
class RunResult:
    """Result of a run.

    run       its folder
    step      the last step done
    finished  whether the run is complete: at its last step, or at the target of its benchmark
    summary   metrics of the last evaluation of this process; empty if there was none
    reached   {"step", "metric", "value", "seconds"} of the evaluation that reached the target, or None
    """

    run: Path
    step: int
    finished: bool
    summary: dict[str, float]
    reached: dict[str, Any] | None = None


@dataclass(frozen=True)
class Session:
    """A rank that has joined the other ranks of a run. The run folder exists, and rank 0 holds its lock."""

    config: RunConfig
    context: DistributedContext
    run: Path
    is_resumed: bool
    watchdog: Watchdog
    lock: ExitStack
    stages: Stages

    @classmethod
    def join(cls, config: RunConfig, *, resume: Path | None = None) -> Session:
        """Connect the ranks, and create the run folder or use ``resume``. Raises ValueError, on every rank.

        A folder that ``train.name`` names and that exists already is used as well, if it has the same settings.
        """
        set_rank_environment()
        engines.silence_deepspeed()
        deepspeed_schema.check(config.deepspeed_config(), config.deepspeed)
        context = engines.init_distributed(
            config.deepspeed_config(), config.parallel.sequence, config.parallel.pipeline
        )
        deepspeed_json.batch_sizes(config.deepspeed_config(), context.sequence.data_size, config.deepspeed)
        lock = ExitStack()
        folder = run_folder.prepare(config, resume, context, lock)
        if not folder.is_resumed:
            # The run reads the copy of the JSON, which does not change; messages name the user's run file.
            config = replace(config, deepspeed=folder.run / "deepspeed.json")
        limit = config.train.hang_seconds
        watchdog = Watchdog(folder.run, context.rank, attempt=folder.attempt, ranks=local_ranks(), limit=limit)
        watchdog.start()
        stages = Stages(*listeners.of_rank(config, context, folder.run, folder.attempt))
        return cls(config, context, folder.run, folder.is_resumed, watchdog, lock, stages)

    def train(self, observe: Observer | None = None) -> RunResult:
        """Train to the last step or until a signal stops the run. Before the first step signals kill the process.

        observe  see ``TrainingLoop``
        """
        with self.lock:
            try:
                with closing(self.stages):
                    result = self._train(observe)
            except BaseException as error:
                self.watchdog.stop(failed=isinstance(error, Exception))
                raise
            self.watchdog.stop()
        return result

    @property
    def has_begun(self) -> bool:
        """Whether the first step of this process has begun: until then an OSError is an error of the user."""
        return self.watchdog.state.phase != "start"

    def _train(self, observe: Observer | None) -> RunResult:
        stop = StopRequest()
        staged = data_staging.stage_data(self.config, self.context, self.stages)
        with self.stages.stage("init"):
            loop = self._prepare(staged, stop, observe)
        benchmark, reached = self.config.benchmark, loop.state.reached
        if benchmark is not None and reached is not None:
            loop.progress.log(
                f"{self.run}: this run has reached its target: {target.describe(benchmark, reached)}; there is nothing "
                "to train. Choose another train.name for a new run"
            )
            return RunResult(self.run, loop.state.step, True, {}, reached)
        with self.stages.stage("run") as end, loop.progress, stop, default_kernels(self.config):
            finished = loop.train()
            end["finished"] = finished
            reached = loop.state.reached
            if benchmark is not None:
                end |= {"reached": reached is not None, "metric": benchmark.metric, "step": loop.state.step}
                end["value"] = loop.summary.get(benchmark.metric)
        if finished:
            best = loop.state.best
            note = f"; best {best['metric']} {best['value']:.4f} at step {best['step']}" if best else ""
            if benchmark is not None:
                note += f"; target not reached: {benchmark.metric} {benchmark.condition}"
            if benchmark is not None and reached is not None:
                note = f"; target reached: {target.describe(benchmark, reached)}"
            loop.progress.log(
                f"Done: {loop.state.step} steps in {loop.state.seconds / 60:.1f} min{note}. Run: {self.run}"
            )
        else:
            loop.progress.log(
                f"Stopped after step {loop.state.step} ({stop.reason or 'requested by another rank'}); "
                f"the run is saved. Resume it with: ds4sci train --resume {self.run}"
            )
        return RunResult(self.run, loop.state.step, finished, loop.summary, reached)

    def _prepare(self, staged: RunConfig, stop: StopRequest, observe: Observer | None) -> TrainingLoop:
        """Build the task and the engine, restore the newest checkpoint, and report what is trained.

        staged  the configuration with the paths of staged data, which are not saved with the run
        """
        config, context = self.config, self.context
        rng_state.seed_all(config.seed, rng_state.WEIGHTS)  # the same on all ranks
        task = build_task(staged)
        initial = None if self.is_resumed else load_initial_weights(task, config.train)
        parameters = sum(p.numel() for p in task.model.parameters())
        if context.sequence.size > 1:
            if not isinstance(task, SequenceParallel):
                raise ValueError(
                    f"{config.source}: parallel.sequence = {context.sequence.size}, but the task {config.task.name} "
                    "cannot split a row over ranks (it has no method `set_parallel_groups`); remove the key"
                )
            task.set_parallel_groups(context.sequence)
        if task.reorders_samples and context.ranks_per_sample > 1:
            raise ValueError(
                f'{config.source}: data.order = "ready", and {context.ranks_per_sample} ranks compute each sample '
                "together (parallel.sequence or parallel.pipeline): they would take different samples; use the order "
                '"strict" or "replay"'
            )
        engine = self._create_engine(task)
        if config.train.gradient_noise:
            engine.measure_noise()
        progress = Progress(config.train.steps, shown=context.is_main)
        for line in initial.messages() if initial else ():
            progress.log(line)
        log_decisions(task.model, progress.log)
        loop = TrainingLoop(
            config, task, engine, Ema(engine.named_parameters(), config.train.ema_decay), self.run, stop, progress,
            observe=observe, stages=self.stages,
        )  # fmt: skip
        run_folder.check_fixed_inputs(self.run, task.fixed_inputs(), context, is_resumed=self.is_resumed)
        if self.is_resumed:
            loop.restore(checkpoint.newest_intact(self.run, context, progress.log))
            if loop.state.step > config.train.steps:
                raise ValueError(
                    f"{self.run}: has done {loop.state.step} steps, but train.steps = {config.train.steps}; give at "
                    f"least train.steps={loop.state.step}, or choose another train.name for a new run"
                )
            progress.resume_at(loop.state.step)
            if context.is_main:
                # After restoring: settings that cannot be resumed must not replace the saved ones.
                config.save(self.run)
            context.barrier()
        else:
            if context.is_main:
                # An earlier process may have ended before its first checkpoint.
                loop.remove_after(-1)
                if initial:
                    initial.save(self.run)
            context.barrier()  # before a rank adds to the ledger
        self._warn_about_schedule(progress)
        self._warn_about_clipping(progress, engine)
        self._warn_about_bubble(progress, engine)
        if config.benchmark is not None:
            self.stages.message("task", step=loop.state.step, parameters=parameters, train_samples=task.train_samples())
        coverage = task.coverage()
        for name, one in coverage.items():
            progress.log(f"Data, {name}: {one.describe()}")
        if context.is_main and not self.is_resumed:
            # After all ranks have opened the data, so that none waits for rank 0 to index it.
            task.save_assets(self.run / ASSETS_DIR)
        if context.is_main:
            event = "resume" if self.is_resumed else "start"
            read = {name: one.counts() for name, one in coverage.items()}
            loop.metrics.write("event", loop.state.step, event=event, ranks=context.world_size, data=read)
        total, micro, accumulation = engine.batch
        group = context.sequence
        shared = f", {group.size} ranks per row" if group.size > 1 else ""
        if context.pipeline.size > 1:
            shared = f", {context.pipeline.size} pipeline stages"
        verb = "Resuming" if self.is_resumed else "Training"
        progress.log(
            f"{verb} {config.task.name} ({parameters:,} parameters) in {self.run}, step {loop.state.step} of "
            f"{config.train.steps}: {context.world_size} × {context.device.type}, "
            f"ZeRO stage {engine.zero_stage}{shared}, batch {total} = {group.data_size} × {micro} × {accumulation}"
        )
        return loop

    def _create_engine(self, task: Task) -> engines.Engine:
        """Return the engine of the task's model, or of this rank's pipeline stage of it."""
        config, stages = self.config, self.context.pipeline
        if stages.size == 1:
            return engines.Engine(task.model, config.deepspeed, self.context)
        if not isinstance(task, Pipelined):
            raise ValueError(
                f"{config.source}: parallel.pipeline = {stages.size}, but the model of the task {config.task.name} "
                "cannot be divided into stages (it has no method `pipeline_stage`); remove the key"
            )
        try:
            stage = task.pipeline_stage(stages.stage, stages.size)
        except ValueError as error:
            raise ValueError(f"{config.source}: {error}") from error
        return PipelineEngine(stage, config.deepspeed, self.context)

    def _warn_about_bubble(self, progress: Progress, engine: engines.Engine) -> None:
        """Report pipeline stages that wait because there are few micro-batches per step."""
        stages, micro_batches = self.context.pipeline.size, engine.batch[2]
        if stages > 1 and micro_batches < stages:
            idle = (stages - 1) / (micro_batches + stages - 1)
            progress.log(
                f"Note: {micro_batches} accumulation step{'s' * (micro_batches > 1)} for {stages} pipeline stages: "
                f"each stage waits {idle:.0%} of the time; increase gradient_accumulation_steps in "
                f"{self.config.deepspeed} to at least {stages}"
            )

    def _warn_about_schedule(self, progress: Progress) -> None:
        """Warn if the schedule in the JSON has another number of steps than the run."""
        scheduler = self.config.deepspeed_config().get("scheduler") or {}
        total = (scheduler.get("params") or {}).get("total_num_steps")
        if total is not None and total != self.config.train.steps:
            progress.log(
                f"Note: scheduler.params.total_num_steps of the DeepSpeed JSON is {total}, but train.steps is "
                f"{self.config.train.steps}: the learning rate follows a run of {total} steps"
            )

    def _warn_about_clipping(self, progress: Progress, engine: engines.Engine) -> None:
        """Report DeepSpeed's default gradient clipping if the JSON does not set one."""
        if "gradient_clipping" not in self.config.deepspeed_config():
            progress.log(
                f"Note: {self.config.deepspeed} does not set gradient_clipping, so DeepSpeed clips gradients to norm "
                f'{engine.deepspeed.gradient_clipping()}; "gradient_clipping": 0 disables clipping'
            )

    def explain(self, error: BaseException) -> str | None:
        """Record ``error``, which ended this rank. Return the message, or None if another rank reports its own.

        The first rank to fail writes RUN/error.txt and reports the error; the others fail because of it.
        """
        where = f"rank {self.context.rank}: " if self.context.world_size > 1 else ""
        trace = "".join(traceback.format_exception(error))
        lost = is_lost_connection(error)
        is_first = claim_error_file(self.run, f"{where}{trace}")
        ended = self.watchdog.dead_neighbours() if lost else []
        kind, cause = ("lost connection", "; ".join(ended)) if lost else ("exception", "")
        try:
            self.watchdog.record(
                kind, f"{type(error).__name__}: {cause or error}", {"MainThread": trace} | failures.own_stacks()
            )
        except OSError as problem:
            trace += f"\n{self.run / 'failures.jsonl'} could not be written: {problem}"
        if not is_first:
            return None
        if isinstance(error, (ValueError, OSError, TooManyNonfiniteSteps)):
            return f"error: {where}{error}"
        if lost:
            return (
                f"error: {where}lost the connection to another rank: it was killed or ran out of memory (see `dmesg`)"
                f"{': ' + cause if cause else ''}. "
                f"Resume from the last checkpoint with: ds4sci train --resume {self.run}"
            )
        return f"error: {where}{type(error).__name__}: {error}\n{trace}"


def train(config: RunConfig, *, resume: Path | None = None) -> RunResult:
    """Train by ``config``, or resume the run folder ``resume``. Every rank calls this.

    Raises ValueError for errors in the configuration, the JSON or the checkpoint, OSError if a checkpoint could not be
    written, and TooManyNonfiniteSteps.
    """
    return Session.join(config, resume=resume).train()


def is_lost_connection(error: BaseException) -> bool:
    """Whether ``error`` is a failure of a collective operation because another rank has died."""
    text = str(error).lower()
    signs = ("connection closed by peer", "connection reset by peer", "broken pipe", "connection refused", "nccl")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)
