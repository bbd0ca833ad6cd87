"""Study of data selection for large batches: secondary structure of single residues, from profiles of real chains.

Does leaving out the samples with the highest scores smooth the loss, and keep the accuracy of large batches (Gahlot,
Yin and Shankar, arXiv 2012.09272)? A small network is trained with LAMB, on all data for some epochs and on a part of
it for as many steps:

    full     all residues
    random   a random part: the control
    el2n     without the residues of the highest EL2N
    learned  without those for which a network on cheap features predicts the highest EL2N, from that of a tenth

with a part of the training labels drawn at random. Accuracy is that of the true labels of other chains. λ_max is the
largest eigenvalue of the Hessian of the trained network, on its own training data and on held-out residues.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from ds4sci.bench.measurement import Measurement, write
from ds4sci.bench.registry import JsonFile, Quick, show
from ds4sci.chemistry.residue_codes import secondary_classes
from ds4sci.data import score_file
from ds4sci.data.sample_selection import SelectionConfig, kept_samples
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.text_files import resolve_data_path
from ds4sci.select.landscape import power_iteration
from ds4sci.train.layerwise_optimizers import LAMB

COMMAND = "data_selection"
TRAIN, VALID = Path("examples/fold/data/chains_train.npz"), Path("examples/fold/data/chains_valid.npz")
WINDOW = 7
"""Residues on either side that the network sees."""
CLASSES, HIDDEN = 3, (128, 64)
RATE, RATE_BATCH, WARMUP = 0.02, 512, 0.1
"""Learning rate of LAMB at a batch of ``RATE_BATCH``, scaled with the square root of the batch; warm-up, part of the
steps."""
SCORING_RUNS, SCORING_EPOCHS = 3, 2
"""EL2N is the mean over networks of other seeds, after a few epochs (arXiv 2107.07075)."""
KEPT = 0.8
CURVATURE_SAMPLES = 2048
METHODS = ("full", "random", "el2n", "learned")


@dataclass(frozen=True)
class Plan:
    """Sizes of a study: residues, epochs, batch sizes, parts of noisy labels, seeds."""

    train: int
    valid: int
    epochs: int
    batches: tuple[int, ...]
    noises: tuple[float, ...]
    seeds: int


DEFAULT = Plan(49_152, 16_384, 10, (64, 512, 4096, 16_384), (0.0, 0.2), 3)
FULL = Plan(49_152, 16_384, 10, (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384), (0.0, 0.1, 0.2), 5)
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


def network(inputs: int, seed: int) -> nn.Sequential:
    """A new network, from the seed."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in zip((inputs, *HIDDEN), (*HIDDEN, CLASSES), strict=False):
        layers += [nn.Linear(before, after), nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def train(
    data: Residues, batch: int, steps: int, seed: int, model: nn.Module | None = None,
    loss_of: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> nn.Module:  # fmt: skip
    """Train a network with LAMB: linear warm-up, then a cosine to zero. Epochs are shuffled from the seed."""
    model = network(data.x.shape[1], seed) if model is None else model
    rate = RATE * math.sqrt(batch / RATE_BATCH)
    optimizer = LAMB(model.parameters(), lr=rate, weight_decay=0.01)
    order = _shuffled(len(data), batch, seed)
    warmup = max(1, round(WARMUP * steps))
    for step in range(steps):
        progress = (step - warmup) / max(1, steps - warmup)
        factor = (step + 1) / warmup if step < warmup else 0.5 * (1 + math.cos(math.pi * progress))
        optimizer.param_groups[0]["lr"] = rate * factor
        index = next(order)
        optimizer.zero_grad()
        loss_of(model(data.x[index]), data.y[index]).backward()
        optimizer.step()
    return model


def _shuffled(size: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of one shuffled epoch after another."""
    rng = np.random.default_rng((seed, 2))
    waiting = np.zeros(0, np.int64)
    while True:
        while len(waiting) < batch:
            waiting = np.concatenate([waiting, rng.permutation(size)])
        yield torch.from_numpy(waiting[:batch])
        waiting = waiting[batch:]


@torch.no_grad()
def errors(model: nn.Module, data: Residues) -> np.ndarray:
    """‖p − e‖₂ of each residue."""
    found: np.ndarray = (model(data.x).softmax(-1) - F.one_hot(data.y, CLASSES)).norm(dim=-1).numpy()
    return found


def el2n(data: Residues, seed: int) -> np.ndarray:
    """Mean error after ``SCORING_EPOCHS`` epochs, over ``SCORING_RUNS`` networks."""
    steps = SCORING_EPOCHS * len(data) // RATE_BATCH
    runs = [train(data, RATE_BATCH, max(1, steps), 1000 + SCORING_RUNS * seed + run) for run in range(SCORING_RUNS)]
    found: np.ndarray = np.mean([errors(model, data) for model in runs], axis=0)
    return found


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
    part = Residues(features[shown], torch.from_numpy(known[shown].astype(np.float32)))
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(features.shape[1], 64), nn.SiLU(), nn.Linear(64, 1), nn.Flatten(0))
    train(part, min(RATE_BATCH, len(part)), max(1, 20 * len(part) // RATE_BATCH), seed, model, F.mse_loss)
    with torch.no_grad():
        found: np.ndarray = model(features).numpy()
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
    config = SelectionConfig(keep="lowest", fraction=KEPT, scores=file, score=method, seed=seed)
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


def one_run(
    method: str, noise: float, batch: int, seed: int, data: Residues, kept: np.ndarray, valid: Residues, steps: int
) -> dict[str, Any]:
    """Train and measure one network."""
    own = data.take(kept)
    began = time.monotonic()
    model = train(own, batch, steps, seed)
    seconds = time.monotonic() - began
    with torch.no_grad():
        logits = model(valid.x)
    return {
        "method": method, "noise": noise, "batch": batch, "seed": seed, "steps": steps, "samples": len(own),
        "accuracy": float((logits.argmax(-1) == valid.y).float().mean()),
        "nats": float(F.cross_entropy(logits, valid.y)), "seconds": seconds,
        "lambda_train": largest_curvature(model, own), "lambda_valid": largest_curvature(model, valid),
    }  # fmt: skip


def run(plan: Plan, log: Callable[[str], None] = lambda text: None) -> list[dict[str, Any]]:
    """Run the whole grid, in turn: all methods of a batch size and seed, then the next."""
    clean, valid = read_residues(TRAIN, plan.train, 0), read_residues(VALID, plan.valid, 0)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for noise, seed in product(plan.noises, range(plan.seeds)):
            data = with_noise(clean, noise, seed)
            known = el2n(data, seed)
            scores = {"el2n": known, "learned": learned(data, known, seed)}
            kept = {m: kept_by(m, scores, len(data), seed, Path(folder)) for m in METHODS}
            for batch, method in product(plan.batches, METHODS):
                steps = max(1, plan.epochs * len(data) // batch)
                one = one_run(method, noise, batch, seed, data, kept[method], valid, steps)
                found.append(one)
                log(f"noise {noise:.0%} seed {seed} batch {batch} {method}: accuracy {one['accuracy']:.4f}")
    return found


def summarize(runs: list[dict[str, Any]]) -> list[list[Any]]:
    """A row per noise, batch and method: mean accuracy, half the 95 % interval, difference from the control with its
    interval (paired by seed), and the mean λ_max."""
    rows = []
    keys = dict.fromkeys((one["noise"], one["batch"], one["method"]) for one in runs)
    table = {(one["noise"], one["batch"], one["method"], one["seed"]): one for one in runs}
    for noise, batch, method in keys:
        own = [one for one in runs if (one["noise"], one["batch"], one["method"]) == (noise, batch, method)]
        control = [table[noise, batch, "random", one["seed"]]["accuracy"] for one in own]
        accuracy = [one["accuracy"] for one in own]
        gain = [a - c for a, c in zip(accuracy, control, strict=True)]
        rows.append(
            [
                f"{noise:.0%}", batch, method, statistics.mean(accuracy), _half_interval(accuracy),
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
    began = time.monotonic()
    runs = run(plan, typer.echo)
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
            "el2n, learned: without the fifth of the highest scores; over random: paired by seed",
            f"{(time.monotonic() - began) / 60:.1f} minutes in all",
        ],
    )  # fmt: skip
    write(out, asdict(measurement) | {"runs": runs, "plan": asdict(plan), "plot": out.with_suffix(".png").name})
    show(measurement, out, plot(out))
