"""Sections of the report about single chains: scores by length and secondary structure, view of structures."""

from __future__ import annotations

from typing import Any

import numpy as np

from ds4sci.chemistry.residue_constants import ATOM37, ATOM37_INDEX
from ds4sci.metrics import superposition_metrics
from ds4sci.report import figures
from ds4sci.report import page as html
from ds4sci.report.run_artifacts import RunArtifacts
from ds4sci.report.structure_view import PairMap, ViewedStructure, map_side, pack_structure, structure_view
from ds4sci.tasks.evaluations.structures import BACKBONE

BASELINE = "distances_true_secondary"


def secondary_class(classes: np.ndarray) -> str:
    """α (≥ 30 % helix, < 10 % strand), β (≥ 20 % strand, < 10 % helix), mixed (≥ 10 % of both), or few."""
    known = classes[classes >= 0]
    if not len(known):
        return "few"
    helix, strand = float((known == 0).mean()), float((known == 1).mean())
    if helix >= 0.3 and strand < 0.1:
        return "α"
    if strand >= 0.2 and helix < 0.1:
        return "β"
    return "mixed" if helix >= 0.1 and strand >= 0.1 else "few"


def secondary_classes(artifacts: RunArtifacts) -> dict[str, str]:
    """Class of each chain with known secondary structure."""
    found = {name: fields["secondary"] for name, fields in artifacts.chains.items() if "secondary" in fields}
    return {name: secondary_class(classes) for name, classes in found.items() if (classes >= 0).any()}


def baseline_lddt(artifacts: RunArtifacts) -> dict[str, float]:
    """lDDT-Cα of each chain by the baseline that uses its true secondary structure."""
    entry = (artifacts.baselines or {}).get("baselines", {}).get(BASELINE, {})
    return {row["id"]: row["lddt_ca"] for row in entry.get("per_chain", []) if "lddt_ca" in row}


def by_length(artifacts: RunArtifacts) -> list[str]:
    """lDDT-Cα by length, and the number of chains on which the model is better than the best baseline."""
    assert artifacts.held_out is not None
    rows = [row for row in artifacts.held_out["per_chain"] if row.get("lddt_ca") is not None]
    if not rows:
        return [html.missing("No chain has a score.")]
    baseline = baseline_lddt(artifacts)
    picture = figures.svg(figures.by_length, rows, secondary_classes(artifacts), baseline, size=(9.5, 4.6))
    compared = [(row["lddt_ca"], baseline[row["id"]]) for row in rows if row["id"] in baseline]
    text = ""
    if compared:
        better = sum(own > other for own, other in compared)
        reference = "the baseline of median distances given the true secondary structure"
        text = f"The model is better than {reference} on {better} of {len(compared)} chains."
    values = [row["lddt_ca"] for row in rows]
    alt = f"lDDT-Cα of {len(rows)} chains by length, from {min(values):.2f} to {max(values):.2f}"
    return [html.paragraph(text) if text else "", html.figure(picture, alt, wide=True)]


def by_class(artifacts: RunArtifacts) -> list[str]:
    """Mean scores by secondary-structure class."""
    assert artifacts.held_out is not None
    of_chain, baseline = secondary_classes(artifacts), baseline_lddt(artifacts)
    rows = []
    for name, words in (
        ("α", "mostly α"),
        ("β", "mostly β"),
        ("mixed", "α and β"),
        ("few", "little secondary structure"),
    ):
        own = [row for row in artifacts.held_out["per_chain"] if of_chain.get(row["id"]) == name]
        if not own:
            continue
        row = [words, str(len(own)), _mean(own, "lddt_ca"), _mean(own, "tm_score"), _mean(own, "contact_precision")]
        references = [baseline[entry["id"]] for entry in own if entry["id"] in baseline]
        rows.append([*row, f"{np.mean(references):.3f}" if references else "–"])
    if not rows:
        return []
    head = ["secondary structure", "chains", "lDDT-Cα", "TM-score", "contacts, top L", "lDDT-Cα of true-DSSP baseline"]
    return ["<h3>By secondary structure</h3>", html.table(head, rows)]


def _mean(rows: list[dict[str, Any]], key: str) -> str:
    values = [row[key] for row in rows if row.get(key) is not None]
    return f"{np.mean(values):.3f}" if values else "–"


def structures(artifacts: RunArtifacts) -> list[str]:
    """View of the best, upper-quartile, median and worst chain by lDDT-Cα, superposed on their true structures."""
    assert artifacts.held_out is not None
    rows = [row for row in artifacts.held_out["per_chain"] if row.get("lddt_ca") is not None]
    ranked = sorted((row for row in rows if row["id"] in artifacts.chains), key=lambda row: -row["lddt_ca"])
    if not ranked:
        return [html.missing("No chain has both a score and a saved prediction.")]
    last = len(ranked) - 1
    chosen: dict[int, str] = {}
    for label, place in (("Best", 0), ("Upper quartile", last // 4), ("Median", last // 2), ("Worst", last)):
        chosen.setdefault(place, label)
    shown = [_viewed(label, ranked[place], artifacts.chains[ranked[place]["id"]]) for place, label in chosen.items()]
    side = map_side(sum(len(structure.maps) for structure in shown))
    packed = [pack_structure(structure, side) for structure in shown]
    text = "Predicted chains, coloured by confidence, superposed on the true structures (grey) by TM-score."
    if any(structure.maps for structure in shown):
        text += " The maps compare the distances between Cβ atoms that the distogram expects with the true ones."
    return [html.paragraph(text), structure_view(packed, [structure.remark for structure in shown])]


def _viewed(label: str, row: dict[str, Any], fields: dict[str, np.ndarray]) -> ViewedStructure:
    """A chain and its true structure, moved onto the prediction. Older runs have saved the Cα atoms only."""
    n = len(fields["ca"])
    columns = BACKBONE if "backbone" in fields else [ATOM37_INDEX["CA"]]
    atoms, truth = np.full((2, n, len(ATOM37), 3), np.nan)
    atoms[:, columns] = fields.get("backbone", fields["ca"][:, None])
    truth[:, columns] = fields.get(
        "true_backbone", np.where(fields["mask"][:, None], fields["true_ca"], np.nan)[:, None]
    )
    if fitted := superposition_metrics(fields["true_ca"], fields["ca"], fields["mask"]):
        truth = fitted.superposition.apply(truth)
    maps = []
    if "distances" in fields:
        predicted, true = (fields[name].astype(float) for name in ("distances", "true_distances"))
        halves = np.where(np.triu(np.ones((n, n), dtype=bool)), predicted, true)
        maps = [
            PairMap("distance: ◥ predicted, ◣ true", halves, 22),
            PairMap("error of the distance", np.abs(np.minimum(predicted, 22) - np.minimum(true, 22)), 10),
        ]
    scores = [("lDDT-Cα", "lddt_ca"), ("TM-score", "tm_score")]
    texts = [f"{name} {row[key]:.3f}" for name, key in scores if row.get(key) is not None]
    return ViewedStructure(
        name=f"{label}: {row['id']}",
        remark=" · ".join([f"{row['length']} residues", *texts]),
        sequence=str(fields["sequence"]) if "sequence" in fields else "X" * n,
        atoms=atoms,
        plddt=fields["plddt"].astype(float),
        maps=maps,
        truth=truth,
    )
