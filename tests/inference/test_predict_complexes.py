"""Prediction of complexes: chains of a FASTA file, their alignments and templates, output files, and refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import gemmi
import numpy as np
import pytest

from ds4sci.cli.main import main
from ds4sci.data.alignments import pairing
from ds4sci.data.sequences import fasta_records
from ds4sci.data.structures.parsers import mmcif
from ds4sci.data.structures.template_files import align_templates, write_templates
from ds4sci.data.structures.template_folder import TemplateFolder
from ds4sci.inference import predict
from ds4sci.inference.prediction_inputs import UNPAIRED, read_jobs
from ds4sci.tasks import fold
from ds4sci.types import Record
from tests.support.fold_run import make_fold_run

FIRST, SECOND = "MKTAYIAKQRQISFVK", "GAVLEKWHFRDE"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_fold_run(tmp_path_factory.mktemp("complexes"))


@pytest.fixture
def takes_complexes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The small model as one of complexes: its numbers are meaningless here, its files are not."""
    monkeypatch.setattr(fold, "takes_complexes", lambda config: True)
    return


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def run_command(*arguments: object) -> None:
    with pytest.raises(SystemExit) as end:
        main(["predict", *map(str, arguments)])
    assert end.value.code == 0


def a3m(query: str, *rows: tuple[str, str]) -> str:
    return f">query\n{query}\n" + "".join(f">{name}\n{row}\n" for name, row in rows)


def test_files_of_a_complex(run: Path, tmp_path: Path, takes_complexes: None) -> None:
    fasta = write(tmp_path / "in.fasta", f">trimer\n{FIRST}:{SECOND}\n:{FIRST}\n>alone\n{SECOND}\n")
    write(
        tmp_path / "msa" / "trimer_A.a3m",
        a3m(FIRST, ("tr|Q00001|Q00001_HUMAN", "-" + FIRST[1:]), ("u", "--" + FIRST[2:])),
    )
    write(
        tmp_path / "msa" / "trimer_B" / "uniprot_hits.a3m", a3m(SECOND, ("sp|P00001|AB_HUMAN/1-9", "--" + SECOND[2:]))
    )
    out = tmp_path / "out"
    run_command("--run", run, "--fasta", fasta, "--msa", tmp_path / "msa", "--out", out)
    row, alone = json.loads((out / "summary.json").read_text())["records"]
    assert "chains" not in alone
    assert [(one["name"], one["record"], one["length"], one["entity"]) for one in row["chains"]] == [
        ("A", "trimer", 16, 1), ("B", "trimer", 12, 2), ("C", "trimer", 16, 1),
    ]  # fmt: skip
    assert (row["length"], row["msa_rows"], row["input"]) == (44, 3, "alignment")
    for counts in row["pairing"]:
        assert counts["rows"] == counts["kept"] + sum(counts["excluded"].values())
    assert row["pairing"][1]["excluded"] == {pairing.IN_PAIRED: 2}
    assert row["notes"] == []

    chains = mmcif.read(out / "trimer.cif")
    assert [(one.id, one.sequence) for one in chains] == [
        ("trimer_A", FIRST),
        ("trimer_B", SECOND),
        ("trimer_C", FIRST),
    ]
    assert all(one.residue_index[0] == 0 for one in chains)
    mean = np.mean(np.concatenate([one.b_factors[:, 1] for one in chains if one.b_factors is not None]))
    weighted = sum(one["plddt"] * one["length"] for one in row["chains"]) / 44
    assert weighted == pytest.approx(float(mean), abs=0.02)
    document = gemmi.cif.read(str(out / "trimer.cif")).sole_block()
    assert len(document.find("_entity.", ["id"])) == 2
    assert len(document.find("_ma_qa_metric_local.", ["label_asym_id"])) == 44
    scheme = document.find("_pdbx_poly_seq_scheme.", ["asym_id", "entity_id", "seq_id", "pdb_seq_num"])
    assert [tuple(scheme[at]) for at in (0, 16, 43)] == [
        ("A", "1", "1", "1"),
        ("B", "2", "1", "1"),
        ("C", "1", "16", "16"),
    ]
    lines = (out / "trimer.pdb").read_text().splitlines()
    assert [line[21] for line in lines if line.startswith("TER")] == ["A", "B", "C"]
    assert {line[11] for line in lines if line.startswith("SEQRES")} == {"A", "B", "C"}
    with np.load(out / "trimer.confidence.npz") as arrays:
        assert arrays["asym_id"].tolist() == [1] * 16 + [2] * 12 + [3] * 16
        assert arrays["distances"].shape == (44, 44)
    page = (out / "index.html").read_text()
    assert "44 residues in 3 chains" in page
    assert '"chains":[["A",16],["B",12],["C",16]]' in page
    assert "mean pLDDT by chain: A " in page
    assert "not in the view" not in page


def test_all_records_of_a_file_as_one_complex(run: Path, tmp_path: Path, takes_complexes: None) -> None:
    fasta = write(tmp_path / "dimer.fasta", f">heavy\n{FIRST}\n>light\n{SECOND}\n")
    write(tmp_path / "msa" / "light.a3m", a3m(SECOND, ("u", "--" + SECOND[2:])))
    run_command(
        "--complex", "--run", run, "--fasta", fasta, "--msa", tmp_path / "msa", "--out", tmp_path / "out",
    )  # fmt: skip
    (row,) = json.loads((tmp_path / "out" / "summary.json").read_text())["records"]
    assert (row["id"], row["length"], row["msa_rows"]) == ("dimer", 28, 2)
    assert [(one["name"], one["record"]) for one in row["chains"]] == [("A", "heavy"), ("B", "light")]
    assert [one["chain"] for one in row["alignments"]] == ["B"]
    assert row["notes"] == [UNPAIRED]


def test_files_by_chain(tmp_path: Path) -> None:
    fasta = write(tmp_path / "in.fasta", f">x\n{FIRST}:{SECOND}:{FIRST}\n")
    folder = tmp_path / "msa" / "x" / "msas"  # as AlphaFold-Multimer writes them: none for a copy
    write(folder / "A" / "uniref90_hits.a3m", a3m(FIRST, ("u", "--" + FIRST[2:])))
    write(folder / "B" / "bfd_hits.a3m", a3m(SECOND))
    write(folder / "chain_id_map.json", "{}")
    (tmp_path / "templates").mkdir()
    template = Record("T", SECOND, np.ones((12, 37, 3), np.float32), np.ones((12, 37), bool), np.arange(12))
    write_templates(tmp_path / "templates" / "x_B.npz", align_templates(12, [(template, np.arange(12))]))
    (job,) = read_jobs(fasta, tmp_path / "msa", tmp_path / "templates")
    assert job.record.msa is not None
    assert len(job.record.msa.names) == 2
    assert [(row["chain"], row["file"]) for row in job.alignments] == [
        ("A", "uniref90_hits.a3m"),
        ("B", "bfd_hits.a3m"),
    ]
    assert job.record.templates is not None
    assert job.record.templates.atom_mask[0].any(1).nonzero()[0].tolist() == list(range(16, 28))
    write(folder / "B" / "bfd_hits.a3m", a3m(FIRST))
    (job,) = read_jobs(fasta, tmp_path / "msa", None)
    assert job.error is not None
    assert "bfd_hits.a3m: the query is not the sequence of B" in job.error


def test_an_alignment_of_the_whole_complex_is_an_error(tmp_path: Path) -> None:
    fasta = write(tmp_path / "in.fasta", f">x\n{FIRST}:{SECOND}\n>y\n{FIRST}\n")
    write(tmp_path / "msa" / "x.a3m", a3m(FIRST + SECOND))
    write(tmp_path / "msa" / "y.a3m", a3m(FIRST))
    joint, alone = read_jobs(fasta, tmp_path / "msa")
    assert joint.error is not None
    assert "x.a3m: an alignment of the whole complex; expected one of each chain, such as x_A.a3m" in joint.error
    assert alone.error is None
    named_alike = write(tmp_path / "y.fasta", f">y\n{FIRST}\n>z\n{SECOND}\n")  # y.a3m is that of the record y
    (job,) = read_jobs(named_alike, tmp_path / "msa", one_complex=True)
    assert job.error is None
    assert [row["chain"] for row in job.alignments] == ["A"]


def test_hits_in_uniprot_of_copies_are_counted(tmp_path: Path) -> None:
    fasta = write(tmp_path / "in.fasta", f">x\n{FIRST}:{FIRST}\n")
    write(tmp_path / "msa" / "x_A" / "uniprot_hits.a3m", a3m(FIRST, ("sp|P00001|AB_HUMAN/1-9", "--" + FIRST[2:])))
    (job,) = read_jobs(fasta, tmp_path / "msa")
    unpaired, unused = job.pairing
    assert (unpaired["kind"], unpaired["kept"]) == ("unpaired", 1)
    assert (unused["kind"], unused["rows"], unused["kept"], unused["excluded"]) == (
        "pairing", 2, 0, {pairing.HOMOMER: 2},
    )  # fmt: skip
    assert f"hits in UniProt are not used: {pairing.HOMOMER}" in job.notes


def test_errors_of_the_input(run: Path, tmp_path: Path) -> None:
    fasta = write(tmp_path / "in.fasta", f">x\n{FIRST}:{SECOND}\n")
    with pytest.raises(ValueError, match=r"x is a complex of 2 chains, and the model of .* is one of single chains"):
        predict.predict_run(run, fasta, tmp_path / "out", show=False)
    (tmp_path / "msa").mkdir()
    weights = [f"train.weights={tmp_path / 'absent.npz'}", "data.train=-", "data.valid=-"]  # is not read
    with pytest.raises(ValueError, match=r"in is a complex of 2 chains, and the model of .*tiny_cpu\.toml"):
        predict.predict_run(
            "configs/fold/tiny_cpu.toml", fasta, tmp_path / "out", one_complex=True, overrides=weights, show=False
        )
    with pytest.raises(ValueError, match=r"tiny_cpu\.toml: the model takes no templates"):
        predict.predict_run(
            "configs/fold/tiny_cpu.toml", fasta, tmp_path / "out", tmp_path / "no such folder",
            template_dir=tmp_path / "none", overrides=weights, show=False,
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"no alignment for any record of .*, such as x_A\.a3m"):
        read_jobs(fasta, tmp_path / "msa")
    with pytest.raises(ValueError, match=r"'x' has 2 chains, separated by ':'; expected one chain"):
        fasta_records.read_fasta(fasta)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MK::GA", "chain 2 of 'x' is empty; expected one ':' between two chains"),
        (":MK", "chain 1 of 'x' is empty"),
        ("MK:", "chain 2 of 'x' is empty"),
        (":", "'x' has no sequence"),
        ("MK:G-A", r"'-' at letter 5 of 'x' is not a valid amino acid"),
    ],
)
def test_errors_of_a_record(tmp_path: Path, text: str, message: str) -> None:
    (entry,) = fasta_records.read_entries(write(tmp_path / "in.fasta", f">x\n{text}\n"))
    assert entry.error is not None
    assert message in entry.error


def test_chains_of_a_record(tmp_path: Path) -> None:
    path = write(tmp_path / "in.fasta", ">x\nmk\nTB:GA\nV*\n>y\nMK\n")
    both = fasta_records.read_entries(path)
    assert [(one.sequence, one.chains) for one in both] == [("MKTXGAV", ("MKTX", "GAV")), ("MK", ("MK",))]
    assert both[0].notes == ("1 of 7 letters (B, Z, J, U, O) read as X",)


def test_files_of_chains_that_a_complex_does_not_have(run: Path, tmp_path: Path, takes_complexes: None) -> None:
    fasta = write(tmp_path / "in.fasta", f">extra\n{FIRST}:{SECOND}\n>folders\n{FIRST}:{SECOND}\n>good\n{FIRST}:GA\n")
    msa = tmp_path / "msa"
    for name, sequence in (("extra_A", FIRST), ("extra_B", SECOND), ("extra_C", FIRST), ("extra_light", FIRST)):
        write(msa / f"{name}.a3m", a3m(sequence))
    for chain, sequence in (("A", FIRST), ("B", SECOND), ("D", FIRST)):
        write(msa / "folders" / "msas" / chain / "uniref90_hits.a3m", a3m(sequence))
    write(tmp_path / "templates" / "extra_E.npz", "never read")
    write(tmp_path / "hits" / "extra_F.hhr", "never read")
    (tmp_path / "structures").mkdir()
    (tmp_path / "structures" / "1abc.cif").touch()
    hits = TemplateFolder(tmp_path / "hits", tmp_path / "structures")
    template = Record("T", SECOND, np.ones((12, 37, 3), np.float32), np.ones((12, 37), bool), np.arange(12))
    write_templates(tmp_path / "templates" / "extra_B.npz", align_templates(12, [(template, np.arange(12))]))
    extra, folders, good = read_jobs(fasta, msa, tmp_path / "templates", hits)
    found = [[note for note in job.notes if note.startswith("not used")] for job in (extra, folders, good)]
    assert found == [
        ["not used: the files of extra_C, extra_E, extra_F; the chains of the complex are A, B"],
        ["not used: the files of folders/msas/D; the chains of the complex are A, B"],
        [],
    ]
    run_command("--run", run, "--fasta", fasta, "--msa", msa, "--out", tmp_path / "out")
    row = json.loads((tmp_path / "out" / "summary.json").read_text())["records"][0]
    assert "not used: the files of extra_C; the chains of the complex are A, B" in row["notes"]


def test_an_empty_chain_is_named_and_not_listed(run: Path, tmp_path: Path, takes_complexes: None) -> None:
    fasta = write(tmp_path / "in.fasta", f">x\n{FIRST}::{FIRST}\n>y\n{SECOND}\n")
    summary = predict.predict_run(run, fasta, tmp_path / "out", show=False)
    row = summary["records"][0]
    assert row["status"] == "failed"
    assert "chain 2 of 'x' is empty" in row["error"]
    assert [(one["name"], one["length"], one["entity"]) for one in row["chains"]] == [("A", 16, 1), ("C", 16, 1)]
