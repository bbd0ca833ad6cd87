"""Scores of all training sequences, learned from those of a part: a small network on cheap features.

Scoring a large set by a large model is expensive; the network sees only the length, the composition and how repetitive
a sequence is. Whether that is enough is measured: the rank correlation of predicted and given scores in five-fold
cross-validation, which is written into the file. This is the "machine learning" filter of Gahlot, Yin and Shankar
(arXiv 2012.09272), as far as their abstract describes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from ds4sci.config.run_file import RunConfig
from ds4sci.data import score_file
from ds4sci.data.score_file import ScoreFile
from ds4sci.select.sequences import training_sequences

PREFIX = "learned_"
FOLDS, HIDDEN, STEPS, RATE, DECAY = 5, 64, 400, 3e-3, 0.1
MIN_SAMPLES = 50
"""Fewest samples with a score that a network is trained on."""


def features(letters: Sequence[str]) -> np.ndarray:
    """Return float64 [n, 29] of n sequences: log length, fraction of each letter of A–Z, entropy of these, and fraction
    of letters that equal the one before."""
    found = np.zeros((len(letters), 29))
    for row, text in zip(found, letters, strict=True):
        codes = np.frombuffer(text.upper().encode("ascii"), np.uint8).astype(int) - ord("A")
        counts = np.bincount(codes[(codes >= 0) & (codes < 26)], minlength=26) / max(len(codes), 1)
        row[0], row[1:27] = np.log(max(len(codes), 1)), counts
        row[27] = -(counts * np.log(np.where(counts > 0, counts, 1.0))).sum()
        row[28] = float((codes[1:] == codes[:-1]).mean()) if len(codes) > 1 else 0.0
    return found


def learn(config: RunConfig, scores: ScoreFile, name: str, out: Path, *, seed: int = 0) -> tuple[ScoreFile, float]:
    """Predict the score ``name`` of all training samples of a run file, and write ``out`` with ``learned_NAME``.

    scores  a file that has the score of a part of them; the others are absent or NaN

    Returns the contents of ``out`` and the rank correlation in cross-validation. Raises ValueError for too few scores,
    equal ones, and scores of another training set.
    """
    found = training_sequences(config)
    if name not in scores.scores:
        raise ValueError(f"{scores.path}: no score {name!r}; it has {', '.join(sorted(scores.scores)) or 'none'}")
    number_of = {one: number for number, one in enumerate(found.names)}
    values = np.full(len(found.names), np.nan)
    for sample, own, value in zip(scores.sample.tolist(), scores.name.tolist(), scores.scores[name], strict=True):
        if number_of.get(own) != sample:
            raise ValueError(
                f"{scores.path}: sample {sample} ({own}) is no training sample of {config.source} with this number; "
                "score the training set of this run file"
            )
        values[sample] = value
    known = np.flatnonzero(np.isfinite(values))
    if len(known) < MIN_SAMPLES or not np.ptp(values[known]) > 0:
        raise ValueError(
            f"{scores.path}: {len(known)} samples have a finite score {name!r}; a network needs at least "
            f"{MIN_SAMPLES}, with different values"
        )
    x = features(found.letters)
    fold = np.random.default_rng(seed).permutation(len(known)) % FOLDS
    held_out = np.zeros(len(known))
    for one in range(FOLDS):
        train, test = known[fold != one], fold == one
        held_out[test] = _Fit(x[train], values[train], seed)(x[known[test]])
    correlation = float(spearmanr(held_out, values[known]).statistic)
    predicted = _Fit(x[known], values[known], seed)(x)
    about = {"config": str(config.source), "from": str(scores.path), "samples": len(known), "spearman": correlation}
    return score_file.write_scores(out, found.names, {PREFIX + name: predicted}, about), correlation


class _Fit:
    """A network fitted to (x, y); calling it predicts."""

    def __init__(self, x: np.ndarray, y: np.ndarray, seed: int) -> None:
        self.mean, self.scale = x.mean(0), np.where(x.std(0) > 0, x.std(0), 1.0)
        self.offset, self.size = y.mean(), y.std()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.SiLU(), nn.Linear(HIDDEN, 1), nn.Flatten(0))
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=RATE, weight_decay=DECAY)
        inputs, targets = self._scaled(x), torch.from_numpy((y - self.offset) / self.size).float()
        rng = np.random.default_rng(seed)
        for _ in range(STEPS):
            batch = torch.from_numpy(rng.integers(0, len(y), min(256, len(y))))
            optimizer.zero_grad()
            nn.functional.mse_loss(self.network(inputs[batch]), targets[batch]).backward()
            optimizer.step()

    def _scaled(self, x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((x - self.mean) / self.scale).float()

    @torch.no_grad()
    def __call__(self, x: np.ndarray) -> np.ndarray:
        predicted: np.ndarray = self.network(self._scaled(x)).double().numpy()
        return self.offset + self.size * predicted
