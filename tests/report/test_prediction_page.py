"""Page of predicted structures: all records, their files and maps, hostile names, sizes, damaged folders."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from ds4sci.data.structures import writers
from ds4sci.report import prediction_page
from ds4sci.report.prediction_page import write_prediction_page
from tests.support.html_page import Page
from tests.support.predicted_folder import as_prediction, real_chain, real_complex, write_folder
from tests.support.view_data import unpack_atoms, unpack_map

HOSTILE = ["</script><img src=x onerror=alert(1)>", "<b>&amp;\"'", "../up", "a{{data}}b", "javascript:alert(1)"]


def read(folder: Path) -> Page:
    page = Page((folder / "index.html").read_text(encoding="utf-8"))
    page.check_self_contained()
    return page


def test_every_record_is_on_the_page(tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = real_chain()
    predictions = [as_prediction(record, name, with_pae=False, seed=i) for i, name in enumerate(["one", "two"])]
    write_folder(out, predictions, [("long", "failed", "needs about 91.2 GB"), ("later", "not attempted", None)])
    assert write_prediction_page(out) == out / "index.html"
    page = read(out)
    for words in (
        "one",
        "two",
        "long",
        "later",
        "failed",
        "needs about 91.2 GB",
        "the command ended before this record",
    ):
        assert words in page.text
    shown = page.data["view-data"]["structures"]
    assert [one["name"] for one in shown] == ["one", "two"]
    for one, prediction in zip(shown, predictions, strict=True):
        assert one["sequence"] == record.sequence
        np.testing.assert_allclose(one["plddt"], prediction.plddt, atol=0.06)
        atoms = unpack_atoms(one["prediction"], len(record.sequence))
        np.testing.assert_array_equal(np.isfinite(atoms).all(axis=-1), prediction.atom_mask)
        assert [each["name"] for each in one["maps"]] == ["expected Cβ–Cβ distance", "contact probability (< 8 Å)"]
        np.testing.assert_allclose(unpack_map(one["maps"][0]), prediction.distances, atol=0.06)
    links = {unquote(link) for link in page.links if not link.startswith("#")}
    assert links == {path.name for path in out.iterdir()} - {"summary.json", "index.html"}
    assert [link for link in page.links if link.startswith("#")] == ["#structure-0", "#structure-1"]
    assert {"structure-0", "structure-1"} <= set(page.ids)


def test_chains_of_a_complex(tmp_path: Path) -> None:
    """Chains and their confidence are those of the files; a file with other chains is not shown."""
    prediction = as_prediction(real_complex(), "dimer", with_pae=True)
    summary = write_folder(tmp_path / "out", [prediction])
    summary["records"][0] |= {"ptm": 0.614, "iptm": 0.527}
    (tmp_path / "out" / "summary.json").write_text(json.dumps(summary))
    page = read(write_prediction_page(tmp_path / "out").parent)
    (shown,) = page.data["view-data"]["structures"]
    assert "pTM 0.61 · ipTM 0.53" in page.text
    assert shown["chains"] == [["A", 70], ["B", 70]]
    assert shown["sequence"] == prediction.sequence
    np.testing.assert_allclose(unpack_map(shown["maps"][0]), prediction.pae, atol=0.08)
    assert "140 residues in 2 chains" in page.text
    assert "mean pLDDT by chain: A " in page.text
    one = as_prediction(real_chain("2q2k"), "dimer", with_pae=False)
    writers.write_mmcif(one, tmp_path / "out" / "dimer.cif")
    page = read(write_prediction_page(tmp_path / "out").parent)
    assert "not in the view: dimer.cif has 1 chains; expected 2" in page.text


def test_predicted_aligned_error_is_the_first_map(tmp_path: Path) -> None:
    """Rows are the aligned residues (vertical), columns the scored ones: the matrix is not transposed."""
    prediction = as_prediction(real_chain(), "ubiquitin", with_pae=True)
    assert prediction.pae is not None
    assert np.abs(prediction.pae - prediction.pae.T).max() > 3
    write_folder(tmp_path / "out", [prediction])
    write_prediction_page(tmp_path / "out")
    first = read(tmp_path / "out").data["view-data"]["structures"][0]["maps"][0]
    words = [first[key] for key in ("name", "rows", "columns", "unit", "maximum")]
    assert words == ["predicted aligned error", "aligned residue", "scored residue", "Å", 30]
    np.testing.assert_allclose(unpack_map(first), np.minimum(prediction.pae, 30), atol=0.08)


def test_names_from_fasta_files_are_escaped(tmp_path: Path) -> None:
    record = real_chain()
    predictions = [as_prediction(record, name, with_pae=False) for name in HOSTILE]
    write_folder(tmp_path / "out", predictions, [(f"{HOSTILE[0]}!", "failed", f"bad: {HOSTILE[0]}")])
    write_prediction_page(tmp_path / "out")
    page = read(tmp_path / "out")
    assert [one["name"] for one in page.data["view-data"]["structures"]] == HOSTILE
    for name in HOSTILE:
        assert page.text.count(name) >= 2  # the list and the table
    assert page.images == []
    assert all((tmp_path / "out" / unquote(link)).is_file() for link in page.links if not link.startswith("#"))


def test_thirty_records_take_less_than_3_mb(tmp_path: Path) -> None:
    record = real_chain("1a8q")
    one = as_prediction(record, "a", with_pae=True)
    write_folder(tmp_path / "out", [one])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    (row,) = summary["records"]
    summary["records"] = [{**row, "id": f"record_{number}"} for number in range(30)]
    (tmp_path / "out" / "summary.json").write_text(json.dumps(summary))
    write_prediction_page(tmp_path / "out")
    assert (tmp_path / "out" / "index.html").stat().st_size < 3_000_000
    assert len(read(tmp_path / "out").data["view-data"]["structures"]) == 30


def test_records_beyond_the_limit_are_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_page, "MAX_EMBEDDED_BYTES", 20_000)
    record = real_chain()
    write_folder(tmp_path / "out", [as_prediction(record, f"r{i}", with_pae=False) for i in range(4)])
    write_prediction_page(tmp_path / "out")
    page = read(tmp_path / "out")
    shown = len(page.data["view-data"]["structures"])
    assert 0 < shown < 4
    assert page.text.count("not in the view, which is full; open the file") == 4 - shown
    assert "r3.cif" in page.links


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_folder(out, [as_prediction(real_chain(), name, with_pae=False) for name in ("gone", "cut", "zip", "good")])
    (out / "gone.cif").unlink()
    (out / "cut.cif").write_text((out / "cut.cif").read_text()[:2000])
    (out / "zip.confidence.npz").write_bytes(b"PK")
    write_prediction_page(out)
    page = read(out)
    assert [one["name"] for one in page.data["view-data"]["structures"]] == ["good"]
    assert page.text.count("not in the view: ") == 3


def test_a_folder_without_predictions(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"summary\.json: no such file; give the folder"):
        write_prediction_page(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        write_prediction_page(tmp_path)
    (tmp_path / "summary.json").write_text('{"files": []}')
    with pytest.raises(ValueError, match="not the summary of predicted structures"):
        write_prediction_page(tmp_path)


def test_a_page_without_a_structure_has_no_script(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", [], [("a", "failed", "too long")])
    write_prediction_page(tmp_path / "out")
    page = read(tmp_path / "out")
    assert page.scripts == []
    assert "too long" in page.text
