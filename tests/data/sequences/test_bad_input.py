"""Invalid sequence files: each error names file, line and record, or the record is skipped and counted."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ds4sci.data.sequences import SequenceStore, block_reader, fasta_blocks, index
from tests.support.sequence_files import bgzip, records_of, write

shared_folder = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
PLAIN = "ACGTTGCAACGTGCA"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 17 bytes, so that records, headers and line ends are cut at every position."""
    monkeypatch.setattr(block_reader.BlockReader.__init__, "__defaults__", (17,))


@given(st.binary(max_size=300) | st.from_regex(rb"(>?[ -~]{0,9}[\r\n]|@[A-z]*\n[ACGT]*\n\+\n|LOCUS|//|ORIGIN|;){0,20}"))
@example(b">")
@example(b"@")
@example(b"LOCUS")
@example(b"\x1f\x8b")
@example(b"\xef\xbb\xbf>a\nAC")
@example(b";c\n>a\n;c\nAC\n")
@example(b">a\n" + b"\n" * 50 + b"M*\n" + b"\n" * 50 + b"K")
@shared_folder
def test_any_bytes_give_a_store_or_a_value_error(tmp_path: Path, data: bytes) -> None:
    shutil.rmtree(tmp_path, ignore_errors=True)
    tmp_path.mkdir()
    path = write(tmp_path / "in.fa", data)
    strict, skipped = attempt(path, tmp_path / "strict", "error")
    loose, _ = attempt(path, tmp_path / "loose", "skip")
    for store in (strict, loose):
        if store is not None:
            store.verify()
            assert (store.lengths > 0).all()
    assert (strict is not None) == (loose is not None and not loose.manifest["skipped"])
    assert (strict is None) == (str(path) in skipped)
    if strict is not None and loose is not None:
        assert records_of(strict) == records_of(loose)


def attempt(path: Path, out: Path, bad: Any) -> tuple[SequenceStore | None, str]:
    """The store, or None and the ValueError's text."""
    try:
        index([path], out, on_bad_record=bad, jobs=1)
    except ValueError as error:
        return (SequenceStore.open(out) if out.exists() else None), str(error)
    return SequenceStore.open(out), ""


GOOD = f">good\n{PLAIN}\n"
BAD: dict[str, tuple[str | bytes, str, dict[str, Any]]] = {
    # kind of error: the file, the message, options
    "inside stop": (">p\nMKV\nMW*LL\n>good\nMKWL\n", r"line 3: record 'p': '\*' at letter 6 is a stop inside", {}),
    "stop, then blank lines": (
        ">p\nMKV*\n" + "\n" * 60 + "MW\n>good\nMKWL\n", r"line 2: record 'p': '\*' at letter 4 is a stop inside", {}
    ),
    "two stops": (">p\nMKVW**\n>good\nMKWL*\n", r"line 2: record 'p': '\*' at letter 5", {}),
    "dash": (f">x\nACGT\nAC-T\n{GOOD}", r"line 3: record 'x': '-' at letter 7 is a gap; remove the gaps", {}),
    "dot": (f">x\nACGT\n\nA.GT\n{GOOD}", r"line 4: record 'x': '\.' at letter 6 is a gap", {}),
    "empty record": (f">x\n\n{GOOD}", r"line 1: record 'x': no residues", {}),
    "empty at the end": (f"{GOOD}>x\n", r"line 3: record 'x': no residues", {}),
    "only a stop": (">x\n*\n>good\nMKWL\n", r"line 1: record 'x': no residues", {"alphabet": "protein"}),
    "no name": (f"> \nACGT\n{GOOD}", r"line 1: a header without a name", {}),
    "duplicate": (f"{GOOD}>x\nAC\n>good\nTT\n", r"line 5: record 'good': the name was used in .*in\.fa, line 1", {}),
    "early text": (f"ACGT\n{GOOD}", r"line 1: no '>' before 'ACGT'", {}),
    "protein in dna": (
        f"{GOOD}>x\nAC\nGE\n",
        r"line 5: record 'x': 'E' at letter 4 is not a valid base.*protein\?$",
        {"alphabet": "dna"},
    ),
    "protein in guessed dna": (
        f">good\n{'ACGT' * 16}\n" + f">x\n{'ACGT' * 6}\nacgtq\n",
        r"line 5: record 'x': 'q' at letter 29 is not a valid base; expected ACGTN.*"
        r"'dna' was guessed from .*in\.fa.*alphabet=",
        {},
    ),
    "digit": (f">x\nAC1T\n{GOOD}", r"line 2: record 'x': '1' at letter 3 is not a valid base", {}),
    "byte": (f">x\nAC\xe9T\n{GOOD}".encode("latin-1"), r"line 2: record 'x': byte 0xE9 at letter 3", {}),
    "too long": (f">x\n{'ACGT' * 30}\n{GOOD}", r"line 1: record 'x': longer than max_length, 100", {"max_length": 100}),
    "quality": (
        f"@x\nACGT\n+\nIII\n@good\n{PLAIN}\n+\n{'@' * 15}\n", r"line 1: record 'x': 4 letters but 3 qualities", {}
    ),
    "no quality": (f"@good\n{PLAIN}\n+\n{'@' * 15}\n@x\nACGT\n", r"line 5: record 'x': the file ends before", {}),
    "text in fastq": (f"@good\n{PLAIN}\n+\n{'@' * 15}\nACGT\n", r"line 5: expected '@'", {}),
    "no ORIGIN": (
        f"LOCUS       x    4 bp\nCONTIG      join(Y)\n//\nLOCUS  good\nORIGIN\n  1 {PLAIN}\n//\n",
        r"line 1: record 'x': no ORIGIN",
        {},
    ),
    "no //": (
        f"LOCUS       good\nORIGIN\n  1 {PLAIN}\n//\nLOCUS  x\nORIGIN\n  1 acgt\n", r"line 5: record 'x': .*//", {}
    ),
    "LOCUS length": (
        f"LOCUS       x  5 bp\nORIGIN\n  1 acgt\n//\nLOCUS  good\nORIGIN\n  1 {PLAIN}\n//\n",
        r"line 1: record 'x': LOCUS declares 5 letters, ORIGIN has 4",
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("block", [17, 1 << 20])
@pytest.mark.parametrize("what", BAD)
def test_a_bad_record(what: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``error`` raises with file, line and record; ``skip`` keeps the other records and counts the same message."""
    monkeypatch.setattr(block_reader.BlockReader.__init__, "__defaults__", (block,))
    data, message, options = BAD[what]
    path = write(tmp_path / "in.fa", data)
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + message):
        index([path], tmp_path / "out", jobs=1, **options)
    assert not (tmp_path / "out").exists()
    summary = index([path], tmp_path / "out", jobs=1, on_bad_record="skip", **options)
    store = SequenceStore.open(tmp_path / "out")
    store.verify()
    assert "good" in [store.name(i) for i in range(len(store))]
    assert sum(skipped["count"] for skipped in summary.skipped.values()) == 1
    (skipped,) = summary.skipped.values()
    assert re.search(message, skipped["examples"][0])
    assert re.search(message, str(summary))
    kept = records_of(store)
    assert all(name in ("good", "x") for name, _ in kept)
    assert kept[[name for name, _ in kept].index("good")][1].upper() in (PLAIN, "MKWL", "ACGT" * 16)


UNREADABLE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "0 bytes": (lambda path: path.write_bytes(b""), "0 bytes"),
    "truncated gz": (lambda path: path.write_bytes(gzip.compress(GOOD.encode() * 99, mtime=0)[:-12]), "truncated"),
    "damaged gz": (lambda path: path.write_bytes(gzip.compress(GOOD.encode(), mtime=0)[:-8] + b"12345678"), "damaged"),
    "truncated bgz": (lambda path: path.write_bytes(bgzip(GOOD.encode() * 99)[:-28]), "truncated bgzip"),
    "gz of nothing": (lambda path: path.write_bytes(gzip.compress(b"")), "no record"),
    "blank lines": (lambda path: path.write_bytes(b"\n\n"), "no record"),
    "bzip2": (lambda path: path.write_bytes(b"BZh9123"), "compressed with bzip2"),
    "a picture": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0"), "line 1: expected a FASTA"),
    "missing": (lambda path: None, "no such file"),
    "folder": (lambda path: path.mkdir(), "a folder"),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_file_that_cannot_be_read(what: str, tmp_path: Path) -> None:
    """``error`` names the file; ``skip`` skips and counts it, and raises if no record is left."""
    make, message = UNREADABLE[what]
    path, good = tmp_path / "in.gz", write(tmp_path / "good.fa", GOOD)
    make(path)
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*" + message):
        index([good, path], tmp_path / "out", jobs=1)
    summary = index([path, good], tmp_path / "out", jobs=1, on_bad_record="skip")
    assert (summary.records, summary.skipped["unreadable file"]["count"]) == (1, 1)
    assert index([path, good], tmp_path / "out", jobs=1, on_bad_record="skip").unchanged
    with pytest.raises(ValueError, match="no valid record in 1 files.*" + message):
        index([path], tmp_path / "nothing", jobs=1, on_bad_record="skip")


def test_unusual_but_valid_input(tmp_path: Path) -> None:
    """Comments, blank lines, a byte order mark, a final stop, rare letters, names in Latin-1."""
    data = b"\xef\xbb\xbf;c\n\n> M\xfcller of K\xf6ln  \r\n\nMK v w\tBZ\n;c\nJUO*\n\n>two;three\nMKWL*\n\n"
    summary = index([write(tmp_path / "p.fa", data)], tmp_path / "out", jobs=1)
    store = SequenceStore.open(tmp_path / "out")
    assert records_of(store) == [("Müller", "MKvwBZJUO"), ("two;three", "MKWL")]
    assert store.description(0) == "of Köln"
    assert store.find("Müller") == 0
    assert store.alphabet == "protein"
    assert summary.rare == {"B": 1, "J": 1, "O": 1, "U": 1, "Z": 1}
    assert summary.replaced["stop (*) at the end dropped"] == 2
    assert "Latin-1" in str(summary)
    assert "B 1, J 1" in str(summary)


def test_names_used_in_two_files(tmp_path: Path) -> None:
    a = write(tmp_path / "a.fa", ">x\nACGT\n>y\nAC\n")
    b = write(tmp_path / "b.fa", ">z\nGGGG\n\n>x\nTTTT\n>w\nCC\n")
    with pytest.raises(ValueError, match=r"b\.fa: line 4: record 'x': the name was used in .*a\.fa, line 1"):
        index([a, b], tmp_path / "out", jobs=1)
    summary = index([a, b], tmp_path / "out", jobs=1, on_bad_record="skip")
    store = SequenceStore.open(tmp_path / "out")
    assert records_of(store) == [("x", "ACGT"), ("y", "AC"), ("z", "GGGG"), ("w", "CC")]
    assert store.location(3) == f"{b}: line 6: record 'w'"
    assert summary.skipped["name used before"]["count"] == 1


def test_invalid_arguments(tmp_path: Path) -> None:
    dna, protein = write(tmp_path / "d.fa", GOOD), write(tmp_path / "p.fa", ">q\nMKWLLPEE\n")
    with pytest.raises(ValueError, match=r"dna \(.*d\.fa\) and protein \(.*p\.fa\); a store has one alphabet"):
        index([dna, protein], tmp_path / "out", jobs=1)
    assert index([dna, protein], tmp_path / "out", alphabet="protein", jobs=1).records == 2
    for call, message in (
        (lambda: index([], tmp_path / "x"), "no files"),
        (lambda: index([dna, dna], tmp_path / "x"), "given twice"),
        (lambda: index([dna], tmp_path / "x", alphabet="rna"), "alphabet must be one of auto, protein, dna"),  # type: ignore[arg-type]
        (lambda: index([dna], tmp_path / "x", on_bad_record="ignore"), "on_bad_record must be one of"),  # type: ignore[arg-type]
        (lambda: index([dna], tmp_path / "x", max_length=0), "max_length"),
        (lambda: index([dna], tmp_path), "exists and is not a sequence store"),
        (lambda: index([dna], dna), "exists and is not a sequence store"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_a_header_without_a_line_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fasta_blocks, "LONGEST_HEADER", 100)
    with pytest.raises(ValueError, match="line 3: a header of over 100 bytes"):
        list(fasta_blocks.read_chunks([b">a\nAC\n", *[b">" + b"x" * 30] * 5], "in.fa"))


def test_a_record_without_its_locus_line_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text of a release file may precede the first record; lines of a record may not."""
    monkeypatch.setattr(block_reader.BlockReader.__init__, "__defaults__", (100,))
    whole = f"LOCUS       good\nORIGIN\n  1 {PLAIN}\n//\n"
    damaged = f"\nLOC?S       x  4 bp\nORIGIN\n  1 acgt\n//\n{whole.replace('good', 'last')}"
    head = "GBBCT1.SEQ          Genetic Sequence Data Bank\n\n"
    path = write(tmp_path / "in.gb", head + whole + damaged)
    with pytest.raises(ValueError, match=r"in\.gb: line 9: 'ORIGIN' belongs to no record: a LOCUS line is missing"):
        index([path], tmp_path / "out", jobs=1)
    summary = index([path], tmp_path / "out", jobs=1, on_bad_record="skip")
    assert (summary.records, summary.skipped["text outside records"]["count"]) == (2, 1)
    assert index([write(tmp_path / "whole.gb", head + whole)], tmp_path / "whole", jobs=1).records == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda manifest: manifest.pop("alphabet"), "alphabet is missing or has the wrong type"),
        (lambda manifest: manifest.update(alphabet=["dna"]), "alphabet is missing or has the wrong type"),
        (lambda manifest: manifest.update(records=-1), "records is missing or has the wrong type"),
        (lambda manifest: manifest.update(sources=[3]), r"sources\[0\]\.size is missing or has the wrong type"),
        (lambda manifest: manifest["files"].update({"soft.npy": 7}), r"files\.soft\.npy\.size is missing"),
    ],
)
def test_a_damaged_manifest_is_named(change: Callable[[dict[str, Any]], Any], words: str, tmp_path: Path) -> None:
    index([write(tmp_path / "in.fa", GOOD)], tmp_path / "out", jobs=1)
    path = tmp_path / "out" / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=rf"{path}: {words}"):
        SequenceStore.open(tmp_path / "out")
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=rf"{path}: cannot be read as a manifest"):
        SequenceStore.open(tmp_path / "out")
