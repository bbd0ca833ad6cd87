"""Evaluation of predicted structures against the true structures of a chain set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table

from ds4sci.chemistry.chains import chain_slices
from ds4sci.chemistry.residue_codes import secondary_classes
from ds4sci.chemistry.residue_constants import ATOM37_INDEX
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.files.array_files import save_arrays
from ds4sci.geometry import dihedral
from ds4sci.losses.complexes import align_record
from ds4sci.machine.memory_errors import name_memory_errors
from ds4sci.metrics import METRICS, PERCENT_METRICS, chain_metrics, lddt_ca, mean_metrics, pseudo_beta
from ds4sci.tasks.capabilities import StructurePredictor
from ds4sci.tasks.evaluations import Evaluation, EvaluationRequest, EvaluationResult
from ds4sci.types import ChainIds, Prediction, Record

MAX_MAP_LENGTH = 128
"""Longest chain, in residues, whose distance maps are saved for the report."""

BACKBONE = [ATOM37_INDEX[name] for name in ("N", "CA", "C", "O")]
"""Columns of the atoms whose coordinates are saved for the report."""

PREDICTIONS_FILE = "predictions.npz"
"""Arrays of the predicted chains, saved for the report."""


def structure_evaluation(
    task: StructurePredictor, *, batch_size: int = 8, validation: Path | None = None
) -> Evaluation:
    """Predict all chains of ``--chains`` at full length and score them.

    batch_size  chains predicted at once
    validation  the run's validation set; the report shows the result on it, and its arrays

    The result has ``chains`` and ``checksum`` (path and SHA-256 of the chain set), ``mean``, and ``per_chain``: one row
    per chain with ``id``, ``length`` and the keys of ``ds4sci.metrics.METRICS``; null where nothing could be measured.
    A complex is one row, with its number of ``chains``.
    """

    def run(request: EvaluationRequest) -> EvaluationResult:
        path = request.files["chains"]
        chains = ChainSet.open(path)
        checksum = ChainSet.checksum(path)
        is_validation = validation is not None and validation.exists() and ChainSet.checksum(validation) == checksum
        rows: list[dict[str, Any]] = []
        arrays: dict[str, np.ndarray] = {}
        with request.progress("predicting", len(chains)) as advance:
            for prediction, record in predict_chains(task, chains, batch_size, request.device):
                true = align_record(record, prediction.atom37[:, ATOM37_INDEX["CA"]])
                rows.append(chain_metrics(prediction, true) | _number_of_chains(record))
                if is_validation:
                    arrays |= report_arrays(prediction, true)
                advance()
        order = {name: index for index, name in enumerate(chains.ids)}
        rows.sort(key=lambda row: order[row["id"]])
        values = {"chains": str(path), "checksum": checksum, "mean": mean_metrics(rows), "per_chain": rows}
        return EvaluationResult(
            values,
            means_table(values),
            is_validation=is_validation,
            report_files={
                PREDICTIONS_FILE: lambda file: save_arrays(file, arrays, compress=True),
            },
        )

    return Evaluation(run, inputs=("chains",))


def _number_of_chains(record: Record) -> dict[str, int]:
    return {} if record.chain_ids is None else {"chains": int(record.chain_ids.asym_id[-1])}


def predict_chains(
    task: StructurePredictor, chains: ChainSet, batch_size: int, device: torch.device
) -> Iterator[tuple[Prediction, Record]]:
    """Yield each record with its prediction, shortest first, so that the chains of a batch need little padding.

    Raises ValueError, naming the chains, if memory is short: a mean over the other chains would not be comparable.
    """
    order = np.argsort(chains.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        group = [chains[int(index)] for index in order[start : start + batch_size]]
        names = ", ".join(record.id for record in group)
        with name_memory_errors(
            f"chains {names}", len(group[-1].sequence), "lower data.evaluation_batch, or remove the longest chains"
        ):
            predictions = task.predict([task.featurize(record) for record in group], device)
        yield from zip(predictions, group, strict=True)


def report_arrays(prediction: Prediction, record: Record) -> dict[str, np.ndarray]:
    """Return the arrays of one chain that the report draws, named ``ID/field``.

    sequence (text), backbone and true_backbone [n, 4, 3] Å (atoms of ``BACKBONE``, NaN where unknown), ca and true_ca
    [n, 3] Å, mask [n] (True = true Cα known), plddt [n], lddt [n] (NaN where undefined), torsion, true_torsion [n, 2]
    (φ, ψ in degrees, NaN where undefined), secondary [n] (class, −1 unknown); for chains up to ``MAX_MAP_LENGTH``
    residues also distances and true_distances [n, n], Cβ–Cβ in Å.
    """
    mask = record.atom_mask[:, ATOM37_INDEX["CA"]].astype(bool)
    ca, true_ca = prediction.atom37[:, ATOM37_INDEX["CA"]], record.atom_positions[:, ATOM37_INDEX["CA"]]
    per_residue = lddt_ca(ca, true_ca, mask, per_residue=True)
    true_atoms = np.where(record.atom_mask.astype(bool)[:, :, None], record.atom_positions, np.nan)
    fields = {
        "sequence": np.array(record.sequence),
        "backbone": prediction.atom37[:, BACKBONE].astype(np.float32),
        "true_backbone": true_atoms[:, BACKBONE].astype(np.float32),
        "ca": ca.astype(np.float32),
        "true_ca": true_ca.astype(np.float32),
        "mask": mask,
        "plddt": np.asarray(prediction.plddt, dtype=np.float32),
        "lddt": np.asarray(per_residue, dtype=np.float32),
        "torsion": torsions(prediction.atom37, chain_ids=record.chain_ids).astype(np.float16),
        "true_torsion": torsions(record.atom_positions, record.atom_mask, record.chain_ids).astype(np.float16),
        "secondary": secondary_classes(record.dssp or "?" * len(mask)).astype(np.int8),
    }
    if len(mask) <= MAX_MAP_LENGTH:
        beta, is_known = pseudo_beta(record.atom_positions, record.atom_mask, record.sequence)
        true = np.linalg.norm(beta[:, None] - beta[None], axis=-1)
        true[~(is_known[:, None] & is_known[None])] = np.nan
        fields |= {
            "distances": np.asarray(prediction.distances).astype(np.float16),
            "true_distances": true.astype(np.float16),
        }
    return {f"{record.id}/{name}": value for name, value in fields.items()}


def torsions(atom37: np.ndarray, mask: np.ndarray | None = None, chain_ids: ChainIds | None = None) -> np.ndarray:
    """Return φ and ψ in degrees, [n, 2], of coordinates [n, 37, 3] Å.

    NaN at the ends of chains and where one of the four atoms is False in ``mask`` [n, 37].
    """
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
    for own in [] if chain_ids is None else chain_slices(chain_ids.asym_id):
        result[own.start, 0] = result[own.stop - 1, 1] = np.nan
    return result


def means_table(values: dict[str, Any]) -> Table:
    """Return the means of an evaluation as a table for the terminal."""
    table = Table(title=f"{len(values['per_chain'])} chains of {Path(values['chains']).name}", title_justify="left")
    table.add_column("metric")
    table.add_column("mean", justify="right")
    for key, value in values["mean"].items():
        table.add_row(METRICS[key], f"{100 * value:.1f} %" if key in PERCENT_METRICS else f"{value:.3f}")
    return table
