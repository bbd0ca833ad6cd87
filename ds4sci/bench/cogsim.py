"""Study of cognitive simulation: surrogates of a cheap, biased simulation, corrected by a few experiments.

After Kustowski et al. (2022, Mach. Learn.: Sci. Technol. 3 015035): a surrogate is trained on many runs of a
simulation, and partly retrained on fewer than a dozen experiments. An ensemble of surrogates of the simulation is
trained by the engine, its members side by side. Then, for many draws of experiments, five methods predict held-out
experiments:

    source    the surrogate of the simulation, not corrected
    scratch   networks trained on the experiments alone
    full      all layers of the surrogate fine-tuned
    affine    a + b · prediction, for each output by least squares
    transfer  the output layers retrained towards the source's weights, the trunk frozen

Errors are in units of the spread of the simulation's outputs. Draws are paired: all methods see the same experiments.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from scipy import stats
from torch import Tensor

from ds4sci.bench.cogsim_methods import Training, affine, fine_tuned, retrain_heads, train_source
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
METHODS = ("source", "scratch", "full", "affine", "transfer")
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
    "coarse": {"train": 40, "valid": 8}, "fine": {"train": 1, "valid": 1}, "experiment": {"train": 9, "valid": 6},
}  # fmt: skip
QUICK = Plan(6, 3, 2, Training(rates=(3e-3,), steps=(0, 5, 10), folds=3))


@dataclass(frozen=True)
class Members:
    """An ensemble of source models, and tasks that hold the data.

    models      k networks, trained on the simulation
    simulation  task of the source
    experiment  the same task on the experiments
    """

    models: list[SurrogateNet]
    simulation: Surrogate
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
    return Members(models, simulation, experiment_of(RunConfig.load(file).settings))


def loop_members(settings: Any, plan: Plan, steps: int = 200) -> Members:
    """Train the members in this process, for studies of the smallest size."""
    simulation = build_surrogate(settings, seed=0, steps=steps)
    x, y = arrays(simulation.train)
    models = []
    for seed in range(plan.members):
        model = build_surrogate(settings, seed=seed, steps=steps).model
        assert isinstance(model, SurrogateNet)
        models.append(train_source(model, x, y, output_weights(simulation), steps=steps, batch=32, seed=seed))
    return Members(models, simulation, experiment_of(settings))


def experiment_of(settings: Any) -> Surrogate:
    """The task of ``settings`` on the source ``experiment`` of the dataset."""
    data = settings.data.model_copy(update={"source": "experiment"})
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
        at = torch.stack([model(x) for model in members.models])
    predictions: dict[str, Tensor] = {"source": source.expand(plan.draws, *source.shape)}  # [d, k, m, t]
    mean = source.mean(0)
    predictions["affine"] = torch.stack([affine(at[:, d].mean(0), y[d], mean) for d in range(plan.draws)])[:, None]
    retrained, residuals = [], []
    for model, at_probe, at_shots in zip(members.models, source, at, strict=True):
        with torch.no_grad():
            known = model.features(train_x)
            centre, spread = known.mean(0), known.std(0).clamp_min(1e-6)
            features, probe_features = ((model.features(each) - centre) / spread for each in (x, probe))
        found = [
            retrain_heads(features[d], at_shots[d], y[d], probe_features, at_probe, blocks) for d in range(plan.draws)
        ]
        retrained.append(torch.stack([one.probe for one in found]))
        residuals.append(torch.stack([one.residuals for one in found]))
    predictions["transfer"] = torch.stack(retrained, 1)
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
    extra = torch.stack(residuals, 1).mean(1).square().mean(1, keepdim=True)  # [d, 1, t]
    covered[CALIBRATED[-1]] = _coverage(predictions["transfer"].numpy(), true.numpy(), extra.numpy())
    return {
        "draws": rows, "choices": choices, "coverage": covered,
        "error on the simulation": float((((own.mean(0) - simulated_y).square() * weights).sum(-1)).mean().sqrt()),
    }  # fmt: skip


def _coverage(predictions: np.ndarray, true: np.ndarray, extra: np.ndarray | float = 0.0) -> list[float]:
    """Coverage of [d, k, m, t] predictions of ``true`` [m, t]; ``extra`` is added to the variance over the members."""
    variance = predictions.var(axis=1, ddof=1) + extra
    mean = predictions.mean(axis=1)
    return [float(value) for value in coverage(mean, np.sqrt(variance), np.broadcast_to(true, mean.shape))]


def summarize(pair: str, draws: list[dict[str, Any]]) -> list[list[Any]]:
    """A row per method: median error and its quartiles, medians of scalars and field, and against ``transfer`` the
    number of draws in which it is better and p of the one-sided Wilcoxon signed-rank test."""
    errors = {name: [row["nrmse"] for row in draws if row["method"] == name] for name in METHODS}
    rows = []
    for name, own in errors.items():
        low, _, high = statistics.quantiles(own, n=4, method="inclusive")
        each = [[row[key] for row in draws if row["method"] == name and key in row] for key in ("scalars", "field")]
        parts = [statistics.median(values) if values else None for values in each]
        wins, p = None, None
        if name != "transfer":
            difference = np.array(errors["transfer"]) - np.array(own)
            wins = f"{int((difference < 0).sum())} of {len(own)}"
            p = f"{float(stats.wilcoxon(difference, alternative='less').pvalue):.1e}"
        rows.append([pair, name, statistics.median(own), f"{low:.3f}–{high:.3f}", *parts, wins, p])
    return rows


def verdicts(pair: str, draws: list[dict[str, Any]]) -> str:
    """One sentence: which methods transfer beats in the median."""
    median = {name: statistics.median(row["nrmse"] for row in draws if row["method"] == name) for name in METHODS}
    better = [name for name in METHODS if name != "transfer" and median["transfer"] < median[name]]
    worse = [name for name in METHODS if name != "transfer" and name not in better]
    text = f"{pair}: transfer has the lower median error than {', '.join(better) or 'no other method'}"
    return text + (f", not than {', '.join(worse)}" if worse else "")


def command(
    out: JsonFile,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Folder of the source models' runs.")] = Path(
        "runs/cogsim"
    ),
    pairs: Annotated[list[str] | None, typer.Option("--pair", help="lpt or burgers; by default both.")] = None,
    members: Annotated[int, typer.Option("--members", min=2, help="Source models of each ensemble.")] = DEFAULT.members,
    quick: Quick = False,
) -> None:
    """Surrogates of a biased simulation corrected by ten experiments: five methods, paired over 20 draws."""
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
        columns=["pair", "method", "median error", "quartiles", "scalars", "field", "transfer better in", "p"],
        rows=[row for pair, one in found.items() for row in summarize(pair, one["draws"])],
        notes=[
            f"{plan.draws} draws of {plan.shots} experiments, the same for all methods; ensembles of {plan.members}; "
            "error: root of the mean squared error of held-out experiments, in units of the spread of the simulation's "
            "outputs, scalars and field with equal weight",
            "p: Wilcoxon signed-rank test over the draws, one-sided, that transfer has the lower error",
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
    return loop_members(settings.model_copy(update={"data": data}), plan, steps=60)
