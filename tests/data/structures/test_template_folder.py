"""Chain sets with templates: hits by chain, cut-off dates, cache of a build, and alignment databases of OpenFold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds4sci.data.alignments import alignment_files
from ds4sci.data.sequences.fasta_records import make_record
from ds4sci.data.structures.build import build
from ds4sci.data.structures.build_report import BuildReport
from ds4sci.data.structures.chain_filters import BuildSettings
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.structures.parsers import mmcif
from ds4sci.data.structures.template_folder import TemplateFolder
from ds4sci.inference.prediction_inputs import read_jobs
from tests.support.template_hits import STRUCTURES, chains, hhr, random_hit

ENTRIES = ("1ubq", "4zey", "7l39")
"""Released in 1987, 2015 and 2021."""


@pytest.fixture(scope="module")
def files() -> dict[str, dict[str, str]]:
    """Name of the chain → name → text of each file of its folder: an alignment, and hits of all chains."""
    known, rng = chains(), np.random.default_rng(0)
    found = {}
    for entry in ENTRIES:
        query = known[f"{entry}_A"]
        hits = [
            random_hit(f"{other}_A", known[f"{other}_A"], rng, start=3, first=2, columns=50, query=query)
            for other in (*ENTRIES, "1a8q")
        ]
        found[f"{entry}_A"] = {
            "uniref90_hits.a3m": f">q\n{query}\n>other\n{'-' * 10}{query[10:]}\n",
            "hhsearch_output.hhr": hhr(hits, query),
        }
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    for entry in ENTRIES:
        shutil.copy(STRUCTURES / f"{entry}.cif.gz", folder)
    return folder


def write_folder(folder: Path, files: Mapping[str, Mapping[str, str]]) -> Path:
    for chain, contents in files.items():
        (folder / chain).mkdir(parents=True)
        for name, text in contents.items():
            (folder / chain / name).write_text(text)
    return folder


def write_database(folder: Path, files: Mapping[str, Mapping[str, str]], shards: int = 2) -> Path:
    """Write an alignment database as OpenFold's ``create_alignment_db_sharded.py`` does; return its super-index."""
    folder.mkdir()
    index: dict[str, Any] = {}
    for shard in range(shards):
        content = b""
        for chain in sorted(files)[shard::shards]:
            index[chain] = {"db": f"alignment_db_{shard}.db", "files": []}
            for name, text in sorted(files[chain].items()):
                index[chain]["files"].append([name, len(content), len(text)])
                content += text.encode()
        (folder / f"alignment_db_{shard}.db").write_bytes(content)
    (folder / "alignment_db.index").write_text(json.dumps(index))
    return folder / "alignment_db.index"


def names(report: BuildReport) -> dict[str, tuple[str, ...]]:
    return {one.id: () if one.templates is None else one.templates.names for one in ChainSet.open(report.out)}


def test_training_chains_get_earlier_templates_only(
    source: Path, files: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "hits", files)
    templates = TemplateFolder(folder, STRUCTURES)
    report = build(source, tmp_path / "set.npz", msa_dir=folder, templates=templates, jobs=2)
    # a template may be released on the same day, but not belong to the same entry
    assert names(report) == {
        "1UBQ_A": (), "4ZEY_A": ("1ubq_A", "1a8q_A"), "7L39_A": ("1ubq_A", "4zey_A", "1a8q_A"),
    }  # fmt: skip
    assert all(one.msa is not None for one in ChainSet.open(report.out))
    rows = {row["chain"]: row["templates"] for row in report.rows if row["status"] == "accepted"}
    assert [row.get("reason") for row in rows["4ZEY_A"]] == [
        None, "4zey is the entry of the query", "released on 2021-10-27, after the cut-off date 2015-05-06", None,
    ]  # fmt: skip
    assert json.loads(report.report.read_text().splitlines()[1])["templates"][0]["hit"] == "1ubq_A"

    again = build(source, tmp_path / "set.npz", msa_dir=folder, templates=templates, jobs=1)
    assert (again.cached, names(again)) == (3, names(report))
    earlier = TemplateFolder(folder, STRUCTURES, latest=date(1990, 1, 1))
    assert names(build(source, tmp_path / "set.npz", templates=earlier, jobs=1)) == {
        "1UBQ_A": (), "4ZEY_A": ("1ubq_A",), "7L39_A": ("1ubq_A",),
    }  # fmt: skip
    (folder / "4zey_A" / "hhsearch_output.hhr").unlink()
    changed = build(source, tmp_path / "set.npz", templates=earlier, jobs=1)
    assert (changed.cached, names(changed)["4ZEY_A"]) == (2, ())


def test_an_alignment_database_is_read_as_the_folder(
    source: Path, files: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    folder, index = write_folder(tmp_path / "hits", files), write_database(tmp_path / "database", files)
    reports = [
        build(
            source, tmp_path / f"{where.name}.npz", msa_dir=where, templates=TemplateFolder(where, STRUCTURES), jobs=1
        )
        for where in (folder, index)
    ]  # fmt: skip
    assert reports[0].rows == reports[1].rows
    one, other = (dict(np.load(report.out)) for report in reports)
    assert one["template_count"].tolist() == [0, 2, 3]
    assert one.keys() == other.keys()
    for key, values in one.items():
        np.testing.assert_array_equal(values, other[key])
    again = build(
        source, reports[1].out, msa_dir=index, templates=TemplateFolder(index, STRUCTURES), jobs=1
    )  # fmt: skip
    assert again.cached == len(ENTRIES)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("[", "q.index: not a super-index of an alignment database"),
        ("[]", "q.index: expected a JSON object with an entry for each chain"),
        (json.dumps({"1abc_A": [["x.a3m", 0, 5]]}), r"q.index: 1abc_A: expected .*unify_alignment_db_indices.py"),
        (json.dumps({"1abc_A": {"db": "none.db", "files": []}}), r"q.index: 1abc_A: no file .*none\.db"),
    ],
)
def test_damaged_indices_are_named(index: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "q.index").write_text(index)
    with pytest.raises(ValueError, match=words):
        alignment_files.index_folder(tmp_path / "q.index")


def test_files_outside_of_a_database_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text(">q\nMK\n>bad\nMKA\n")
    write = lambda *row: (tmp_path / "q.index").write_text(json.dumps({"1ABC_A": {"db": "a.db", "files": [row]}}))  # noqa: E731
    write("hits.a3m", 3, 100)
    with pytest.raises(ValueError, match=r"1ABC_A: hits\.a3m ends at byte 103 of a\.db, which has 15"):
        alignment_files.index_folder(tmp_path / "q.index")["1abc_A"]
    write("hits.a3m", 3)
    with pytest.raises(ValueError, match=r"1ABC_A: expected \[NAME, START, SIZE\], found"):
        alignment_files.index_folder(tmp_path / "q.index")["1abc_A"]
    write("hits.a3m", 0, 15)
    (section,) = alignment_files.index_folder(tmp_path / "q.index")["1abc_A"]
    where = rf"{tmp_path / 'a.db'}: 1ABC_A/hits\.a3m: line 3: row 'bad' has 3 columns"
    with pytest.raises(ValueError, match=where):
        alignment_files.attach_files(make_record("1ABC_A", "MK"), [section])
    (tmp_path / "a.db").write_text(">q\n")
    with pytest.raises(ValueError, match=r"a\.db: 1ABC_A/hits\.a3m: 3 of 15 bytes from byte 0; the file is truncated"):
        alignment_files.attach_files(make_record("1ABC_A", "MK"), [section])


def test_complexes_share_templates_and_are_whole_or_rejected(tmp_path: Path) -> None:
    """A, C and F of 1KD8 are equal; A alone has hits, which the copies share."""
    source, hits = tmp_path / "source", tmp_path / "hits"
    for folder in (source, hits):
        folder.mkdir()
    shutil.copy(STRUCTURES / "1kd8.cif.gz", source)
    (record,) = [one for one in mmcif.read(STRUCTURES / "1kd8.cif.gz") if one.id.endswith("_A")]
    known, rng = chains(), np.random.default_rng(0)
    hit = random_hit("1ubq_A", known["1ubq_A"], rng, start=3, first=2, columns=25, query=record.sequence)
    (hits / "1kd8_A.hhr").write_text(hhr([hit], record.sequence))
    (hits / "9zzz_A.hhr").write_text(hhr([hit], record.sequence))
    templates, settings = TemplateFolder(hits, STRUCTURES), BuildSettings(complexes=True)
    report = build(source, tmp_path / "set.npz", templates=templates, settings=settings, jobs=1)
    assert report.unused_templates == ["9zzz_A"]
    assert "1 template hits match no chain, such as 9zzz_A" in report.summary()
    (made,) = ChainSet.open(report.out)
    assert made.templates is not None
    assert made.chain_ids is not None
    given = made.templates.atom_mask[0].any(1)
    counts = [int(given[made.chain_ids.asym_id == number].sum()) for number in range(1, 7)]
    copies = [one.sequence == record.sequence for one in mmcif.read(STRUCTURES / "1kd8.cif.gz")]
    assert sum(copies) == 3
    assert [count > 0 for count in counts] == copies
    (hits / "1kd8_A.hhr").write_text(hhr([hit], record.sequence)[:400])
    with pytest.raises(ValueError, match=r"the most frequent reason: 1KD8_A: .*1kd8_A\.hhr"):
        build(source, tmp_path / "damaged.npz", templates=templates, settings=settings, jobs=1)


def test_prediction_finds_hits_of_chains_in_alphafolds_folders(tmp_path: Path) -> None:
    known, rng = chains(), np.random.default_rng(0)
    query = known["1ubq_A"]
    hit = random_hit("1ubq_A", query, rng, start=3, first=2, columns=50, query=query)
    (tmp_path / "in.fasta").write_text(f">x\nGAVLEKWHFRDE:{query}\n")
    folder = tmp_path / "hits" / "x" / "msas" / "B"
    folder.mkdir(parents=True)
    (folder / "pdb_hits.hhr").write_text(hhr([hit], query))
    templates = TemplateFolder(tmp_path / "hits", STRUCTURES)
    (job,) = read_jobs(tmp_path / "in.fasta", None, None, templates)
    assert job.error is None
    assert [one.file for one in job.hits] == ["B/pdb_hits.hhr"]
    assert job.record.templates is not None
    assert job.record.templates.atom_mask[0].any(1).nonzero()[0].min() >= 12
