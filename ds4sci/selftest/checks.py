"""The checks of a selftest: which layouts train, and what their runs are compared with."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ds4sci import __version__
from ds4sci.config import deepspeed_json, run_version
from ds4sci.config.run_file import RunConfig
from ds4sci.config.task_module import import_task
from ds4sci.parallel.groups import SequenceGroup
from ds4sci.selftest import rank_processes, rank_program
from ds4sci.selftest.comparison import Curve, Result, compare, compare_resumed, initial_weights
from ds4sci.selftest.layouts import RESUMED_STEPS, SAMPLES, SAVED, SGD, STEPS, Layout
from ds4sci.tasks import Pipelined, SequenceParallel, Task
from ds4sci.tasks.build import build_task

SECONDS = 600.0
"""Time limit of a set of ranks."""

SCALE, SPLIT, RESUME, SHARED, STAGES, PRECISION = (
    "gradient scale", "split of a batch", "resume elsewhere", "sharded = whole", "pipeline = whole",
    "scale in own precision",
)  # fmt: skip


class Selftest:
    """The selftest of one run file in a temporary folder."""

    def __init__(
        self, config: RunConfig, ranks: int, folder: Path, program: Callable[..., None] = rank_program.train
    ) -> None:
        """Write the miniature into ``folder``.

        program  what every rank runs: ``rank_program.train``

        Raises ValueError if ``parallel`` does not divide ``ranks`` or the task has no miniature that can be built.
        """
        self.config, self.ranks, self.folder, self.program = config, ranks, folder, program
        self.own = config.deepspeed_config()
        self.stage = deepspeed_json.zero_stage(self.own)
        sizes = config.parallel.model_dump()
        self.sequence, self.pipeline = sizes["sequence"], min(sizes["pipeline"], 2)  # a miniature has two layers
        together = self.sequence * self.pipeline
        if ranks % together:
            key = "sequence" if self.sequence > 1 else "pipeline"
            raise ValueError(
                f"{config.source}: parallel.{key} = {together} does not divide --ranks {ranks}; use a multiple, such "
                f"as --ranks {together}"
            )
        self.gpus = torch.cuda.is_available() and torch.cuda.device_count() >= ranks
        self.batch = SAMPLES * (ranks // together)
        self.micro = min(self._own_micro(), SAMPLES)
        self.clip = float(self.own.get("gradient_clipping", 1.0))
        self.rate = 0.5 / self.clip if self.clip else float(SGD["params"]["lr"])  # type: ignore[index]
        self.file, self.task = self._write_miniature()
        self.parameters = sum(p.numel() for p in self.task.model.parameters())
        self.initial = safetensors.torch.load_file(self.folder / "initial.safetensors")

    def _own_micro(self) -> int:
        """Micro-batch size of the JSON, as a power of two."""
        micro = self.own.get("train_micro_batch_size_per_gpu") or self.own["train_batch_size"]
        return 1 << (max(1, int(micro)).bit_length() - 1)

    def _write_miniature(self) -> tuple[Path, Task]:
        """Write run file, data and initial weights. Returns the run file and its task."""
        config, module = self.config, import_task(self.config.task.name)
        if module.miniature is not None:
            sections = module.miniature(config.settings, self.folder)
        else:
            sections = config.settings.model_dump(mode="json", exclude_none=True)
        layout = Layout(1, 1, 0, self.batch, self.batch)
        (self.folder / "plain.json").write_text(json.dumps(self._json(layout)), encoding="utf-8")
        train = {
            "steps": STEPS, "save_every": 1, "keep_last": 2 * RESUMED_STEPS, "ema_decay": 0.0, "log_every": 1,
            "output": str(self.folder / "runs"),
        }  # fmt: skip
        tree = {
            run_version.KEY: __version__, "deepspeed": str(self.folder / "plain.json"), "seed": config.seed,
            "task": {"name": config.task.name}, "train": train, "kernels": config.kernels,
        } | sections  # fmt: skip
        file = self.folder / "miniature.json"
        file.write_text(json.dumps(tree), encoding="utf-8")
        task = build_task(RunConfig.load(file))
        weights = {name: value.contiguous() for name, value in initial_weights(task.model).items()}
        safetensors.torch.save_file(weights, self.folder / "initial.safetensors")
        train["weights"] = str(self.folder / "initial.safetensors")
        file.write_text(json.dumps(tree), encoding="utf-8")
        return file, task

    def _json(self, layout: Layout) -> dict[str, Any]:
        tree = layout.deepspeed(self.own)
        if not layout.adam:
            tree["optimizer"] = {"type": "SGD", "params": {"lr": self.rate}}
        return tree

    def user_layout(self, **more: Any) -> Layout:
        """The user's layout: ranks, ZeRO stage and micro-batch of the run."""
        user = Layout(self.ranks, self.sequence, self.stage, self.micro, self.batch, pipeline=self.pipeline)
        return replace(user, **more)

    def other_stage(self) -> int:
        """A ZeRO stage that stores its state in another way than the user's."""
        refuses_3 = getattr(self.task.model, "why_not_zero3", None)
        if self.stage != 3 and not refuses_3:
            return 3
        return 1 if self.stage != 1 else 2

    def why_not_shared(self, sequence: int) -> str:
        """Why the task cannot split an example over ranks; empty if it can."""
        if self.ranks % sequence:
            return f"{self.ranks} ranks are not a multiple of {sequence}"
        if not isinstance(self.task, SequenceParallel):
            return f"the task {self.config.task.name} does not split an example over ranks"
        try:
            self.task.set_parallel_groups(SequenceGroup(0, sequence, 0, 1))
        except ValueError as error:
            return str(error)
        return ""

    def why_not_pipelined(self, stages: int) -> str:
        """Why the model cannot be divided into stages; empty if it can."""
        if self.ranks % stages:
            return f"{self.ranks} ranks are not a multiple of {stages}"
        if not isinstance(self.task, Pipelined):
            return f"the task {self.config.task.name} does not divide its model into stages"
        try:
            self.task.pipeline_parts(stages)
        except ValueError as error:
            return str(error)
        return ""

    def run(self) -> list[Result]:
        """Run every check. Raises rank_processes.RankFailure if ranks fail before they can be compared."""
        user = self.user_layout()
        splits = [self.user_layout(micro=micro) for micro in (1, 2, SAMPLES) if micro != self.micro]
        saved = self.user_layout(adam=True)
        own = [self.user_layout(own_precision=True)] if self._has_own_precision() else []
        shared = replace(user, sequence=self.sequence if self.sequence > 1 else 2, pipeline=1, stage=self.other_stage())
        stages = replace(user, sequence=1, pipeline=self.pipeline if self.pipeline > 1 else 2, stage=1)
        left_out = {
            SHARED: self.why_not_shared(shared.sequence), STAGES: self.why_not_pipelined(stages.pipeline),
        }  # fmt: skip
        reference = self.reference([user.micro, *(one.micro for one in splits)])
        layouts = [user, *splits, *own, saved]
        wanted = {SHARED: shared, STAGES: stages}
        layouts += [one for check, one in wanted.items() if not left_out[check] and one not in layouts]
        curves: dict[Layout, Curve] = {}
        for _, together in itertools.groupby(
            sorted(layouts, key=lambda one: (one.sequence, one.pipeline)), lambda one: (one.sequence, one.pipeline)
        ):
            group = list(together)
            curves |= zip(group, self.train(group), strict=True)

        def against_reference(check: str, layout: Layout) -> Result:
            return compare(check, layout, curves[layout], reference, self.initial)

        results = [against_reference(SCALE, user)]
        results += [against_reference(PRECISION, one) for one in own]
        results += [against_reference(SPLIT, one) for one in splits]
        for check, layout in wanted.items():
            if left_out[check]:
                results.append(Result(check, layout.describe(), note=left_out[check]))
            else:
                results.append(against_reference(check, layout))
        return [*results, *self.resume(saved, curves[saved])]

    def _has_own_precision(self) -> bool:
        """Whether the JSON computes in 16 bits that this machine has."""
        kinds = [name for name in ("bf16", "fp16") if (self.own.get(name) or {}).get("enabled")]
        return kinds == ["bf16"] or (bool(kinds) and self.gpus)

    def resume(self, saved: Layout, undisturbed: Curve) -> list[Result]:
        """Resume the run ``saved`` on other ranks and another stage, without its later checkpoints."""
        ranks = 1 if self.ranks > 1 else 2
        other = replace(saved, ranks=ranks, sequence=1, pipeline=1, stage=self.other_stage())
        name = self._name(saved)
        copy = self.folder / "runs" / f"{name}_resumed"
        shutil.copytree(self.folder / "runs" / name, copy)
        for step in range(SAVED + 1, RESUMED_STEPS + 1):
            shutil.rmtree(copy / f"checkpoints/step_{step:06d}", ignore_errors=True)
        (curve,) = self.train([other], resume=copy)
        return [compare_resumed(RESUME, other, curve, undisturbed, SAVED)]

    def reference(self, micro_sizes: list[int]) -> dict[str, Any]:
        """Return the reference in fp64, with the micro-batches of these sizes. See ``rank_program.reference``."""
        out = self.folder / "reference.pt"
        given = {
            "config": str(self.file), "deepspeed": str(self.folder / "plain.json"), "batch": self.batch,
            "micro_sizes": micro_sizes, "rate": self.rate, "clip": self.clip, "out": str(out),
        }  # fmt: skip
        (self.folder / "reference.json").write_text(json.dumps(given), encoding="utf-8")
        rank_processes.call(
            1, rank_program.reference, [str(self.folder / "reference.json")], self.folder, seconds=SECONDS
        )
        return dict(torch.load(out, weights_only=True))

    def train(self, layouts: Sequence[Layout], resume: Path | None = None) -> list[Curve]:
        """Train on layouts with the same ranks and groups, in one set of processes."""
        cases, folders = [], []
        for layout in layouts:
            name = self._name(layout) if resume is None else resume.name
            file = self.folder / f"{name}.json"
            file.write_text(json.dumps(self._json(layout)), encoding="utf-8")
            steps = RESUMED_STEPS if layout.adam else STEPS
            overrides = [f"train.name={name}", f"train.steps={steps}", f"parallel.sequence={layout.sequence}"]
            overrides.append(f"parallel.pipeline={layout.pipeline}")
            cases.append({
                "config": str(self.file if resume is None else resume / "config.json"), "deepspeed": str(file),
                "overrides": overrides, "resume": None if resume is None else str(resume),
            })  # fmt: skip
            folders.append(self.folder / "runs" / name)
        file = self.folder / "cases.json"
        file.write_text(json.dumps(cases), encoding="utf-8")
        size = layouts[0].ranks
        rank_processes.call(size, self.program, [str(file)], self.folder, seconds=SECONDS, gpus=self.gpus)
        return [Curve.read(folder, size) for folder in folders]

    @staticmethod
    def _name(layout: Layout) -> str:
        kind = "adam" if layout.adam else "own" if layout.own_precision else "sgd"
        groups = f"sequence{layout.sequence}_pipeline{layout.pipeline}"
        return f"{kind}_{layout.ranks}x{layout.micro}_{groups}_stage{layout.stage}"


def selftest(
    config: RunConfig, ranks: int, program: Callable[..., None] = rank_program.train,
    on_start: Callable[[str], None] = lambda text: None,
) -> tuple[list[Result], float]:  # fmt: skip
    """Return the results of every check of ``config`` on ``ranks`` ranks, and the seconds they took.

    program   what every rank runs
    on_start  called with a description of the miniature before its ranks start

    Everything is written into a temporary folder, which is removed. Raises ValueError if the run file does not fit the
    ranks. A rank that fails is a result.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ds4sci-selftest-") as folder:
        test = Selftest(config, ranks, Path(folder), program)
        device = "GPU" if test.gpus else "CPU"
        on_start(
            f"{config.task.name} with {test.parameters:,} parameters, {ranks} {device} ranks, ZeRO {test.stage} of "
            f"{config.deepspeed}; batches of {test.batch} samples"
        )
        try:
            results = test.run()
        except rank_processes.RankFailure as error:
            results = [Result("ranks", f"{ranks} ranks", float("inf"), fault=str(error))]
    return results, time.monotonic() - began
