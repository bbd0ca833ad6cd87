"""`ds4sci data build` on the output folders of prediction programs: the report has a row for every file and chain."""

from __future__ import annotations

from pathlib import Path

from ds4sci.data.structures.build import build
from ds4sci.data.structures.chain_filters import BuildSettings
from ds4sci.data.structures.chain_set import ChainSet
from tests.support.structure_inputs import chain_lines, write_pdb

ONE, OTHER = "MKTAYIAKQRQISFVKSHFSRQLEERLG", "GDVNWKLPEETARHYCQSIVDTLFKMGA"
SETTINGS = BuildSettings(min_length=5)


def structure(path: Path, sequence: str, chain: str = "A") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_pdb(path, chain_lines(sequence, chain=chain))


def test_atoms_of_rejected_chains_are_not_counted_as_kept(tmp_path: Path) -> None:
    structure(tmp_path / "in" / "a.pdb", ONE)
    structure(tmp_path / "in" / "short.pdb", ONE[:3])
    twice = structure(tmp_path / "in" / "twice.pdb", OTHER).read_text().replace("END\n", "TER\n")
    other = structure(tmp_path / "other.pdb", OTHER, "B").read_text()
    (tmp_path / "in" / "twice.pdb").write_text(twice + other)
    report = build(tmp_path / "in", tmp_path / "set.npz", jobs=1, settings=SETTINGS)
    assert report.atoms == {"kept": 4 * 56, "chain not accepted": 4 * (3 + 28)}
    stored = sum(int(record.atom_mask.sum()) for record in ChainSet.open(tmp_path / "set.npz"))
    assert stored == report.atoms["kept"]
    assert "348 atom records: 224 kept (64.4%); 124 chain not accepted" in report.summary()


def test_predictions_with_the_same_id_are_named_after_their_files(tmp_path: Path) -> None:
    """ranked_0.pdb of AlphaFold in one folder per target, and files whose entries all have the same id."""
    third, fourth = ONE[::-1], OTHER[::-1]
    for name, sequence in {"T1": ONE, "T2": OTHER, "T3": third, "T4": ONE}.items():
        structure(tmp_path / "in" / name / "ranked_0.pdb", sequence)
    for name, sequence in {"x": ONE, "y": fourth}.items():
        header = "HEADER    PROTEIN                                 01-JAN-20   MODL              \n"
        path = structure(tmp_path / "in" / f"{name}.pdb", sequence)
        path.write_text(header + path.read_text())
    report = build(tmp_path / "in", tmp_path / "set.npz", jobs=1)
    stored = {record.id: record.sequence for record in ChainSet.open(tmp_path / "set.npz")}
    assert stored == {
        "ranked_0_A": ONE, "T2_ranked_0_A": OTHER, "T3_ranked_0_A": third, "MODL_A": ONE, "y_A": fourth,
    }  # fmt: skip
    rows = [(row["file"], row["chain"], row["status"]) for row in report.rows if row["chain"]]
    assert ("T4/ranked_0.pdb", "ranked_0_A", "rejected") in rows
    assert ("T3/ranked_0.pdb", "T3_ranked_0_A", "accepted") in rows
    again = build(tmp_path / "in", tmp_path / "set.npz", jobs=1)
    assert (again.cached, again.rows) == (6, report.rows)


def test_unsupported_structure_files_have_a_row(tmp_path: Path) -> None:
    structure(tmp_path / "in" / "a.pdb", ONE)
    names = ["deep/b.pdb1", "c.bcif.gz", "d.pdbx", "e.cif"]
    (tmp_path / "in" / "deep").mkdir()
    for name in names[:3]:
        (tmp_path / "in" / name).write_text("anything")
    (tmp_path / "in" / "e.cif").symlink_to(tmp_path / "nothing.cif")
    (tmp_path / "in" / "notes.txt").write_text("ignored")
    report = build(tmp_path / "in", tmp_path / "set.npz", jobs=1)
    rows = {row["file"]: row["reason"] for row in report.rows if row["kind"] == "unsupported file"}
    assert rows.keys() == set(names)
    assert rows["e.cif"] == "broken link: the target does not exist"
    assert "unsupported format *.pdb1" in rows["deep/b.pdb1"]
    assert (report.files, report.counts) == (1, {"accepted": 1, "unsupported file": 4})
