"""Alignment files of other programs: row counts with reasons, and errors that name the file."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from ds4sci.chemistry.residue_codes import decode
from ds4sci.data import text_files
from ds4sci.data.alignments import alignment_files, msa
from ds4sci.data.alignments.alignment_files import PAIRING_HITS, TEMPLATE_HITS, AlignmentFileReport, attach_files
from ds4sci.data.sequences import SequenceStore, fasta_records
from ds4sci.data.sequences import index as index_sequences
from ds4sci.types import Record
from tests.support.sequence_files import records_of, write

DATA = Path(__file__).parents[2] / "fixtures"
CASES = DATA / "alignments"
QUERY = "MKTAYIAKQRQISFVKSHFSRQLEERLG"
REAL = "MGSSHHHHHHSSGLVPGSHMDKKETKHLLKIKKEDYPQIFDFLENVPRGTKTAHIREALRRYIEEIGENP"
"""The query of ``fixtures/msa``."""
HHBLITS = {"B": "D", "J": "X", "O": "X", "U": "C", "Z": "E"}
"""Substitutes of rare letters in AlphaFold 2 (``HHBLITS_AA_TO_ID``)."""


def attached(
    sequence: str, paths: list[Path], max_rows: int | None = None
) -> tuple[Record, dict[str, AlignmentFileReport]]:
    record, files = attach_files(fasta_records.make_record("q1", sequence), paths, max_rows=max_rows)
    kept = 0 if record.msa is None else len(record.msa.names)
    assert sum(file.kept for file in files) == kept
    for file in files:
        assert file.rows == file.kept + sum(file.excluded.values())
    return record, {file.file: file for file in files}


def rows(record: Record) -> dict[str, str]:
    assert record.msa is not None
    return dict(zip(record.msa.names, map(decode, record.msa.sequences), strict=True))


def test_template_hits_of_an_openfold_folder_are_skipped() -> None:
    paths = alignment_files.index_folder(CASES / "openfold")["q1"]
    assert [path.name for path in paths] == ["bfd_uniref_hits.a3m", "hmm_output.sto", "uniref90_hits.sto"]
    record, files = attached(QUERY, paths)
    assert rows(record) == {
        "q1": QUERY, "h": QUERY.replace("QR", "Q-"), "UniRef90_X/1-28": QUERY.replace("YI", "YG"),
    }  # fmt: skip
    assert files["hmm_output.sto"].skip_reason == TEMPLATE_HITS
    assert files["uniref90_hits.sto"].excluded == {msa.DUPLICATE: 1}
    assert f"hmm_output.sto skipped: {TEMPLATE_HITS}" in alignment_files.summarize(list(files.values()))
    # read as an alignment, the hits raise an error that names the file
    with pytest.raises(ValueError, match=r"hmm_output\.sto: the query is not the sequence of q1: at residue 29"):
        msa.attach(fasta_records.make_record("q1", QUERY + "W"), msa.read(paths[0]), paths[1])


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hmm_output.sto", TEMPLATE_HITS),
        ("pdb_hits.sto.gz", TEMPLATE_HITS),
        ("pdb70_hits.hhr", TEMPLATE_HITS),
        ("anything.hhr", TEMPLATE_HITS),
        ("uniprot_hits.sto", PAIRING_HITS),
        ("notes.txt", alignment_files.NO_ALIGNMENT),
        ("bfd_uniclust_hits.a3m", None),
        ("mgnify_hits.sto.gz", None),
    ],
)
def test_reasons_for_skipped_files(name: str, reason: str | None) -> None:
    assert alignment_files.why_not(name) == reason


@pytest.mark.parametrize("letter", "UXC")
def test_u_and_x_in_the_query_match_the_chain(letter: str, tmp_path: Path) -> None:
    """The query of one file has U, of the other X; the chain has U (X in FASTA), X, or C (parent of selenocysteine)."""
    source = write(tmp_path / "q.fasta", f">q1\nMKTAYIA{letter}QRQISFVKSHFSRQLEERLG\n")
    (entry,) = fasta_records.read_entries(source)
    assert bool(entry.notes) == (letter == "U")
    found, files = attached(entry.sequence, sorted((CASES / "selenocysteine/q1").iterdir()))
    assert rows(found) == {"q1": entry.sequence, "h": QUERY}
    assert files["uniref90_hits.sto"].excluded == {msa.DUPLICATE: 2}


@pytest.mark.parametrize("letter", "BJOUZ")
def test_ambiguous_letters_of_a_query_match_any_residue(letter: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.a3m", f">q\nAC{letter}E\n>h\nAC{letter}W\n")
    found, _ = attached("ACNE", [path])
    assert rows(found) == {"q": "ACNE", "h": f"AC{HHBLITS[letter]}W"}


# --- NUL bytes ----------------------------------------------------------------------------------------------------


def test_mmseqs2_nul_bytes_are_accepted() -> None:
    found, files = attached(QUERY, [CASES / "nul_bytes.a3m"])
    assert rows(found) == {"q1": QUERY, "h1": QUERY.replace("YI", "YA")}
    assert files["nul_bytes.a3m"].rows == 2


def test_alignments_of_one_file_are_selected_by_query(tmp_path: Path) -> None:
    """Output of the ColabFold server: A3M of several queries, separated by NUL bytes."""
    blocks = [">101\nACDE\n>a\nACDF\n>b\nACDF\n", ">102\nWWWWW\n>c\nWW-WW\n", ">101\nACDE\n>d\nA-DE\n"]
    path = write(tmp_path / "x.a3m", "\0".join(blocks) + "\0")
    found, files = attached("ACDE", [path])
    assert rows(found) == {"101": "ACDE", "a": "ACDF", "d": "A-DE"}
    assert files["x.a3m"].excluded == {alignment_files.OTHER_QUERY: 2, msa.DUPLICATE: 2}
    assert files["x.a3m"].rows == 7
    assert rows(attached("WWWWW", [path])[0]) == {"102": "WWWWW", "c": "WW-WW"}
    with pytest.raises(ValueError, match=r"x\.a3m: none of the 3 alignments \(queries '101', '102', '101' …\) has the"):
        attached("ACDF", [path])
    with pytest.raises(ValueError, match=r"x\.a3m: 3 alignments to different queries"):
        msa.read(path)
    path.write_text("\0".join(blocks).replace(">d\nA-DE", ">d\nA1DE"))
    with pytest.raises(ValueError, match=r"x\.a3m: line 13: row 'd' has '1' in column 2"):
        msa.read_all(path)


def test_concatenated_stockholm_alignments(tmp_path: Path) -> None:
    one = "# STOCKHOLM 1.0\n#=GF ID x\n\nq AC\nh A-\n\nq DE\nh DF\n//\n"
    other = "# STOCKHOLM 1.0\np WWW\n//\n"
    for between in ("", "\n\n", "\0"):
        path = write(tmp_path / "x.sto", one + between + other)
        found, files = attached("ACDE", [path])
        assert rows(found) == {"q": "ACDE", "h": "A-DF"}
        assert files["x.sto"].excluded == {alignment_files.OTHER_QUERY: 1}


def test_nul_bytes_in_damaged_files_raise(tmp_path: Path) -> None:
    path = write(tmp_path / "x.a3m", ">q\nACDE\n>h\nAC" + "\0" * 512 + "E\n")
    with pytest.raises(ValueError, match=r"x\.a3m: line 4: a run of NUL bytes; the file is damaged"):
        msa.read(path)
    with pytest.raises(ValueError, match=r"x\.a3m: line 3: row 'h' has 2 columns"):
        msa.read(write(path, ">q\nACDE\n>h\nAC\0DE\n"))
    assert fasta_records.read_fasta(write(tmp_path / "x.fa", ">q\nACDE\n\0>h\nAC\n\0")) == [("q", "ACDE"), ("h", "AC")]
    with pytest.raises(ValueError, match=r"x\.fa: line 2: no '>' before 'DE'"):
        fasta_records.read_fasta(write(tmp_path / "x.fa", ">q\nAC\0DE\n"))


# --- what other programs write ------------------------------------------------------------------------------------


def test_the_first_line_of_colabfold(tmp_path: Path) -> None:
    assert msa.read(write(tmp_path / "x.a3m", "#4\t2\n>101\nACDE\n")).names == ("101",)
    with pytest.raises(ValueError, match=r"x\.a3m: line 1: an alignment of a complex"):
        msa.read(write(tmp_path / "x.a3m", "#4,3\t1,2\n>101\t102\nACDEWWW\n"))


def test_dots_are_padding_or_gaps(tmp_path: Path) -> None:
    """Dots are padding in A2M and gaps in other programs. The length of the row decides."""
    path = write(tmp_path / "x.a3m", ">q\nA.C.DE\n>padded\nA.CwDE\n>gaps\nA..E\n>both\nA.-vE\n")
    got = msa.read(path)
    assert [decode(row) for row in got.sequences] == ["ACDE", "A--E"]
    assert got.names == ("q", "gaps")
    assert got.deletions.tolist() == [[0, 0, 0, 0], [0, 0, 0, 0]]
    with pytest.raises(ValueError, match=r"line 3: row 'h' has 3 columns"):
        msa.read(write(path, ">q\nACDE\n>h\nA..CD\n"))


def test_only_ascii_letters_are_converted_to_upper_case(tmp_path: Path) -> None:
    """``ß`` must not become SS, nor a ligature its letters: the file does not have these residues."""
    for letter in ("ß", "ﬁ", "ſ", "ı"):
        with pytest.raises(ValueError, match=r"x\.fa: line 2: '.' at letter 3 of 'q' is not a valid amino acid"):
            fasta_records.read_fasta(write(tmp_path / "x.fa", f">q\nAC{letter}\n"))
        with pytest.raises(ValueError, match=r"x\.sto: line 3: row 'h' has '\?' in column 2"):
            msa.read(write(tmp_path / "x.sto", f"# STOCKHOLM 1.0\nq ACD\nh A{letter}D\n//\n"))


FASTA, GENBANK = ">q\nACDEFGHIK\n", "LOCUS       q  9 aa\nORIGIN\n        1 acdefghik\n//\n"
A3M, STOCKHOLM = ">q\nACDE\n>h\nAC-E\n", "# STOCKHOLM 1.0\nq ACDE\nh AC-E\n//\n"
READERS = {
    "x.fa": (FASTA, fasta_records.read_fasta),
    "x.a3m": (A3M, lambda path: rows_of(msa.read(path))),
    "x.sto": (STOCKHOLM, lambda path: rows_of(msa.read(path))),
    "store.fa": (FASTA, lambda path: stored(path)),
    "store.fastq": ("@q\nACDEFGHIK\n+\n123456789\n", lambda path: stored(path)),
    "store.gb": (GENBANK, lambda path: stored(path)),
}


def rows_of(alignment: msa.Msa) -> list[tuple[str, str]]:
    return list(zip(alignment.names, map(decode, alignment.sequences), strict=True))


def stored(path: Path) -> list[tuple[str, str]]:
    out = path.with_name(f"{path.name}.store.{len(list(path.parent.iterdir()))}")
    index_sequences([path], out, alphabet="protein", jobs=1)
    return records_of(SequenceStore.open(out))


@pytest.mark.parametrize("name", READERS)
def test_byte_order_marks_and_line_ends(name: str, tmp_path: Path) -> None:
    """A byte order mark and the line ends of Windows and old Macs change nothing; UTF-16 raises an error."""
    content, read = READERS[name]
    plain = read(write(tmp_path / name, content))
    for ends in ("\n", "\r\n", "\r"):
        for mark in ("", "\ufeff"):
            assert read(write(tmp_path / name, (mark + content.replace("\n", ends)).encode())) == plain
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        with pytest.raises(ValueError, match=rf"{name}: UTF-16 or UTF-32 text; expected UTF-8"):
            read(write(tmp_path / name, content.encode(encoding)))


@pytest.mark.parametrize("name", ["x.fa", "x.a3m", "x.sto", "store.fa"])
def test_unsupported_compressions_raise(name: str, tmp_path: Path) -> None:
    for suffix, (magic, compression) in zip(
        text_files.UNSUPPORTED_SUFFIXES, text_files.UNSUPPORTED_COMPRESSIONS.items(), strict=True
    ):
        with pytest.raises(ValueError, match=rf"{name}{suffix}: (compressed|packed) with {compression}"):
            READERS[name][1](write(tmp_path / f"{name}{suffix}", magic + b"xxxxxxxx"))
    folder = tmp_path / "msa"
    folder.mkdir()
    write(folder / "q.a3m.xz", b"\xfd7zXZ")
    assert list(alignment_files.index_folder(folder)) == ["q"]  # an error when read, not ignored


# --- row counts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 1, 5])
def test_every_row_of_real_files_is_kept_or_counted(limit: int | None) -> None:
    """Expected counts from the text of the files: names in Stockholm, ``>`` in A3M."""
    paths = sorted((DATA / "msa").iterdir())
    found, files = attached(REAL, paths, limit)
    assert found.msa is not None
    read = [path for path in paths if path.stem != "uniprot_hits"]
    distinct = len({row.tobytes() for path in read for row in msa.read(path).sequences})
    assert len(found.msa.names) == min(limit or distinct, distinct)
    for path in paths:
        lines = path.read_text().splitlines()
        names = {line.split()[0] for line in lines if line.strip() and line[0] not in "#/"}
        count = sum(line.startswith(">") for line in lines) if path.suffix == ".a3m" else len(names)
        if path.stem == "uniprot_hits":
            assert files[path.name].skip_reason == PAIRING_HITS
        else:
            assert files[path.name].rows == count
    beyond = sum((file.excluded for file in files.values()), Counter())[alignment_files.BEYOND_LIMIT]
    assert beyond == distinct - len(found.msa.names)
    assert json.loads(json.dumps([file.as_json() for file in files.values()]))[0]["file"] == "bfd_uniclust_hits.a3m"


def test_annotation_rows_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "x.a3m", ">ss_pred\nCCCC\n>ss_conf\n9999\n>q\nACDE\n>h\nAC-E\n")
    _, files = attached("ACDE", [path])
    assert files["x.a3m"].excluded == {msa.ANNOTATION: 2}


def test_a_chain_without_alignment_files_has_no_msa(tmp_path: Path) -> None:
    found, files = attached(QUERY, [CASES / "openfold" / "q1" / "hmm_output.sto", write(tmp_path / "a.hhr", "x")])
    assert found.msa is None
    assert all(file.skip_reason == TEMPLATE_HITS for file in files.values())


def test_alphafold2_folders_are_read_and_other_entries_reported(tmp_path: Path) -> None:
    chain = tmp_path / "q1"
    for folder in (chain / "msas" / "A", chain / "other", tmp_path / "q2", tmp_path / "q3" / "msas"):
        folder.mkdir(parents=True)
    write(chain / "ranked_0.pdb", "END\n")
    write(chain / "msas" / "bfd_uniref_hits.a3m", f">q1\n{QUERY}\n>h\n{QUERY[:-1]}-\n")
    write(chain / "msas" / "pdb_hits.hhr", "x")
    write(chain / "msas" / "A" / "uniref90_hits.sto", "# STOCKHOLM 1.0\n")
    write(chain / "other" / "uniref90_hits.sto", "# STOCKHOLM 1.0\n")
    found = alignment_files.index_folder(tmp_path)
    record, files = attached(QUERY, found["q1"])
    assert list(rows(record)) == ["q1", "h"]
    assert {name: file.skip_reason for name, file in files.items()} == {
        "A": alignment_files.NESTED_FOLDER, "bfd_uniref_hits.a3m": None, "pdb_hits.hhr": TEMPLATE_HITS,
        "other": alignment_files.NESTED_FOLDER, "ranked_0.pdb": alignment_files.NO_ALIGNMENT,
    }  # fmt: skip
    for name, folder in (("q2", "q2"), ("q3", "msas")):
        without, files = attached(QUERY, found[name])
        assert without.msa is None
        assert {name: file.skip_reason for name, file in files.items()} == {folder: alignment_files.EMPTY}


def test_folders_of_openproteinset(tmp_path: Path) -> None:
    """Alignments in ``a3m``, template hits in ``hhr``; a chain of the same sequence has the files of another one."""
    files = tmp_path / "pdb" / "1abc_A"
    (files / "a3m").mkdir(parents=True)
    (files / "hhr").mkdir()
    write(files / "a3m" / "uniref90_hits.a3m", f">q\n{QUERY}\n>h\n{QUERY[:-1]}-\n")
    write(files / "hhr" / "pdb70_hits.hhr", "x")
    (tmp_path / "duplicate_pdb_chains.txt").write_text("2ABC_B 1abc_A\n3abc_A 4abc_A\n")
    found = alignment_files.index_folder(tmp_path / "pdb")
    assert found.keys() == {"1abc_A", "2abc_B"}
    assert found["1abc_A"] == found["2abc_B"] == [files / "a3m/uniref90_hits.a3m", files / "hhr/pdb70_hits.hhr"]
    record, reports = alignment_files.attach_files(fasta_records.make_record("2ABC_B", QUERY), found["2abc_B"])
    assert len(record.msa.names) == 2
    assert [report.skip_reason for report in reports] == [None, alignment_files.TEMPLATE_HITS]
