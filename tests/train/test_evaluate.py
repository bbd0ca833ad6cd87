"""Evaluation and prediction with a run folder: what is written, and what bad input does."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import gemmi
import numpy as np
import pytest
from Bio.PDB import PDBParser
from fold_run import make_fold_run

from ds4sci import scores
from ds4sci.data import writers
from ds4sci.data.chains import ChainSet
from ds4sci.train import evaluate, predict


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fold_run(tmp_path_factory.mktemp("evaluate"))


def test_evaluation_scores_every_chain_in_order(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chains = run.parents[1] / "valid.npz"
    means = evaluate.evaluate_run(run, chains, tmp_path / "deep" / "out.json")
    result = json.loads((tmp_path / "deep" / "out.json").read_text())
    records = ChainSet.open(chains)
    assert result["mean"] == means
    assert [row["id"] for row in result["per_chain"]] == records.ids
    assert [row["length"] for row in result["per_chain"]] == records.lengths.tolist()
    assert result["step"] == 200
    assert {"run", "commit", "machine", "checksum", "seconds"} <= set(result)
    for key in ("lddt_ca", "tm_score", "gdt_ts", "rmsd"):
        assert means[key] == pytest.approx(np.mean([row[key] for row in result["per_chain"]]))
    assert "lDDT-Cα" in capsys.readouterr().out
    # the same set under the run's own name fills what the report shows
    own = evaluate.evaluation_files(run)
    assert json.loads(own["held_out"].read_text()) == result
    with np.load(own["predictions"], allow_pickle=False) as shelf:
        first = records[0]
        assert shelf[f"{first.id}/distances"].shape == (len(first.sequence),) * 2
        assert np.nanmean(shelf[f"{first.id}/lddt"]) == pytest.approx(result["per_chain"][0]["lddt_ca"], abs=0.05)
        rescored = scores.lddt_ca(shelf[f"{first.id}/ca"], shelf[f"{first.id}/true_ca"], shelf[f"{first.id}/mask"])
        assert rescored == pytest.approx(result["per_chain"][0]["lddt_ca"], abs=1e-4)
        assert len(shelf.files) == 10 * len(records)


def test_untrained_and_foreign_sets(run: Path, tmp_path: Path) -> None:
    chains = run.parents[1] / "valid.npz"
    untrained = evaluate.evaluate_run(run, chains, which="untrained", show=False)
    own = evaluate.evaluation_files(run)["untrained"]
    assert json.loads(own.read_text())["mean"] == untrained
    assert json.loads(own.read_text())["step"] == 0
    assert untrained["lddt_ca"] != evaluate.evaluate_run(run, chains, which="200", show=False)["lddt_ca"]
    before = own.read_text()
    other = tmp_path / "other.npz"
    ChainSet.write(other, ChainSet.open(chains)[:1])
    evaluate.evaluate_run(run, other, tmp_path / "o.json", which="untrained", show=False)
    assert own.read_text() == before
    assert len(json.loads((tmp_path / "o.json").read_text())["per_chain"]) == 1


def test_evaluation_says_what_is_missing(run: Path, tmp_path: Path) -> None:
    chains = run.parents[1] / "valid.npz"
    with pytest.raises(ValueError, match="run"):
        evaluate.evaluate_run(tmp_path, chains)
    with pytest.raises(ValueError, match="step_000007"):
        evaluate.evaluate_run(run, chains, which="7")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        evaluate.evaluate_run(run, tmp_path / "nowhere.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.npz"):
        evaluate.evaluate_run(run, tmp_path / "text.npz")


def test_torsions_of_a_built_backbone() -> None:
    """Atoms placed one by one with φ = −57°, ψ = −47°, ω = 180° give those angles back."""
    phi, psi = -57.0, -47.0
    points = [np.array([0.0, 0, 0]), np.array([1.46, 0, 0]), np.array([2.0, 1.42, 0])]
    for _ in range(4):
        for length, angle, dihedral in ((1.33, 116.2, psi), (1.46, 121.7, 180.0), (1.53, 111.0, phi)):  # N, CA, C
            a, b, c = points[-3:]
            axis = (c - b) / np.linalg.norm(c - b)
            normal = np.cross(b - a, axis)
            normal /= np.linalg.norm(normal)
            bend, turn = np.radians(180 - angle), np.radians(dihedral)
            local = length * np.array([np.cos(bend), np.sin(bend) * np.cos(turn), np.sin(bend) * np.sin(turn)])
            points.append(c + local @ np.stack([axis, np.cross(normal, axis), normal]))
    atoms = np.zeros((5, 37, 3))
    atoms[:, :3] = np.array(points).reshape(5, 3, 3)
    found = evaluate.torsions(atoms)
    np.testing.assert_allclose(found[1:, 0], phi, atol=1e-6)
    np.testing.assert_allclose(found[:-1, 1], psi, atol=1e-6)
    assert np.isnan(found[0, 0])
    assert np.isnan(found[-1, 1])


SEQUENCES = {"first": "MKTAYIAKQRQISFVKSHFSRQ", "second.X": "GAVLXKW"}


def write_fasta(folder: Path, sequences: dict[str, str]) -> Path:
    path = folder / "in.fasta"
    path.write_text("".join(f">{name} a description\n{sequence}\n" for name, sequence in sequences.items()))
    return path


def test_prediction_writes_structures(run: Path, tmp_path: Path) -> None:
    alignments = tmp_path / "msa"
    alignments.mkdir()
    with gzip.open(alignments / "first.a3m.gz", "wt") as file:
        file.write(f">first\n{SEQUENCES['first']}\n>hit\n{'-' * 5}{SEQUENCES['first'][5:]}\n")
    out = tmp_path / "out"
    summary = predict.predict_run(run, write_fasta(tmp_path, SEQUENCES), out, alignments)
    assert json.loads((out / "summary.json").read_text()) == summary
    first, second = summary["records"]
    assert (first["input"], first["msa_rows"], second["input"]) == ("alignment", 2, "sequence")
    assert sorted(path.name for path in out.iterdir()) == [
        "first.cif", "first.pdb", "second.X.cif", "second.X.pdb", "summary.json",
    ]  # fmt: skip
    for row in summary["records"]:
        (chain,) = gemmi.read_structure(str(out / f"{row['id']}.cif"))[0]
        assert gemmi.one_letter_code([residue.name for residue in chain]) == SEQUENCES[row["id"]]
        confidences = [residue[0].b_iso for residue in chain]
        assert np.mean(confidences) == pytest.approx(row["plddt"], abs=0.02)
        assert 0 <= min(confidences) <= max(confidences) <= 100
        (again,) = PDBParser(QUIET=True).get_structure("x", str(out / f"{row['id']}.pdb"))[0]
        assert len(list(again)) == row["length"]
    paths = list(predict.predict_fasta(run, write_fasta(tmp_path, SEQUENCES), out, show=False))
    assert paths[-1] == out / "summary.json"
    assert all(path.is_file() for path in paths)
    assert len(paths) == 5
    # without its alignment the first record is another input, and so another structure
    assert json.loads((out / "summary.json").read_text())["records"][0]["plddt"] != first["plddt"]


def test_what_pdb_cannot_hold_is_mmcif_alone(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "PDB_MAX_RESIDUES", 20)
    summary = predict.predict_run(run, write_fasta(tmp_path, SEQUENCES), tmp_path / "out", show=False)
    first, second = summary["records"]
    assert first["files"] == ["first.cif"]
    assert "residue number of 22, at most 20" in first["no_pdb"]
    assert second["files"] == ["second.X.cif", "second.X.pdb"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (">a\nMK\n>a\nMK\n", "'a' was used on line 1"),
        (">a\nMK\n>A\nMK\n", "'a' and 'A' differ in capitals alone"),
        (">../a\nMK\n", r"'\.\./a' cannot name a file"),
        (">.hidden\nMK\n", "'.hidden' cannot name a file"),
        (">" + "a" * 300 + "\nMK\n", "cannot name a file"),
        (">a\n", "'a' has no sequence"),
        ("", "no FASTA entry"),
        (">a\nMK1\n", "line 2: '1' at letter 3"),
    ],
)
def test_bad_fasta_writes_nothing(run: Path, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "in.fasta").write_text(text)
    with pytest.raises(ValueError, match=words):
        predict.predict_run(run, tmp_path / "in.fasta", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_alignments_are_named(run: Path, tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path, SEQUENCES)
    with pytest.raises(ValueError, match="no such folder"):
        predict.predict_run(run, fasta, tmp_path / "out", tmp_path / "absent")
    alignments = tmp_path / "msa"
    alignments.mkdir()
    (alignments / "other.a3m").write_text(">other\nMK\n")
    with pytest.raises(ValueError, match="no alignment for any record"):
        predict.predict_run(run, fasta, tmp_path / "out", alignments)
    (alignments / "first.a3m").write_text(">first\nMKTAWIAKQRQISFVKSHFSRQ\n")
    with pytest.raises(ValueError, match=r"first\.a3m.*at residue 5 the alignment has W, the chain Y"):
        predict.predict_run(run, fasta, tmp_path / "out", alignments)
    assert not (tmp_path / "out").exists()
