"""Candidate layouts of a run, in order of cost, and the choice of the first that fits.

The order, cheapest first: ZeRO stages 1, 2 and 3; smaller micro-batches with more accumulation; recomputed blocks;
more ranks for each example; the optimizer on the host; weights on the host; saved inputs of layers on the host.
``train_batch_size`` stays.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ds4sci.config import deepspeed_json
from ds4sci.config.run_file import RunConfig
from ds4sci.nn import activation_budget
from ds4sci.parallel.groups import fake_group
from ds4sci.planner.batches import largest_batch
from ds4sci.planner.states import Sizes, States, weight_bytes, zero_states, zero_traffic
from ds4sci.planner.trace import StepTrace, make_fake, set_groups, trace_step
from ds4sci.tasks import SequenceParallel, Task
from ds4sci.tasks.build import build_task
from ds4sci.tasks.language_task import LanguageTask

GB = 2**30
RESERVE_BYTES, RESERVE_FRACTION = 2 * GB, 0.05
"""Memory of a GPU that a plan leaves free: CUDA context, communication buffers, workspaces of libraries; and
fragmentation, as a fraction of the GPU."""


COLLECTIVES = {"alltoall_base": "all-to-all", "allreduce": "all-reduce"}
"""Names of collective operations in torch and in reports."""


@dataclass(frozen=True)
class Machine:
    """``gpus`` GPUs of ``gpu_bytes`` each, and ``host_bytes`` of host memory for all of them, or None if unknown."""

    gpus: int
    gpu_bytes: int
    host_bytes: int | None = None

    @property
    def reserve(self) -> int:
        """Bytes of a GPU that are not planned."""
        return RESERVE_BYTES + int(RESERVE_FRACTION * self.gpu_bytes)


@dataclass(frozen=True)
class Layout:
    """Settings of a candidate.

    stage              ZeRO stage
    micro              samples of a micro-batch
    sequence           ranks that share an example
    activation_budget  GB that blocks or layers keep for the backward pass; None: as the run file says
    offload            optimizer, then parameters, then saved inputs on the host: how many of the three, in this order
    """

    stage: int
    micro: int
    sequence: int = 1
    activation_budget: float | None = None
    offload: int = 0

    def describe(self) -> str:
        """Return the settings as text."""
        text = f"ZeRO {self.stage}, micro-batch {self.micro}"
        if self.sequence > 1:
            text += f", {self.sequence} ranks per example"
        if self.activation_budget is not None:
            text += f", recomputed beyond {self.activation_budget:g} GB" if self.activation_budget else ", recomputed"
        parts = ("optimizer", "weights", "saved inputs")[: self.offload]
        return text + (f", {' and '.join(parts)} on the host" if parts else "")


@dataclass(frozen=True)
class Estimate:
    """Memory and communication of a candidate, or the reason why it cannot run.

    device    term → bytes of a GPU during forward and backward, the reserve included
    peak      bytes of a GPU at most: in forward and backward, in the optimizer step, or at the start
    phase     the phase of ``peak``
    host      bytes of host memory on the machine
    traffic   operation → bytes that a rank sends per optimizer step
    accumulation  micro-batches of a rank per optimizer step
    problem   why it cannot run or does not fit; empty if it fits
    """

    layout: Layout
    device: dict[str, int] = field(default_factory=dict)
    peak: int = 0
    phase: str = ""
    host: int = 0
    traffic: dict[str, int] = field(default_factory=dict)
    accumulation: int = 1
    problem: str = ""

    @property
    def fits(self) -> bool:
        return not self.problem


def phases(states: States, trace: StepTrace, stage: int, accumulation: int) -> dict[str, int]:
    """Return the bytes of a rank in each phase of a step, and at the start.

    With ZeRO 0 and 1 and a single micro-batch, gradients become complete while activations are freed; with more, those
    of the earlier micro-batches exist from the beginning.
    """
    constant = sum(states.device.values())
    if stage < 2 and accumulation == 1:
        activations = trace.peak_with_gradients - states.device["gradients"]
    else:
        activations = trace.peak
    return {
        "forward and backward": constant + activations,
        "optimizer step": constant + states.step,
        "start": states.start,
    }


class Planner:
    """Estimates of the layouts of one run on one machine.

    Raises ValueError for a model that cannot be built, and for settings that a plan does not cover.
    """

    def __init__(self, load: Callable[[list[str]], RunConfig], machine: Machine) -> None:
        """``load`` returns the run file with further overrides."""
        self.load, self.machine = load, machine
        self.config = load([])
        self.json = self.config.deepspeed_config()
        if (self.json.get("torch_autocast") or {}).get("enabled"):
            raise ValueError(f"{self.config.deepspeed}: torch_autocast is not covered by plans; use bf16")
        self.sequence = self.config.parallel.sequence
        if machine.gpus % self.sequence:
            raise ValueError(
                f"{self.config.source}: parallel.sequence = {self.sequence} does not divide --gpus {machine.gpus}"
            )
        self.batch, self.micro, _ = deepspeed_json.batch_sizes(
            self.json, machine.gpus // self.sequence, self.config.deepspeed
        )
        self.task = self._build([])
        self.sizes = Sizes.of(self.task.model)
        self._inside: dict[Any, tuple[int, int]] = {}
        self._traces: dict[Any, StepTrace | str] = {}

    def candidates(self) -> Iterator[Layout]:
        """Yield the layouts to try, cheapest first."""
        gpus = self.machine.gpus
        stages = (1, 2, 3) if gpus > 1 else (0,)
        micros = [self.micro // k for k in range(1, self.micro + 1) if self.micro % k == 0]
        widths = [p for p in range(self.sequence + 1, gpus + 1) if gpus % p == 0 and p % self.sequence == 0]
        widths = widths if isinstance(self.task, SequenceParallel) else []
        variants = [Layout(0, micro, self.sequence) for micro in micros]
        least = 0.0 if self._can_recompute_more() else None
        if least is not None:
            variants += [Layout(0, micro, self.sequence, least) for micro in micros]
        variants += [Layout(0, 1, p, least) for p in widths]
        for variant in variants:
            for stage in stages:
                yield replace(variant, stage=stage)
        smallest = [v for v in variants if v.micro == 1 and v.activation_budget == least]
        for offload in (1, 2, 3) if isinstance(self.task, LanguageTask) else (1, 2):
            for variant in smallest:
                yield replace(variant, stage=3, offload=offload)

    def choose(self) -> list[Estimate]:
        """Return the estimates of the candidates up to the first that fits, or of all if none does.

        If that recomputes layers, it gets the activation budget that the GPU has memory for.

        Raises ValueError for a run with pipeline stages.
        """
        if (stages := self.config.parallel.pipeline) > 1:
            raise ValueError(
                f"{self.config.source}: parallel.pipeline = {stages}: layouts with pipeline stages are not compared; "
                f"print the stages with --pipeline {stages}, or plan with parallel.pipeline=1"
            )
        estimates: list[Estimate] = []
        for layout in self.candidates():
            estimates.append(self.estimate(layout))
            if estimates[-1].fits:
                if layout.activation_budget == 0:
                    estimates[-1] = self._with_budget(estimates[-1])
                break
        return estimates

    def _with_budget(self, least: Estimate) -> Estimate:
        """Return ``least``, whose layers keep their inputs only, with the largest of a few budgets that fits."""
        trace = self.trace(least.layout)
        assert not isinstance(trace, str)
        free = self.machine.gpu_bytes - least.peak
        for budget in (trace.saved + 0.95 * free, 0.95 * free, 0.5 * free):
            rounded = math.floor(10 * budget / activation_budget.GB) / 10
            if rounded > 0:
                made = self.estimate(replace(least.layout, activation_budget=rounded))
                if made.fits and made.device["activations"] > least.device["activations"]:
                    return made
        return least

    def estimate(self, layout: Layout) -> Estimate:
        """Return memory and communication of ``layout``."""
        data_ranks = self.machine.gpus // layout.sequence
        if self.batch % (data_ranks * layout.micro):
            return Estimate(
                layout, problem=f"a batch of {self.batch} cannot be divided among {data_ranks} × {layout.micro}"
            )
        config = self.deepspeed_config(layout)
        if layout.stage == 3 and (reason := getattr(self.task.model, "why_not_zero3", None)):
            return Estimate(layout, problem=f"ZeRO stage 3 cannot train {reason}")
        trace = self.trace(layout)
        if isinstance(trace, str):
            return Estimate(layout, problem=trace)
        accumulation = int(config["gradient_accumulation_steps"])
        states = zero_states(self.sizes, config, self.machine.gpus)
        needed = phases(states, trace, layout.stage, accumulation)
        phase = max(needed, key=lambda name: needed[name])
        device = states.device | {"activations": trace.peak, "reserve": self.machine.reserve}
        start_host = 4 * self.sizes.total * self.machine.gpus  # every rank builds the model in fp32
        host = max(start_host, self.machine.gpus * (states.host + trace.host))
        traffic = {
            f"{COLLECTIVES.get(name, name)} of activations": size * accumulation for name, size in trace.sent.items()
        }
        traffic |= zero_traffic(self.sizes, config, self.machine.gpus, accumulation)
        made = Estimate(layout, device, needed[phase] + self.machine.reserve, phase, host, traffic, accumulation)
        return replace(made, problem=self._problem(made))

    def _problem(self, one: Estimate) -> str:
        missing = one.peak - self.machine.gpu_bytes
        if missing > 0:
            largest = max((n for n in one.device if n != "reserve"), key=lambda name: one.device[name])
            where = f"{largest} take {one.device[largest] / GB:.1f} GB"
            if one.phase == "start":
                where = "the whole model is on each GPU before ZeRO 3 shards it"
            return f"{missing / GB:.1f} GB too much in {one.phase}: {where}"
        if self.machine.host_bytes is not None and one.host > self.machine.host_bytes:
            return f"{(one.host - self.machine.host_bytes) / GB:.1f} GB of host memory too much"
        return ""

    def deepspeed_config(self, layout: Layout) -> dict[str, Any]:
        """Return the DeepSpeed JSON of ``layout``: the user's own, with the keys that it changes."""
        config = copy.deepcopy(self.json)
        data_ranks = self.machine.gpus // layout.sequence
        config["train_batch_size"] = self.batch
        config["train_micro_batch_size_per_gpu"] = layout.micro
        config["gradient_accumulation_steps"] = self.batch // (data_ranks * layout.micro)
        zero = dict(deepspeed_json.zero_section(config))
        zero["stage"] = layout.stage
        zero.pop("cpu_offload", None)
        for number, key in enumerate(("offload_optimizer", "offload_param"), 1):
            if layout.offload >= number:
                zero[key] = (zero.get(key) or {}) | {"device": "cpu", "pin_memory": True}
            else:
                zero.pop(key, None)
        if layout.stage == 3:  # the defaults keep models below 1e9 parameters whole on every rank
            window = max(2 * self.sizes.largest, int(zero.get("stage3_prefetch_bucket_size", 0)) or 10_000_000)
            zero.setdefault("stage3_prefetch_bucket_size", window)
            zero.setdefault("stage3_max_live_parameters", window)
            zero.setdefault("stage3_max_reuse_distance", window)
        config["zero_optimization"] = zero
        return config

    def overrides(self, layout: Layout) -> list[str]:
        """Return the settings of the run file that go with the JSON of ``layout``."""
        found = []
        if layout.sequence != self.sequence:
            found.append(f"parallel.sequence={layout.sequence}")
        if layout.activation_budget is not None:
            found.append(f"train.activation_budget={layout.activation_budget:g}")
        if layout.offload == 3:
            found.append("model.offload=true")
        return found

    def _can_recompute_more(self) -> bool:
        """Whether the model has layers that can be recomputed, and the run file keeps more of them than their input."""
        return bool(activation_budget.stacks(self.task.model)) and self.config.train.activation_budget != 0

    def _build(self, overrides: list[str]) -> Task:
        config = self.load(overrides)
        if hasattr(config.settings, "model") and hasattr(config.settings.model, "load_weights"):
            config = self.load([*overrides, "model.load_weights=false"])
        with torch.device("meta"):
            task = build_task(config)
        make_fake(task.model, torch.bfloat16 if weight_bytes(self.json) == 2 else torch.float32)
        return task

    def trace(self, layout: Layout) -> StepTrace | str:
        """Return the trace of a micro-batch of ``layout``, or why there is none. The ZeRO stage does not matter."""
        overrides = [o for o in self.overrides(layout) if not o.startswith("parallel.")]
        key = (layout.micro, layout.sequence, *overrides)
        if key not in self._traces:
            try:
                task = self._build(overrides)
                with fake_group(layout.sequence) as group:
                    set_groups(task, group)
                    self._traces[key] = trace_step(task, largest_batch(task, layout.micro), inside=self._inside)
            except ValueError as error:
                self._traces[key] = str(error)
        return self._traces[key]
