"""Measure the baselines on a validation set, once for each pair of data files."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.baselines.distances import DistanceTable, embed
from ds4sci.chemistry.residue_codes import secondary_classes
from ds4sci.chemistry.residue_constants import ATOM37_INDEX
from ds4sci.data.structures.chain_set import ChainSet
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
"""Key → how to print it, from the least informed to the one that looks at the answer."""

MUST_BEAT = ("distances_predicted_secondary", "distances_true_secondary")
"""Baselines that a trained model has to beat before it has learnt anything of tertiary structure."""

VERSION = 1
"""Raise it when a baseline changes: results kept under another version are not used."""

MAX_TRAINING_CHAINS = 2000
"""More chains than these, evenly spread over the set, would not move a median."""

NATIVE_DRAWS = 3
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
        """Classes with unknown residues taken for loop."""
        assert self.classes is not None
        return np.where(self.classes < 0, 2, self.classes)


def measure_baselines(
    train: Path, valid: Path, *, cache: Path | None = None, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Scores of every baseline on the chains of ``valid``, learnt from ``train`` (both ``.npz`` chain sets).

    Returns ``{"key", "train", "valid", "seconds", "baselines": {name: {"label", "must_beat", "mean", "per_chain"}}}``
    of plain values; ``left_out`` says why a baseline is missing (no secondary structure or profiles in a set).
    ``cache`` is a folder: a result is kept there under the checksums of both files and found again. ``progress``
    gets (chains done, chains in all). About 25 s on one core for 2,000 and 160 chains.
    """
    checksums = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in (("t", train), ("v", valid))}
    key = hashlib.sha256(f"{VERSION} {checksums['t']} {checksums['v']}".encode()).hexdigest()[:16]
    kept = None if cache is None else cache / f"baselines_{key}.json"
    if kept is not None and kept.is_file():
        try:
            return json.loads(kept.read_text(encoding="utf-8"))
        except ValueError:
            kept.unlink()  # cut short by hand or by an old crash: measure again
    started = time.monotonic()
    known, asked = _chains(train, MAX_TRAINING_CHAINS), _chains(valid, None)
    result: dict[str, Any] = {"key": key, "train": train.name, "valid": valid.name, "chains": len(asked)}
    makers, result["left_out"] = _makers(known, asked)
    total, done = len(makers) * len(asked), 0
    result["baselines"] = {}
    for name, make in makers.items():
        rows = []
        for index, chain in enumerate(asked):
            guesses = make(index, chain)
            rows += [mean_row(chain, [_score(guess, chain) for guess in guesses])] if guesses else []
            done += 1
            if progress is not None:
                progress(done, total)
        result["baselines"][name] = {
            "label": BASELINES[name],
            "must_beat": name in MUST_BEAT,
            "mean": mean_metrics(rows) if rows else {},  # chains longer than any known have no native of their length
            "per_chain": [{k: row[k] for k in ("id", "length", "lddt_ca", "tm_score") if k in row} for row in rows],
        }
    result["seconds"] = round(time.monotonic() - started, 1)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        aside = kept.with_name(f".{kept.name}.{os.getpid()}")
        aside.write_text(json.dumps(result), encoding="utf-8")
        aside.replace(kept)
    return result


def mean_row(chain: _Chain, rows: list[dict[str, float | None]]) -> dict[str, Any]:
    """One row of a chain out of several guesses for it."""
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


_Maker = Callable[[int, _Chain], list[np.ndarray]]


def _makers(known: list[_Chain], asked: list[_Chain]) -> tuple[dict[str, _Maker], dict[str, str]]:
    """A function for each baseline that makes guesses for a chain; and why the others are left out."""
    traces, present = [chain.ca for chain in known], [chain.present for chain in known]
    plain = DistanceTable.learn(traces, present)
    makers: dict[str, _Maker] = {
        "helix": lambda index, chain: [ideal_helix(len(chain.ca))],
        "random_native": lambda index, chain: list(_natives(known, len(chain.ca), index)),
        "distances": lambda index, chain: [embed(*plain.expect(len(chain.ca)))],
    }
    left_out: dict[str, str] = {}
    if any(chain.classes is None for chain in known):
        why = "the training set does not tell secondary structure (DSSP) for every chain"
        left_out = dict.fromkeys(MUST_BEAT, why)
        return makers, left_out

    if any(chain.profile is None for chain in known + asked):
        left_out["distances_predicted_secondary"] = "not every chain has a sequence profile"
    else:
        from ds4sci.baselines.secondary import learn_secondary, predict_secondary

        network = learn_secondary(
            [chain.profile for chain in known if chain.profile is not None],
            [chain.classes for chain in known if chain.classes is not None],
        )
        # The table is learnt from predicted classes too, so that it knows how far to trust them.
        guessed = predict_secondary(network, [chain.profile for chain in known if chain.profile is not None])
        by_guess = DistanceTable.learn(traces, present, guessed)
        guesses = predict_secondary(network, [chain.profile for chain in asked if chain.profile is not None])
        makers["distances_predicted_secondary"] = lambda index, chain: [
            embed(*by_guess.expect(len(chain.ca), guesses[index]), guesses[index])
        ]
    if any(chain.classes is None for chain in asked):
        left_out["distances_true_secondary"] = "the validation set does not tell secondary structure (DSSP)"
    else:
        by_truth = DistanceTable.learn(traces, present, [chain.states for chain in known])
        makers["distances_true_secondary"] = lambda index, chain: [
            embed(*by_truth.expect(len(chain.ca), chain.states), chain.states)
        ]
    return makers, left_out


def ideal_helix(length: int) -> np.ndarray:
    """Cα atoms [n, 3] Å of a right-handed α-helix: 2.3 Å radius, 100° and 1.5 Å a residue."""
    turn = np.deg2rad(100) * np.arange(length)
    return np.stack([2.3 * np.cos(turn), 2.3 * np.sin(turn), 1.5 * np.arange(length)], axis=1)


def _natives(known: list[_Chain], length: int, index: int) -> Iterator[np.ndarray]:
    """The first ``length`` residues of chains drawn among the fifty of most similar length; none if all are shorter."""
    whole = [chain for chain in known if len(chain.ca) >= length and chain.present[:length].all()]
    nearest = sorted(whole, key=lambda chain: len(chain.ca))[:50]
    rng = np.random.default_rng(index)
    for draw in rng.choice(len(nearest), min(NATIVE_DRAWS, len(nearest)), replace=False) if nearest else []:
        yield nearest[int(draw)].ca[:length]


def _chains(path: Path, most: int | None) -> list[_Chain]:
    chains = ChainSet.open(path)
    chosen = np.arange(len(chains))
    if most is not None and len(chains) > most:
        chosen = np.unique(np.linspace(0, len(chains) - 1, most).round().astype(int))
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
