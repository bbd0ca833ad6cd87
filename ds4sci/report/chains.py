"""The parts of the report that go chain by chain: scores against length and kind, maps and traces."""

from __future__ import annotations

from typing import Any

import numpy as np

from ds4sci.report import figures
from ds4sci.report import page as html
from ds4sci.report.run_artifacts import Story

FLOOR = "distances_true_secondary"


def kind(classes: np.ndarray) -> str:
    """α (≥ 30 % helix, < 10 % strand), β (≥ 20 % strand, < 10 % helix), mixed (≥ 10 % of both), else few."""
    known = classes[classes >= 0]
    if not len(known):
        return "few"
    helix, strand = float((known == 0).mean()), float((known == 1).mean())
    if helix >= 0.3 and strand < 0.1:
        return "α"
    if strand >= 0.2 and helix < 0.1:
        return "β"
    return "mixed" if helix >= 0.1 and strand >= 0.1 else "few"


def kinds(story: Story) -> dict[str, str]:
    """Kind of each chain whose secondary structure is known."""
    found = {name: fields["secondary"] for name, fields in story.chains.items() if "secondary" in fields}
    return {name: kind(classes) for name, classes in found.items() if (classes >= 0).any()}


def floor(story: Story) -> dict[str, float]:
    """lDDT-Cα of each chain by the baseline that knows its true secondary structure."""
    entry = (story.baselines or {}).get("baselines", {}).get(FLOOR, {})
    return {row["id"]: row["lddt_ca"] for row in entry.get("per_chain", []) if "lddt_ca" in row}


def by_length(story: Story) -> list[str]:
    """lDDT-Cα against length, and on how many chains the model beats the best baseline."""
    assert story.held_out is not None
    rows = [row for row in story.held_out["per_chain"] if row.get("lddt_ca") is not None]
    if not rows:
        return [html.missing("No chain had anything to score.")]
    lowest = floor(story)
    picture = figures.svg(figures.by_length, rows, kinds(story), lowest, size=(9.5, 4.6))
    compared = [(row["lddt_ca"], lowest[row["id"]]) for row in rows if row["id"] in lowest]
    text = ""
    if compared:
        better = sum(own > other for own, other in compared)
        reference = "median distances given true secondary structure"
        text = f"Better than {reference} on {better} of {len(compared)} chains."
    values = [row["lddt_ca"] for row in rows]
    alt = f"lDDT-Cα of {len(rows)} chains by length, from {min(values):.2f} to {max(values):.2f}"
    return [html.paragraph(text) if text else "", html.figure(picture, alt, wide=True)]


def by_class(story: Story) -> list[str]:
    """Mean scores of chains by their secondary structure."""
    assert story.held_out is not None
    of_chain, lowest = kinds(story), floor(story)
    rows = []
    for name, words in (
        ("α", "mostly α"),
        ("β", "mostly β"),
        ("mixed", "α and β"),
        ("few", "little regular structure"),
    ):
        own = [row for row in story.held_out["per_chain"] if of_chain.get(row["id"]) == name]
        if not own:
            continue
        row = [words, str(len(own)), _mean(own, "lddt_ca"), _mean(own, "tm_score"), _mean(own, "contact_precision")]
        floors = [lowest[entry["id"]] for entry in own if entry["id"] in lowest]
        rows.append([*row, f"{np.mean(floors):.3f}" if floors else "–"])
    if not rows:
        return []
    head = ["secondary structure", "chains", "lDDT-Cα", "TM-score", "contacts, top L", "lDDT-Cα of true-DSSP baseline"]
    return ["<h3>By kind of chain</h3>", html.table(head, rows)]


def _mean(rows: list[dict[str, Any]], key: str) -> str:
    values = [row[key] for row in rows if row.get(key) is not None]
    return f"{np.mean(values):.3f}" if values else "–"


def cards(story: Story) -> list[str]:
    """Maps and traces of the best, a good, the median and the worst chain by lDDT-Cα."""
    assert story.held_out is not None
    rows = [row for row in story.held_out["per_chain"] if row.get("lddt_ca") is not None]
    ranked = sorted(
        (row for row in rows if "distances" in story.chains.get(row["id"], {})), key=lambda r: -r["lddt_ca"]
    )
    if not ranked:
        return [html.missing("No chain has both a score and kept predictions.")]
    last = len(ranked) - 1
    chosen: dict[int, str] = {}
    for words, place in (("Best", 0), ("Upper quartile", last // 4), ("Median", last // 2), ("Worst", last)):
        chosen.setdefault(place, words)
    parts = [
        html.paragraph(
            "Distances between Cβ atoms, as the distogram expects them and as they are; and the predicted Cα trace, "
            "coloured by the model's confidence, laid on the true one in grey, from two sides. A dot marks the first "
            "residue."
        ),
        html.colour_key(
            [(figures.TRUE_TRACE, "true chain")]
            + [
                (colour, f"pLDDT {'≥ ' + str(least) if least else '< 50'} ({words})")
                for least, colour, words in figures.CONFIDENCE
            ]
        ),
    ]
    for place, words in chosen.items():
        row, fields = ranked[place], story.chains[ranked[place]["id"]]
        parts.append(
            f"<h3>{words}: {html.escape(row['id'])}, {row['length']} residues, lDDT-Cα {row['lddt_ca']:.3f}, "
            f"TM-score {row['tm_score']:.3f}</h3>"
            if row.get("tm_score") is not None
            else f"<h3>{words}: {html.escape(row['id'])}, {row['length']} residues</h3>"
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
                html.figure(trace, f"Predicted Cα trace of {row['id']} laid on the true one"),
            )
        )
    return parts
