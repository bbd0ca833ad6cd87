"""Study of cognitive simulation: surrogates of a cheap, biased simulation, corrected by a few experiments.

After Kustowski et al. (2022, Mach. Learn.: Sci. Technol. 3 015035): a surrogate is trained on many runs of a
simulation, and partly retrained on fewer than a dozen experiments. An ensemble of surrogates of the simulation is
trained by the engine, its members side by side. Then, for many draws of experiments, six methods predict held-out
experiments:

    source    the surrogate of the simulation, not corrected
    scratch   networks trained on the experiments alone
    full      all layers of the surrogate fine-tuned
    affine    a + b · prediction, for each output by least squares
    transfer  the output layers retrained towards the source's weights, the trunk frozen
    ladder    the output layers retrained on runs of a better simulation first, then on the experiments

Errors are in units of the spread of the simulation's outputs. Draws are paired: all methods see the same experiments.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from scipy import stats
from torch import Tensor

from ds4sci.bench.cogsim_methods import Retrained, Training, affine, fine_tuned, retrain_heads, train_source
from ds4sci.bench.measurement import Measurement, write
from ds4sci.bench.registry import JsonFile, Quick, show
from ds4sci.config.run_file import RunConfig, find_file
from ds4sci.data.surrogate_variables import NormalizedShards
from ds4sci.datasets import cogsim_burgers
from ds4sci.metrics.calibration import LEVELS, coverage
from ds4sci.models import surrogate as network
from ds4sci.models.surrogate import SurrogateNet
from ds4sci.tasks.surrogate import Surrogate
from ds4sci.tasks.surrogate import build as build_surrogate
from ds4sci.train import checkpoint
from ds4sci.workloads import registry
from ds4sci.workloads.training import Plan as WorkloadPlan
from ds4sci.workloads.training import train_instances
from ds4sci.workloads.verification import obtain_datasets

COMMAND = "cogsim"
PAIRS = {"lpt": Path("configs/cogsim/zeldovich.toml"), "burgers": Path("configs/cogsim/coarse.toml")}
"""Pair of simulation and experiment → run file of the source model."""
METHODS = ("source", "scratch", "full", "affine", "transfer", "ladder")
COMPARED = METHODS[:4]
"""Methods that are compared with ``transfer`` and ``ladder``."""
BETTER = {"lpt": "lpt2", "burgers": "fine"}
"""Pair → source of its dataset that is the better simulation."""
CALIBRATED = ("source on the simulation", "source", "transfer", "transfer, leave-one-out")
"""Predictions whose intervals are compared with their nominal probability. The last one adds the variance of the
leave-one-out residuals of the experiments to that of the ensemble."""
Log = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """Sizes of a study: experiments of a draw, draws, members of the ensemble, gradient training."""

    shots: int
    draws: int
    members: int
    training: Training


DEFAULT = Plan(10, 20, 4, Training())
QUICK_COUNTS = {
    "coarse": {"train": 40, "valid": 8}, "fine": {"train": 9, "valid": 1}, "experiment": {"train": 9, "valid": 6},
}  # fmt: skip
QUICK = Plan(6, 3, 2, Training(rates=(3e-3,), steps=(0, 5, 10), folds=3))


@dataclass(frozen=True)
class Members:
    """An ensemble of source models, and tasks that hold the data.

    models      k networks, trained on the simulation
    simulation  task of the source
    better      the same task on the better simulation
    experiment  the same task on the experiments
    """

    models: list[SurrogateNet]
    simulation: Surrogate
    better: Surrogate
    experiment: Surrogate


def engine_members(pair: str, plan: Plan, out: Path, log: Log) -> Members:
    """Train the members side by side with the engine, unless ``out`` has them. Raises ValueError if one fails."""
    file = find_file(PAIRS[pair], near=None, what="run file")
    workload = registry.find(str(file))
    obtain_datasets(workload, log)
    runs = WorkloadPlan(workload, out, tuple(range(plan.members)))
    missing = [seed for seed in runs.seeds if not (runs.run(seed) / "checkpoints" / "best").is_file()]
    if missing:
        train_instances(WorkloadPlan(workload, out, tuple(missing)), ranks=len(missing), log=log)
    tasks = [checkpoint.load_run(runs.run(seed))[1] for seed in runs.seeds]
    models = [task.model for task in tasks if isinstance(task.model, SurrogateNet)]
    simulation = tasks[0]
    assert isinstance(simulation, Surrogate)
    settings = RunConfig.load(file).settings
    return Members(models, simulation, of_source(settings, BETTER[pair]), of_source(settings, "experiment"))


def loop_members(settings: Any, pair: str, plan: Plan, steps: int = 200) -> Members:
    """Train the members in this process, for studies of the smallest size."""
    simulation = build_surrogate(settings, seed=0, steps=steps)
    x, y = arrays(simulation.train)
    models = []
    for seed in range(plan.members):
        model = build_surrogate(settings, seed=seed, steps=steps).model
        assert isinstance(model, SurrogateNet)
        models.append(train_source(model, x, y, output_weights(simulation), steps=steps, batch=32, seed=seed))
    return Members(models, simulation, of_source(settings, BETTER[pair]), of_source(settings, "experiment"))


def of_source(settings: Any, source: str) -> Surrogate:
    """The task of ``settings`` on another source of its dataset."""
    data = settings.data.model_copy(update={"source": source})
    return build_surrogate(settings.model_copy(update={"data": data}), seed=0, steps=1)


def arrays(examples: Any) -> tuple[Tensor, Tensor]:
    """Parameters [n, p] and outputs [n, t] of examples in normalized units, float32."""
    assert isinstance(examples, NormalizedShards)
    x, y = (np.stack(part).astype(np.float32) for part in zip(*examples[:], strict=True))
    return torch.from_numpy(x), torch.from_numpy(y)


def output_weights(task: Surrogate) -> Tensor:
    """Weight of each output's squared error in the loss, [t]; their sum is 1."""
    counts = {"scalars": len(task.variables.scalars), "field": task.variables.cells}
    return torch.cat([torch.full((n,), task.weights[name] / n) for name, n in counts.items() if n])


def study(members: Members, plan: Plan, log: Log = lambda text: None) -> dict[str, Any]:
    """Compare the methods. Returns ``draws`` (a row per method and draw), ``choices``, ``coverage`` and ``bias``."""
    task = members.experiment
    weights, count = output_weights(task), len(task.variables.scalars)
    blocks = [block for block in (slice(0, count), slice(count, None)) if len(weights[block])]
    pool_x, pool_y = arrays(task.train)
    probe, true = arrays(task.valid)
    simulated_x, simulated_y = arrays(members.simulation.valid)
    train_x, _ = arrays(members.simulation.train)
    rng = np.random.default_rng(0)
    draws = torch.from_numpy(np.stack([rng.permutation(len(pool_x))[: plan.shots] for _ in range(plan.draws)]))
    x, y = pool_x[draws], pool_y[draws]
    with torch.no_grad():
        source = torch.stack([model(probe) for model in members.models])
        own = torch.stack([model(simulated_x) for model in members.models])
        at = torch.stack([model(x) for model in members.models])  # [k, d, n, t]
    predictions: dict[str, Tensor] = {"source": source.expand(plan.draws, *source.shape)}  # [d, k, m, t]
    mean = source.mean(0)
    predictions["affine"] = torch.stack([affine(at[:, d].mean(0), y[d], mean) for d in range(plan.draws)])[:, None]
    found = [_retrained(model, train_x, arrays(members.better.train), x, y, probe, blocks) for model in members.models]
    predictions["transfer"], predictions["ladder"], residuals = (
        torch.stack(part, 1) for part in zip(*found, strict=True)
    )
    began = time.monotonic()
    choices = {}
    config = task.config.model
    sizes = {"parameters": x.shape[-1], "scalars": count, "cells": task.variables.cells}
    starts: dict[str, Callable[[int, int], SurrogateNet]] = {
        "full": lambda draw, member: copy.deepcopy(members.models[member]),
        "scratch": lambda draw, member: network.build(config, **sizes, seed=1000 + plan.members * draw + member),
    }
    for name, start in starts.items():
        predictions[name], choices[name] = fine_tuned(start, plan.members, x, y, weights, plan.training, probe)
        log(f"{name}: {time.monotonic() - began:.0f} s")
    rows = []
    for name in METHODS:
        for draw, predicted in enumerate(predictions[name].mean(1)):
            squares = (predicted - true).square().mean(0)
            parts = [float(squares[block].mean().sqrt()) for block in blocks]
            named = dict(zip(("scalars", "field"), parts, strict=False))
            rows.append({"method": name, "draw": draw, "nrmse": float((squares * weights).sum().sqrt())} | named)
    shown = {"source on the simulation": (own[None], simulated_y), "source": (predictions["source"][:1], true)}
    shown["transfer"] = (predictions["transfer"], true)
    covered = {name: _coverage(values.numpy(), exact.numpy()) for name, (values, exact) in shown.items()}
    extra = residuals.mean(1).square().mean(1, keepdim=True)  # [d, 1, t]
    covered[CALIBRATED[-1]] = _coverage(predictions["transfer"].numpy(), true.numpy(), extra.numpy())
    return {
        "draws": rows, "choices": choices, "coverage": covered,
        "error on the simulation": float((((own.mean(0) - simulated_y).square() * weights).sum(-1)).mean().sqrt()),
    }  # fmt: skip


def _retrained(
    model: SurrogateNet, known: Tensor, better: tuple[Tensor, Tensor], x: Tensor, y: Tensor, probe: Tensor,
    blocks: Sequence[slice],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Retrain the output layers of one model on each of d draws of experiments.

    known   [n, p], parameters of the source's training data, over which features are standardized
    better  parameters and outputs of the better simulation
    x, y    [d, n, p] and [d, n, t]
    probe   [m, p]

    Returns predictions [d, m, t] of ``transfer`` and of ``ladder``, and the leave-one-out residuals [d, n, t] of
    ``transfer``.
    """
    with torch.no_grad():
        features = model.features(known)
        centre, spread = features.mean(0), features.std(0).clamp_min(1e-6)
        places = torch.cat([x.flatten(0, 1), probe])
        h, at = (model.features(places) - centre) / spread, model(places)
        better_h, better_at = (model.features(better[0]) - centre) / spread, model(better[0])
    raised = retrain_heads(better_h, better_at, better[1], h, at, blocks).probe

    def on_experiments(predicted: Tensor) -> list[Retrained]:
        count = x.shape[0] * x.shape[1]
        own = (part.view(*x.shape[:2], -1) for part in (h[:count], predicted[:count]))
        return [
            retrain_heads(features, at_shots, measured, h[count:], predicted[count:], blocks)
            for features, at_shots, measured in zip(*own, y, strict=True)
        ]

    transfer, ladder = on_experiments(at), on_experiments(raised)
    parts = ([one.probe for one in transfer], [one.probe for one in ladder], [one.residuals for one in transfer])
    first, second, third = (torch.stack(part) for part in parts)
    return first, second, third


def _coverage(predictions: np.ndarray, true: np.ndarray, extra: np.ndarray | float = 0.0) -> list[float]:
    """Coverage of [d, k, m, t] predictions of ``true`` [m, t]; ``extra`` is added to the variance over the members."""
    variance = predictions.var(axis=1, ddof=1) + extra
    mean = predictions.mean(axis=1)
    return [float(value) for value in coverage(mean, np.sqrt(variance), np.broadcast_to(true, mean.shape))]


def summarize(pair: str, draws: list[dict[str, Any]]) -> list[list[Any]]:
    """A row per method: median error and its quartiles, medians of scalars and field, and for ``transfer`` and
    ``ladder`` the number of draws in which they are better, with p of the one-sided Wilcoxon signed-rank test."""
    errors = {name: np.array([row["nrmse"] for row in draws if row["method"] == name]) for name in METHODS}
    rows: list[list[Any]] = []
    for name, own in errors.items():
        low, middle, high = np.quantile(own, (0.25, 0.5, 0.75))
        each = [[row[key] for row in draws if row["method"] == name and key in row] for key in ("scalars", "field")]
        parts = [statistics.median(values) if values else None for values in each]
        rows.append([pair, name, float(middle), f"{low:.3f}–{high:.3f}", *parts])
        for method in ("transfer", "ladder"):
            difference = errors[method] - own
            p = float(stats.wilcoxon(difference, alternative="less").pvalue) if difference.any() else 1.0
            better = f"{int((difference < 0).sum())} of {len(own)} (p {p:.0e})"
            rows[-1].append(better if name in COMPARED or (method, name) == ("ladder", "transfer") else None)
    return rows


def verdicts(pair: str, draws: list[dict[str, Any]]) -> str:
    """One sentence: which methods have a larger median error than transfer, and than the ladder."""
    median = {name: statistics.median(row["nrmse"] for row in draws if row["method"] == name) for name in METHODS}
    texts = []
    for method, others in (("transfer", COMPARED), ("ladder", (*COMPARED, "transfer"))):
        better = [name for name in others if median[method] < median[name]]
        worse = [name for name in others if name not in better]
        text = f"{method} has the lower median error than {', '.join(better) or 'no other method'}"
        texts.append(text + (f", not than {', '.join(worse)}" if worse else ""))
    return f"{pair}: " + "; ".join(texts)


def command(
    out: JsonFile,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder of the source models' runs.")] = Path(
        "runs/cogsim"
    ),
    pairs: Annotated[list[str] | None, typer.Option("--pair", help="lpt or burgers; by default both.")] = None,
    members: Annotated[int, typer.Option("--members", min=2, help="Source models of each ensemble.")] = DEFAULT.members,
    quick: Quick = False,
) -> None:
    """Surrogates of a biased simulation corrected by ten experiments: six methods, paired over 20 draws."""
    from ds4sci.bench.plot import plot

    chosen = ["burgers"] if quick else pairs or list(PAIRS)
    if unknown := [pair for pair in chosen if pair not in PAIRS]:
        raise ValueError(f"--pair {unknown[0]}: expected one of {', '.join(PAIRS)}")
    plan = QUICK if quick else replace(DEFAULT, members=members)
    began = time.monotonic()
    found: dict[str, Mapping[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for pair in chosen:
            sources = _quick_members(Path(scratch), plan) if quick else engine_members(pair, plan, runs, typer.echo)
            typer.echo(f"{pair}: {plan.draws} draws")
            found[pair] = study(sources, plan, typer.echo)
    options = "".join(f" --pair {pair}" for pair in pairs or [])
    options += "" if members == DEFAULT.members else f" --members {members}"
    measurement = Measurement(
        name="cogsim",
        title=f"Cognitive simulation: {plan.shots} experiments correct the surrogate of a simulation",
        command=f"ds4sci bench cogsim{options} --json OUT",
        columns=[
            *("pair", "method", "median error", "quartiles", "scalars", "field"),
            *("transfer better in", "ladder better in"),
        ],
        rows=[row for pair, one in found.items() for row in summarize(pair, one["draws"])],
        notes=[
            f"{plan.draws} draws of {plan.shots} experiments, the same for all methods; ensembles of {plan.members}; "
            "error: root of the mean squared error of held-out experiments, in units of the spread of the simulation's "
            "outputs, scalars and field with equal weight",
            "p: Wilcoxon signed-rank test over the draws, one-sided, that the method has the lower error",
            *(verdicts(pair, one["draws"]) for pair, one in found.items()),
            *(
                f"{pair}: error of the source models on held-out simulations {one['error on the simulation']:.3f}"
                for pair, one in found.items()
            ),
            f"{(time.monotonic() - began) / 60:.1f} minutes in all",
        ],
    )  # fmt: skip
    saved = asdict(measurement) | {"studies": found, "levels": LEVELS.tolist(), "plan": asdict(plan)}
    write(out, saved | {"plot": out.with_suffix(".png").name})
    show(measurement, out, plot(out))


def _quick_members(folder: Path, plan: Plan) -> Members:
    """Members on a tiny dataset in the empty ``folder``."""
    settings: Any = RunConfig.load(find_file(PAIRS["burgers"], near=None, what="run file")).settings
    cogsim_burgers.make_shards(folder, QUICK_COUNTS)
    data = settings.data.model_copy(update={"path": folder})
    return loop_members(settings.model_copy(update={"data": data}), "burgers", plan, steps=60)
