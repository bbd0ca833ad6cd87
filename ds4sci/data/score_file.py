"""Scores of training samples: a ``.npz`` file with one value per sample and score.

=============  ============  ===========================================================================
``sample``     int64 [n]     number of the sample in the training set, from 0, each at most once
``name``       str [n]       its name: chain, document or example
``score_X``    float64 [n]   the score X, such as ``loss`` or ``el2n``
``about``      str           JSON: ``dataset`` (fingerprint of the training set), and where the scores come from
=============  ============  ===========================================================================

Any program can write one; ``numpy.load`` reads it. Numbers of samples are integers at every step: in a float32 tensor
they are exact up to 2²⁴ only, in bfloat16 up to 2⁸.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.files import atomic_files
from ds4sci.files.array_files import save_arrays

PREFIX = "score_"


@dataclass(frozen=True)
class ScoreFile:
    """Contents of a file of scores; see the module.

    path     where it was read, for messages
    sample   int64 [n]
    name     str [n]
    scores   score → float64 [n]
    about    origin; ``dataset`` is the fingerprint of the training set
    """

    path: Path
    sample: np.ndarray
    name: np.ndarray
    scores: Mapping[str, np.ndarray]
    about: Mapping[str, Any] = field(default_factory=dict)

    def score(self, name: str) -> np.ndarray:
        """One score. Raises ValueError if the file lacks it, or if a value is not finite."""
        if name not in self.scores:
            raise ValueError(f"{self.path}: no score {name!r}; it has {', '.join(sorted(self.scores)) or 'none'}")
        values = self.scores[name]
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(
                f"{self.path}: the score {name!r} of sample {self.sample[bad[0]]} ({self.name[bad[0]]}) is "
                f"{values[bad[0]]}, and {len(bad)} of {len(values)} are not finite. A run records no scores of samples "
                "that it did not select or not reach; score all with `ds4sci select score RUN`"
            )
        return values


def dataset_fingerprint(names: Iterable[str]) -> str:
    """SHA-256 of the names of the samples of a training set, in order."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{len(name)}:{name}\n".encode())
    return digest.hexdigest()


def write(path: Path, scores: ScoreFile) -> None:
    """Write ``scores`` to ``path``, atomically."""
    arrays = {PREFIX + key: np.asarray(values, dtype=np.float64) for key, values in sorted(scores.scores.items())}
    arrays |= {
        "sample": np.asarray(scores.sample, dtype=np.int64), "name": np.asarray(scores.name, dtype=np.str_),
        "about": np.array(json.dumps(dict(scores.about), sort_keys=True)),
    }  # fmt: skip
    with atomic_files.replacing(path) as handle:
        save_arrays(handle, arrays, compress=True)


def write_scores(
    path: Path, names: Sequence[str], scores: Mapping[str, np.ndarray], about: Mapping[str, Any]
) -> ScoreFile:
    """Write ``scores`` of all samples of a training set, in order, and return the contents of the file."""
    about = {"dataset": dataset_fingerprint(names), **about}
    made = ScoreFile(path, np.arange(len(names), dtype=np.int64), np.array(names, dtype=np.str_), scores, about)
    write(path, made)
    return made


def read(path: Path) -> ScoreFile:
    """Read a file of scores.

    Raises FileNotFoundError, and ValueError with the file and the sample for a damaged file, arrays of different
    lengths, numbers that are not integers, and a sample that occurs twice.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: no such file of scores; make one with `ds4sci select score RUN --out {path}`"
        ) from None
    except Exception as error:  # a damaged zip or header can raise any exception
        raise ValueError(f"{path}: not a file of scores (.npz), or truncated ({error})") from error
    missing = {"sample", "name"} - arrays.keys()
    if missing:
        raise ValueError(f"{path}: no array {', '.join(sorted(missing))}; expected sample, name and score_NAME")
    sample = arrays["sample"]
    if not np.issubdtype(sample.dtype, np.integer):
        raise ValueError(f"{path}: sample has the type {sample.dtype}; expected int64, because floats lose numbers")
    if sample.ndim != 1 or not len(sample):
        raise ValueError(
            f"{path}: sample has the shape {sample.shape}; expected one number per sample, and at least one"
        )
    for key, values in arrays.items():
        expected = "U" if key == "name" else "fiu"
        if (key == "name" or key.startswith(PREFIX)) and values.dtype.kind not in expected:
            kind = "strings" if key == "name" else "real numbers"
            raise ValueError(f"{path}: {key} has the type {values.dtype}; expected {kind}")
    for key, values in arrays.items():
        if key != "about" and values.shape != sample.shape:
            raise ValueError(
                f"{path}: {key} has the shape {values.shape}, and sample {sample.shape}; expected equal ones"
            )
    order = np.argsort(sample, kind="stable")
    twice = np.flatnonzero(np.diff(sample[order]) == 0)
    if len(twice):
        one = order[twice[0]]
        raise ValueError(
            f"{path}: sample {sample[one]} ({arrays['name'][one]}) occurs more than once; keep one line per sample"
        )
    try:
        about = json.loads(str(arrays["about"])) if "about" in arrays else {}
    except ValueError:
        about = None
    if not isinstance(about, dict):
        raise ValueError(f"{path}: the array about is not a JSON object")
    scores = {key.removeprefix(PREFIX): values for key, values in arrays.items() if key.startswith(PREFIX)}
    return ScoreFile(path, sample.astype(np.int64), arrays["name"], scores, about)
