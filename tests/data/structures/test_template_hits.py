"""Template hits: files of HHsearch and hmmsearch, AlphaFold's own selection of templates, and damaged files."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from ds4sci.chemistry.residue_codes import decode
from ds4sci.data.structures import template_selection
from ds4sci.data.structures.template_hits import TemplateHit, read_hits
from ds4sci.data.structures.template_library import TemplateLibrary
from ds4sci.data.structures.template_selection import select_templates
from tests.support.template_hits import CUTOFF, EXPECTED, OBSOLETE, QUERY, STRUCTURES, Hit, hhr, hmmsearch

FILES = {"hhr": EXPECTED / "q.hhr", "sto": EXPECTED / "q.sto"}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> TemplateLibrary:
    path = tmp_path_factory.mktemp("obsolete") / "obsolete.dat"
    path.write_text(OBSOLETE)
    return TemplateLibrary(STRUCTURES, path)


@pytest.mark.parametrize("kind", FILES)
def test_templates_are_those_of_alphafold(kind: str, library: TemplateLibrary) -> None:
    """Names, order, residues, atoms and coordinates, bit by bit, and the reason for every other hit."""
    expected = np.load(EXPECTED / "expected.npz")
    hits = [(FILES[kind].name, hit) for hit in read_hits(FILES[kind], QUERY)]
    found, reports = select_templates(QUERY, hits, library, latest=date.fromisoformat(CUTOFF))
    assert found is not None
    assert list(found.names) == expected[f"{kind}_names"].tolist()
    assert [decode(row) for row in found.aatype] == expected[f"{kind}_sequences"].tolist()
    np.testing.assert_array_equal(found.atom_mask, expected[f"{kind}_mask"])
    np.testing.assert_array_equal(found.atom_positions[found.atom_mask], expected[f"{kind}_positions"])

    dropped = {(one.hit, one.reason) for one in reports if one.reason is not None}
    assert len(reports) == len(hits) == len(found.names) + len(dropped)
    assert dropped >= {
        ("9xyz_A", "9xyz was removed from the PDB"),
        ("7l39_A", f"released on 2021-10-27, after the cut-off date {CUTOFF}"),
        ("1a8q_A", "9 residues; expected at least 10"),
        ("1zzz_A", "a duplicate: its sequence is 88 of the 89 residues of the query"),
    }
    unlike = "no chain of 1a8q.cif.gz has the 47 residues RDGVEIFYKDWG… of the hit as written; the file has chains A"
    assert ((("1a8q_A", unlike) in dropped), (("9nab_A", "not a protein but 'na'") in dropped)) == (
        kind == "hhr", kind == "sto",
    )  # fmt: skip
    first = next(one.as_json() for one in reports if one.reason is None)
    assert first == {
        "file": f"q.{kind}", "hit": "1ubq_A", "status": "used", "identity": 1.0,
        **({"sum_probs": 60.5} if kind == "hhr" else {}),
    }  # fmt: skip


def hit(name: str, sequence: str, start: int = 0, *, at: int = 0) -> TemplateHit:
    """A hit whose residues are aligned to those of the query from ``at`` on."""
    index = np.arange(len(sequence))
    return TemplateHit(name, sequence, start, at + index, index, len(sequence))


def reasons(library: TemplateLibrary, *hits: TemplateHit, query: str = QUERY, **more: object) -> list[str | None]:
    return [one.reason for one in select_templates(query, [("f", one) for one in hits], library, **more)[1]]  # type: ignore[arg-type]


def test_reasons_to_drop_hits(library: TemplateLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    ubiquitin = hit("1ubq_A", QUERY[:70])
    assert reasons(library, ubiquitin, own_entry="1ubq") == ["1ubq is the entry of the query"]
    assert reasons(library, hit("9abc_A", QUERY[:70]), own_entry="1a8q") == ["1a8q is the entry of the query"]
    assert reasons(library, replace(ubiquitin, columns=8)) == ["8 of 89 residues are aligned; expected more than 10%"]
    assert reasons(library, hit("8xxx_A", QUERY[:70])) == [f"no file 8xxx.cif or 8xxx.cif.gz in {STRUCTURES}"]
    (unnamed,) = reasons(library, hit("sp|P1", QUERY[:70]))
    assert unnamed == "the name 'sp|P1' does not begin with an entry and a chain, such as 1abc_A"
    # a hit that covers more than 95 % of the query, and is a part of it
    assert reasons(library, hit("1ubq_A", QUERY[:74]), query=QUERY[:76])[0].startswith("a duplicate")  # type: ignore[union-attr]
    assert reasons(library, hit("1ubq_A", QUERY[:70]), query=QUERY[:76]) == [None]
    monkeypatch.setattr(template_selection, "MAX_TEMPLATES", 1)
    shifted = hit("1ubq_A", QUERY[:60], at=1)
    assert reasons(library, ubiquitin, shifted) == [None, template_selection.SURPLUS]


def test_repeats_are_found_at_their_position(library: TemplateLibrary, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = library.read(STRUCTURES / "1ubq.cif.gz")
    record = parsed.records[0]
    twice = replace(
        record, sequence=record.sequence * 2, atom_mask=np.tile(record.atom_mask, (2, 1)),
        atom_positions=np.tile(record.atom_positions, (2, 1, 1)),
    )  # fmt: skip
    monkeypatch.setattr(library, "read", lambda path: replace(parsed, records=[twice]))
    given = hit("1ubq_A", record.sequence[5:40], start=81)
    assert template_selection.find_sequence(library.read(Path()), "A", given)[2] == 81
    assert template_selection.find_sequence(library.read(Path()), "A", replace(given, start=3))[2] == 5


def test_structures_without_a_date_and_damaged_ones(tmp_path: Path) -> None:
    original = (STRUCTURES / "1ubq.cif.gz").read_bytes()
    (tmp_path / "ub").mkdir()
    (tmp_path / "ub" / "1ubq.cif.gz").write_bytes(original)
    (tmp_path / "9bad.cif").write_text("data_x\nloop_")
    library = TemplateLibrary(tmp_path)
    assert reasons(library, hit("1ubq_A", QUERY[:60]), latest=date(1987, 4, 16)) == [None]
    (late,) = reasons(library, hit("1ubq_A", QUERY[:60]), latest=date(1987, 4, 15))
    assert late == "released on 1987-04-16, after the cut-off date 1987-04-15"
    (bad,) = reasons(library, hit("9bad_A", QUERY[:60]))
    assert bad is not None
    assert bad.startswith(f"{tmp_path / '9bad.cif'}: not mmCIF, or truncated")
    fixture = Path(__file__).parents[2] / "fixtures" / "structures" / "gap.cif"
    (tmp_path / "9gap.cif").write_bytes(fixture.read_bytes())
    (undated,) = reasons(library, hit("9gap_A", QUERY[:60]), latest=date(2020, 1, 1))
    assert undated is not None
    assert undated.startswith("9gap.cif has no release date (_pdbx_audit_revision_history)")
    with pytest.raises(ValueError, match=r"no mmCIF file; expected template structures named 1abc\.cif"):
        TemplateLibrary(EXPECTED)
    (tmp_path / "obsolete.dat").write_text("OBSLTE    31-JUL-94 9AAA     9BBB\nOBSLTE    31-JUL-94 9BBB     1UBQ\n")
    assert TemplateLibrary(tmp_path, tmp_path / "obsolete.dat").current("9aaa") == "1ubq"
    (tmp_path / "obsolete.dat").write_text("OBSLTE\n")
    with pytest.raises(ValueError, match=r"obsolete\.dat: line 1: expected 'OBSLTE DATE ENTRY"):
        TemplateLibrary(tmp_path, tmp_path / "obsolete.dat")


def test_an_empty_file_of_hmmsearch_has_no_hits(tmp_path: Path) -> None:
    (tmp_path / "q.sto").write_text("")
    assert read_hits(tmp_path / "q.sto", QUERY) == []


ONE = Hit("1ubq_A", QUERY[5:45], 5, tuple((i + 5, i) for i in range(40)), 3.0)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("q.hhr", "HMMER\n", "line 1: expected 'Query', found 'HMMER'; not an .hhr file"),
        ("q.hhr", hhr([ONE]).replace("Sum_probs", "sum"), r"line 10: expected 'Probab=… Aligned_cols=N"),
        ("q.hhr", hhr([ONE], query="A" + QUERY[1:]).replace("   6 KTL", "   5 KTL"), r"line 12: .* 5 to 45 after"),
        ("q.hhr", hhr([ONE], query=QUERY[:9] + "W" + QUERY[10:]), "hits of another query: residue 10 is W, and G in"),
        ("q.hhr", hhr([ONE], width=30).rpartition("\nQ query")[0] + "\nQ query  6 KT", r"expected NAME FIRST LETTERS"),
        ("q.hhr", hhr([ONE]).partition("\nT 1ubq")[0], "40 columns of the query and 0 of '1ubq_A a d'"),
        ("q.sto", hmmsearch([ONE]).replace("//", ""), "no '//' at the end of the alignment; the file is truncated"),
        ("q.sto", ">a\nMK", "line 1: expected '# STOCKHOLM 1.0', found '>a'"),
        ("q.sto", hmmsearch([ONE], query=QUERY[:80]), r"80 match columns \(upper case and '-'\); expected 89"),
        ("q.sto", hmmsearch([ONE]).replace("KT", "K1", 1), "letters that are neither residues nor gaps"),
        ("q.a3m", "", "unknown format '.a3m' of template hits; expected .hhr, .sto"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(name: str, text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as caught:
        read_hits(path, QUERY)
    assert str(caught.value).startswith(str(path))
