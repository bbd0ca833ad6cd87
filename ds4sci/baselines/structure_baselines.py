"""Baselines of structure prediction: scores on a validation set, cached per pair of data files."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.baselines.distances import DistanceTable, embed_distances
from ds4sci.chemistry.residue_codes import secondary_classes
from ds4sci.chemistry.residue_constants import ATOM37_INDEX
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.files.atomic_files import replace_text
from ds4sci.metrics import (
    bond_fraction,
    clash_fraction,
    lddt_ca,
    mean_metrics,
    right_handed_fraction,
    rmsd,
    superposition_metrics,
)

BASELINES = {
    "helix": "ideal α-helix",
    "random_native": "random native fold of the same length",
    "distances": "median distances",
    "distances_predicted_secondary": "median distances given predicted secondary structure",
    "distances_true_secondary": "median distances given true secondary structure (DSSP)",
}
"""Key → label, from the least informed baseline to the one that uses the true secondary structure."""

MUST_BEAT = ("distances_predicted_secondary", "distances_true_secondary")
"""Baselines that a model has to beat to show that it predicts tertiary structure."""

VERSION = 2
"""Increment when a baseline or the format changes: cached results of other versions are not used."""

MAX_TRAINING_CHAINS = 2000
"""Chains to fit on, evenly spaced over the set; more chains do not change the medians."""

NUM_NATIVE_SAMPLES = 3
"""Random native folds per chain."""

_CA = ATOM37_INDEX["CA"]


@dataclass(frozen=True)
class _Chain:
    id: str
    ca: np.ndarray
    present: np.ndarray
    classes: np.ndarray | None
    profile: np.ndarray | None

    @property
    def states(self) -> np.ndarray:
        """Classes, with unknown residues as loop."""
        assert self.classes is not None
        return np.where(self.classes < 0, 2, self.classes)


def measure_baselines(
    train: Path, valid: Path, *, cache: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Score every baseline on the chains of ``valid``, fitted on ``train`` (both chain sets).

    Returns plain values: ``key, train, valid, chains, seconds``; ``baselines``: name → ``label, must_beat, mean,
    per_chain``; and ``skipped``: name → reason (a set without secondary structure or profiles). Takes about 25 s on one
    core for 2,000 and 160 chains.

    cache     folder in which the result is saved under the checksums of both files, and found again
    progress  called with (chains done, total)
    """
    checksums = {name: ChainSet.checksum(path) for name, path in (("t", train), ("v", valid))}
    key = hashlib.sha256(f"{VERSION} {checksums['t']} {checksums['v']}".encode()).hexdigest()[:16]
    cached = None if cache is None else cache / f"baselines_{key}.json"
    if cached is not None and cached.is_file():
        try:
            return json.loads(cached.read_text(encoding="utf-8"))
        except ValueError:
            cached.unlink()  # truncated: measure again
    started = time.monotonic()
    train_chains, valid_chains = _load_chains(train, MAX_TRAINING_CHAINS), _load_chains(valid, None)
    result: dict[str, Any] = {"key": key, "train": train.name, "valid": valid.name, "chains": len(valid_chains)}
    predictors, result["skipped"] = _build_predictors(train_chains, valid_chains)
    total, done = len(predictors) * len(valid_chains), 0
    result["baselines"] = {}
    for name, predict in predictors.items():
        rows = []
        for index, chain in enumerate(valid_chains):
            predictions = predict(index, chain)
            rows += [mean_row(chain, [_score(one, chain) for one in predictions])] if predictions else []
            done += 1
            if progress is not None:
                progress(done, total)
        result["baselines"][name] = {
            "label": BASELINES[name],
            "must_beat": name in MUST_BEAT,
            "mean": mean_metrics(rows) if rows else {},  # no native fold is as long as the longest chains
            "per_chain": [{k: row[k] for k in ("id", "length", "lddt_ca", "tm_score") if k in row} for row in rows],
        }
    result["seconds"] = round(time.monotonic() - started, 1)
    if cached is not None:
        cached.parent.mkdir(parents=True, exist_ok=True)
        replace_text(cached, json.dumps(result))
    return result


def mean_row(chain: _Chain, rows: list[dict[str, float | None]]) -> dict[str, Any]:
    """Return one row for a chain: the means over several predictions of it."""
    return {"id": chain.id, "length": len(chain.ca), **mean_metrics(rows)}


def _score(ca: np.ndarray, chain: _Chain) -> dict[str, float | None]:
    fitted = superposition_metrics(ca, chain.ca, chain.present)
    atoms, mask = np.zeros((len(ca), 5, 3)), np.zeros((len(ca), 5), dtype=bool)
    atoms[:, _CA], mask[:, _CA] = ca, True
    values: dict[str, float | None] = {
        "lddt_ca": float(lddt_ca(ca, chain.ca, chain.present)),
        "tm_score": fitted.tm_score if fitted else None,
        "gdt_ts": fitted.gdt_ts if fitted else None,
        "gdt_ha": fitted.gdt_ha if fitted else None,
        "rmsd": rmsd(ca, chain.ca, chain.present),
        "right_handed": right_handed_fraction(ca),
        "bond_ok": bond_fraction(ca),
        "clash": clash_fraction(atoms, mask),
    }
    return {key: None if value is None or np.isnan(value) else value for key, value in values.items()}


_Predictor = Callable[[int, _Chain], list[np.ndarray]]


def _build_predictors(
    train_chains: list[_Chain], valid_chains: list[_Chain]
) -> tuple[dict[str, _Predictor], dict[str, str]]:
    """Return a function (index, chain) → predictions for each baseline, and why the others are skipped."""
    traces, present = [chain.ca for chain in train_chains], [chain.present for chain in train_chains]
    plain = DistanceTable.fit(traces, present)
    predictors: dict[str, _Predictor] = {
        "helix": lambda index, chain: [ideal_helix(len(chain.ca))],
        "random_native": lambda index, chain: list(_sample_natives(train_chains, len(chain.ca), index)),
        "distances": lambda index, chain: [embed_distances(*plain.expect(len(chain.ca)))],
    }
    skipped: dict[str, str] = {}
    if any(chain.classes is None for chain in train_chains):
        reason = "the training set has chains without secondary structure (DSSP)"
        skipped = dict.fromkeys(MUST_BEAT, reason)
        return predictors, skipped

    if any(chain.profile is None for chain in train_chains + valid_chains):
        skipped["distances_predicted_secondary"] = "some chains have no sequence profile"
    else:
        from ds4sci.baselines.secondary_structure import predict_secondary, train_secondary_predictor

        network = train_secondary_predictor(
            [chain.profile for chain in train_chains if chain.profile is not None],
            [chain.classes for chain in train_chains if chain.classes is not None],
        )
        # The table is fitted on predicted classes too, so that its spreads include their errors.
        train_classes = predict_secondary(
            network, [chain.profile for chain in train_chains if chain.profile is not None]
        )
        by_prediction = DistanceTable.fit(traces, present, train_classes)
        valid_classes = predict_secondary(
            network, [chain.profile for chain in valid_chains if chain.profile is not None]
        )
        predictors["distances_predicted_secondary"] = lambda index, chain: [
            embed_distances(*by_prediction.expect(len(chain.ca), valid_classes[index]), valid_classes[index])
        ]
    if any(chain.classes is None for chain in valid_chains):
        skipped["distances_true_secondary"] = "the validation set has chains without secondary structure (DSSP)"
    else:
        by_truth = DistanceTable.fit(traces, present, [chain.states for chain in train_chains])
        predictors["distances_true_secondary"] = lambda index, chain: [
            embed_distances(*by_truth.expect(len(chain.ca), chain.states), chain.states)
        ]
    return predictors, skipped


def ideal_helix(length: int) -> np.ndarray:
    """Return Cα atoms [n, 3] Å of a right-handed α-helix: radius 2.3 Å, 100° and 1.5 Å per residue."""
    angle = np.deg2rad(100) * np.arange(length)
    return np.stack([2.3 * np.cos(angle), 2.3 * np.sin(angle), 1.5 * np.arange(length)], axis=1)


def _sample_natives(train_chains: list[_Chain], length: int, index: int) -> Iterator[np.ndarray]:
    """Yield the first ``length`` residues of random chains among the fifty of most similar length; none if all are
    shorter."""
    complete = [chain for chain in train_chains if len(chain.ca) >= length and chain.present[:length].all()]
    nearest = sorted(complete, key=lambda chain: len(chain.ca))[:50]
    rng = np.random.default_rng(index)
    for draw in rng.choice(len(nearest), min(NUM_NATIVE_SAMPLES, len(nearest)), replace=False) if nearest else []:
        yield nearest[int(draw)].ca[:length]


def _load_chains(path: Path, max_chains: int | None) -> list[_Chain]:
    chains = ChainSet.open(path).require_single_chains()
    chosen = np.arange(len(chains))
    if max_chains is not None and len(chains) > max_chains:
        chosen = np.unique(np.linspace(0, len(chains) - 1, max_chains).round().astype(int))
    result = []
    for record in (chains[int(index)] for index in chosen):
        result.append(
            _Chain(
                id=record.id,
                ca=record.atom_positions[:, _CA].astype(np.float64),
                present=record.atom_mask[:, _CA],
                classes=None if record.dssp is None else secondary_classes(record.dssp),
                profile=record.profile,
            )
        )
    return result
