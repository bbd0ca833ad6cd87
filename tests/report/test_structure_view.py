"""Data and files of the interactive view: packing of coordinates and maps, escapes, the version of 3Dmol.js."""

from __future__ import annotations

import hashlib
import json
import re

import numpy as np
import pytest

from ds4sci.report import structure_view as view
from tests.support.html_page import Page
from tests.support.predicted_folder import real_chain
from tests.support.view_data import unpack_atoms, unpack_map

VIEWER = view.ASSETS / "3dmol" / "3Dmol-min.js"


def chain(n: int = 30, *, reach: float = 20.0, **fields: object) -> view.ViewedStructure:
    random = np.random.default_rng(0)
    atoms = random.uniform(-reach, reach, (n, 37, 3))
    atoms[random.uniform(size=(n, 37)) < 0.7] = np.nan
    values = {"name": "a", "remark": "", "sequence": "A" * n, "atoms": atoms, "plddt": np.linspace(0, 100, n)}
    return view.ViewedStructure(**(values | fields))  # type: ignore[arg-type]


def test_the_bundled_viewer_is_the_recorded_one() -> None:
    assert hashlib.sha256(VIEWER.read_bytes()).hexdigest() == view.VIEWER_SHA256
    assert f"* 3dmol v{view.VIEWER_VERSION}\n" in VIEWER.with_name("3Dmol-min.js.LICENSE.txt").read_text()
    assert "University of Pittsburgh" in (VIEWER.parent / "LICENSE").read_text()


def test_scripts_fit_into_a_page() -> None:
    """No script has what would end or change its element, or a source map that a browser would load."""
    scripts = view.view_scripts(['<script id="view-data">'])
    assert len(scripts) == 2
    for script in scripts:
        assert not re.search(r"</script|<!--|sourceMappingURL", script, re.IGNORECASE)
    assert view.view_scripts(["<p>no view</p>"]) == []


@pytest.mark.parametrize(("reach", "error"), [(20.0, 0.006), (320.0, 0.02), (5000.0, 0.5)])
def test_coordinates_survive_packing(reach: float, error: float) -> None:
    """Rounded to 0.01 Å, or to 1/32767 of the reach of a structure that is larger than 327 Å."""
    structure = chain(reach=reach)
    found = unpack_atoms(view.pack_structure(structure, 64)["prediction"], 30)
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(structure.atoms))
    shift = np.nanmean(structure.atoms - found, axis=(0, 1))
    np.testing.assert_allclose(np.nan_to_num(found + shift), np.nan_to_num(structure.atoms), atol=error)


def test_truth_stays_superposed() -> None:
    atoms = chain().atoms
    packed = view.pack_structure(chain(truth=atoms + np.array([0.0, 0.0, 5.0])), 64)
    moved = unpack_atoms(packed["truth"], 30) - unpack_atoms(packed["prediction"], 30)
    np.testing.assert_allclose(np.nanmean(moved, axis=(0, 1)), [0, 0, 5], atol=0.02)


@pytest.mark.parametrize(("n", "side", "block"), [(30, 64, 1), (64, 64, 1), (65, 64, 2), (1000, 64, 16)])
def test_maps_of_long_chains_are_means_of_blocks(n: int, side: int, block: int) -> None:
    values = np.random.default_rng(0).uniform(0, 33, (n, n))
    values[3, :] = np.nan
    packed = view.pack_structure(chain(n, maps=[view.PairMap("m", values, 30)]), side)["maps"][0]
    found = unpack_map(packed)
    assert (packed["block"], found.shape) == (block, (-(-n // block),) * 2)
    assert len(found) <= side
    for row, column in ((0, 0), (3 // block, 1), (len(found) - 1, len(found) - 2)):
        part = values[row * block : (row + 1) * block, column * block : (column + 1) * block]
        if np.isnan(part).all():
            assert np.isnan(found[row, column])
        else:
            assert found[row, column] == pytest.approx(min(np.nanmean(part), 30), abs=30 / 254)


def test_map_sides_keep_a_page_small() -> None:
    for maps in (1, 4, 30, 90, 300):
        side = view.map_side(maps)
        assert maps * side**2 <= view.MAP_BYTES
        assert view.MIN_MAP_SIDE <= side <= view.MAX_MAP_SIDE
    assert view.map_side(10_000) == view.MIN_MAP_SIDE


@pytest.mark.parametrize(
    "name", ["</script><script>alert(1)</script>", "<!--<script>", "{{data}} {{style}}", '"&amp;<b>']
)
def test_names_cannot_change_the_page(name: str) -> None:
    packed = view.pack_structure(chain(name=name, links={name: "a.cif"}), 64)
    source = view.structure_view([packed], [name])
    page = Page(source)
    assert page.data["view-data"]["structures"][0]["name"] == name
    assert page.scripts == []
    assert page.text.count(name) == 2  # the name and the remark in the list
    assert "<" not in view.embedded_json([name, "\u2028"])
    assert json.loads(view.embedded_json([name])) == [name]


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"a: an array of its 30 residues has the shape \(29,\), expected \(30,\)"):
        view.pack_structure(chain(plddt=np.zeros(29)), 64)


def test_a_real_chain_is_small() -> None:
    """Less than a fifth of the atoms as PDB text (81 bytes each)."""
    record = real_chain("1a8q")
    atoms = np.where(record.atom_mask.astype(bool)[:, :, None], record.atom_positions, np.nan)
    structure = chain(len(record.sequence), sequence=record.sequence, atoms=atoms)
    packed = view.pack_structure(structure, 64)["prediction"]
    assert packed["atoms"] == record.atom_mask.sum()
    assert len(packed["data"]) < packed["atoms"] * 81 / 5
