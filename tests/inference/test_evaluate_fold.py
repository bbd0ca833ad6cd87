"""Evaluation and prediction with a run folder: what is written, and what bad input does."""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
from Bio.PDB import PDBParser

from ds4sci import metrics
from ds4sci.cli.main import main
from ds4sci.data.alignments.profile import with_msa_input
from ds4sci.data.sequences import fasta_records
from ds4sci.data.structures import writers
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.inference import predict
from ds4sci.inference.evaluate import evaluate_run
from ds4sci.inference.trained_run import evaluation_files
from ds4sci.machine import memory
from ds4sci.tasks.evaluations.structures import torsions
from ds4sci.types import Prediction
from tests.support.fold_run import make_fold_run

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
    # the same set under the run's own name fills what the report shows
    own = evaluation_files(run)
    assert json.loads(own["held_out"].read_text()) == result
    with np.load(own["predictions"], allow_pickle=False) as shelf:
        first = records[0]
        assert shelf[f"{first.id}/distances"].shape == (len(first.sequence),) * 2
        assert np.nanmean(shelf[f"{first.id}/lddt"]) == pytest.approx(result["per_chain"][0]["lddt_ca"], abs=0.05)
        rescored = metrics.lddt_ca(shelf[f"{first.id}/ca"], shelf[f"{first.id}/true_ca"], shelf[f"{first.id}/mask"])
        assert rescored == pytest.approx(result["per_chain"][0]["lddt_ca"], abs=1e-4)
        assert len(shelf.files) == 10 * len(records)


def test_untrained_and_foreign_sets(run: Path, tmp_path: Path) -> None:
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


def test_evaluation_says_what_is_missing(run: Path, tmp_path: Path) -> None:
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
    found = torsions(atoms)
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


def test_files_and_folders_taken_for_one_another(run: Path, tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path, SEQUENCES)
    with pytest.raises(ValueError, match=r"is a folder; expected a FASTA file"):
        predict.predict_run(run, tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match=r"in\.fasta: is a file; expected a folder"):
        predict.predict_run(run, fasta, fasta)


def test_a_bad_sequence_costs_its_record_alone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fasta = write_fasta(tmp_path, {"first": "GAVLIKW", "digit": "MK1A?", "none": "", "last": "GAVL"})
    assert command("predict", "--run", run, "--fasta", fasta, "--out", tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert f"failed: digit (5 residues): {fasta}: line 4: '1' at letter 3 of 'digit' is not a valid amino acid" in told
    assert f"failed: none (0 residues): {fasta}: line 5: 'none' has no sequence" in told
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [row["status"] for row in summary["records"]] == ["predicted", "failed", "failed", "predicted"]


def test_a_bad_alignment_costs_its_record_alone(run: Path, tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path, SEQUENCES)
    with pytest.raises(ValueError, match="no such folder"):
        predict.predict_run(run, fasta, tmp_path / "out", tmp_path / "absent")
    alignments = tmp_path / "msa"
    alignments.mkdir()
    (alignments / "other.a3m").write_text(">other\nMK\n")
    with pytest.raises(ValueError, match="no alignment for any record"):
        predict.predict_run(run, fasta, tmp_path / "out", alignments)
    assert not (tmp_path / "out").exists()
    (alignments / "first.a3m").write_text(">first\nMKTAWIAKQRQISFVKSHFSRQ\n")
    first, second = predict.predict_run(run, fasta, tmp_path / "out", alignments, show=False)["records"]
    assert first["status"] == predict.FAILED
    assert f"{alignments / 'first.a3m'}: its query is not the sequence of first: at residue 5 the" in first["error"]
    assert second["status"] == predict.PREDICTED
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*second["files"], "summary.json"}


def test_alignment_files_are_told_in_the_summary(run: Path, tmp_path: Path) -> None:
    sequence = "MKTAYIAKQRQISFVKSHFSRQLEERLG"
    fasta = write_fasta(tmp_path, {"q1": sequence})
    folder = DATA / "alignments" / "openfold"
    (row,) = predict.predict_run(run, fasta, tmp_path / "out", folder, show=False)["records"]
    assert (row["input"], row["msa_rows"]) == ("alignment", 3)
    assert [file["file"] for file in row["alignments"]] == [
        "bfd_uniref_hits.a3m",
        "hmm_output.sto",
        "uniref90_hits.sto",
    ]
    assert any("hmm_output.sto skipped: template hits (PDB)" in note for note in row["notes"])


# --- a record that fails ------------------------------------------------------------------------------------------

LONG = {"ok": "MKTAYIAKQRQISFVKSHFSRQLEERLG", "titin_part": "MKTAYIAKQR" * 900, "last": "GAVLIKW"}


def command(*arguments: str | Path) -> int | str | None:
    """Exit code of ``ds4sci ARGUMENTS``."""
    with pytest.raises(SystemExit) as stopped:
        main([str(one) for one in arguments])
    return stopped.value.code


def test_a_record_that_needs_too_much_memory_is_refused_by_name(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others are predicted, the summary tells of all, and the exit code says that one failed."""
    with limited_memory(1 << 30):
        code = command("predict", "--run", run, "--fasta", write_fasta(tmp_path, LONG), "--out", tmp_path / "out")
    assert code == 1
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["counts"] == {"predicted": 2, "failed": 1, "not attempted": 0}
    assert [row["id"] for row in summary["records"]] == list(LONG)
    long = summary["records"][1]
    assert (long["status"], long["length"], long["files"]) == ("failed", 9000, [])
    assert re.search(r"needs about \d+\.\d GB of memory at 9000 residues, [01]\.\d GB are free", long["error"])
    assert "failed: titin_part (9000 residues): needs about" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "last.cif", "last.pdb", "ok.cif", "ok.pdb", "summary.json",
    ]  # fmt: skip


def test_memory_that_runs_out_costs_the_record_alone(run: Path, tmp_path: Path) -> None:
    """Tried all the same: torch's own error of a real allocation, as under ``ulimit -v``."""
    with limited_memory(1 << 30):
        summary = predict.predict_run(
            run, write_fasta(tmp_path, LONG), tmp_path / "out", check_memory=False, show=False
        )
    assert [row["status"] for row in summary["records"]] == ["predicted", "failed", "predicted"]
    assert re.match(r"out of memory at 9000 residues \(\w+: ", summary["records"][1]["error"])
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary


@contextlib.contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """This process may take ``more`` bytes beyond what it has."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    held = memory.from_proc("self/status", "VmData")
    assert held is not None
    resource.setrlimit(resource.RLIMIT_DATA, (held + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def test_what_fails_while_files_are_written_leaves_none(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is raised: here a full disk at the second of a record's files."""
    real = writers.replace_text

    def full_disk(path: Path, text: str) -> None:
        if path.name == "first.pdb":
            raise OSError(28, "No space left on device")
        real(path, text)

    monkeypatch.setattr(writers, "replace_text", full_disk)
    summary = predict.predict_run(run, write_fasta(tmp_path, SEQUENCES), tmp_path / "out", show=False)
    first, second = summary["records"]
    assert (first["status"], first["files"]) == ("failed", [])
    assert first["error"] == "OSError: [Errno 28] No space left on device"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*second["files"], "summary.json"}
    with pytest.warns(UserWarning, match=r"1 of 2 records failed: first \(22 residues\): OSError"):
        list(predict.predict_fasta(run, write_fasta(tmp_path, SEQUENCES), tmp_path / "again", show=False))


def test_what_an_earlier_run_left_does_not_outlive_a_failure(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the PDB file of a record that the format can no longer hold."""
    fasta, out = write_fasta(tmp_path, SEQUENCES), tmp_path / "out"
    predict.predict_run(run, fasta, out, show=False)
    (tmp_path / "msa").mkdir()
    (tmp_path / "msa" / "second.X.a3m").write_text(">second.X\nAAAAAAA\n")
    monkeypatch.setattr(writers, "PDB_MAX_RESIDUES", 20)
    first, second = predict.predict_run(run, fasta, out, tmp_path / "msa", show=False)["records"]
    assert (first["files"], second["status"]) == (["first.cif"], predict.FAILED)
    assert {path.name for path in out.iterdir()} == {"first.cif", "summary.json"}


def test_an_interrupted_command_tells_what_is_done(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = writers.write_pdb

    def interrupt(prediction: Prediction, path: Path) -> Path:
        if prediction.id == "second.X":
            raise KeyboardInterrupt
        return real(prediction, path)

    monkeypatch.setattr(writers, "write_pdb", interrupt)
    with pytest.raises(KeyboardInterrupt):
        predict.predict_run(run, write_fasta(tmp_path, SEQUENCES), tmp_path / "out", show=False)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [row["status"] for row in summary["records"]] == ["predicted", "not attempted"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["first.cif", "first.pdb", "summary.json"]


def test_evaluation_names_the_chains_for_which_memory_is_short(run: Path, tmp_path: Path) -> None:
    """A mean over the others would be another figure, so that nothing is written."""
    long = with_msa_input(fasta_records.make_record("long_A", LONG["titin_part"]), "profile")
    chains = tmp_path / "long.npz"
    ChainSet.write(chains, [replace(long, atom_mask=np.ones((9000, 37), bool))])
    with limited_memory(1 << 30), pytest.raises(ValueError, match="chains long_A: out of memory at 9000 residues"):
        evaluate_run(run, tmp_path / "out.json", files={"chains": chains}, show=False)
    assert not (tmp_path / "out.json").exists()


# --- names and letters --------------------------------------------------------------------------------------------


def test_names_of_records_become_names_of_files() -> None:
    names = ["a", "A", "../a", "/a", ".hidden", "x" * 300, "x" * 301, "ok.1|B", "a_2", "café"]
    stems = predict.file_stems(names)
    assert stems == [
        "a", "A_3", "_._a", "_a", "_hidden", "x" * 200, "x" * 200 + "_2", "ok.1|B", "a_2", "caf_",
    ]  # fmt: skip
    assert len({stem.lower() for stem in stems}) == len(names)
    # a name that needs no change keeps it, whatever stands before it
    assert predict.file_stems(["a/b", "a_b"]) == ["a_b_2", "a_b"]


def test_unsafe_names_overwrite_nothing(run: Path, tmp_path: Path) -> None:
    (tmp_path / "in.fasta").write_text(">../x\nGAV\n>X\nGAVL\n>x\nGAVLI\n")
    summary = predict.predict_run(run, tmp_path / "in.fasta", tmp_path / "out" / "deep", show=False)
    assert [row["files"][0] for row in summary["records"]] == ["_._x.cif", "X.cif", "x_2.cif"]
    for row in summary["records"]:
        chain = gemmi.read_structure(str(tmp_path / "out" / "deep" / row["files"][0]))[0][0]
        assert len(chain) == row["length"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["deep"]


def test_letters_that_a_user_should_know_of(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """DNA given to a protein model, and letters that are read as X, by record."""
    dna, rare = "ATGAAAACCGCGTATATTGCGAAACAGCGTCAG", "MKTAYBZJUOXISFVKSHFSRQLEERLG*"
    (tmp_path / "in.fasta").write_text(f"\ufeff>gene\n{dna}\n>rare\n{rare}\n>plain\nMKTAYGAT\n", encoding="utf-8")
    summary = predict.predict_run(run, tmp_path / "in.fasta", tmp_path / "out")
    gene, odd, plain = summary["records"]
    assert "all 33 letters are A, C, G, T, U or N: is it DNA or RNA?" in gene["notes"][0]
    assert odd["notes"] == ["5 of 28 letters (B, Z, J, U, O) read as X"]
    assert plain["notes"] == []
    assert "warning: all 33 letters" in capsys.readouterr().out
    read = gemmi.read_structure(str(tmp_path / "out" / "rare.cif"))
    assert read.entities[0].full_sequence[5:11] == ["UNK"] * 6
