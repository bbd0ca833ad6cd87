"""Work of a run file on many ranks, counted by the planner: FLOPs, memory, and the bytes of every collective.

A micro-batch is traced with weights that have no memory and a process group that does not exist. Nothing is trained.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ds4sci.config import deepspeed_json
from ds4sci.config.run_file import RunConfig
from ds4sci.nn.activation_budget import stacks
from ds4sci.planner import states
from ds4sci.planner.batches import largest_batch
from ds4sci.planner.layouts import COLLECTIVES, GB, Layout, Machine, Planner
from ds4sci.planner.pipeline import plan_stages
from ds4sci.planner.trace import StepTrace
from ds4sci.scaling import model_flops
from ds4sci.scaling.batch_plan import BatchPlan, write_deepspeed
from ds4sci.scaling.cluster import ClusterConfig
from ds4sci.scaling.collectives import tensor_bytes
from ds4sci.scaling.step_time import Exchange, Workload

ADAM_BYTES = 3 * 8 + 4 + 4
"""Bytes that Adam moves per parameter of a rank: fp32 weight and two moments read and written, gradient, copy."""
OPERATIONS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")


@dataclass(frozen=True)
class Counted:
    """Work of one layout.

    memory   bytes of a GPU at most in forward and backward, with the planner's reserve
    traffic  operation → bytes that a rank sends per step, as ``ds4sci plan`` prints them
    problem  why it does not fit; empty if it fits
    """

    workload: Workload
    memory: int
    traffic: dict[str, int]
    problem: str


@dataclass(frozen=True)
class Slowest:
    """The largest figures of the stages of a pipeline: fraction of the FLOPs, elements of all and of trained
    parameters, bytes saved for the micro-batches in flight, bytes received for a micro-batch."""

    flops: float
    parameters: int
    trained: int
    activations: int
    received: int


class Counter:
    """Counts of one run file on a cluster. A micro-batch of each size is traced once.

    Raises ValueError for a model that cannot be built, and for settings that plans do not cover.
    """

    def __init__(self, file: Path | str, overrides: tuple[str, ...], cluster: ClusterConfig) -> None:
        self.file, self.overrides, self.cluster = file, overrides, cluster
        self.config = RunConfig.load(file, overrides)
        self._traces: dict[int, tuple[StepTrace, int]] = {}

    def count(self, plan: BatchPlan, *, sample_bytes: float = 0.0, undivided: float = 0.0) -> Counted:
        """Count the work of a rank for the batch sizes of ``plan``.

        sample_bytes  bytes that a sample reads from storage
        undivided     fraction of an example's work that ranks sharing it all do
        """
        sequence, gpu_bytes = self.config.parallel.sequence, int(self.cluster.memory_gb * GB)
        stages = self.config.parallel.pipeline
        replicas = plan.ranks // stages  # ranks that hold the same stage; they are neighbours
        with TemporaryDirectory() as folder:
            json_file = write_deepspeed(self.config, plan, Path(folder))
            planner = Planner(
                lambda more: RunConfig.load(
                    self.file, [*self.overrides, "parallel.pipeline=1", *more], deepspeed=json_file
                ),
                Machine(replicas, gpu_bytes),
            )
            tree, sizes = planner.json, planner.sizes
            slowest = self._stages(planner, plan, stages) if stages > 1 else None
            if plan.micro not in self._traces:
                self._traces[plan.micro] = self._trace(planner, plan.micro)
        trace, model = self._traces[plan.micro]
        exchanges, traffic = [], {}
        for name, sent in trace.sent.items():
            operation, total = COLLECTIVES.get(name, _operation(name)), sent * plan.accumulation
            traffic[f"{operation} of activations"] = total
            size, calls = tensor_bytes(operation, total, sequence), trace.calls[name] * plan.accumulation
            exchanges.append(Exchange(f"{operation} of activations", operation, size, calls, sequence))
        flops, activations = float(trace.flops), trace.peak
        if slowest is not None:
            flops *= slowest.flops
            activations = slowest.activations + trace.peak - trace.saved  # saved by the stage, and one block at work
            sizes = replace(sizes, total=slowest.parameters, trained=slowest.trained)
            sent = slowest.received * plan.accumulation
            traffic["send-receive of activations"] = sent
            calls = 2 * plan.accumulation
            exchanges.append(Exchange("pipeline", "send-receive", 2 * sent, calls, stages, stride=replicas))
        zero = states.zero_traffic(sizes, tree, replicas, plan.accumulation)
        traffic |= zero
        exchanges += zero_exchanges(zero, tree, replicas)
        memory = states.zero_states(sizes, tree, replicas)
        needed = sum(memory.device.values()) + activations + planner.machine.reserve
        owned = sizes.trained if deepspeed_json.zero_stage(tree) == 0 else sizes.trained / replicas
        work = Workload(
            plan.ranks, plan.batch, flops * plan.accumulation, model * plan.accumulation / (sequence * stages),
            dtype(tree), state_bytes=owned * ADAM_BYTES, exchanges=tuple(exchanges), stages=stages,
            micro_batches=plan.accumulation, read_bytes=sample_bytes * plan.batch / plan.ranks, sharing=sequence,
            undivided=undivided,
        )  # fmt: skip
        missing = needed - gpu_bytes
        return Counted(work, needed, traffic, f"{missing / GB:.1f} GB too much" if missing > 0 else "")

    def _stages(self, planner: Planner, plan: BatchPlan, stages: int) -> Slowest:
        """Trace the stages of a micro-batch, and return the largest of each figure over them."""
        found = plan_stages(planner.task, largest_batch(planner.task, plan.micro), stages, plan.accumulation)
        total = sum(one.flops for one in found)
        return Slowest(
            max(one.flops for one in found) / total, max(one.parameters for one in found),
            max(one.trained for one in found), max(one.activations for one in found),
            max(one.received for one in found),
        )  # fmt: skip

    def _trace(self, planner: Planner, micro: int) -> tuple[StepTrace, int]:
        """Trace a micro-batch on a rank, and count the FLOPs of the whole micro-batch without recomputation."""
        sequence = self.config.parallel.sequence
        trace = planner.trace(Layout(0, micro, sequence))
        if isinstance(trace, str):
            if sequence > 1:
                raise ValueError(f"{self.config.source}: {trace}")
            flops = model_flops.count(self.config, micro)  # runs it here, as its loss reads values of predictions
            return StepTrace(0, 0, 0, 0, {}, {}, flops), flops
        more = ["train.activation_budget=unlimited"] if stacks(planner.task.model) else []
        if not more and sequence == 1:
            return trace, trace.flops
        overrides = [*self.overrides, "parallel.sequence=1", *more]
        whole = Planner(lambda extra: RunConfig.load(self.file, [*overrides, *extra]), Machine(1, GB))
        plain = whole.trace(Layout(0, micro))
        return trace, trace.flops * sequence if isinstance(plain, str) else plain.flops


def zero_exchanges(traffic: dict[str, int], tree: dict[str, Any], ranks: int) -> list[Exchange]:
    """Return the collectives of ZeRO from the bytes that a rank sends (``states.zero_traffic``), in buckets."""
    zero = deepspeed_json.zero_section(tree)
    bucket = int(zero.get("reduce_bucket_size", states.DEFAULT_BUCKET)) * states.weight_bytes(tree)
    found = []
    for name, sent in traffic.items():
        size = tensor_bytes(_operation(name), sent, ranks)
        overlaps = bool(zero.get("overlap_comm")) and "gradients" in name
        found.append(Exchange(name, _operation(name), size, -(-size // bucket), ranks, overlaps=overlaps))
    return found


def dtype(tree: dict[str, Any]) -> str:
    """dtype of the matrix products by a DeepSpeed JSON: ``bf16``, ``fp16`` or ``fp32``."""
    return next((name for name in ("bf16", "fp16") if (tree.get(name) or {}).get("enabled")), "fp32")


def _operation(name: str) -> str:
    """Operation of a term of the planner's traffic, or of an operator of torch's namespace ``c10d``."""
    plain = name.replace("_", "-").replace("allgather", "all-gather").replace("allreduce", "all-reduce")
    return next((one for one in OPERATIONS if plain.startswith(one)), "send-receive")
