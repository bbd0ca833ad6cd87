"""Readers of the packed data of ``ds4sci.report.structure_view``, written after its description."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np


def unpack_atoms(packed: dict[str, Any], n: int) -> np.ndarray:
    """Coordinates [n, 37, 3] Å, NaN where unknown."""
    raw = zlib.decompress(base64.b64decode(packed["data"]))
    count = packed["atoms"]
    per_residue, columns = np.frombuffer(raw[:n], np.uint8), np.frombuffer(raw[n : n + count], np.uint8)
    steps = np.frombuffer(raw[n + count :], "<i2").reshape(3, count)
    points = np.full((n, 37, 3), np.nan)
    points[np.repeat(np.arange(n), per_residue), columns] = steps.cumsum(axis=1, dtype="<i2").T * packed["scale"]
    return points


def unpack_map(packed: dict[str, Any]) -> np.ndarray:
    """Values [m, m] of blocks of residues, NaN where unknown."""
    raw = zlib.decompress(base64.b64decode(packed["data"]))
    codes = np.frombuffer(raw, np.uint8).reshape(packed["side"], packed["side"]).astype(float)
    return np.where(codes == 255, np.nan, codes / 254 * packed["maximum"])
