"""One rank's life in a run: join, build, restore, train, leave in order."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from ds4sci import machine
from ds4sci.config import RunConfig, import_task
from ds4sci.train import checkpoint, randomness
from ds4sci.train import engine as engines
from ds4sci.train.durable import replace_text
from ds4sci.train.ema import Ema
from ds4sci.train.loop import Loop
from ds4sci.train.progress import Progress
from ds4sci.train.ranks import Ranks, set_environment
from ds4sci.train.signals import StopRequest


@dataclass(frozen=True)
class Result:
    """How a run ended: its folder, the last step, whether that was the whole of it, the last evaluation."""

    run: Path
    step: int
    finished: bool
    summary: dict[str, float]


def train(config: RunConfig, *, resume: Path | None = None) -> Result:
    """Train what ``config`` says, on every rank that calls this; ``resume`` is the run folder to go on with.

    Raises ValueError for what the user can mend (config, JSON, checkpoint), OSError when a checkpoint could not be
    written, TooManyNonfinite. The caller ends the process in order with ``leave``.
    """
    set_environment()
    with StopRequest() as stop:
        engines.silence()
        ranks = engines.join(config.deepspeed_config())
        run = _folder(config, resume, ranks)
        randomness.seed_all(config.seed, 0)  # the same initial weights everywhere
        task = import_task(config.task.name).build(config.settings, seed=config.seed, steps=config.train.steps)
        parameters = sum(p.numel() for p in task.model.parameters())
        engine = engines.Engine(task.model, config.deepspeed, ranks)
        randomness.seed_all(config.seed, ranks.rank)
        progress = Progress(config.train.steps, 0, shown=ranks.is_main)
        loop = Loop(config, task, engine, Ema(engine.module, config.train.ema_decay), run, stop, progress)
        if resume is not None:
            loop.restore(ranks.broadcast(checkpoint.newest(run, progress.say) if ranks.is_main else run))
            progress.resume_at(loop.state.step)
        if ranks.is_main:
            loop.metrics.write("event", loop.state.step, event="resume" if resume else "start", ranks=ranks.world_size)
        total, micro, accumulation = engine.batch
        progress.say(
            f"{'Resuming' if resume else 'Training'} {config.task.name} ({parameters:,} parameters) in {run} from step "
            f"{loop.state.step} of {config.train.steps}: {ranks.world_size} × {ranks.device.type}, ZeRO stage "
            f"{engine.zero_stage}, batch {total} = {ranks.world_size} × {micro} × {accumulation}"
        )
        with progress:
            finished = loop.train()
        if not finished:
            progress.say(
                f"Stopped ({stop.reason or 'asked by another rank'}) after step {loop.state.step}; all is saved. "
                f"Go on with: ds4sci train --resume {run}"
            )
        elif ranks.is_main:
            best = loop.state.best
            note = f"; best {best['metric']} {best['value']:.4f} at step {best['step']}" if best else ""
            progress.say(f"Done: {config.train.steps} steps in {loop.state.seconds / 60:.1f} min{note}. Run: {run}")
        return Result(run, loop.state.step, finished, loop.summary)


def _folder(config: RunConfig, resume: Path | None, ranks: Ranks) -> Path:
    """The run folder, with the resolved config and the machine in it; rank 0 decides and makes it."""
    problem, run = "", Path()
    if ranks.is_main:
        try:
            if resume is not None:
                run = resume
            else:
                name = config.train.name or f"{config.source.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
                run = config.train.output / name
                if (run / "metrics.jsonl").exists():
                    raise ValueError(
                        f"{run}: this run exists already; go on with --resume {run}, or choose another train.name"
                    )
            (run / "checkpoints").mkdir(parents=True, exist_ok=True)
            (run / "error.txt").unlink(missing_ok=True)
            config.save(run)
            replace_text(run / "machine.json", json.dumps(machine.describe(), indent=2) + "\n")
        except (OSError, ValueError) as error:
            problem = str(error)
    problem, run = ranks.broadcast((problem, run))
    if problem:
        raise ValueError(problem)
    return run
