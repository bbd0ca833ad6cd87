"""Time of a training step of one rank: compute, communication, pipeline bubble, stragglers and reading.

    t = t_compute + t_update + t_exposed + t_bubble + t_stragglers + t_input

- t_compute = accumulation · FLOPs of a micro-batch / rate, plus what an axial or sequence group cannot divide
- t_update: bytes of weights, gradients and states that the optimizer moves / memory bandwidth
- t_exposed: the collectives of ``ds4sci.scaling.collectives``; those that overlap hide behind a part of backward
- t_bubble = (P − 1) / m · t_compute for P pipeline stages and m micro-batches (GPipe and 1F1B alike)
- t_stragglers = σ · t_compute · E[max of N standard normals]: a step ends with its slowest rank
- t_input: reading beyond what hides behind the step, since the loader reads ahead
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ds4sci.scaling import collectives
from ds4sci.scaling.cluster import ClusterConfig

BACKWARD = 2 / 3
"""Part of the compute time that the backward pass takes."""


@dataclass(frozen=True)
class Exchange:
    """A collective operation of a step.

    name      what is exchanged
    operation  one of ``collectives.OPERATIONS``
    size      bytes of the whole tensor per step (see ``collectives.seconds``)
    calls     number of operations that ``size`` is divided into
    ranks     ranks of the group
    stride    distance of neighbours in the group, in ranks
    overlaps  whether it runs beside the backward pass
    """

    name: str
    operation: str
    size: float
    calls: float
    ranks: int
    stride: int = 1
    overlaps: bool = False

    def seconds(self, cluster: ClusterConfig) -> float:
        """Seconds per step."""
        if not self.size or self.ranks <= 1:
            return 0.0
        calls = max(1.0, self.calls)
        return calls * collectives.seconds(
            self.operation, self.size / calls, cluster.placement(self.ranks, self.stride)
        )


@dataclass(frozen=True)
class Workload:
    """Work of one rank in one step.

    ranks          ranks of the run
    samples        samples of the step, over all ranks
    flops          operations of the rank, recomputed ones included
    model_flops    operations of the rank without recomputation: the numerator of utilization
    dtype          dtype of the products: ``bf16``, ``fp16``, ``tf32``, ``fp32``
    state_bytes    bytes that the optimizer moves
    exchanges      collective operations
    stages         pipeline stages
    micro_batches  micro-batches of the step
    read_bytes     bytes that the rank reads from storage
    compute_seconds  measured seconds of forward and backward instead of ``flops`` / rate
    update_seconds   measured seconds of the optimizer
    undivided      fraction of the work of an example that the ranks sharing it all do (Amdahl)
    sharing        ranks that share an example
    """

    ranks: int
    samples: float
    flops: float
    model_flops: float
    dtype: str
    state_bytes: float = 0.0
    exchanges: Sequence[Exchange] = ()
    stages: int = 1
    micro_batches: int = 1
    read_bytes: float = 0.0
    compute_seconds: float | None = None
    update_seconds: float | None = None
    undivided: float = 0.0
    sharing: int = 1


@dataclass(frozen=True)
class StepTime:
    """Predicted time of a step by term, in seconds.

    terms          term → seconds, which add up to ``seconds``
    communication  exchange → seconds, hidden ones included
    hidden         seconds of communication behind backward
    utilization    model FLOPs / (peak · time)
    """

    terms: dict[str, float]
    communication: dict[str, float] = field(default_factory=dict)
    hidden: float = 0.0
    utilization: float = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of the step."""
        return sum(self.terms.values())

    @property
    def communication_share(self) -> float:
        """Exposed communication as a fraction of the step."""
        return self.terms["communication"] / self.seconds if self.seconds else 0.0


@functools.cache
def expected_maximum(ranks: int) -> float:
    """Expected maximum of ``ranks`` independent standard normal numbers; 0 for one.

    E = ∫₀^∞ 1 − Φ(x)^N − Φ(−x)^N dx, by the trapezoidal rule.
    """
    if ranks <= 1:
        return 0.0
    x = np.linspace(0.0, 10.0, 20001)
    below = 0.5 * (1 + np.array([math.erf(v / math.sqrt(2)) for v in x]))
    return float(np.trapezoid(1 - below**ranks - (1 - below) ** ranks, x))


def undivided_factor(undivided: float, sharing: int) -> float:
    """Time of an example on ``sharing`` ranks relative to one rank: s + (1 − s) / p (Amdahl)."""
    return undivided + (1 - undivided) / sharing


def step_time(work: Workload, cluster: ClusterConfig) -> StepTime:
    """Predict the time of a step. ``work.flops`` are those of a rank if the work is divided perfectly."""
    rate = cluster.peak_of(work.dtype) * cluster.achievable
    compute = work.compute_seconds if work.compute_seconds is not None else work.flops / rate
    compute *= work.sharing * undivided_factor(work.undivided, work.sharing)
    update = work.update_seconds if work.update_seconds is not None else work.state_bytes / cluster.memory_bandwidth
    times = {one.name: one.seconds(cluster) for one in work.exchanges}
    overlapping = sum(times[one.name] for one in work.exchanges if one.overlaps)
    hidden = min(overlapping, cluster.overlap * BACKWARD * compute)
    terms = {
        "compute": compute,
        "optimizer": update,
        "communication": sum(times.values()) - hidden,
        "pipeline bubble": (work.stages - 1) / work.micro_batches * compute,
        "stragglers": cluster.step_noise * expected_maximum(work.ranks) * compute,
    }
    reading = 0.0
    if work.read_bytes:
        nodes = cluster.nodes_of(work.ranks)
        total = work.read_bytes * work.ranks
        reading = total / min(cluster.storage.bandwidth, nodes * cluster.storage.node_bandwidth)
    busy = sum(terms.values())
    terms["input"] = max(0.0, reading - busy)
    whole = busy + terms["input"]
    utilization = work.model_flops / (cluster.peak_of(work.dtype) * whole) if whole else 0.0
    return StepTime(terms, times, hidden, utilization)
