"""Predict every chain of a set with a trained run, and score the structures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from ds4sci.chemistry.residue_codes import secondary_classes
from ds4sci.chemistry.residue_constants import ATOM37_INDEX
from ds4sci.config.run_file import RunConfig
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.files.atomic_files import replace_text, replacing
from ds4sci.geometry import dihedral
from ds4sci.inference.record_errors import naming
from ds4sci.machine import provenance
from ds4sci.metrics import METRICS, chain_metrics, lddt_ca, mean_metrics, pseudo_beta
from ds4sci.tasks import Task
from ds4sci.train import checkpoint
from ds4sci.train.build import build_task
from ds4sci.train.progress import counted
from ds4sci.types import Prediction, Record

UNTRAINED = "untrained"
"""In place of a checkpoint's name: the model as it was before the first step."""

MAP_CUTOFF = 128
"""Longest chain whose distance maps are kept for the report."""

SHARES = ("right_handed", "bond_ok", "clash", "contact_precision", "contact_precision_long")
"""Metrics printed in per cent."""


def evaluation_files(run: Path) -> dict[str, Path]:
    """Where the run keeps what its report shows: ``held_out``, ``untrained``, ``baselines``, ``predictions``."""
    folder = run / "evaluations"
    return {
        "held_out": folder / "held_out.json",
        UNTRAINED: folder / "untrained.json",
        "baselines": folder / "baselines.json",
        "predictions": folder / "predictions.npz",
    }


def evaluate_run(
    run: Path | str,
    chains: Path | str,
    out: Path | str | None = None,
    *,
    which: str = "best",
    overrides: Sequence[str] = (),
    predictions: Path | None = None,
    show: bool = True,
) -> dict[str, float]:
    """Predict all chains of the set ``chains`` at full length, score them, write ``out`` (JSON) whole or not at all.

    ``out`` holds ``run, step, which, overrides, chains, checksum, machine, commit, seconds, mean`` and ``per_chain``
    rows of ``id``, ``length`` and the keys of ``ds4sci.metrics.METRICS``; null where there was nothing to measure.

    which        ``best``, ``latest``, ``step_NNNNNN`` (or N), or ``untrained``: the weights before the first step
    overrides    ``key=value`` over the run's own configuration, such as ``data.evaluation_recycling=3``
    predictions  also keep Cα traces, confidences and distance maps in this ``.npz`` (see ``kept``)
    show         a progress bar and a table of the means, on the terminal

    When ``chains`` is the run's own validation set and nothing is overridden, the files of ``evaluation_files`` are
    filled too, so that the report has them. Returns the means. Raises ``ValueError`` for a run, checkpoint or set that
    cannot be used.
    """
    run, chains = Path(run), Path(chains)
    records = ChainSet.open(chains)
    config, task, step = load(run, which, overrides)
    checksum = hashlib.sha256(chains.read_bytes()).hexdigest()
    own = evaluation_files(run)
    is_own = not overrides and _is_validation_set(task, checksum)
    if is_own and predictions is None and which == "best":
        predictions = own["predictions"]
    started = datetime.now(UTC)
    rows: list[dict[str, Any]] = []
    shelf: dict[str, np.ndarray] = {}
    with counted("predicting", len(records), shown=show) as advance:
        for prediction, record in predict_records(task, records):
            rows.append(chain_metrics(prediction, record))
            if predictions is not None:
                shelf |= kept(prediction, record)
            advance()
    order = {name: place for place, name in enumerate(records.ids)}
    rows.sort(key=lambda row: order[row["id"]])
    means = mean_metrics(rows)
    result = {
        "run": str(run),
        "name": config.train.name or run.name,
        "which": which,
        "overrides": list(overrides),
        "step": step,
        "chains": str(chains),
        "checksum": checksum,
        "machine": provenance.describe(),
        "commit": provenance.commit(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round((datetime.now(UTC) - started).total_seconds(), 1),
        "mean": means,
        "per_chain": rows,
    }
    targets = {Path(out)} if out is not None else set()
    if is_own and which in ("best", UNTRAINED):
        targets.add(own["held_out" if which == "best" else UNTRAINED])
    if predictions is not None:
        _write_arrays(predictions, shelf)
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace_text(target, json.dumps(result, indent=1, allow_nan=False) + "\n")
    if show:
        Console().print(means_table(result))
    return means


def load(run: Path, which: str, overrides: Sequence[str] = ()) -> tuple[RunConfig, Task, int]:
    """The run's config, its task with the weights of ``which``, and their step (0 for ``untrained``).

    Raises ``ValueError`` when there is no such run or checkpoint, or when its task predicts no structures.
    """
    if which == UNTRAINED:
        config = RunConfig.load(checkpoint.chosen(run, "latest") / "config.json", list(overrides))
        task = build_task(config)
        task.model.eval()
        step = 0
    else:
        config, task = checkpoint.load_run(run, which=which, overrides=overrides)
        step = int(checkpoint.chosen(run, which).name.removeprefix("step_"))
    if not hasattr(task, "predict") or not hasattr(task, "featurize"):
        raise ValueError(
            f"{run}: its task {config.task.name!r} predicts no structures; this command is for `fold` runs."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task.model.to(device)
    return config, task, step


def predict_records(task: Any, records: ChainSet) -> Iterator[tuple[Prediction, Record]]:
    """Each record with its prediction, shortest first, so that chains of one batch need little padding.

    ``ValueError`` names the chains for which memory is short: a mean over the others would be another figure.
    """
    device = next(task.model.parameters()).device
    size = task.config.data.evaluation_batch
    order = np.argsort(records.lengths, kind="stable")
    for start in range(0, len(order), size):
        group = [records[int(index)] for index in order[start : start + size]]
        names = ", ".join(record.id for record in group)
        with naming(
            f"chains {names}", len(group[-1].sequence), "lower data.evaluation_batch, or leave the longest out"
        ):
            predictions = task.predict([task.featurize(record) for record in group], device)
        yield from zip(predictions, group, strict=True)


def kept(prediction: Prediction, record: Record) -> dict[str, np.ndarray]:
    """What the report draws of one chain, as small arrays named ``ID/field``.

    ca, true_ca [n, 3] Å, mask [n] (True = true Cα known), plddt [n], lddt [n] (NaN where there is none), torsion and
    true_torsion [n, 2] (φ, ψ in degrees, NaN where not known), secondary [n] (class, −1 unknown); for chains up to 128
    residues also distances and true_distances [n, n], Cβ–Cβ in Å.
    """
    mask = record.atom_mask[:, ATOM37_INDEX["CA"]].astype(bool)
    ca, true_ca = prediction.atom37[:, ATOM37_INDEX["CA"]], record.atom_positions[:, ATOM37_INDEX["CA"]]
    per_residue = lddt_ca(ca, true_ca, mask, per_residue=True)
    fields = {
        "ca": ca.astype(np.float32),
        "true_ca": true_ca.astype(np.float32),
        "mask": mask,
        "plddt": np.asarray(prediction.plddt, dtype=np.float32),
        "lddt": np.asarray(per_residue, dtype=np.float32),
        "torsion": torsions(prediction.atom37).astype(np.float16),
        "true_torsion": torsions(record.atom_positions, record.atom_mask).astype(np.float16),
        "secondary": secondary_classes(record.dssp or "?" * len(mask)).astype(np.int8),
    }
    if len(mask) <= MAP_CUTOFF:
        beta, there = pseudo_beta(record.atom_positions, record.atom_mask, record.sequence)
        true = np.linalg.norm(beta[:, None] - beta[None], axis=-1)
        true[~(there[:, None] & there[None])] = np.nan
        fields |= {
            "distances": np.asarray(prediction.distances).astype(np.float16),
            "true_distances": true.astype(np.float16),
        }
    return {f"{record.id}/{name}": value for name, value in fields.items()}


def torsions(atom37: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """φ and ψ in degrees, [n, 2], of [n, 37, 3]; NaN at the ends and beside atoms whose mask [n, 37] is False."""
    atoms = np.asarray(atom37, dtype=np.float64)
    if mask is not None:
        atoms = np.where(np.asarray(mask, dtype=bool)[:, :, None], atoms, np.nan)
    n, ca, c = (torch.from_numpy(atoms[:, ATOM37_INDEX[name]]) for name in ("N", "CA", "C"))
    result = np.full((len(atoms), 2), np.nan)
    for column, rows, points in (
        (0, slice(1, None), (c[:-1], n[1:], ca[1:], c[1:])),
        (1, slice(None, -1), (n[:-1], ca[:-1], c[:-1], n[1:])),
    ):
        sin, cos = dihedral(*points).unbind(-1)
        result[rows, column] = torch.rad2deg(torch.atan2(sin, cos)).numpy()
    return result


def means_table(result: dict[str, Any]) -> Table:
    """The means of an evaluation for the terminal."""
    table = Table(title=f"{len(result['per_chain'])} chains of {Path(result['chains']).name}", title_justify="left")
    table.add_column("mean")
    table.add_column(f"{result['name']}, step {result['step']}", justify="right")
    for key, value in result["mean"].items():
        table.add_row(METRICS[key], f"{100 * value:.1f} %" if key in SHARES else f"{value:.3f}")
    return table


def _is_validation_set(task: Any, checksum: str) -> bool:
    from ds4sci.data.text_files import resolve_data_path

    path = resolve_data_path(Path(task.config.data.valid))
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == checksum


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, sync=False) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
