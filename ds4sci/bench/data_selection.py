"""Study of data selection for large batches: secondary structure of single residues, from profiles of real chains.

Does leaving out the samples with the highest scores smooth the loss, and keep the accuracy of large batches (Gahlot,
Yin and Shankar, arXiv 2012.09272)? A small network is trained with LAMB, on all data for some epochs and on a part of
it for as many steps:

    full           all residues
    random         a random part: the control
    el2n           without the residues of the highest EL2N
    learned        without those for which a network on cheap features predicts the highest EL2N, from that of a tenth

and with ``--full`` also, without the residues of the highest value,

    loss           the cross-entropy
    gradient_norm, gradient_norm_full  of the last layer, of all weights
    forgetting     how often a learned residue was missed again in a run
    learnability   loss − loss of a network trained on other residues; the lowest are left out

with a part of the training labels drawn at random. Accuracy is that of the true labels of other chains. λ_max is the
largest eigenvalue of the Hessian of the trained network, on its own training data and on held-out residues.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from ds4sci.bench.measurement import Measurement, write
from ds4sci.bench.registry import JsonFile, Quick, show
from ds4sci.bench.stacked_networks import Job, mlp, train
from ds4sci.chemistry.residue_codes import secondary_classes
from ds4sci.data import score_file
from ds4sci.data.sample_record import SampleRecord
from ds4sci.data.sample_selection import SelectionConfig, kept_samples
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.text_files import resolve_data_path
from ds4sci.files import atomic_files
from ds4sci.select.landscape import power_iteration

COMMAND = "data_selection"
TRAIN, VALID = Path("examples/fold/data/chains_train.npz"), Path("examples/fold/data/chains_valid.npz")
WINDOW = 7
"""Residues on either side that the network sees."""
CLASSES, HIDDEN = 3, (128, 64)
SCORING_RUNS, SCORING_EPOCHS, SCORING_BATCH = 3, 2, 512
"""Scores are the mean over networks of other seeds, after a few epochs (arXiv 2107.07075)."""
KEPT = 0.8
CURVATURE_SAMPLES = 2048
METHODS = ("full", "random", "el2n", "learned")
ALL_METHODS = (*METHODS, "loss", "gradient_norm", "gradient_norm_full", "forgetting", "learnability")


Scores = dict[str, np.ndarray]
"""Score → one value per residue."""


@dataclass(frozen=True)
class Plan:
    """Sizes of a study: residues, epochs, batch sizes, parts of noisy labels, seeds, methods."""

    train: int
    valid: int
    epochs: int
    batches: tuple[int, ...]
    noises: tuple[float, ...]
    seeds: int
    methods: tuple[str, ...] = METHODS


DEFAULT = Plan(49_152, 16_384, 10, (64, 512, 4096, 16_384), (0.0, 0.2), 3)
FULL = Plan(49_152, 16_384, 10, (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384), (0.0, 0.1, 0.2), 5, ALL_METHODS)
QUICK = Plan(600, 200, 2, (64, 256), (0.2,), 2)


@dataclass(frozen=True)
class Residues:
    """n residues: profiles of their windows [n, features] and classes int64 [n]."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: np.ndarray) -> Residues:
        """The residues with these numbers."""
        chosen = torch.from_numpy(index)
        return Residues(self.x[chosen], self.y[chosen])


def read_residues(file: Path, count: int, seed: int) -> Residues:
    """Random residues with a known class of a chain set: the profiles of 2 · WINDOW + 1 positions, and whether
    each is inside the chain."""
    windows, classes = [], []
    for chain in ChainSet.open(resolve_data_path(file)):
        if chain.profile is None or chain.dssp is None:
            continue
        inside = np.ones((len(chain.sequence), 1), np.float32)
        padded = np.pad(np.hstack([chain.profile.astype(np.float32), inside]), ((WINDOW, WINDOW), (0, 0)))
        view = np.lib.stride_tricks.sliding_window_view(padded, 2 * WINDOW + 1, axis=0)
        windows.append(view.reshape(len(chain.sequence), -1))
        classes.append(secondary_classes(chain.dssp))
    x, y = np.concatenate(windows), np.concatenate(classes)
    known = np.flatnonzero(y >= 0)
    chosen = np.random.default_rng(seed).permutation(known)[:count]
    return Residues(torch.from_numpy(np.ascontiguousarray(x[chosen])), torch.from_numpy(y[chosen]))


def with_noise(data: Residues, part: float, seed: int) -> Residues:
    """``data`` in which this part of the residues has another class, drawn at random."""
    rng = np.random.default_rng((seed, 1))
    wrong = torch.from_numpy(rng.random(len(data)) < part)
    shift = torch.from_numpy(rng.integers(1, CLASSES, len(data)))
    return Residues(data.x, torch.where(wrong, (data.y + shift) % CLASSES, data.y))


def network(data: Residues, seed: int) -> nn.Sequential:
    """A new network for these residues, from the seed."""
    return mlp((data.x.shape[1], *HIDDEN, CLASSES), seed)


def all_rows(data: Residues, seed: int) -> Job:
    """The job of a network that trains on all residues."""
    return Job(data.x, data.y, np.arange(len(data)), seed)


def pass_scores(model: nn.Sequential, data: Residues) -> dict[str, np.ndarray]:
    """Loss, EL2N ‖p − e‖₂ and gradient norms of each residue.

    The gradient of a linear layer for one sample is δ aᵀ, with the layer's input a (and 1 for its bias) and δ the
    gradient of its output, so that its squared norm is ‖δ‖² (‖a‖² + 1).
    """
    inputs, outputs = [], []
    value = data.x
    for layer in model:
        if isinstance(layer, nn.Linear):
            inputs.append(value.detach())
            value = layer(value)
            outputs.append(value)
        else:
            value = layer(value)
    losses = F.cross_entropy(value, data.y, reduction="none")
    deltas = torch.autograd.grad(losses.sum(), outputs)
    squares = [d.square().sum(-1) * (a.square().sum(-1) + 1) for d, a in zip(deltas, inputs, strict=True)]
    errors = value.softmax(-1) - F.one_hot(data.y, CLASSES)
    found = {
        "loss": losses, "el2n": errors.norm(dim=-1), "gradient_norm": squares[-1].sqrt(),
        "gradient_norm_full": torch.stack(squares).sum(0).sqrt(),
    }  # fmt: skip
    return {name: values.detach().double().numpy() for name, values in found.items()}


def scores_of(datasets: list[Residues], methods: Sequence[str], epochs: int, other: Residues | None) -> list[Scores]:
    """The scores of each training set, which differ in their labels, that the methods need.

    other  residues for the reference of ``learnability``
    """
    runs = [
        all_rows(data, 1000 + SCORING_RUNS * seed + run)
        for seed, data in enumerate(datasets) for run in range(SCORING_RUNS)
    ]  # fmt: skip
    models = [network(datasets[0], job.seed) for job in runs]
    train(models, runs, SCORING_BATCH, max(1, SCORING_EPOCHS * len(datasets[0]) // SCORING_BATCH))
    found: list[Scores] = []
    for seed, data in enumerate(datasets):
        own = [pass_scores(model, data) for model in models[SCORING_RUNS * seed : SCORING_RUNS * (seed + 1)]]
        found.append({name: np.mean([one[name] for one in own], axis=0) for name in own[0]})
        found[-1]["learned"] = learned(data, found[-1]["el2n"], seed)
    if "forgetting" in methods:
        for scores, values in zip(found, forgetting(datasets, epochs), strict=True):
            scores["forgetting"] = values
    if "learnability" in methods:
        assert other is not None
        jobs = [all_rows(other, 2000 + seed) for seed in range(len(datasets))]
        references = [network(other, job.seed) for job in jobs]
        train(references, jobs, SCORING_BATCH, max(1, epochs * len(other) // SCORING_BATCH))
        for scores, model, data in zip(found, references, datasets, strict=True):
            scores["learnability"] = scores["loss"] - pass_scores(model, data)["loss"]
    return found


def forgetting(datasets: list[Residues], epochs: int) -> list[np.ndarray]:
    """Forgetting events of each residue of each training set, in a run over all of it."""
    jobs = [all_rows(data, 3000 + seed) for seed, data in enumerate(datasets)]
    records = [SampleRecord(len(data)) for data in datasets]

    def observe(number: int, step: int, rows: np.ndarray, outputs: Tensor, targets: Tensor) -> None:
        correct = (outputs.argmax(-1) == targets).double().numpy()
        ones = np.ones_like(correct)
        records[number].add(step, rows, np.stack([ones, ones, correct, ones], 1))

    models = [network(data, job.seed) for data, job in zip(datasets, jobs, strict=True)]
    train(models, jobs, SCORING_BATCH, max(1, epochs * len(datasets[0]) // SCORING_BATCH), observe=observe)
    return [record.merge().scores()["forgetting"] for record in records]


def learned(data: Residues, known: np.ndarray, seed: int) -> np.ndarray:
    """Scores predicted from cheap features by a small network, which sees those of a tenth of the residues.

    Features: profile of the residue itself, its entropy, the mean profile of its window, how much of the window is in
    the chain, and its label.
    """
    profiles = data.x.view(len(data), 21, 2 * WINDOW + 1)
    own, inside = profiles[:, :20, WINDOW], profiles[:, 20].mean(1, keepdim=True)
    entropy = -(own * (own + 1e-6).log()).sum(1, keepdim=True)
    mean = profiles[:, :20].mean(2)
    features = torch.cat([own, entropy, mean, inside, F.one_hot(data.y, CLASSES).float()], 1)
    shown = np.random.default_rng((seed, 3)).permutation(len(data))[: max(1, len(data) // 10)]
    job = Job(features, torch.from_numpy(known.astype(np.float32))[:, None], shown, seed)
    model = mlp((features.shape[1], 64, 1), seed)
    batch = min(SCORING_BATCH, len(shown))
    train([model], [job], batch, 20 * len(shown) // batch, F.mse_loss)
    with torch.no_grad():
        found: np.ndarray = model(features)[:, 0].double().numpy()
    return found


def kept_by(method: str, scores: dict[str, np.ndarray], count: int, seed: int, folder: Path) -> np.ndarray:
    """Numbers of the residues that a method keeps, by the selection of run files."""
    if method == "full":
        return np.arange(count)
    names = [f"residue {number}" for number in range(count)]
    if method == "random":
        return kept_samples(SelectionConfig(keep="random", fraction=KEPT, seed=seed), names)
    file = folder / f"{method}.npz"
    score_file.write_scores(file, names, {method: scores[method]}, {})
    keep: Literal["lowest", "highest"] = "highest" if method == "learnability" else "lowest"
    config = SelectionConfig(keep=keep, fraction=KEPT, scores=file, score=method, seed=seed)
    return kept_samples(config, names)


def largest_curvature(model: nn.Module, data: Residues) -> float:
    """λ_max of the loss on the first ``CURVATURE_SAMPLES`` residues, by double backward in fp64."""
    model = model.double()
    x, y = data.x[:CURVATURE_SAMPLES].double(), data.y[:CURVATURE_SAMPLES]
    parameters = list(model.parameters())
    first = torch.autograd.grad(F.cross_entropy(model(x), y), parameters, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in first])

    def times(vector: Tensor) -> Tensor:
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(flat @ vector, parameters, retain_graph=True)])

    value, _, _ = power_iteration(times, flat.detach(), 60, 1e-3, 0)
    model.float()
    return value


def run(plan: Plan, partial: Path, log: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
    """Run the whole grid; the networks of a noise and batch size, of all seeds and methods, are trained together.

    partial  file of the networks that are finished: rewritten after each batch size, and continued if it is there and
             of the same plan
    """
    both, valid = read_residues(TRAIN, 2 * plan.train, 0), read_residues(VALID, plan.valid, 0)
    clean, other = both.take(np.arange(plan.train)), both.take(np.arange(plan.train, len(both)))
    found = _finished(partial, plan)
    cells = {(one["noise"], one["batch"]) for one in found}
    with tempfile.TemporaryDirectory() as folder:
        for noise in plan.noises:
            if all((noise, batch) in cells for batch in plan.batches):
                continue
            datasets = [with_noise(clean, noise, seed) for seed in range(plan.seeds)]
            scores = scores_of(datasets, plan.methods, plan.epochs, with_noise(other, noise, plan.seeds))
            jobs = {
                (seed, method): Job(data.x, data.y, kept_by(method, scores[seed], len(data), seed, Path(folder)), seed)
                for seed, data in enumerate(datasets) for method in plan.methods
            }  # fmt: skip
            for batch in plan.batches:
                if (noise, batch) in cells:
                    continue
                steps = max(1, plan.epochs * plan.train // batch)
                models = [network(clean, job.seed) for job in jobs.values()]
                began = time.monotonic()
                train(models, list(jobs.values()), batch, steps)
                seconds = (time.monotonic() - began) / len(jobs)
                for model, ((seed, method), job) in zip(models, jobs.items(), strict=True):
                    own = Residues(job.x, job.y).take(job.rows)
                    labels = {"method": method, "noise": noise, "batch": batch, "seed": seed}
                    sizes = {"steps": steps, "samples": len(own), "seconds": seconds}
                    found.append(labels | sizes | measure(model, own, valid))
                atomic_files.replace_text(partial, json.dumps({"plan": asdict(plan), "runs": found}))
                log(f"noise {noise:.0%}, batch {batch}: {len(jobs)} networks, {seconds:.2f} s each")
    return found


def _finished(partial: Path, plan: Plan) -> list[dict[str, Any]]:
    """The networks of an interrupted study of this plan."""
    if not partial.exists():
        return []
    saved = json.loads(partial.read_text(encoding="utf-8"))
    if saved["plan"] != json.loads(json.dumps(asdict(plan))):
        raise ValueError(f"{partial} is of a study with other sizes; delete it, or write to another file")
    runs: list[dict[str, Any]] = saved["runs"]
    return runs


def measure(model: nn.Module, own: Residues, valid: Residues) -> dict[str, float]:
    """Accuracy and nats on held-out residues, and the curvature on them and on the network's own training set."""
    with torch.no_grad():
        logits = model(valid.x)
    return {
        "quality": float((logits.argmax(-1) == valid.y).float().mean()),
        "nats": float(F.cross_entropy(logits, valid.y)),
        "lambda_train": largest_curvature(model, own), "lambda_valid": largest_curvature(model, valid),
    }  # fmt: skip


def summarize(runs: list[dict[str, Any]]) -> list[list[Any]]:
    """A row per noise, batch and method: mean quality, half the 95 % interval, difference from the control with its
    interval (paired by seed), and the mean λ_max."""
    rows = []
    keys = dict.fromkeys((one["noise"], one["batch"], one["method"]) for one in runs)
    table = {(one["noise"], one["batch"], one["method"], one["seed"]): one for one in runs}
    for noise, batch, method in keys:
        own = [one for one in runs if (one["noise"], one["batch"], one["method"]) == (noise, batch, method)]
        control = [table[noise, batch, "random", one["seed"]]["quality"] for one in own]
        quality = [one["quality"] for one in own]
        gain = [q - c for q, c in zip(quality, control, strict=True)]
        rows.append(
            [
                f"{noise:.0%}", batch, method, statistics.mean(quality), _half_interval(quality),
                None if method == "random" else statistics.mean(gain),
                None if method == "random" else _half_interval(gain),
                statistics.mean(one["lambda_train"] for one in own),
                statistics.mean(one["lambda_valid"] for one in own),
            ]
        )  # fmt: skip
    return rows


def _half_interval(values: list[float]) -> float | None:
    """Half of the 95 % interval of the mean, by Student's t; None for one value."""
    if len(values) < 2:
        return None
    return float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def command(
    out: JsonFile,
    full: Annotated[bool, typer.Option("--full", help="Nine batch sizes, three noises, five seeds: hours.")] = False,
    quick: Quick = False,
) -> None:
    """Data selection for large batches: accuracy and curvature with scores, at random, and on all data."""
    from ds4sci.bench.plot import plot

    plan = QUICK if quick else FULL if full else DEFAULT
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(".partial.json")
    runs = run(plan, partial, typer.echo)
    measurement = Measurement(
        name="data_selection",
        title="Data selection: secondary structure of residues, 80 % of the data kept",
        command=f"ds4sci bench data_selection{' --full' * full} --json OUT",
        columns=[
            "wrong labels", "batch", "kept", "accuracy", "± 95 %", "over random", "± 95 % ", "λ_max, training",
            "λ_max, held out",
        ],
        rows=summarize(runs),
        notes=[
            f"{plan.train:,} residues, {plan.epochs} epochs of all data for every method, {plan.seeds} seeds; LAMB, "
            "learning rate with the square root of the batch; accuracy on true labels of held-out chains",
            "random and scores: without a fifth, that of the highest (learnability: lowest) scores; over random: "
            "paired by seed",
            f"{len(runs)} networks, {sum(one['seconds'] for one in runs) / 60:.0f} minutes of training",
        ],
    )  # fmt: skip
    write(
        out,
        asdict(measurement)
        | {"runs": runs, "plan": asdict(plan), "quality": "accuracy", "plot": out.with_suffix(".png").name},
    )
    partial.unlink()
    show(measurement, out, plot(out))
