"""A folder as ``ds4sci predict`` writes it, made of real structures with made-up confidence."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.chemistry.chains import chain_name, chain_slices
from ds4sci.data.structures import writers
from ds4sci.data.structures.complexes import join_chains
from ds4sci.data.structures.parsers import mmcif
from ds4sci.inference.predict import FAILED, NOT_ATTEMPTED, PREDICTED
from ds4sci.inference.prediction_inputs import file_stems
from ds4sci.types import Prediction, Record

STRUCTURES = Path(__file__).parents[1] / "fixtures" / "mmcif"


def real_chain(name: str = "1ubq") -> Record:
    """First chain of a bundled mmCIF file."""
    return mmcif.read(STRUCTURES / f"{name}.cif.gz")[0]


def real_complex(name: str = "2q2k") -> Record:
    """All chains of a bundled mmCIF file."""
    return join_chains(name, mmcif.read(STRUCTURES / f"{name}.cif.gz"))


def as_prediction(record: Record, name: str, *, with_pae: bool, seed: int = 0) -> Prediction:
    """The true structure with smooth random pLDDT, its own distances, and PAE that grows with the distance."""
    random, n = np.random.default_rng(seed), len(record.sequence)
    known = record.atom_mask.astype(bool)
    ca = np.where(known[:, 1, None], record.atom_positions[:, 1].astype(float), np.nan)
    apart = np.nan_to_num(np.linalg.norm(ca[:, None] - ca[None], axis=-1), nan=22.0)
    plddt = np.clip(80 + 15 * np.convolve(random.normal(size=n + 20), np.ones(21) / 4.6, "valid"), 20, 98)
    # not symmetric: a residue of low confidence is badly placed in the frames of the others
    pae = np.clip(0.5 + apart / 4 + (98 - plddt[None]) / 8, 0.25, 31.75) if with_pae else None
    return Prediction(
        id=name, sequence=record.sequence, residue_index=record.residue_index,
        chain_ids=record.chain_ids, atom37=np.nan_to_num(record.atom_positions),
        atom_mask=known, plddt=plddt.astype(np.float32), distances=np.clip(apart, 2, 22),
        contacts=1 / (1 + np.exp(np.clip(apart - 8, -50, 50))), pae=pae,
    )  # fmt: skip


def write_folder(
    out: Path, predictions: Sequence[Prediction], unpredicted: Sequence[tuple[str, str, str | None]] = ()
) -> dict[str, Any]:
    """Write the files and the summary of ``predictions`` and of records without one (name, status, error)."""
    out.mkdir(parents=True)
    common = {"notes": [], "input": "sequence", "msa_rows": 0, "alignments": [], "memory_gb": 1.0}
    rows: list[dict[str, Any]] = []
    for prediction, stem in zip(predictions, file_stems([one.id for one in predictions]), strict=True):
        files = [
            writers.write_mmcif(prediction, out / f"{stem}.cif"),
            writers.write_pdb(prediction, out / f"{stem}.pdb"),
            writers.write_confidence(prediction, out / f"{stem}{writers.CONFIDENCE_SUFFIX}"),
        ]
        row = {"id": prediction.id, "length": len(prediction.sequence), "status": PREDICTED, "error": None}
        mean = round(float(prediction.plddt.mean()), 2)
        if prediction.chain_ids is not None:
            row["chains"] = [
                {
                    "name": chain_name(number), "record": prediction.id, "length": own.stop - own.start, "entity": 1,
                    "plddt": round(float(prediction.plddt[own].mean()), 2),
                }
                for number, own in enumerate(chain_slices(prediction.chain_ids.asym_id), start=1)
            ]  # fmt: skip
        rows.append(row | common | {"files": [path.name for path in files], "plddt": mean})
    for name, status, error in unpredicted:
        rows.append({"id": name, "length": 900, "status": status, "error": error, "files": []} | common)
    statuses = (PREDICTED, FAILED, NOT_ATTEMPTED)
    summary = {
        "run": "runs/quickstart", "name": "quickstart", "step": 1870, "machine": {}, "commit": "0123456789ab",
        "counts": {status: sum(row["status"] == status for row in rows) for status in statuses},
        "records": rows,
    }  # fmt: skip
    (out / "summary.json").write_text(json.dumps(summary))
    return summary
