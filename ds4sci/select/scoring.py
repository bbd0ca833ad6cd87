"""Scores of all training samples by trained models, in a pass of its own.

Each sample is a batch of its own in evaluation mode, so that its score depends on no other sample, on no packing and
on no layout of ranks. Scores of several runs (other seeds) are averaged, as EL2N and gradient norms are defined:

    loss                the sample's own loss; for language models the mean over its tokens
    el2n                E ‖p − e‖₂, p the predicted probabilities, e the one-hot label (Paul et al., arXiv 2107.07075)
    gradient_norm       E ‖∂ loss / ∂ W‖₂ with W the weights and bias of the layer that is called last
    gradient_norm_full  the same with all trainable weights (GraNd of the same paper)
    learnability        loss − loss of a reference run (Mindermann et al., arXiv 2206.07137; Evans et al., 2406.17711)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ds4sci.data import score_file
from ds4sci.data.loader import make_rng
from ds4sci.data.score_file import ScoreFile
from ds4sci.inference.ranks import run_ranks
from ds4sci.inference.trained_run import TrainedRun
from ds4sci.machine import provenance
from ds4sci.tasks import SampleScoring, batch_weight
from ds4sci.tasks.build import default_kernels
from ds4sci.train import rng_state
from ds4sci.train.distributed import DistributedContext
from ds4sci.train.progress import progress_bar

LOSS, EL2N, LAST, FULL, LEARNABILITY = SCORES = (
    "loss", "el2n", "gradient_norm", "gradient_norm_full", "learnability",
)  # fmt: skip
"""Names of the scores."""
STREAM = 42
"""Key of the random stream that draws samples."""


def score_runs(
    runs: Sequence[Path], out: Path, *, wanted: Sequence[str] = (LOSS, EL2N), reference: Path | None = None,
    which: str = "best", fraction: float = 1.0, seed: int = 0, shown: bool = False, ranks: int = 1,
) -> ScoreFile:  # fmt: skip
    """Score the training samples of ``runs``, and write ``out``. Returns its contents.

    runs       run folders with the same training set; scores are averaged over them
    reference  run whose loss ``learnability`` subtracts
    which      checkpoint of the runs
    fraction   part of the samples to score, drawn by ``seed``; the others have NaN (``ds4sci.select.learned_scorer``)
    shown      show a progress bar
    ranks      processes of this machine that share the samples, each with a copy of the model

    Raises ValueError for an unknown score, runs of different training sets, and a task without scores.
    """
    unknown = [name for name in wanted if name not in SCORES]
    if unknown:
        raise ValueError(f"no score {unknown[0]!r}; there are {', '.join(SCORES)}")
    if (LEARNABILITY in wanted) != (reference is not None):
        raise ValueError("the score learnability needs a reference run, and no other score uses one")
    wanted = list(dict.fromkeys(wanted))
    names: list[str] = []
    sums: dict[str, np.ndarray] = {}
    steps = []
    passes = [(run, wanted) for run in runs] + ([(reference, [LOSS])] if reference is not None else [])
    for number, (run, listed) in enumerate(passes):
        trained = TrainedRun.load(run, which)
        task = trained.task
        if not isinstance(task, SampleScoring):
            raise trained.lacks("score its samples", "sample_names, sample_batches and sample_error")
        own = task.sample_names()
        if names and own != names:
            raise ValueError(f"{run}: another training set than that of {runs[0]}; score runs of one set together")
        names, step = own, trained.step
        needed = [LOSS if name == LEARNABILITY else name for name in listed]
        label = f"scoring {number + 1} of {len(passes)}:"
        chosen = make_rng(seed, STREAM).permutation(len(own))[: max(1, round(fraction * len(own)))]
        if ranks == 1:
            with default_kernels(trained.config):
                found = _score_shown(trained, needed, chosen, label if shown else "")
        else:
            del trained, task  # the ranks load it
            parts = run_ranks(_score_part, ranks, run, which, needed, chosen, label if shown else "")
            found = {name: np.full(len(own), np.nan) for name in needed}
            for rank, part in enumerate(parts):
                for name in needed:
                    found[name][chosen[rank::ranks]] = part[name][chosen[rank::ranks]]
        if run is reference and number == len(passes) - 1:
            sums[LEARNABILITY] = sums.get(LEARNABILITY, 0.0) - found[LOSS]
        else:
            steps.append(step)
            for name, need in zip(listed, needed, strict=True):
                sums[name] = sums.get(name, 0.0) + found[need] / len(runs)
    about = {
        "runs": [str(run) for run in runs], "steps": steps,
        "reference": None if reference is None else str(reference), "checkpoint": which,
        "commit": provenance.commit(),
    }  # fmt: skip
    return score_file.write_scores(out, names, sums, about)


def _score_part(
    context: DistributedContext, run: Path, which: str, wanted: list[str], chosen: np.ndarray, label: str
) -> dict[str, np.ndarray]:
    """The scores of this rank's share of the chosen samples."""
    trained = TrainedRun.load(run, which)
    own = chosen[context.rank :: context.world_size]
    with default_kernels(trained.config):
        return _score_shown(trained, wanted, own, label if context.is_main else "")


def _score_shown(trained: TrainedRun, wanted: list[str], chosen: np.ndarray, label: str) -> dict[str, np.ndarray]:
    """``score_samples`` with a progress bar, unless the label is empty."""
    count = len(trained.task.sample_names()) if isinstance(trained.task, SampleScoring) else 0
    with progress_bar(label, count, shown=bool(label), unit="samples") as advance:
        return score_samples(trained, wanted, chosen, advance)


def score_samples(
    trained: TrainedRun, wanted: Sequence[str], chosen: np.ndarray | None = None,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return score → float64 [n] of every training sample of a run, or of the ``chosen`` ones and NaN for others.

    ``advance`` is called after each batch. A sample of several batches has the mean of their scores, weighted by
    ``Task.weight``. Raises ValueError for ``el2n`` if the task predicts no classes, and for a sample without a token
    that counts.
    """
    task: Any = trained.task
    model = task.model
    count = len(task.sample_names())
    sums = {name: np.zeros(count) for name in wanted}
    weights, is_chosen = np.zeros(count), np.ones(count, bool)
    if chosen is not None:
        is_chosen[:] = False
        is_chosen[chosen] = True
    gradients = [name for name in wanted if name in (LAST, FULL)]
    with _last_called(model) as last, torch.set_grad_enabled(bool(gradients)):
        for number, batch in task.sample_batches():
            if not is_chosen[number]:
                advance()
                continue
            rng_state.seed_all(trained.config.seed, rng_state.EVALUATION, number)  # a loss may draw, as unclamped FAPE
            on_device = batch.to(trained.device)
            output = model(on_device)
            loss = task.loss(output, on_device)[0]
            weight = batch_weight(task, batch)
            values: dict[str, float] = {LOSS: float(loss.detach())}
            if EL2N in sums:
                error = task.sample_error(output, on_device)
                if error is None:
                    raise ValueError(
                        f"{trained.folder}: its task {trained.config.task.name} predicts no classes, so it has no "
                        f"{EL2N}; use {LOSS} or {LAST}"
                    )
                values[EL2N] = float(error.detach())
            if gradients:
                values |= _gradient_norms(loss, model, last[-1])
            weights[number] += weight
            for name in sums:
                sums[name][number] += weight * values[name]
            advance()
    empty = np.flatnonzero((weights == 0) & is_chosen)
    if len(empty):
        name = task.sample_names()[int(empty[0])]
        raise ValueError(
            f"{trained.folder}: sample {empty[0]} ({name}) has nothing to predict, and so no score; {len(empty)} of "
            f"{count} are like it. Remove them from the training set"
        )
    weights[~is_chosen] = np.nan
    return {name: values / weights for name, values in sums.items()}


@contextmanager
def _last_called(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Inside the block, the last element is the layer with a matrix of trainable weights that was called last."""
    called: list[nn.Module] = []

    def remember(module: nn.Module, arguments: Any, output: Any) -> None:
        called[:] = [module]

    handles = [
        module.register_forward_hook(remember)
        for module in model.modules()
        if any(p.dim() > 1 and p.requires_grad for p in module.parameters(recurse=False))
    ]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


def _gradient_norms(loss: Tensor, model: nn.Module, last: nn.Module) -> dict[str, float]:
    """Norms of the gradients of the last layer, and of all trainable weights."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    squares = {p: float(g.double().square().sum()) for p, g in zip(parameters, found, strict=True) if g is not None}
    return {
        LAST: sum(squares.get(p, 0.0) for p in last.parameters(recurse=False)) ** 0.5,
        FULL: sum(squares.values()) ** 0.5,
    }
