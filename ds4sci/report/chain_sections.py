"""Sections of the report about single chains: scores by length and secondary structure, distance maps, traces."""

from __future__ import annotations

from typing import Any

import numpy as np

from ds4sci.report import figures
from ds4sci.report import page as html
from ds4sci.report.run_artifacts import RunArtifacts

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


def cards(artifacts: RunArtifacts) -> list[str]:
    """Distance maps and traces of the best, upper-quartile, median and worst chain by lDDT-Cα."""
    assert artifacts.held_out is not None
    rows = [row for row in artifacts.held_out["per_chain"] if row.get("lddt_ca") is not None]
    ranked = sorted(
        (row for row in rows if "distances" in artifacts.chains.get(row["id"], {})), key=lambda r: -r["lddt_ca"]
    )
    if not ranked:
        return [html.missing("No chain has both a score and a saved prediction.")]
    last = len(ranked) - 1
    chosen: dict[int, str] = {}
    for label, place in (("Best", 0), ("Upper quartile", last // 4), ("Median", last // 2), ("Worst", last)):
        chosen.setdefault(place, label)
    parts = [
        html.paragraph(
            "Left: distances between Cβ atoms, expected by the distogram and true. Right: the predicted Cα trace, "
            "coloured by confidence, superposed on the true trace (grey), from two directions. A dot marks the first "
            "residue."
        ),
        html.colour_key(
            [(figures.TRUE_TRACE, "true structure")]
            + [
                (colour, f"pLDDT {'≥ ' + str(least) if least else '< 50'} ({words})")
                for least, colour, words in figures.CONFIDENCE
            ]
        ),
    ]
    for place, label in chosen.items():
        row, fields = ranked[place], artifacts.chains[ranked[place]["id"]]
        parts.append(
            f"<h3>{label}: {html.escape(row['id'])}, {row['length']} residues, lDDT-Cα {row['lddt_ca']:.3f}, "
            f"TM-score {row['tm_score']:.3f}</h3>"
            if row.get("tm_score") is not None
            else f"<h3>{label}: {html.escape(row['id'])}, {row['length']} residues</h3>"
        )
        maps = figures.svg(
            figures.distance_maps, fields["distances"].astype(float), fields["true_distances"].astype(float),
            size=(6.2, 3.1), panels=(1, 2),
        )  # fmt: skip
        trace = figures.svg(
            figures.traces,
            fields["ca"],
            fields["true_ca"],
            fields["mask"],
            fields["plddt"],
            size=(6.2, 3.1),
            panels=(1, 2),
        )
        parts.append(
            html.pair(
                html.figure(maps, f"Predicted and true distance map of {row['id']}"),
                html.figure(trace, f"Predicted Cα trace of {row['id']}, superposed on the true trace"),
            )
        )
    return parts
