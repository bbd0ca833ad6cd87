"""Choice of the training samples of a run by their scores, made once before the first step.

The kept samples are a pure function of the file of scores and of ``[data.selection]``. The order of an epoch is then
that of a training set that has only these samples, so that ranks, packing, workers and resumes need nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ds4sci.data import score_file
from ds4sci.data.loader import make_rng
from ds4sci.data.text_files import resolve_data_path
from ds4sci.files import atomic_files

STREAM = 40
"""Key of the random stream of the choice."""


class SelectionConfig(BaseModel):
    """``[data.selection]``: the fraction of the training samples that a run uses."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    keep: Literal["lowest", "highest", "middle", "stratified", "random"]
    """Samples to keep. ``lowest``, ``highest``, ``middle``: those with these scores. ``stratified``: the same fraction
    of every tenth of the scores, at random. ``random``: at random, without scores: the control of any other choice."""
    fraction: float = Field(gt=0, le=1)
    """Fraction of the samples to keep."""
    scores: Path | None = None
    """File of scores; see ``ds4sci select score``."""
    score: str = "el2n"
    """Name of the score in the file."""
    seed: int = Field(0, ge=0)
    """Seed of ``stratified``, ``random`` and the order of equal scores."""

    @model_validator(mode="after")
    def _scores_where_needed(self) -> SelectionConfig:
        if (self.keep == "random") != (self.scores is None):
            wanted = "needs no file of scores" if self.keep == "random" else "needs a file of scores"
            raise ValueError(f'keep = "{self.keep}" {wanted}; got scores = {str(self.scores)!r}')
        return self


class WeightConfig(BaseModel):
    """``[data.weights]``: factors of the losses of the training samples, such as 1 / size of the sample's cluster."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    scores: Path
    """File of scores; see ``ds4sci select clusters``."""
    score: str = "weight"
    """Name of the score in the file: a number of at least 0. Only ratios count: the mean over the samples becomes 1."""


NOT_SELECTED = "not selected"
"""Reason for unread residues."""


def identity_of(**sections: BaseModel | None) -> dict[str, str]:
    """Key → value of what decides which samples are kept and what they weigh: sections of ``[data]``, by name, and the
    checksums of their files of scores."""
    found = {}
    for name, config in sections.items():
        if config is None:
            continue
        found[f"data.{name}"] = config.model_dump_json(exclude={"scores"})
        if (scores := getattr(config, "scores", None)) is not None:
            file = resolve_data_path(scores)
            if not file.is_file():
                raise FileNotFoundError(
                    f"data.{name}.scores = {str(scores)!r}: no such file; make one with `ds4sci select score`, or give "
                    "its absolute path"
                )
            checksum = atomic_files.fingerprint(file)["sha256"]
            found[f"data.{name}.scores"] = f"sha256 {checksum}"
    return found


def require_a_step(config: SelectionConfig | None, available: int, needed: int) -> None:
    """Raise ValueError if a selection leaves fewer samples, or packed rows of them, than a step needs."""
    if config is not None and available < needed:
        raise ValueError(
            f"data.selection.fraction = {config.fraction:g} leaves {available} samples or rows, and a step needs "
            f"{needed} (train_batch_size): increase the fraction, or decrease the batch"
        )


def kept_samples(config: SelectionConfig, names: list[str]) -> np.ndarray:
    """Return the numbers of the kept samples, ascending.

    names  of all training samples, in order

    Raises ValueError, with the file and the sample, if the scores are those of another training set, or lack a sample.
    """
    count = max(1, round(config.fraction * len(names)))
    rng = make_rng(config.seed, STREAM)
    shuffled = rng.permutation(len(names))  # decides between equal scores
    if config.scores is None:
        return np.sort(shuffled[:count])
    values = scores_in_order(config.scores, config.score, names)[shuffled]
    order = shuffled[np.argsort(values, kind="stable")]
    if config.keep == "lowest":
        return np.sort(order[:count])
    if config.keep == "highest":
        return np.sort(order[len(order) - count :])
    if config.keep == "middle":
        first = (len(order) - count) // 2
        return np.sort(order[first : first + count])
    edges = np.linspace(0, len(order), 11).round().astype(int)
    wanted = np.diff((edges * count / len(order)).round().astype(int))
    chosen = [rng.permutation(order[a:b])[:n] for a, b, n in zip(edges[:-1], edges[1:], wanted, strict=True)]
    return np.sort(np.concatenate(chosen))


def sample_weights(config: WeightConfig, names: list[str], kept: np.ndarray | None = None) -> np.ndarray:
    """Return the factor of the loss of each training sample, float64 [n], with mean 1 over the kept ones.

    Raises ValueError as ``kept_samples`` does, and for weights below 0 or without one above 0.
    """
    values = scores_in_order(config.scores, config.score, names)
    low = np.flatnonzero(values < 0)
    if len(low):
        raise ValueError(
            f"{config.scores}: the weight of sample {low[0]} ({names[int(low[0])]}) is {values[low[0]]:g}; expected at "
            "least 0"
        )
    used = values if kept is None else values[kept]
    if not used.max() > 0:
        raise ValueError(f"{config.scores}: all weights {config.score!r} are 0, so there is nothing to train on")
    scaled: np.ndarray = values / used.max()  # first, so that the sum of large numbers stays finite
    return scaled / (used / used.max()).mean()


def scores_in_order(file: Path, score: str, names: list[str]) -> np.ndarray:
    """Return the score of each of ``names``, float64 [n]. Raises ValueError like ``kept_samples``."""
    found = score_file.read(resolve_data_path(file))
    path, values = found.path, found.score(score)
    fingerprint = score_file.dataset_fingerprint(names)
    recorded = found.about.get("dataset", fingerprint)
    position = np.full(len(names), -1, dtype=np.int64)
    inside = (found.sample >= 0) & (found.sample < len(names))
    position[found.sample[inside]] = np.flatnonzero(inside)
    other = next((i for i in np.flatnonzero(inside) if str(found.name[i]) != names[int(found.sample[i])]), None)
    if other is not None or not inside.all() or recorded != fingerprint:
        example = ""
        if other is not None:
            example = (
                f": sample {found.sample[other]} is {found.name[other]}, and {names[int(found.sample[other])]} here"
            )
        elif not inside.all():
            example = f": sample {found.sample[~inside][0]} of {len(names)}"
        raise ValueError(
            f"{path}: the scores are those of another training set{example}; compute them for this one with "
            "`ds4sci select score`"
        )
    lacking = np.flatnonzero(position < 0)
    if len(lacking):
        raise ValueError(
            f"{path}: {len(lacking)} of {len(names)} samples have no score, the first is sample {lacking[0]} "
            f"({names[int(lacking[0])]}); compute the scores of all with `ds4sci select score`"
        )
    return values[position]
