"""Parameters and inputs with values that follow from their names, so that several programs can use the same ones.

Requires numpy only: programs that run without torch import it as well.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parents[1] / "fixtures" / "published_weights"
PUBLISHED, SMALL = FIXTURES / "alphafold_model_1_ptm.json", FIXTURES / "alphafold_small.json"
"""Names and shapes of AlphaFold's parameters, written by ``alphafold_reference``: published sizes, and small ones."""
OUTPUTS, TEMPLATE_OUTPUTS = FIXTURES / "alphafold_small_outputs.npz", FIXTURES / "alphafold_small_template_outputs.npz"
"""Outputs of AlphaFold's own code for the small sizes, with ``parameters`` and ``inputs``: without templates, and with
``template_inputs``."""
MULTIMER, SMALL_MULTIMER = FIXTURES / "alphafold_multimer_v3.json", FIXTURES / "alphafold_small_multimer.json"
"""The same of AlphaFold-Multimer."""
MULTIMER_OUTPUTS = FIXTURES / "alphafold_small_multimer_outputs.npz"
"""Its outputs for the small sizes, with ``parameters``, ``inputs``, ``template_inputs`` and ``chain_inputs``."""
CHECKSUMS = FIXTURES / "openfold_small.json"
"""SHA-256 of the tensors that OpenFold's own importer makes of ``parameters`` of the small sizes."""

N, S, E, T, RECYCLING = 9, 4, 3, 3, 1
"""Residues, MSA rows, extra MSA rows, templates and recycling passes of ``inputs``."""


def shapes(file: Path, *, templates: bool = True, aligned_errors: bool = True) -> dict[str, tuple[int, ...]]:
    """Return names and shapes in ``file``; without them, model_3 has no templates and no model but _ptm the head."""
    tree = {name: tuple(shape) for name, shape in json.loads(file.read_text(encoding="utf-8")).items()}
    left_out = [part for part, keep in (("template_", templates), ("predicted_aligned", aligned_errors)) if not keep]
    return {name: shape for name, shape in tree.items() if not any(part in name for part in left_out)}


def values(name: str, shape: tuple[int, ...], scale: float = 1.0) -> np.ndarray:
    """Return float32 numbers in [-scale / 2, scale / 2), by a hash of ``name`` and of the position."""
    position = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()))
    mixed = position * np.uint64(0x9E3779B97F4A7C15)  # modulo 2^64; its upper bits look random
    uniform = (mixed >> np.uint64(40)).astype(np.float64) / 2**24 - 0.5
    return (scale * uniform).astype(np.float32).reshape(shape)


def parameters(tree: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return an array for each name: scales of layer norms around 1, all other values around 0."""
    return {name: values(name, shape) + np.float32(name.endswith("//scale")) for name, shape in tree.items()}


def inputs() -> dict[str, np.ndarray]:
    """Return the features of one chain, with padding in the alignments and jumps in the residue numbers."""
    letters = {"aatype": (N,), "extra_msa": (E, N)}
    codes = {name: (values(name, shape) * 1000).astype(np.int64) % 20 for name, shape in letters.items()}
    numbers = {
        name: values(name, shape, 2.0)
        for name, shape in (("msa_feat", (S, N, 49)), ("deletions", (E, N)), ("has_deletions", (E, N)))
    }
    msa_mask, extra_mask = np.ones((S, N), np.float32), np.ones((E, N), np.float32)
    msa_mask[-1, 3:], extra_mask[-1] = 0, 0
    residue_index = np.arange(N, dtype=np.int64) + np.where(np.arange(N) > 4, 40, 0)
    return codes | numbers | {"msa_mask": msa_mask, "extra_mask": extra_mask, "residue_index": residue_index}


def template_inputs() -> dict[str, np.ndarray]:
    """Return two templates and an absent one: all types of residues, gaps, and residues without C or another atom.

    N is on the x axis where the residue before is missing. There, AlphaFold's angle ω is 0; elsewhere it would be the
    rounding noise of a degenerate frame.
    """
    aatype = (values("template_aatype", (T, N)) * 1000).astype(np.int64) % 22
    aatype[:, 2:4] = 7, 21  # glycine and a gap
    atom_mask = np.broadcast_to((aatype < 21)[..., None], (T, N, 37)).copy()
    missing = 3 + (values("template_missing_atom", (T, N)) * 1000).astype(np.int64) % 34
    np.put_along_axis(atom_mask, missing[..., None], False, -1)
    atom_mask[0, 6, 2] = False
    atom_mask[-1] = False
    positions = np.random.default_rng(0).uniform(-10, 10, (T, N, 37, 3)).astype(np.float32)
    after_gap = np.concatenate([np.ones((T, 1), bool), aatype[:, :-1] == 21], 1)
    positions[after_gap, 0] = 4, 0, 0
    return {
        "template_aatype": aatype, "template_positions": positions * atom_mask[..., None],
        "template_atom_mask": atom_mask, "template_mask": atom_mask.any((1, 2)),
    }  # fmt: skip


def chain_inputs() -> dict[str, np.ndarray]:
    """Return the chains of the residues of ``inputs``: two equal ones and another, with positions from 0 in each.

    The second chain lacks its first residues, so that positions differ between equal chains.
    """
    asym, entity, sym = np.repeat([1, 2, 3], 3), np.repeat([1, 1, 2], 3), np.repeat([1, 2, 1], 3)
    index = np.array([0, 1, 45, 40, 41, 42, 0, 1, 2])
    return {"residue_index": index, "asym_id": asym, "entity_id": entity, "sym_id": sym}
