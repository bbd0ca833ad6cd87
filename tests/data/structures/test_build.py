"""`ds4sci data build`: accepted and rejected chains, reasons, the cache, and interrupted builds."""

from __future__ import annotations

import dataclasses
import errno
import gzip
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds4sci.chemistry.residue_codes import decode
from ds4sci.data.alignments.profile import msa_profile
from ds4sci.data.structures import build as builder
from ds4sci.data.structures.build import BuildReport, build
from ds4sci.data.structures.chain_filters import BuildSettings, rejection_reason
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.structures.parsers import mmcif
from ds4sci.data.structures.writers import write_mmcif
from ds4sci.data.worker_pool import run_in_processes
from ds4sci.types import Msa, Prediction, Record

DATA = Path(__file__).parents[2] / "fixtures"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three valid entries and one file for each kind of failure."""
    folder = tmp_path / "structures"
    (folder / "deeper").mkdir(parents=True)
    for name in ("1ubq", "1kd8", "deeper/2q2k"):
        (folder / f"{name}.cif.gz").write_bytes((DATA / "mmcif" / f"{name.split('/')[-1]}.cif.gz").read_bytes())
    (folder / "cut.cif.gz").write_bytes((DATA / "mmcif" / "1y57.cif.gz").read_bytes()[:9000])
    (folder / "letter.cif").write_text("Dear reader,\n")
    (folder / "copy_of_1ubq.cif").write_bytes(gzip.decompress((DATA / "mmcif" / "1ubq.cif.gz").read_bytes()))
    (folder / "notes.txt").write_text("ignored")
    return folder


@pytest.fixture
def alignments(tmp_path: Path) -> Path:
    folder = tmp_path / "msa"
    (folder / "2q2k_A").mkdir(parents=True)
    for path in (DATA / "msa").glob("*"):
        (folder / "2q2k_A" / path.name).write_bytes(path.read_bytes())
    (folder / "1ubq_A.a3m").write_text(">q\n" + "A" * 76 + "\n")
    return folder


def by_chain(report: BuildReport) -> dict[str, dict[str, Any]]:
    return {row["chain"] or row["file"]: row for row in report.rows}


def test_accepted_and_rejected_chains(source: Path, alignments: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = build(
        source, tmp_path / "out" / "set.npz", msa_dir=alignments, jobs=1, progress=lambda *at: calls.append(at)
    )
    assert calls == [(done, 6) for done in range(7)]
    rows = by_chain(report)
    assert [json.loads(line) for line in report.report.read_text().splitlines()] == report.rows
    accepted = {name for name, row in rows.items() if row["status"] == "accepted"}
    assert accepted == {"1KD8_A", "1KD8_B", "2Q2K_A"}
    assert {name: rows[name]["reason"] for name in ("1KD8_C", "2Q2K_B")} == {
        "1KD8_C": "same sequence as 1KD8_A",
        "2Q2K_B": "same sequence as 2Q2K_A",
    }
    assert "truncated or damaged gzip" in rows["cut.cif.gz"]["reason"]
    assert "not mmCIF" in rows["letter.cif"]["reason"]
    assert "at residue 1 the alignment has A, the chain M" in rows["1UBQ_A"]["reason"]
    assert report.counts == {"accepted": 3, "duplicate": 5, "unreadable": 2, "alignment": 2, "not a protein": 1}
    assert rows["2Q2K_F"]["reason"] == "residues by kind: 20 nucleic acid"
    assert "3 chains, 142 residues from 6 files" in report.summary()
    assert "5 duplicate" in report.summary()
    read = {row["file"]: row["atoms"] for row in report.rows if row["status"] == "read"}
    assert read.keys() == {"1kd8.cif.gz", "1ubq.cif.gz", "deeper/2q2k.cif.gz", "copy_of_1ubq.cif"}
    assert read["1ubq.cif.gz"] == {"kept": 602, "water": 58}
    assert sum(report.atoms.values()) == 1992 + 660 + 1184 + 660  # rows of _atom_site
    stored = sum(int(record.atom_mask.sum()) for record in ChainSet.open(report.out))
    assert (report.atoms["kept"], report.atoms["chain not accepted"]) == (stored, 3664 - stored)
    expected = (
        "4,496 atom records: 947 kept (21.1%); 2,717 chain not accepted, 407 nucleic acid, 404 water, 15 ligand, 6 side"
    )
    assert expected in report.summary()

    chains = ChainSet.open(report.out)
    assert chains.ids == ["1KD8_A", "1KD8_B", "2Q2K_A"]
    built, read = chains[2], mmcif.read(DATA / "mmcif" / "2q2k.cif.gz", "A")
    np.testing.assert_array_equal(built.atom_mask, read.atom_mask)
    np.testing.assert_allclose(built.atom_positions, read.atom_positions, atol=0.005 + 1e-5)
    assert built.resolution == 3.0
    assert built.dssp is not None
    assert built.dssp.count("E") == 9  # the sheet of the dimer; its other chain is a duplicate
    assert built.msa is not None
    assert rows["2Q2K_A"]["msa_rows"] == len(built.msa.sequences)
    assert decode(built.msa.sequences[0]) == built.sequence
    np.testing.assert_allclose(built.profile, msa_profile(built.msa), atol=0.5e-4)


def test_every_alignment_row_is_kept_or_counted(source: Path, alignments: Path, tmp_path: Path) -> None:
    """The report counts template hits, pairing hits, duplicates, rows beyond the limit and unused alignments."""
    query = (alignments / "2q2k_A" / "bfd_uniclust_hits.a3m").read_text().splitlines()[1]
    (alignments / "2q2k_A" / "hmm_output.sto").write_text(f"# STOCKHOLM 1.0\n1abc_A {'-' * len(query)}\n//\n")
    (alignments / "nobody_Z.a3m").write_text(">q\nACDE\n")
    (alignments / "1ubq_A.a3m").unlink()
    settings = BuildSettings(max_msa_rows=10)
    report = build(source, tmp_path / "set.npz", msa_dir=alignments, jobs=1, settings=settings)
    row = by_chain(report)["2Q2K_A"]
    assert row["msa_rows"] == 10
    files = {file["file"]: file for file in row["alignments"]}
    assert set(files) == {path.name for path in (alignments / "2q2k_A").iterdir()}
    assert {name for name, file in files.items() if "skipped" in file} == {"hmm_output.sto", "uniprot_hits.sto"}
    read = [file for file in files.values() if "skipped" not in file]
    assert sum(file["kept"] for file in read) == 10
    assert all(file["rows"] == file["kept"] + sum(file["excluded"].values()) for file in read)
    counts = report.excluded_alignment_rows
    assert counts["rows: beyond the maximum number of rows"] == 10
    assert counts["rows: duplicate of an earlier row"] >= 2  # the query of each file except the first
    assert counts["files: template hits (PDB), not an alignment"] == 1
    assert report.unused_alignments == ["nobody_Z"]
    assert "1 alignments match no chain, such as nobody_Z" in report.summary()
    assert "excluded from alignments: " in report.summary()


def test_an_id_in_two_files_is_accepted_once(source: Path, tmp_path: Path) -> None:
    rows = build(source, tmp_path / "set.npz", jobs=1).rows
    found = {row["file"]: row for row in rows if row["chain"] == "1UBQ_A"}
    assert found["1ubq.cif.gz"]["status"] == "accepted"
    assert (found["copy_of_1ubq.cif"]["status"], found["copy_of_1ubq.cif"]["kind"]) == ("rejected", "same id")
    assert found["copy_of_1ubq.cif"]["reason"] == "1ubq.cif.gz has a chain with this id"


def test_the_number_of_processes_does_not_change_the_file(source: Path, tmp_path: Path) -> None:
    one = build(source, tmp_path / "one.npz", jobs=1)
    two = build(source, tmp_path / "two.npz", jobs=2)
    assert one.rows == two.rows
    assert one.out.read_bytes() == two.out.read_bytes()


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"min_length": 80}, "too short"),
        ({"max_length": 69}, "too long"),
        ({"min_resolved": 0.65}, "few coordinates"),
        ({"max_resolution": 2.9}, "resolution"),
        ({"max_single_residue": 0.1}, "low complexity"),
    ],
)
def test_settings_reject_with_a_reason(settings: dict[str, float], kind: str) -> None:
    record = mmcif.read(DATA / "mmcif" / "2q2k.cif.gz", "A")  # 70 residues, 45 resolved, 3 Å, 9 histidines
    assert rejection_reason(record, 45, BuildSettings()) is None
    rejection = rejection_reason(record, 45, BuildSettings(**settings))
    assert rejection is not None
    assert rejection[0] == kind
    assert rejection_reason(record, 0, BuildSettings()) == ("no coordinates", "none of 70 residues has N, CA and C")


def test_duplicates_are_kept_on_request(source: Path, tmp_path: Path) -> None:
    report = build(source, tmp_path / "set.npz", jobs=1, settings=BuildSettings(keep_duplicates=True))
    assert report.counts["accepted"] == 9
    assert "duplicate" not in report.counts


def test_a_second_build_reads_only_changed_files(
    source: Path, alignments: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    original = builder.READERS[".cif"]
    monkeypatch.setitem(builder.READERS, ".cif", lambda path: read.append(path.name) or original(path))
    out = tmp_path / "set.npz"

    def files(**more: Any) -> tuple[list[str], bytes]:
        read.clear()
        build(source, out, msa_dir=alignments, jobs=1, **more)
        return sorted(read), out.read_bytes()

    everything, first = files()
    assert len(everything) == 6
    assert files() == ([], first)
    # a damaged cache entry
    broken = max((tmp_path / "set.npz.work").iterdir(), key=lambda path: path.stat().st_size)
    broken.write_bytes(broken.read_bytes()[:-40])
    assert files() == (["1kd8.cif.gz"], first)
    # a corrected alignment
    (alignments / "1ubq_A.a3m").unlink()
    assert files()[0] == ["1ubq.cif.gz", "copy_of_1ubq.cif"]
    assert ChainSet.open(out).ids == ["1KD8_A", "1KD8_B", "1UBQ_A", "2Q2K_A"]
    # a touched file
    os.utime(source / "1kd8.cif.gz", ns=(0, time.time_ns()))
    assert files()[0] == ["1kd8.cif.gz"]
    # other settings
    assert len(files(settings=BuildSettings(min_length=20))[0]) == 6


def test_an_interrupted_build_resumes(source: Path, tmp_path: Path) -> None:
    def stop(done: int, files: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(source, tmp_path / "set.npz", jobs=1, progress=stop)
    assert not (tmp_path / "set.npz").exists()
    assert build(source, tmp_path / "set.npz", jobs=1).cached == 4


def test_a_parser_error_affects_one_file(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builder.READERS[".cif"]

    def read(path: Path) -> Any:
        if path.name == "1kd8.cif.gz":
            raise RuntimeError("a bug")
        return original(path)

    monkeypatch.setitem(builder.READERS, ".cif", read)
    report = build(source, tmp_path / "set.npz", jobs=1)
    assert by_chain(report)["1kd8.cif.gz"]["reason"] == "RuntimeError: a bug"
    monkeypatch.undo()
    assert "1KD8_A" in by_chain(build(source, tmp_path / "set.npz", jobs=1))  # parsed again, not cached


def test_a_full_disk_stops_the_build_and_leaves_the_old_set(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = build(source, tmp_path / "set.npz", jobs=1).out
    before = out.read_bytes()
    (source / "1ubq.cif.gz").unlink()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        build(source, out, jobs=1)
    assert out.read_bytes() == before


def test_a_folder_without_chains_raises(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such folder"):
        build(tmp_path / "absent", tmp_path / "set.npz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no structures found; expected files named"):
        build(tmp_path / "empty", tmp_path / "set.npz")
    (tmp_path / "empty" / "x.pdb").write_text("hello")
    with pytest.raises(ValueError, match=r"no chain of 1 files was accepted.*no ATOM records"):
        build(tmp_path / "empty", tmp_path / "set.npz", jobs=1)
    assert (tmp_path / "set.npz.report.jsonl").exists()
    assert not (tmp_path / "set.npz").exists()


def touch_or_die(name: str, folder: Path) -> None:
    if name == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / name).write_text("done")


def test_a_killed_worker_fails_one_argument(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    names = ["a", "b", "die", "c", "d"]
    got = {
        one[0]: failure
        for one, failure in run_in_processes(touch_or_die, [(n, tmp_path) for n in names], jobs=2, marker_dir=marks)
    }
    assert got.keys() == set(names)
    assert {name for name, failure in got.items() if failure} == {"die"}
    assert "killed" in str(got["die"])
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c", "d", "marks"}
    assert list(marks.iterdir()) == []


def test_a_folder_of_files_holds_the_same_chains(source: Path, alignments: Path, tmp_path: Path) -> None:
    one = build(source, tmp_path / "set.npz", msa_dir=alignments, jobs=1)
    many = build(source, tmp_path / "set", msa_dir=alignments, jobs=1, chains_per_file=1)
    assert [path.name for path in sorted((tmp_path / "set").iterdir())] == ["000000.npz", "000001.npz"]
    assert many.rows == one.rows
    assert_same_chains(ChainSet.open(many.out), ChainSet.open(one.out))
    with pytest.raises(ValueError, match="already exists"):
        build(source, tmp_path / "set", jobs=1, chains_per_file=1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.cif").write_text("data_x\n")
    with pytest.raises(ValueError, match="no chain of 1 files was accepted"):
        build(tmp_path / "empty", tmp_path / "none", jobs=1, chains_per_file=1)
    assert not (tmp_path / "none").exists()


def assert_same_chains(found: ChainSet, expected: ChainSet) -> None:
    assert found.ids == expected.ids
    assert found.lengths.tolist() == expected.lengths.tolist()
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert found.sequence(i) == one.sequence == other.sequence
        for field in dataclasses.fields(Record):
            a, b = getattr(one, field.name), getattr(other, field.name)
            if isinstance(b, Msa):
                assert a.names == b.names
                np.testing.assert_array_equal(a.sequences, b.sequences)
                np.testing.assert_array_equal(a.deletions, b.deletions)
            else:
                np.testing.assert_array_equal(a, b)


def test_residues_of_low_plddt_have_no_coordinates(tmp_path: Path) -> None:
    """A predicted structure, as ``ds4sci predict`` writes it; B-factors of an experiment are refused."""
    known = mmcif.read(DATA / "mmcif" / "1ubq.cif.gz", "A")
    n = len(known.sequence)
    plddt = np.linspace(20, 95, n)
    prediction = Prediction(
        id="model", sequence=known.sequence, residue_index=known.residue_index, atom37=known.atom_positions,
        atom_mask=known.atom_mask, plddt=plddt, distances=np.zeros((n, n)), contacts=np.zeros((n, n)),
    )  # fmt: skip
    folder = tmp_path / "predicted"
    write_mmcif(prediction, folder / "model.cif")
    shutil.copy(DATA / "mmcif" / "2q2k.cif.gz", folder)
    report = build(folder, tmp_path / "set.npz", jobs=1, settings=BuildSettings(min_plddt=50))
    chain = ChainSet.open(report.out)[-1]
    assert chain.id == "model_A"
    np.testing.assert_array_equal(chain.atom_mask, known.atom_mask & (plddt.round(2) > 50)[:, None])
    (refused,) = (row for row in report.rows if row["chain"] == "2Q2K_A")
    assert refused["kind"] == "no pLDDT"
    assert "B-factors from 40.61 to 127.41; min_plddt is for predicted structures" in refused["reason"]
