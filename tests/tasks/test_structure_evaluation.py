"""Evaluation of predicted structures: scores, report files, errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ds4sci import metrics
from ds4sci.data.alignments.profile import with_msa_input
from ds4sci.data.sequences import fasta_records
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.inference.evaluate import evaluate_run
from ds4sci.inference.trained_run import evaluation_files
from ds4sci.tasks.evaluations.structures import torsions
from tests.support.fold_run import make_fold_run
from tests.support.limited_memory import limited_memory

DATA = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fold_run(tmp_path_factory.mktemp("evaluate"))


def test_evaluation_scores_every_chain_in_order(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chains = run.parents[1] / "valid.npz"
    means = evaluate_run(run, tmp_path / "deep" / "out.json", files={"chains": chains})["mean"]
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
    # the run's own validation set also fills the files of the report
    own = evaluation_files(run)
    assert json.loads(own["held_out"].read_text()) == result
    with np.load(own["predictions"], allow_pickle=False) as shelf:
        first = records[0]
        assert shelf[f"{first.id}/distances"].shape == (len(first.sequence),) * 2
        assert np.nanmean(shelf[f"{first.id}/lddt"]) == pytest.approx(result["per_chain"][0]["lddt_ca"], abs=0.05)
        rescored = metrics.lddt_ca(shelf[f"{first.id}/ca"], shelf[f"{first.id}/true_ca"], shelf[f"{first.id}/mask"])
        assert rescored == pytest.approx(result["per_chain"][0]["lddt_ca"], abs=1e-4)
        assert len(shelf.files) == 13 * len(records)


def test_other_checkpoints_and_other_sets(run: Path, tmp_path: Path) -> None:
    chains = run.parents[1] / "valid.npz"
    untrained = evaluate_run(run, files={"chains": chains}, which="untrained", show=False)["mean"]
    own = evaluation_files(run)["untrained"]
    assert json.loads(own.read_text())["mean"] == untrained
    assert json.loads(own.read_text())["step"] == 0
    trained = evaluate_run(run, files={"chains": chains}, which="200", show=False)["mean"]
    assert untrained["lddt_ca"] != trained["lddt_ca"]
    before = own.read_text()
    other = tmp_path / "other.npz"
    ChainSet.write(other, ChainSet.open(chains)[:1])
    evaluate_run(run, tmp_path / "o.json", files={"chains": other}, which="untrained", show=False)
    assert own.read_text() == before
    assert len(json.loads((tmp_path / "o.json").read_text())["per_chain"]) == 1


def test_without_a_file_the_held_out_chains_are_scored(run: Path, tmp_path: Path) -> None:
    result = evaluate_run(run, tmp_path / "out.json", show=False)
    assert result["evaluation"] == "held_out"
    assert result["mean"].keys() >= {"lddt_ca", "tm_score"}
    with pytest.raises(
        ValueError, match=r"no evaluation takes --fasta; .*: held_out \(no input\); structures \(--chains\)"
    ):
        evaluate_run(run, files={"fasta": tmp_path / "in.fa"}, show=False)


def test_missing_inputs_are_named(run: Path, tmp_path: Path) -> None:
    chains = run.parents[1] / "valid.npz"
    with pytest.raises(ValueError, match="run"):
        evaluate_run(tmp_path, files={"chains": chains})
    with pytest.raises(ValueError, match="step_000007"):
        evaluate_run(run, files={"chains": chains}, which="7")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz"):
        evaluate_run(run, files={"chains": tmp_path / "nowhere.npz"})
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match=r"text\.npz"):
        evaluate_run(run, files={"chains": tmp_path / "text.npz"})


def test_torsions_of_a_constructed_backbone() -> None:
    """A backbone built with φ = −57°, ψ = −47°, ω = 180° has these torsions."""
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
    found = torsions(atoms)
    np.testing.assert_allclose(found[1:, 0], phi, atol=1e-6)
    np.testing.assert_allclose(found[:-1, 1], psi, atol=1e-6)
    assert np.isnan(found[0, 0])
    assert np.isnan(found[-1, 1])


def test_out_of_memory_names_the_chains_and_writes_nothing(run: Path, tmp_path: Path) -> None:
    """A mean over the other chains would not be comparable."""
    long = with_msa_input(fasta_records.make_record("long_A", "MKTAYIAKQR" * 900), "profile")
    chains = tmp_path / "long.npz"
    ChainSet.write(chains, [replace(long, atom_mask=np.ones((9000, 37), bool))])
    with limited_memory(1 << 30), pytest.raises(ValueError, match="chains long_A: out of memory at 9000 residues"):
        evaluate_run(run, tmp_path / "out.json", files={"chains": chains}, show=False)
    assert not (tmp_path / "out.json").exists()
