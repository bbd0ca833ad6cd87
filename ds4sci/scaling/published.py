"""Predictions of published trainings, each without the point that it predicts.

``published_points.json`` holds what is published, its source, and what is assumed where a layout is not published.

- OpenFold in MLPerf HPC 3.0, five systems. Its step is bound by memory: t = n (a + b / p) / BW for n examples that p
  ranks share, BW the memory bandwidth of the data sheet, plus an all-reduce of the gradients. a and b come from the
  other systems of the same precision, startup from the median of the others, evaluation from the others of the same
  precision, samples to quality from the fit to the other four batch sizes.
- GPT models on Frontier. The reached fraction of the peak by compute is that which the other two models imply.
- Vision transformer on Frontier, with the mean of the three fractions.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.scaling import cluster as clusters
from ds4sci.scaling.cluster import ClusterConfig
from ds4sci.scaling.collectives import Link, Placement, seconds
from ds4sci.scaling.samples_to_quality import Point, fit
from ds4sci.scaling.step_time import Exchange, Workload, step_time

FILE = Path(__file__).with_name("published_points.json")
ALPHA = 10e-6
"""Seconds per message where a system's data sheet states bandwidths only."""


@dataclass(frozen=True)
class Comparison:
    """A published figure and its prediction.

    low, high  range over the assumed layouts; None where nothing is assumed
    """

    point: str
    figure: str
    unit: str
    published: float
    predicted: float
    low: float | None = None
    high: float | None = None
    note: str = ""

    @property
    def error(self) -> float:
        """Predicted / published − 1."""
        return self.predicted / self.published - 1


def read_points(file: Path = FILE) -> dict[str, Any]:
    """Published points as JSON values."""
    tree: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return tree


def compare_all(points: dict[str, Any]) -> list[Comparison]:
    """All comparisons."""
    frontier = clusters.load("configs/clusters/frontier.toml")
    return [
        *openfold(points["openfold"]),
        *language_models(points["language_models"], frontier),
        *vision_transformer(points["vision_transformer"], points["language_models"], frontier),
    ]


def _gradient_seconds(system: dict[str, Any], parameters: int) -> float:
    """Seconds of the all-reduce of fp32 gradients between the groups that share an example."""
    per_node = max(1, system["gpus_per_node"] // system["sharing"])
    place = Placement(
        system["train_ranks"] // system["sharing"], per_node, Link(ALPHA, system["intra"]),
        Link(ALPHA, system["inter_node"] / system["gpus_per_node"]),
    )  # fmt: skip
    return seconds("all-reduce", 4.0 * parameters, place)


def _examples(system: dict[str, Any]) -> float:
    """Examples of a step that a group of ranks works on."""
    return system["batch"] * system["sharing"] / system["train_ranks"]


def openfold_step(system: dict[str, Any], others: Sequence[dict[str, Any]], parameters: int) -> float:
    """Seconds of a step of ``system``, with a and b by least squares from ``others`` of its precision."""
    known = [one for one in others if one["precision"] == system["precision"]]
    moved = [
        (one["step_seconds"] - _gradient_seconds(one, parameters)) * one["memory_bandwidth"] / _examples(one)
        for one in known
    ]
    terms = lambda one: (1.0, 1.0 / one["sharing"])  # noqa: E731
    (a, b), *_ = np.linalg.lstsq(np.array([terms(one) for one in known]), np.array(moved), rcond=None)
    fixed, divided = terms(system)
    traffic = a * fixed + b * divided
    return float(_examples(system) * traffic / system["memory_bandwidth"] + _gradient_seconds(system, parameters))


def openfold_evaluation(system: dict[str, Any], others: Sequence[dict[str, Any]], samples: int) -> float:
    """Seconds of an evaluation: proportional to the chains of a rank and inversely to the memory bandwidth."""
    cost = lambda one: math.ceil(samples / one["eval_ranks"]) / one["memory_bandwidth"]  # noqa: E731
    known = [one for one in others if one["precision"] == system["precision"]]
    return cost(system) * statistics.median(one["eval_seconds"] / cost(one) for one in known)


def openfold(points: dict[str, Any]) -> list[Comparison]:
    """Step time, samples to quality and minutes of each system, from the other four."""
    systems = points["systems"]
    found = []
    for system in systems:
        others = [one for one in systems if one is not system]
        step = openfold_step(system, others, points["parameters"])
        law = fit([Point(one["batch"], one["samples"], one["runs"]) for one in others])
        samples = law.samples(system["batch"])
        evaluation = openfold_evaluation(system, others, points["eval_samples"])
        startup = statistics.median(one["startup_seconds"] for one in others)

        def minutes(
            count: float, step: float = step, evaluation: float = evaluation, startup: float = startup,
            system: dict[str, Any] = system,
        ) -> float:  # fmt: skip
            steps = count / system["batch"]
            times = 1.0 if system["async_evaluation"] else math.ceil(steps / points["steps_per_evaluation"])
            return (startup + steps * step + times * evaluation) / 60

        name = f"OpenFold, {system['name']}"
        found += [
            Comparison(name, "step", "s", system["step_seconds"], step, note="from the others of its precision"),
            Comparison(name, "samples to quality", "samples", system["samples"], samples, note="leave one out"),
            Comparison(name, "time to quality", "min", system["minutes"], minutes(samples), note="all terms predicted"),
            Comparison(
                name, "time to quality, with its own samples", "min", system["minutes"], minutes(system["samples"]),
                note="samples from its logs, all other terms predicted",
            ),
        ]  # fmt: skip
    return found


def gpt_workload(
    model: dict[str, Any],
    layout: Sequence[int],
    ranks: int,
    points: dict[str, Any],
    *,
    micro_batches: int | None = None,
) -> Workload:
    """Work of a rank of a GPT model on ``ranks`` ranks, with Megatron's division.

    layout  ranks of a tensor-parallel group, pipeline stages, micro-batches of a replica (one row each)

    FLOPs of a row: 72 s l h² (1 + s / (6 h) + V / (12 l h)) for forward and backward, 4/3 of it with recomputation
    (Narayanan et al., arXiv 2104.04473). A layer has two all-reduces of s · h activations in forward, two in backward
    and two in recomputation.
    """
    tensor, stages, count = layout
    count = micro_batches or count
    s, layers, h, vocabulary = points["tokens"], model["layers"], model["width"], points["vocabulary"]
    row = 72 * s * layers * h**2 * (1 + s / (6 * h) + vocabulary / (12 * layers * h))
    replicas = max(1, ranks // (tensor * stages))
    parameters = 12 * layers * h**2 + vocabulary * h
    part, activations = parameters / (tensor * stages), 2.0 * s * h
    reductions = 6 * layers / stages * count
    exchanges = (
        Exchange("tensor", "all-reduce", activations * reductions, reductions, tensor),
        Exchange("pipeline", "send-receive", 2 * activations * count, 2 * count, stages, stride=tensor),
        Exchange("gradients", "reduce-scatter", 2 * part, 8, replicas, stride=tensor * stages),
        Exchange("weights", "all-gather", 2 * part, 8, replicas, stride=tensor * stages),
    )
    flops = row * count / (tensor * stages)
    return Workload(
        ranks, replicas * count, flops * 4 / 3, flops, "fp16", state_bytes=part / replicas * 32, exchanges=exchanges,
        stages=stages, micro_batches=count,
    )  # fmt: skip


def reported_utilization(work: Workload, cluster: ClusterConfig) -> float:
    """FLOPs with recomputation / (peak · time): the figure that Megatron prints."""
    step = step_time(work, cluster)
    return work.flops / (cluster.peak_of(work.dtype) * step.seconds)


def implied_fraction(work: Workload, cluster: ClusterConfig, utilization: float) -> float:
    """Reached fraction of the peak by compute for which the predicted utilization is ``utilization``, by bisection."""
    low, high = 0.01, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        made = reported_utilization(work, cluster.model_copy(update={"achievable": middle}))
        low, high = (middle, high) if made < utilization else (low, middle)
    return (low + high) / 2


def _fractions(points: dict[str, Any], cluster: ClusterConfig) -> dict[str, float]:
    """Model → fraction of the peak that its published utilization implies, with its first layout."""
    return {
        model["name"]: implied_fraction(
            gpt_workload(model, model["layouts"][0], model["ranks"], points), cluster, model["utilization"]
        )
        for model in points["models"]
    }


def _without(fractions: dict[str, float], name: str, cluster: ClusterConfig) -> ClusterConfig:
    others = statistics.mean(value for key, value in fractions.items() if key != name)
    return cluster.model_copy(update={"achievable": others})


def language_models(points: dict[str, Any], cluster: ClusterConfig) -> list[Comparison]:
    """Utilization of each model from the other two, and efficiencies of weak and strong scaling."""
    fractions = _fractions(points, cluster)
    models = {model["name"]: model for model in points["models"]}
    found = []
    for name, model in models.items():
        own = _without(fractions, name, cluster)
        values = [
            100 * reported_utilization(gpt_workload(model, layout, model["ranks"], points), own)
            for layout in model["layouts"]
        ]
        note = f"{own.achievable:.1%} of peak by compute, from the other two; layouts assumed"
        found.append(
            _ranged(
                f"GPT {name}, {model['ranks']:,} MI250X dies", "of peak", "%", 100 * model["utilization"], values, note
            )
        )
    for one in points["scaling"]:
        model = models[one["model"]]
        own = _without(fractions, one["model"], cluster)
        values = []
        for base in one["from_ranks"]:
            values.append(100 * _efficiency(model, one, base, points, own))
        note = f"from {one['from_ranks'][0]:,} ranks (assumed)"
        found.append(_ranged(
            f"GPT {one['model']}, {one['mode']} scaling to {one['ranks']:,} MI250X dies", "efficiency", "%",
            100 * one["efficiency"], values, note,
        ))  # fmt: skip
    return found


def _efficiency(
    model: dict[str, Any], one: dict[str, Any], base: int, points: dict[str, Any], cluster: ClusterConfig
) -> float:
    """Samples per second and rank relative to ``base`` ranks."""
    layout = model["layouts"][0]

    def rate(ranks: int) -> float:
        replicas = max(1, ranks // (layout[0] * layout[1]))
        count = one["micro_batches"] if one["mode"] == "weak" else one["batch"] // replicas
        work = gpt_workload(model, layout, ranks, points, micro_batches=count)
        return work.samples / step_time(work, cluster).seconds / ranks

    return rate(one["ranks"]) / rate(base)


def vision_transformer(points: dict[str, Any], language: dict[str, Any], cluster: ClusterConfig) -> list[Comparison]:
    """Efficiency of weak scaling of long rows: all-to-alls of attention in a node, gradients between nodes."""
    fraction = statistics.mean(_fractions(language, cluster).values())
    own = cluster.model_copy(update={"achievable": fraction})
    values = []
    for layers, width, sharing in points["models"]:
        tokens, parameters = points["tokens"], 12 * layers * width**2
        flops = (6 * parameters * tokens + 12 * layers * width * tokens**2) / sharing
        moved = 2.0 * tokens / sharing * width  # bytes of one activation of a rank in fp16

        def work(
            ranks: int, flops: float = flops, layers: int = layers, moved: float = moved, sharing: int = sharing,
            parameters: int = parameters,
        ) -> Workload:  # fmt: skip
            return Workload(
                ranks, ranks / sharing, flops, flops, "fp16", state_bytes=32.0 * parameters,
                exchanges=(
                    Exchange("attention", "all-to-all", 8 * layers * moved, 8 * layers, sharing),
                    Exchange("gradients", "all-reduce", 2.0 * parameters, 8, ranks),
                ),
            )  # fmt: skip

        values.append(
            100 * step_time(work(points["from_ranks"]), own).seconds / step_time(work(points["ranks"]), own).seconds
        )
    note = f"{fraction:.1%} of peak by compute, from the GPT models; model assumed"
    name = f"ViT, {points['tokens']:,} tokens, {points['ranks']:,} MI250X dies"
    return [_ranged(name, "efficiency", "%", 100 * points["efficiency"], values, note)]


def _ranged(point: str, figure: str, unit: str, published: float, values: Sequence[float], note: str) -> Comparison:
    return Comparison(point, figure, unit, published, values[0], min(values), max(values), note)
