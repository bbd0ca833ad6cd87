"""Page of predicted structures: ``OUT/index.html`` of ``ds4sci predict``, made from the files in OUT."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from ds4sci.data.structures.complexes import join_chains
from ds4sci.data.structures.parsers import mmcif
from ds4sci.data.structures.writers import CONFIDENCE_SUFFIX
from ds4sci.files.atomic_files import replace_text
from ds4sci.inference.predict import FAILED, NOT_ATTEMPTED, PREDICTED, SUMMARY
from ds4sci.report import page as html
from ds4sci.report.structure_view import (
    GREENS,
    PairMap,
    ViewedStructure,
    map_side,
    pack_structure,
    structure_view,
    view_scripts,
)

PAGE = "index.html"

MAX_EMBEDDED_BYTES = 16_000_000
"""Data of structures in a page; the table links to the files of the others."""

MAPS = 3
"""Largest number of maps of a record."""

TM_SCORES = {"ptm": "pTM", "iptm": "ipTM"}
"""Predicted scores of a record → label, from models that have them; ``iptm`` is of the interfaces of a complex."""

FILE_KINDS = {".cif": "mmCIF", ".pdb": "PDB", CONFIDENCE_SUFFIX: "confidence"}


def write_prediction_page(out_dir: Path | str) -> Path:
    """Write ``OUT/index.html`` from ``OUT/summary.json`` and the files that it lists, and return its path.

    The page shows each predicted structure in 3-D, coloured by pLDDT, with pLDDT along the sequence and the maps of
    its confidence; lines mark the borders of the chains of a complex. The maps are those of
    ``ID.confidence.npz`` (predicted aligned error if the model gives it, expected distance, contact probability), and
    a table of all records. A structure file that is missing or damaged is named in the table. Raises ValueError if
    ``out_dir`` has no summary of structure predictions.
    """
    out_dir = Path(out_dir)
    summary = read_summary(out_dir)
    rows = summary["records"]
    predicted = [index for index, row in enumerate(rows) if row["status"] == PREDICTED]
    side, used = map_side(MAPS * len(predicted)), 0
    packed: list[dict[str, Any]] = []
    remarks: list[str] = []
    places: dict[int, int] = {}
    problems: dict[int, str] = {}
    for index in predicted:
        if used > MAX_EMBEDDED_BYTES:
            problems[index] = "not in the view, which is full; open the file"
            continue
        try:
            structure = _structure(out_dir, rows[index])
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            problems[index] = f"not in the view: {error}"
            continue
        places[index] = len(packed)
        packed.append(pack_structure(structure, side))
        remarks.append(structure.remark)
        used += len(json.dumps(packed[-1]))
    body = [_tiles(summary)]
    if packed:
        body.append(html.section("Structure" if len(packed) == 1 else "Structures", structure_view(packed, remarks)))
    body.append(html.section("Records", _table(rows, places, problems)))
    name = str(summary["name"])
    subtitle = f"run {summary['run']} · step {summary['step']:,} · commit {str(summary['commit'])[:10]}"
    header = f"<h1>Structures predicted by {html.escape(name)}</h1><p>{html.escape(subtitle)}</p>"
    footer = (
        "Created by <code>ds4sci predict</code>; <code>ds4sci report FOLDER</code> makes it again. Self-contained: no "
        "network access. pLDDT (0–100) is the model's estimate of its own accuracy, residue by residue."
    )
    path = out_dir / PAGE
    replace_text(path, html.page(f"Predictions of {name} · ds4sci", header, body, footer, scripts=view_scripts(body)))
    return path


def read_summary(out_dir: Path) -> dict[str, Any]:
    """The summary of structure predictions in a folder. Raises ValueError if there is none."""
    path = out_dir / SUMMARY
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the folder that `ds4sci predict --fasta … --out FOLDER` wrote")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); predict again") from None
    if not isinstance(summary, dict) or not {"name", "run", "step", "commit", "counts", "records"} <= summary.keys():
        raise ValueError(f"{path}: not the summary of predicted structures; expected one of `ds4sci predict --fasta`")
    return summary


def _structure(out_dir: Path, row: dict[str, Any]) -> ViewedStructure:
    """Read the files of a record. Raises OSError or ValueError if one is missing or damaged."""
    (cif,) = (name for name in row["files"] if name.endswith(".cif"))
    parts = mmcif.read(out_dir / cif)
    chains = row.get("chains", [])
    if len(parts) != max(len(chains), 1):
        raise ValueError(f"{cif} has {len(parts)} chains; expected {max(len(chains), 1)}")
    record = join_chains(row["id"], parts)
    assert record.b_factors is not None
    known = record.atom_mask.astype(bool)
    maps: list[PairMap] = []
    for name in row["files"]:
        if name.endswith(CONFIDENCE_SUFFIX):
            with np.load(out_dir / name, allow_pickle=False) as arrays:
                maps = list(_maps(arrays))
    scores = "".join(f" · {label} {row[key]:.2f}" for key, label in TM_SCORES.items() if key in row)
    return ViewedStructure(
        name=row["id"],
        remark=f"{row['length']} residues{_chains(row)} · pLDDT {row['plddt']:.0f}{scores}",
        sequence=record.sequence,
        atoms=np.where(known[:, :, None], record.atom_positions.astype(float), np.nan),
        plddt=record.b_factors[:, 1].astype(float),
        maps=maps,
        links={_kind(name): quote(name, safe="") for name in row["files"]},
        chains=[(chain["name"], chain["length"]) for chain in chains],
    )


def _chains(row: dict[str, Any]) -> str:
    return f" in {len(row['chains'])} chains" if "chains" in row else ""


def _maps(arrays: Any) -> Iterator[PairMap]:
    if "pae" in arrays:
        yield PairMap(
            "predicted aligned error", arrays["pae"].astype(float), 30, rows="aligned residue",
            columns="scored residue", colours=GREENS,
        )  # fmt: skip
    yield PairMap("expected Cβ–Cβ distance", arrays["distances"].astype(float), 22)
    yield PairMap("contact probability (< 8 Å)", arrays["contacts"].astype(float), 1, unit="")


def _kind(name: str) -> str:
    return next((kind for suffix, kind in FILE_KINDS.items() if name.endswith(suffix)), name)


def _tiles(summary: dict[str, Any]) -> str:
    rows, counts = summary["records"], summary["counts"]
    means = [row["plddt"] for row in rows if row["status"] == PREDICTED]
    entries = [(str(counts[PREDICTED]), "predicted", f"of {len(rows)} record{'s' if len(rows) != 1 else ''}")]
    if means:
        entries.append((f"{np.mean(means):.1f}", "mean pLDDT", "of the predicted records, 0–100"))
    residues = sum(row["length"] for row in rows if row["status"] == PREDICTED)
    entries.append((f"{residues:,}", "residues", "in predicted records"))
    entries += [
        (str(counts[status]), status, "reasons in the table") for status in (FAILED, NOT_ATTEMPTED) if counts[status]
    ]
    return html.tiles(entries)


def _table(rows: list[dict[str, Any]], places: dict[int, int], problems: dict[int, str]) -> str:
    """Every record with its status, files, and the reason why it has none."""
    cells = []
    given = [key for key in TM_SCORES if any(key in row for row in rows)]
    for index, row in enumerate(rows):
        name = html.escape(row["id"])
        if index in places:
            name = f'<a href="#structure-{places[index]}">{name}</a>'
        kind = "good" if row["status"] == PREDICTED else "bad"
        links = [f'<a href="{quote(file, safe="")}" download>{html.escape(_kind(file))}</a>' for file in row["files"]]
        confidence = ", ".join(
            f"{chain['name']} {chain['plddt']:.1f}" for chain in row.get("chains", ()) if "plddt" in chain
        )
        by_chain = f"mean pLDDT by chain: {confidence}" if confidence else None
        reasons = [row["error"], problems.get(index), by_chain, row.get("no_pdb"), *row["notes"]]
        if row["status"] == NOT_ATTEMPTED:
            reasons.insert(0, "the command ended before this record")
        cells.append(
            [
                name,
                f'<span class="{kind}">{row["status"]}</span>',
                f"{row['length']:,}{_chains(row)}",
                f"{row['plddt']:.1f}" if "plddt" in row else "–",
                *(f"{row[key]:.2f}" if key in row else "–" for key in given),
                html.escape(row["input"]) if row["status"] == PREDICTED else "–",
                " ".join(links) or "–",
                html.escape("; ".join(reason for reason in reasons if reason)),
            ]
        )
    scores = ["mean pLDDT", *(TM_SCORES[key] for key in given)]
    header = ["record", "status", "residues", *scores, "from its", "files", "reason, remarks"]
    return f'<div class="records">{html.table(header, cells, raw=True)}</div>'
