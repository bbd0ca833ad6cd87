"""Interactive view of protein chains for HTML pages: 3-D structure, confidence along the sequence, residue-pair maps.

The view is 3Dmol.js (``assets/3dmol``, BSD-3-Clause) and ``assets/structure_view.js``. Everything is embedded in the
page, which works from a file without a network. A page has one view; its list chooses the structure that is drawn, and
only that one is unpacked.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.chemistry.residue_constants import ATOM37, RESTYPE_1TO3
from ds4sci.report.page import colour_key

ASSETS = Path(__file__).parent / "assets"

VIEWER_VERSION = "2.5.5"
VIEWER_SHA256 = "f7cc78921ae72e7623e89cdd111434f58c2efddd2ffda1cd212644b406fb8016"
"""Version of the npm package ``3dmol`` and SHA-256 of its ``build/3Dmol-min.js``.

To update: ``npm pack 3dmol``, copy that file, ``build/3Dmol-min.js.LICENSE.txt`` and ``LICENSE`` to ``assets/3dmol``,
and change both values.
"""

CONFIDENCE = (
    (90, "#0053d6", "very high"),
    (70, "#65cbf3", "confident"),
    (50, "#ffdb13", "low"),
    (0, "#ff7d45", "very low"),
)
"""Lower bound of pLDDT, colour and label: the scale of the AlphaFold database."""

TRUE_STRUCTURE = "#aab4bf"

MAP_BYTES = 1_500_000
"""Values of all maps of a page. Maps of long chains are averaged over blocks of residues to stay below."""

MIN_MAP_SIDE, MAX_MAP_SIDE = 64, 512

UNKNOWN = 255
"""Code of a pair without a value; 0–254 are the values from 0 to the maximum of the map."""


BLUES = ("#08306b", "#6baed6", "#ffffff")
GREENS = ("#00441b", "#41ab5d", "#ffffff")
"""Colours of a map from 0 to its maximum. Green is the scale of PAE in the AlphaFold database."""


@dataclass(frozen=True)
class PairMap:
    """Values of residue pairs.

    name     words above the map
    values   float [n, n], NaN where unknown. The row is the residue on the vertical axis
    maximum  end of the colour scale; larger values are drawn like it
    rows     what the vertical axis shows, such as ``aligned residue``
    columns  what the horizontal axis shows
    unit     of the values
    colours  from 0 to the maximum
    """

    name: str
    values: np.ndarray
    maximum: float
    rows: str = "residue"
    columns: str = "residue"
    unit: str = "Å"
    colours: tuple[str, ...] = BLUES


@dataclass(frozen=True)
class ViewedStructure:
    """A chain or complex of n residues to draw.

    name      text of the list that chooses the structure
    remark    text below the name
    sequence  one-letter codes, length n
    atoms     float [n, 37, 3] Å, in the columns of ``ATOM37``; NaN where an atom is unknown. A chain with Cα atoms only
              is drawn as a trace
    plddt     float [n], 0–100
    maps      maps of residue pairs; the first is shown first
    truth     true coordinates, superposed, like ``atoms``; or None
    links     name → file relative to the page
    chains    name and number of residues of each chain of a complex, in order; empty for a single chain
    """

    name: str
    remark: str
    sequence: str
    atoms: np.ndarray
    plddt: np.ndarray
    maps: Sequence[PairMap] = ()
    truth: np.ndarray | None = None
    links: Mapping[str, str] = field(default_factory=dict)
    chains: Sequence[tuple[str, int]] = ()


def map_side(maps: int) -> int:
    """Largest number of rows of a map on a page with this many maps."""
    return int(np.clip((MAP_BYTES / max(maps, 1)) ** 0.5, MIN_MAP_SIDE, MAX_MAP_SIDE))


def pack_structure(structure: ViewedStructure, side: int) -> dict[str, Any]:
    """Data of one structure for the script: JSON values. Maps have at most ``side`` rows.

    Raises ValueError, naming the structure, if the shapes do not agree with the sequence.
    """
    n = len(structure.sequence)
    shapes = [(structure.atoms, (n, 37, 3)), (structure.plddt, (n,)), *((m.values, (n, n)) for m in structure.maps)]
    if structure.truth is not None:
        shapes.append((structure.truth, (n, 37, 3)))
    if structure.chains and sum(length for _, length in structure.chains) != n:
        raise ValueError(f"{structure.name}: its chains {list(structure.chains)} have not {n} residues in total")
    if wrong := [f"{array.shape}, expected {shape}" for array, shape in shapes if array.shape != shape]:
        raise ValueError(f"{structure.name}: an array of its {n} residues has the shape {'; '.join(wrong)}")
    truth = structure.truth
    known = np.isfinite(structure.atoms).all(axis=-1)
    centre = structure.atoms[known].mean(axis=0) if known.any() else np.zeros(3)
    return {
        "name": structure.name,
        "sequence": structure.sequence,
        "plddt": [round(float(value), 1) for value in np.nan_to_num(structure.plddt)],
        "prediction": _pack_atoms(structure.atoms - centre),
        "truth": None if truth is None else _pack_atoms(truth - centre),
        "maps": [_pack_map(one, side) for one in structure.maps],
        "links": dict(structure.links),
        "chains": [list(chain) for chain in structure.chains or [("A", n)]],
    }


def structure_view(packed: Sequence[dict[str, Any]], remarks: Sequence[str]) -> str:
    """HTML of the view of ``pack_structure`` results, each with a remark for the list. Needs ``view_scripts``."""
    entries = "".join(
        f'<label id="structure-{index}"><input type="radio" name="structure" value="{index}"'
        f"{' checked' if index == 0 else ''}><b>{escape(one['name'])}</b><span>{escape(remark)}</span></label>"
        for index, (one, remark) in enumerate(zip(packed, remarks, strict=True))
    )
    legend = [(colour, f"{words} (pLDDT {_range(index)})") for index, (_, colour, words) in enumerate(CONFIDENCE)]
    if any(one["truth"] for one in packed):
        legend.append((TRUE_STRUCTURE, "true structure"))
    data = {
        "structures": packed,
        "atom_names": ATOM37,
        "residue_names": RESTYPE_1TO3,
        "confidence": [[least, colour, words] for least, colour, words in CONFIDENCE],
        "true_colour": TRUE_STRUCTURE,
    }
    template = (ASSETS / "structure_view.html").read_text(encoding="utf-8")
    style = (ASSETS / "structure_view.css").read_text(encoding="utf-8")
    parts = {
        "entries": entries,
        "single": " single" if len(packed) == 1 else "",
        "legend": colour_key(legend),
        "data": embedded_json(data),
        "style": style,
    }
    # in one pass, so that a name such as {{data}} stays as it is
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)


def view_scripts(body: Sequence[str]) -> list[str]:
    """Scripts that the HTML parts of a page need, in order: none if no part has a view."""
    if not any('id="view-data"' in part for part in body):
        return []
    files = (ASSETS / "3dmol" / "3Dmol-min.js", ASSETS / "structure_view.js")
    return [file.read_text(encoding="utf-8") for file in files]


def embedded_json(value: Any) -> str:
    """JSON for a ``<script>`` element: ``<``, ``>`` and ``&`` are escaped, so that no text can end the element."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _range(band: int) -> str:
    """Range of pLDDT of a band of ``CONFIDENCE``."""
    least = CONFIDENCE[band][0]
    if band == 0:
        return f"≥ {least}"
    above = CONFIDENCE[band - 1][0]
    return f"{least}–{above}" if least else f"< {above}"


def _pack_atoms(atoms: np.ndarray) -> dict[str, Any]:
    """Atoms per residue uint8 [n], columns of ATOM37 uint8 [a] and coordinates int16 [a, 3] in units of ``scale`` Å."""
    known = np.isfinite(atoms).all(axis=-1)
    points = atoms[known]
    scale = max(0.01, float(np.abs(points).max(initial=0)) / 32767)
    values = (points / scale).round().astype("<i2")
    # all x, then y, then z, as differences along the chain: half the bytes after compression
    steps = np.diff(values, axis=0, prepend=np.zeros((1, 3), "<i2")).T
    raw = known.sum(axis=1).astype(np.uint8).tobytes() + np.nonzero(known)[1].astype(np.uint8).tobytes()
    return {"scale": scale, "atoms": len(points), "data": _compress(raw + np.ascontiguousarray(steps).tobytes())}


def _pack_map(one: PairMap, side: int) -> dict[str, Any]:
    """Map as uint8 [m, m], the mean of blocks of ``block`` residues."""
    n = len(one.values)
    block = max(1, -(-n // side))
    rows = -(-n // block)
    padded = np.full((rows * block, rows * block), np.nan)
    padded[:n, :n] = one.values
    blocks = padded.reshape(rows, block, rows, block).swapaxes(1, 2).reshape(rows, rows, -1)
    count = np.isfinite(blocks).sum(axis=-1)
    mean = np.nansum(blocks, axis=-1) / np.maximum(count, 1)
    codes = np.where(count > 0, (mean / one.maximum).clip(0, 1) * (UNKNOWN - 1), UNKNOWN).round().astype(np.uint8)
    words = {key: getattr(one, key) for key in ("name", "maximum", "rows", "columns", "unit", "colours")}
    return words | {"side": rows, "block": block, "data": _compress(codes.tobytes())}


def _compress(raw: bytes) -> str:
    return base64.b64encode(zlib.compress(raw, 9)).decode()
