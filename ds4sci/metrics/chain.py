"""Metrics of one predicted chain as a row of a table, and the means of such rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ds4sci.chemistry.chains import separate_chains
from ds4sci.chemistry.residue_constants import ATOM37_INDEX
from ds4sci.metrics.geometry import bond_fraction, clash_fraction, right_handed_fraction
from ds4sci.metrics.local import contact_precision, lddt_ca, pseudo_beta
from ds4sci.metrics.superposition import rmsd, superposition_metrics
from ds4sci.types import Prediction, Record

METRICS = {
    "lddt_ca": "lDDT-Cα",
    "tm_score": "TM-score",
    "gdt_ts": "GDT-TS",
    "gdt_ha": "GDT-HA",
    "rmsd": "RMSD (Å)",
    "plddt": "pLDDT",
    "ptm": "pTM",
    "iptm": "ipTM",
    "contact_precision": "contacts, top L",
    "contact_precision_long": "contacts ≥ 24 apart, top L",
    "right_handed": "right-handed helices",
    "bond_ok": "Cα–Cα bonds",
    "clash": "clashing residues",
}
"""Key of a row → its label in tables. Fractions are 0–1, pLDDT is 0–100."""

PERCENT_METRICS = ("right_handed", "bond_ok", "clash", "contact_precision", "contact_precision_long")
"""Keys of ``METRICS`` that are printed in per cent."""

_CA = ATOM37_INDEX["CA"]


def chain_metrics(prediction: Prediction, record: Record) -> dict[str, Any]:
    """Metrics of ``prediction`` against the coordinates of ``record``: id, length and every key of ``METRICS``.

    A complex is compared as a whole, with each chain in its place: TM-score, GDT and RMSD are of one superposition.
    Copies of a chain are not exchanged here. Two chains have no bond, and their contacts count as far apart in the
    sequence. Residues without a true Cα are excluded from the comparison; helix handedness, bonds and clashes are of
    the whole prediction. An undefined metric is None. Raises ValueError if the sequences differ.
    """
    if prediction.sequence != record.sequence:
        raise ValueError(
            f"{record.id}: prediction ({len(prediction.sequence)} residues) and truth ({len(record.sequence)}) "
            "have different sequences; compare a prediction with the chain that it was made for."
        )
    pred_ca, true_ca = prediction.atom37[:, _CA], record.atom_positions[:, _CA]
    mask = record.atom_mask[:, _CA].astype(bool)
    beta, has_beta = pseudo_beta(record.atom_positions, record.atom_mask, record.sequence)
    index = separate_chains(record.residue_index, record.chain_ids)
    fitted = superposition_metrics(pred_ca, true_ca, mask)
    values: dict[str, float | None] = {
        "lddt_ca": float(lddt_ca(pred_ca, true_ca, mask)),
        "tm_score": fitted.tm_score if fitted else None,
        "gdt_ts": fitted.gdt_ts if fitted else None,
        "gdt_ha": fitted.gdt_ha if fitted else None,
        "rmsd": rmsd(pred_ca, true_ca, mask),
        "plddt": float(np.mean(prediction.plddt)) if len(prediction.plddt) else None,
        "ptm": prediction.ptm,
        "iptm": prediction.iptm,
        "contact_precision": contact_precision(prediction.contacts, beta, has_beta, residue_index=index),
        "contact_precision_long": contact_precision(
            prediction.contacts, beta, has_beta, min_separation=24, residue_index=index
        ),
        "right_handed": right_handed_fraction(pred_ca, index),
        "bond_ok": bond_fraction(pred_ca, index),
        "clash": clash_fraction(prediction.atom37, prediction.atom_mask, index),
    }
    row: dict[str, Any] = {"id": record.id, "length": len(record.sequence)}
    # JSON has no NaN: an undefined metric is null there, and None here.
    row.update({key: None if value is None or math.isnan(value) else value for key, value in values.items()})
    return row


def mean_metrics(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Mean of every key of ``METRICS`` over the rows that have a value. Keys without any value are omitted.

    Raises ValueError if there are no rows.
    """
    rows = list(rows)
    if not rows:
        raise ValueError("no means without rows: no chain was evaluated; the evaluation set is empty")
    columns: dict[str, list[float]] = {}
    for row in rows:
        for key in METRICS:
            if row.get(key) is not None:
                columns.setdefault(key, []).append(float(row[key]))
    return {key: float(np.mean(columns[key])) for key in METRICS if key in columns}
