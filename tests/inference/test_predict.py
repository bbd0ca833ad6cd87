"""Structure prediction from FASTA files: output files, summary, records that fail."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
import torch
from Bio.PDB import PDBParser

from ds4sci.cli.main import main
from ds4sci.config.run_file import RunConfig
from ds4sci.data.alignments.profile import with_msa_input
from ds4sci.data.sequences import fasta_records
from ds4sci.data.sequences.fasta_records import make_record
from ds4sci.data.structures import writers
from ds4sci.data.structures.batch import collate
from ds4sci.data.structures.template_files import align_templates, write_templates
from ds4sci.inference import predict
from ds4sci.inference.prediction_inputs import file_stems, read_jobs
from ds4sci.inference.trained_run import TrainedRun
from ds4sci.models import fold
from ds4sci.models.published_weights import read_weights
from ds4sci.models.published_weights.sizes import differing_sizes, read_contents
from ds4sci.report.prediction_page import write_prediction_page
from ds4sci.tasks.fold import FoldTask
from ds4sci.types import Prediction
from tests.support import synthetic_weights, template_hits
from tests.support.fold_run import CONFIG, SMALL, make_fold_run
from tests.support.html_page import Page
from tests.support.limited_memory import limited_memory

DATA = Path(__file__).parents[1] / "fixtures"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fold_run(tmp_path_factory.mktemp("predict"))


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
        "first.cif", "first.confidence.npz", "first.pdb", "second.X.cif", "second.X.confidence.npz", "second.X.pdb",
        "summary.json",
    ]  # fmt: skip
    for row in summary["records"]:
        (chain,) = gemmi.read_structure(str(out / f"{row['id']}.cif"))[0]
        assert gemmi.one_letter_code([residue.name for residue in chain]) == SEQUENCES[row["id"]]
        confidences = [residue[0].b_iso for residue in chain]
        assert np.mean(confidences) == pytest.approx(row["plddt"], abs=0.02)
        assert 0 <= min(confidences) <= max(confidences) <= 100
        (again,) = PDBParser(QUIET=True).get_structure("x", str(out / f"{row['id']}.pdb"))[0]
        assert len(list(again)) == row["length"]
        with np.load(out / f"{row['id']}.confidence.npz", allow_pickle=False) as arrays:
            np.testing.assert_allclose(arrays["plddt"], confidences, atol=0.006)
            assert arrays["distances"].shape == arrays["contacts"].shape == (row["length"], row["length"])
            assert "pae" not in arrays  # the model lacks the head
        assert row["ranking_confidence"] == row["plddt"]
        assert "ptm" not in row
    paths = list(predict.predict_fasta(run, write_fasta(tmp_path, SEQUENCES), out, show=False))
    assert paths[-1] == out / "summary.json"
    assert all(path.is_file() for path in paths)
    assert len(paths) == 7
    # without its alignment, the first record has a different prediction
    assert json.loads((out / "summary.json").read_text())["records"][0]["plddt"] != first["plddt"]


def test_a_model_with_the_head_predicts_aligned_errors(tmp_path: Path) -> None:
    """Chains of two lengths in one batch, and the files of each: PAE and pTM are those of the logits of one chain."""
    run = make_fold_run(tmp_path, overrides=['model.heads=["tm"]', "data.evaluation_recycling=1"])
    task, device = TrainedRun.load(run).task, torch.device("cpu")
    assert isinstance(task, FoldTask)
    records = [fasta_records.make_record(name, sequence) for name, sequence in SEQUENCES.items()]
    features = [task.featurize(with_msa_input(record, task.msa_input)) for record in records]
    together = task.predict(features, device)
    summary = predict.predict_run(run, write_fasta(tmp_path, SEQUENCES), tmp_path / "out", show=False)
    rows = summary["records"]
    for one, prediction, row in zip(features, together, rows, strict=True):
        with torch.no_grad():
            logits = task.model.eval()(collate([one], recycling=1)).aligned_error_logits[0].double()
        probability, n = logits.softmax(-1), row["length"]
        np.testing.assert_allclose(prediction.pae, probability @ (torch.arange(64) / 2 + 0.25).double(), atol=1e-4)
        d0 = 1.24 * (max(n, 19) - 15) ** (1 / 3) - 1.8
        score = 1 / (1 + ((torch.arange(64) / 2 + 0.25).double() / d0) ** 2)
        assert prediction.ptm == pytest.approx(float((probability @ score).mean(1).max()), abs=1e-6)
        assert np.ptp(prediction.pae) > 0.1
        assert row["ptm"] == pytest.approx(prediction.ptm, abs=1e-4)
        with np.load(tmp_path / "out" / f"{row['id']}.confidence.npz", allow_pickle=False) as arrays:
            np.testing.assert_allclose(arrays["pae"], prediction.pae, rtol=1e-3)
        block = gemmi.cif.read(str(tmp_path / "out" / f"{row['id']}.cif")).sole_block()
        metrics = dict(zip(*(block.find_values(f"_ma_qa_metric.{key}") for key in ("id", "name")), strict=True))
        values = {
            metrics[key]: float(value)
            for key, value in zip(
                *(block.find_values(f"_ma_qa_metric_global.{key}") for key in ("metric_id", "metric_value")),
                strict=True,
            )
        }
        assert values == {"pLDDT": pytest.approx(row["plddt"], abs=0.006), "pTM": row["ptm"]}
    write_prediction_page(tmp_path / "out")
    page = Page((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))
    assert "pTM" in page.text
    assert f"{rows[0]['ptm']:.2f}" in page.text
    assert page.data["view-data"]["structures"][0]["maps"][0]["name"] == "predicted aligned error"


def test_records_too_large_for_pdb_get_only_mmcif(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "PDB_MAX_RESIDUES", 20)
    summary = predict.predict_run(run, write_fasta(tmp_path, SEQUENCES), tmp_path / "out", show=False)
    first, second = summary["records"]
    assert first["files"] == ["first.cif", "first.confidence.npz"]
    assert "a residue number of 22; the limit is 20" in first["no_pdb"]
    assert second["files"] == ["second.X.cif", "second.X.pdb", "second.X.confidence.npz"]


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


def test_a_folder_in_place_of_a_file_and_the_reverse(run: Path, tmp_path: Path) -> None:
    fasta = write_fasta(tmp_path, SEQUENCES)
    with pytest.raises(ValueError, match=r"is a folder; expected a FASTA file"):
        predict.predict_run(run, tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match=r"in\.fasta: is a file; expected a folder"):
        predict.predict_run(run, fasta, fasta)


def test_a_bad_sequence_fails_only_its_record(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fasta = write_fasta(tmp_path, {"first": "GAVLIKW", "digit": "MK1A?", "none": "", "last": "GAVL"})
    assert command("predict", "--run", run, "--fasta", fasta, "--out", tmp_path / "out") == 1
    printed = capsys.readouterr().err
    assert (
        f"failed: digit (5 residues): {fasta}: line 4: '1' at letter 3 of 'digit' is not a valid amino acid" in printed
    )
    assert f"failed: none (0 residues): {fasta}: line 5: 'none' has no sequence" in printed
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [row["status"] for row in summary["records"]] == ["predicted", "failed", "failed", "predicted"]


def test_predict_writes_a_page_and_report_writes_it_again(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    fasta = write_fasta(tmp_path, {"first": "GAVLIKW", "digit": "MK1A?"})
    assert command("predict", "--run", run, "--fasta", fasta, "--out", out) == 1
    assert str(out / "index.html") in capsys.readouterr().out
    source = (out / "index.html").read_text(encoding="utf-8")
    page = Page(source)
    page.check_self_contained()
    assert [one["name"] for one in page.data["view-data"]["structures"]] == ["first"]
    assert "'1' at letter 3 of 'digit' is not a valid amino acid" in page.text
    (out / "index.html").unlink()
    assert command("report", out) == 0
    assert (out / "index.html").read_text(encoding="utf-8") == source


def test_a_bad_alignment_fails_only_its_record(run: Path, tmp_path: Path) -> None:
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
    assert f"{alignments / 'first.a3m'}: the query is not the sequence of first: at residue 5 the" in first["error"]
    assert second["status"] == predict.PREDICTED
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*second["files"], "summary.json"}


def test_templates_are_read_from_a_folder(run: Path, tmp_path: Path) -> None:
    """Records without a file have no templates; a model without templates refuses them."""
    fasta, folder = write_fasta(tmp_path, SEQUENCES), tmp_path / "templates"
    folder.mkdir()
    predicted = lambda **given: predict.predict_run(run, fasta, tmp_path / "out", show=False, **given)  # noqa: E731
    with pytest.raises(ValueError, match="no templates for any record"):
        read_jobs(fasta, None, folder)
    name, sequence = next(iter(SEQUENCES.items()))
    record = make_record(name, sequence)
    mask = np.ones_like(record.atom_mask)
    positions = np.random.default_rng(0).normal(0, 9, record.atom_positions.shape).astype(np.float32)
    known = replace(record, atom_positions=positions, atom_mask=mask)
    write_templates(folder / f"{name}.npz", align_templates(len(sequence), [(known, np.arange(len(sequence)))]))
    with pytest.raises(ValueError, match=r"the model takes no templates; it needs model\.template\.blocks"):
        predicted(template_dir=folder)
    jobs = read_jobs(fasta, None, folder)
    assert [job.record.templates is not None for job in jobs] == [True, *[False] * (len(jobs) - 1)]
    (folder / f"{name}.npz").write_bytes(b"damaged")
    first = read_jobs(fasta, None, folder)[0]
    assert first.error is not None
    assert first.error.startswith(f"{folder / name}.npz: not a file of templates")


def test_the_summary_lists_alignment_files(run: Path, tmp_path: Path) -> None:
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


LONG = {"ok": "MKTAYIAKQRQISFVKSHFSRQLEERLG", "titin_part": "MKTAYIAKQR" * 900, "last": "GAVLIKW"}


def command(*arguments: str | Path) -> int | str | None:
    """Exit code of ``ds4sci ARGUMENTS``."""
    with pytest.raises(SystemExit) as stopped:
        main([str(one) for one in arguments])
    return stopped.value.code


def test_templates_of_hits_change_the_prediction(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``ds4sci predict`` from hit files and structures, end to end: the templates used, the hits dropped, and why."""
    overrides = [
        "data.features.max_templates=2", "model.template.blocks=1", "model.template.c_t=4",
        "model.template.heads_pair=1", "model.template.d_pair=4", "model.template.c_multiplication=4",
        "model.template.d_attention=4", "data.evaluation_recycling=0",
    ]  # fmt: skip
    run = make_fold_run(tmp_path, overrides=overrides)
    fasta, hits = write_fasta(tmp_path, {"q": template_hits.QUERY, "other": "MKTAYIAKQR"}), tmp_path / "hits"
    (hits / "q").mkdir(parents=True)
    shutil.copy(template_hits.EXPECTED / "q.hhr", hits / "q" / "hhsearch_output.hhr")
    (tmp_path / "obsolete.dat").write_text(template_hits.OBSOLETE)
    base = ["predict", "--run", str(run), "--fasta", str(fasta)]
    given = [*base, "--templates", str(hits), "--template-structures", str(template_hits.STRUCTURES)]
    given += ["--obsolete-entries", str(tmp_path / "obsolete.dat")]
    assert command(*given, "--max-template-date", template_hits.CUTOFF, "--out", tmp_path / "with") == 0
    assert command(*base, "--out", tmp_path / "without") == 0
    (first, other), (plain, same) = (
        json.loads((tmp_path / name / "summary.json").read_text())["records"] for name in ("with", "without")
    )
    assert first["templates"] == ["1ubq_A", "2q2k_B", "1y57_A", "4zey_A", "1y57_A", "1kd8_C", "1a8q_A"]
    assert [row["hit"] for row in first["template_hits"] if row["status"] == "dropped"] == [
        "1zzz_A", "9xyz_A", "7l39_A", "1a8q_A", "1a8q_A",
    ]  # fmt: skip
    assert plain["templates"] == plain["template_hits"] == other["templates"] == other["template_hits"] == []
    assert first["plddt"] != plain["plddt"]
    assert other["plddt"] == same["plddt"]
    capsys.readouterr()
    assert command(*base, "--templates", hits, "--max-template-date", "2020-01-01", "--out", tmp_path) == 2
    assert "template hits without structures; give --templates and --template-structures" in capsys.readouterr().err


@pytest.mark.nightly
def test_a_run_file_with_published_weights_takes_template_hits(tmp_path: Path) -> None:
    """``model_1.toml`` with a small file of AlphaFold's names, templates and all, in place of a run."""
    file, run_file = tmp_path / "params_model_1_ptm.npz", CONFIG.with_name("model_1.toml")
    np.savez(file, **synthetic_weights.parameters(synthetic_weights.shapes(synthetic_weights.SMALL)))
    model = fold.Config.model_validate(RunConfig.load(run_file).resolved()["model"])
    sizes = differing_sizes(read_contents(read_weights(file).tensors).config, model).split()
    hits, fasta = tmp_path / "hits", write_fasta(tmp_path, {"q": template_hits.QUERY})
    hits.mkdir()
    shutil.copy(template_hits.EXPECTED / "q.sto", hits)
    overrides = [*sizes, f"train.weights={file}", "data.evaluation_recycling=1"]
    given = ["predict", "--run", run_file, "--fasta", fasta, *overrides]
    more = ["--templates", hits, "--template-structures", template_hits.STRUCTURES]
    plddt = []
    for name, options in (("with", more), ("without", [])):
        assert command(*given, *options, "--out", tmp_path / name) == 0
        (row,) = json.loads((tmp_path / name / "summary.json").read_text())["records"]
        assert len(row["templates"]) == (7 if options else 0)  # without a cut-off date, also that of 2021
        plddt.append(row["plddt"])
    assert plddt[0] != plddt[1]


def test_a_record_that_needs_too_much_memory_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other records are predicted, the summary lists all, and the exit code is 1."""
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
        "index.html", "last.cif", "last.confidence.npz", "last.pdb", "ok.cif", "ok.confidence.npz", "ok.pdb",
        "summary.json",
    ]  # fmt: skip


def test_out_of_memory_fails_only_its_record(run: Path, tmp_path: Path) -> None:
    """Without the check: torch's own error of a real allocation, as under ``ulimit -v``."""
    with limited_memory(1 << 30):
        summary = predict.predict_run(
            run, write_fasta(tmp_path, LONG), tmp_path / "out", check_memory=False, show=False
        )
    assert [row["status"] for row in summary["records"]] == ["predicted", "failed", "predicted"]
    assert re.match(r"out of memory at 9000 residues \(\w+: ", summary["records"][1]["error"])
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary


def test_a_failed_write_leaves_no_files(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full when the second file of a record is written."""
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


@pytest.mark.parametrize("name", ["first.cif", "first.confidence.npz"])
def test_a_file_that_cannot_be_written_fails_only_its_record(run: Path, tmp_path: Path, name: str) -> None:
    """A folder is in the place of a file: an error of the file system itself."""
    out = tmp_path / "out"
    (out / name / "occupied").mkdir(parents=True)
    first, second = predict.predict_run(run, write_fasta(tmp_path, SEQUENCES), out, show=False)["records"]
    assert (first["status"], first["files"], second["status"]) == ("failed", [], "predicted")
    assert name in first["error"]
    assert {path.name for path in out.iterdir()} == {name, *second["files"], "summary.json"}


def test_a_summary_that_cannot_be_written_midway_does_not_stop_the_records(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = predict.replace_text, []

    def full_disk_at_first(path: Path, text: str) -> None:
        calls.append(path.name)
        if len(calls) == 1:
            raise OSError(28, "No space left on device")
        real(path, text)

    monkeypatch.setattr(predict, "replace_text", full_disk_at_first)
    monkeypatch.setattr(predict, "SUMMARY_INTERVAL_S", -1.0)
    summary = predict.predict_run(run, write_fasta(tmp_path, SEQUENCES), tmp_path / "out")
    assert summary["counts"]["predicted"] == 2
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert "summary.json: [Errno 28] No space left on device" in capsys.readouterr().out


def test_files_of_an_earlier_run_are_removed_on_failure(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The PDB file of a record that no longer fits the format is removed too."""
    fasta, out = write_fasta(tmp_path, SEQUENCES), tmp_path / "out"
    predict.predict_run(run, fasta, out, show=False)
    (tmp_path / "msa").mkdir()
    (tmp_path / "msa" / "second.X.a3m").write_text(">second.X\nAAAAAAA\n")
    monkeypatch.setattr(writers, "PDB_MAX_RESIDUES", 20)
    first, second = predict.predict_run(run, fasta, out, tmp_path / "msa", show=False)["records"]
    assert (first["files"], second["status"]) == (["first.cif", "first.confidence.npz"], predict.FAILED)
    assert {path.name for path in out.iterdir()} == {*first["files"], "summary.json"}


def test_an_interrupted_command_writes_the_summary(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    names = ["first.cif", "first.confidence.npz", "first.pdb", "summary.json"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == names


def test_record_names_become_file_names() -> None:
    names = ["a", "A", "../a", "/a", ".hidden", "x" * 300, "x" * 301, "ok.1|B", "a_2", "café"]
    stems = file_stems(names)
    assert stems == [
        "a", "A_3", "_._a", "_a", "_hidden", "x" * 200, "x" * 200 + "_2", "ok.1|B", "a_2", "caf_",
    ]  # fmt: skip
    assert len({stem.lower() for stem in stems}) == len(names)
    # a safe name is kept, even if an earlier name collides with it
    assert file_stems(["a/b", "a_b"]) == ["a_b_2", "a_b"]


def test_unsafe_names_do_not_overwrite_files(run: Path, tmp_path: Path) -> None:
    (tmp_path / "in.fasta").write_text(">../x\nGAV\n>X\nGAVL\n>x\nGAVLI\n")
    summary = predict.predict_run(run, tmp_path / "in.fasta", tmp_path / "out" / "deep", show=False)
    assert [row["files"][0] for row in summary["records"]] == ["_._x.cif", "X.cif", "x_2.cif"]
    for row in summary["records"]:
        chain = gemmi.read_structure(str(tmp_path / "out" / "deep" / row["files"][0]))[0][0]
        assert len(chain) == row["length"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["deep"]


def test_warnings_about_the_letters_of_a_record(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """DNA given to a protein model, and letters that are read as X."""
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


def test_a_run_file_with_weights_predicts_as_its_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Published weights need no run folder; the log says what was loaded."""
    fasta = write_fasta(tmp_path, SEQUENCES)
    file = run / "checkpoints/step_000200/model.safetensors"
    overrides = [*SMALL, f"data.train={run.parents[1] / 'train.npz'}", f"train.weights={file}"]
    expected = predict.predict_run(run, fasta, tmp_path / "of_run", show=False)
    found = predict.predict_run(CONFIG, fasta, tmp_path / "of_file", overrides=overrides)
    assert f"from {file}" in capsys.readouterr().out
    assert (found["name"], found["step"]) == ("small_fold", 0)
    assert [row["plddt"] for row in found["records"]] == [row["plddt"] for row in expected["records"]]
    with pytest.raises(ValueError, match=r"tiny_cpu.toml: a run file has no trained weights; add train.weights=FILE"):
        predict.predict_run(CONFIG, fasta, tmp_path / "none", overrides=SMALL)
