"""The sequence store: round trips of files in all compressions, killed and repeated runs, subsets."""

from __future__ import annotations

import gzip
import json
import multiprocessing
import pickle
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ds4sci.data.sequences import (
    Range,
    SequenceStore,
    block_reader,
    build,
    index,
    intervals,
    name_index,
    write_subset,
)
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.files.atomic_files import fingerprint
from tests.support.sequence_files import bgzip, file_contents, records_of, write

CHAINS = Path(__file__).parents[3] / "examples" / "fold" / "data" / "chains_train.npz"
shared_folder = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


def letters(store: SequenceStore, record: int, start: int = 0, stop: int | None = None) -> str:
    return store.residues(record, start, stop).tobytes().decode()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 17 bytes, so that records, headers and line ends are cut at every position."""
    monkeypatch.setattr(block_reader.BlockReader.__init__, "__defaults__", (17,))


# --- round trips --------------------------------------------------------------------------------------------------

word = st.text(st.characters(min_codepoint=33, exclude_categories=("Z", "C")), min_size=1, max_size=12)
residues = st.text("ACDEFGHIKLMNPQRSTVWYXBZJUOacdefghiklmnpqrstvwyx", min_size=1, max_size=70)
entries = st.lists(st.tuples(word, residues), min_size=1, max_size=8, unique_by=lambda entry: entry[0])


@given(entries, st.integers(1, 80), st.sampled_from(["\n", "\r\n", "\r"]), st.booleans(), st.integers(1, 40))
@shared_folder
def test_any_fasta_file_round_trips(
    tmp_path: Path, listed: list[tuple[str, str]], width: int, end: str, last_end: bool, block: int
) -> None:
    """Any names and letters, any line width, line ends of three systems, any block size."""
    shutil.rmtree(tmp_path, ignore_errors=True)
    tmp_path.mkdir()
    text = end.join(
        line
        for name, one in listed
        for line in (f">{name} of it", *(one[a : a + width] for a in range(0, len(one), width)))
    )
    path = write(tmp_path / "in.fa", text + end * last_end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_reader.BlockReader.__init__, "__defaults__", (block,))
        index([path], tmp_path / "out", alphabet="protein", jobs=1)
    store = SequenceStore.open(tmp_path / "out")
    assert records_of(store) == listed
    assert [store.description(i) for i in range(len(store))] == ["of it"] * len(listed)
    assert store.lengths.tolist() == [len(one) for _, one in listed]
    assert [store.find(name) for name, _ in listed] == list(range(len(listed)))
    assert store.total == sum(len(one) for _, one in listed)
    for record, (_, one) in enumerate(listed):
        np.testing.assert_array_equal(store.unknown_mask(record), np.array([letter in "Xx" for letter in one]))


def test_compressions_give_the_same_bytes(tmp_path: Path) -> None:
    """Plain, gzip, gzip with several members and bgzip, under any name."""
    chains = ChainSet.open(CHAINS)
    plain = "".join(f">{chains.ids[i]} chain {i}\n{chains.sequence(i)}\n" for i in range(40)).encode()
    packed = {
        "plain.gz": plain,
        "gzip.txt": gzip.compress(plain),
        "members": gzip.compress(plain[:999]) + gzip.compress(plain[999:]) + b"\0" * 512,
        "bgzip.fa": bgzip(plain),
    }
    stores = []
    for name, data in packed.items():
        out = tmp_path / f"{name}.store"
        index([write(tmp_path / name, data)], out, jobs=1)
        stores.append(file_contents(out))
        manifest = json.loads(stores[-1].pop("manifest.json"))
        assert manifest["sources"][0]["sha256"] == fingerprint(tmp_path / name)["sha256"]
    assert all(store == stores[0] for store in stores)
    assert stores[0]["residues.bin"].decode() == "".join(chains.sequence(i) for i in range(40))


def test_formats_give_the_same_records(tmp_path: Path) -> None:
    """FASTA, FASTQ and GenBank files with the same sequences; lower case in GenBank is no soft mask."""
    one, other = "ACGTN" * 31, "TTGCA" * 7
    fasta = write(tmp_path / "a", f">X1.2 first of two\n{one}\n>X2 \n{other}\n")
    wrapped = f"@X1.2 first of two\n{one[:99]}\n{one[99:]}\n+\n{'@' * 99}\n{'+' * 56}\n@X2\n{other}\n+X2\n{'I' * 35}\n"
    fastq = write(tmp_path / "b", wrapped)
    origin = "".join(
        f"{at + 1:9} {' '.join(one[at + k : at + k + 10] for k in range(0, 60, 10)).strip().lower()}\n"
        for at in range(0, len(one), 60)
    )
    genbank = write(
        tmp_path / "c",
        f"LOCUS       X1                155 bp    DNA     linear   BCT\nDEFINITION  first of\n            two\n"
        f"ACCESSION   X1\nVERSION     X1.2\nFEATURES             Location/Qualifiers\n     source          1..155\n"
        f'                     /note="ORIGIN"\nORIGIN      \n{origin}//\nLOCUS       X2    35 bp\nORIGIN\n'
        f"        1 {other.lower()}\n//\n",
    )
    found = []
    for path in (fasta, fastq, genbank):
        index([path], tmp_path / "out", jobs=1)
        store = SequenceStore.open(tmp_path / "out")
        found.append(
            [(store.name(i), store.description(i), letters(store, i), store.soft_mask(i).any()) for i in range(2)]
        )
    assert found[0] == found[1] == found[2]
    assert found[0][0] == ("X1.2", "first of two", one, False)


# --- the store ----------------------------------------------------------------------------------------------------


def test_residues_and_masks(tmp_path: Path) -> None:
    text = "NNacgtnACGT" * 40
    path = write(tmp_path / "g.fa", f">chr1 x\n{text}\n>chr2\nacg\n>chr3\nNACGu\n")
    summary = index([path], tmp_path / "out", jobs=1)
    assert summary.replaced == {"U read as T": 1}
    store = SequenceStore.open(tmp_path / "out")
    assert store.alphabet == "dna"
    small = np.array([letter.islower() for letter in text])
    unknown = np.array([letter in "Nn" for letter in text])
    rng = np.random.default_rng(0)
    for start, stop in [(0, 440), (0, 0), (440, 440), (7, 8), *np.sort(rng.integers(0, 440, (60, 2)), 1).tolist()]:
        assert letters(store, 0, start, stop) == text[start:stop].upper()
        np.testing.assert_array_equal(store.soft_mask(0, start, stop), small[start:stop])
        np.testing.assert_array_equal(store.unknown_mask(0, start, stop), unknown[start:stop])
    assert store.soft_intervals(1).tolist() == [[0, 3]]
    assert store.unknown_intervals(2).tolist() == [[0, 1]]
    assert letters(store, 2) == "NACGT"
    assert store.soft_mask(2).tolist() == [False] * 4 + [True]
    assert store.location(2) == f"{path}: line 5: record 'chr3'"
    assert not store.residues(0).flags.writeable
    with pytest.raises(KeyError, match="chr4"):
        store.find("chr4")
    with pytest.raises(IndexError, match="3 records"):
        store.name(3)
    with pytest.raises(ValueError, match=r"chr2.* 3 residues; 1:5"):
        store.residues(1, 1, 5)
    again = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store)) < 1000
    assert records_of(again) == records_of(store)


def test_lookup_with_equal_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lookup works, only slower, if all names have the same hash."""
    monkeypatch.setattr(name_index, "_mix", lambda value: np.zeros_like(value))
    path = write(tmp_path / "g.fa", "".join(f">n{i}\nACGT\n" for i in range(20)))
    index([path], tmp_path / "out", jobs=1)
    store = SequenceStore.open(tmp_path / "out")
    assert [store.find(f"n{i}") for i in range(20)] == list(range(20))
    with pytest.raises(ValueError, match=r"line 3: record 'x'.*line 1"):
        index([write(tmp_path / "d.fa", ">x\nAC\n>x\nGT\n")], tmp_path / "twice", jobs=1)


@given(st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=30))
def test_hashes_depend_only_on_the_name(listed: list[str]) -> None:
    blobs = [name.encode("utf-8", "surrogatepass") for name in listed]
    offsets = np.concatenate([[0], np.cumsum([len(blob) for blob in blobs])])
    together = name_index.hash_names(np.frombuffer(b"".join(blobs), np.uint8), offsets)
    alone = [name_index.hash_names(np.frombuffer(blob, np.uint8), np.array([0, len(blob)]))[0] for blob in blobs]
    assert together.tolist() == alone
    assert len(set(alone)) == len(set(blobs))


@given(st.lists(st.booleans(), max_size=40), st.lists(st.integers(0, 40), max_size=4), st.data())
def test_intervals(values: list[bool], cuts: list[int], data: st.DataObject) -> None:
    """Intervals of parts, merged, are those of the whole array, and convert back to masks."""
    whole = np.array(values, bool)
    bounds = sorted({0, len(values), *(cut for cut in cuts if cut < len(values))})
    found = [intervals.from_mask(whole[a:b]) + a for a, b in pairwise(bounds)]
    joined = intervals.merge([part for part in found if len(part)])
    np.testing.assert_array_equal(joined, intervals.from_mask(whole))
    start = data.draw(st.integers(0, len(values)))
    stop = data.draw(st.integers(start, len(values)))
    np.testing.assert_array_equal(intervals.to_mask(joined, start, stop), whole[start:stop])
    np.testing.assert_array_equal(intervals.clip(joined, start, stop), intervals.from_mask(whole[start:stop]))
    np.testing.assert_array_equal(intervals.truncate(joined, stop), intervals.from_mask(whole[:stop]))


def test_checksums_and_sizes(tmp_path: Path) -> None:
    path = write(tmp_path / "g.fa", ">a\nACGT\n>b\nNNNN\n")
    index([path], tmp_path / "out", jobs=1)
    store = SequenceStore.open(tmp_path / "out")
    store.verify()
    for name in sorted(store.manifest["files"]):
        file = tmp_path / "out" / name
        if not file.stat().st_size:
            continue
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ValueError, match=re.escape(str(file))):
            SequenceStore.open(tmp_path / "out").verify()
        file.write_bytes(whole[:-1])
        with pytest.raises(ValueError, match=re.escape(str(file)) + ".*index the sequences again"):
            SequenceStore.open(tmp_path / "out")
        file.unlink()
        with pytest.raises(ValueError, match="is missing"):
            SequenceStore.open(tmp_path / "out")
        file.write_bytes(whole)
    store.verify()
    (tmp_path / "out" / "manifest.json").write_text("{}")
    with pytest.raises(ValueError, match="not the manifest of a sequence store"):
        SequenceStore.open(tmp_path / "out")
    with pytest.raises(ValueError, match="ds4sci data index"):
        SequenceStore.open(tmp_path / "nowhere")


# --- building -----------------------------------------------------------------------------------------------------


def write_chain_files(folder: Path, count: int = 5) -> list[Path]:
    """FASTA files of real chains."""
    chains = ChainSet.open(CHAINS)
    paths = []
    for file in range(count):
        text = "".join(f">{chains.ids[i]}\n{chains.sequence(i)}\n" for i in range(20 * file, 20 * file + 20))
        data = text.encode()
        paths.append(write(folder / f"{file}.fa", gzip.compress(data) if file % 2 else data))
    return paths


def test_jobs_give_the_same_bytes_and_unchanged_files_are_not_read_again(tmp_path: Path) -> None:
    paths = write_chain_files(tmp_path)
    calls: list[tuple[int, int]] = []
    index(paths, tmp_path / "one", jobs=1, progress=lambda done, files: calls.append((done, files)))
    assert calls == [(i, 5) for i in range(6)]
    index(paths, tmp_path / "two", jobs=2)
    assert file_contents(tmp_path / "one") == file_contents(tmp_path / "two")
    assert not (tmp_path / "one.work").exists()

    before = (tmp_path / "one" / "manifest.json").stat().st_mtime_ns
    again = index(paths, tmp_path / "one", jobs=1)
    assert again.unchanged
    assert "unchanged" in str(again)
    assert (tmp_path / "one" / "manifest.json").stat().st_mtime_ns == before

    write(paths[2], ">new\nMKWL\n")
    changed = index(paths, tmp_path / "one", jobs=1)
    assert not changed.unchanged
    assert SequenceStore.open(tmp_path / "one").find("new") == 40
    assert len(SequenceStore.open(tmp_path / "one")) == 81
    assert not index(paths, tmp_path / "one", jobs=1, max_length=10_000).unchanged


def test_a_copy_of_all_records_is_the_same_store(tmp_path: Path) -> None:
    """Intervals merged from copies give the same bytes as one write; only the manifests differ."""
    (path,) = write_chain_files(tmp_path, 1)
    index([path], tmp_path / "out", jobs=1)
    store = SequenceStore.open(tmp_path / "out")
    write_subset(store, range(len(store)), tmp_path / "copy")
    one, other = file_contents(tmp_path / "out"), file_contents(tmp_path / "copy")
    assert one.pop("manifest.json") != other.pop("manifest.json")
    assert one == other


def _die_at_the_third(path: Path, folder: Path, rules: Any) -> None:
    if path.name == "2.fa":
        import os

        os._exit(9)  # like a kill: no cleanup
    from ds4sci.data.sequences.shard_writer import write_shard

    write_shard(path, folder, rules)


def _killed_run(paths: list[Path], out: Path) -> None:
    build.write_shard = _die_at_the_third
    index(paths, out, jobs=1)


def test_a_killed_run_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished shards are reused if their files have not changed; the store equals that of a single run."""
    paths = write_chain_files(tmp_path)
    out = tmp_path / "out"
    run = multiprocessing.get_context("fork").Process(target=_killed_run, args=(paths, out))
    run.start()
    run.join(60)
    assert run.exitcode == 9
    assert not out.exists()
    write(paths[0], ">other\nMKWL\n")  # one file changes after the kill
    (tmp_path / "out.work" / "0123.partial").mkdir()  # left by a kill in the middle of a shard
    read: list[str] = []

    def counted(path: Path, folder: Path, rules: Any) -> None:
        from ds4sci.data.sequences.shard_writer import write_shard

        read.append(path.name)
        write_shard(path, folder, rules)

    monkeypatch.setattr(build, "write_shard", counted)
    summary = index(paths, out, jobs=1)
    assert read == ["0.fa", "2.fa", "3.fa", "4.fa"]
    assert summary.reused_files == 1
    assert "1 of them reused from an earlier run" in str(summary)
    monkeypatch.undo()
    index(paths, tmp_path / "fresh", jobs=1)
    assert file_contents(out) == file_contents(tmp_path / "fresh")
    assert not (tmp_path / "out.work").exists()


def test_a_damaged_shard_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_chain_files(tmp_path, 2)
    monkeypatch.setattr(build, "_merge_shards", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        index(paths, tmp_path / "out", jobs=1)
    monkeypatch.undo()
    (part, _) = sorted(path for path in (tmp_path / "out.work").iterdir() if path.is_dir())
    (part / "residues.bin").write_bytes(b"short")
    assert index(paths, tmp_path / "out", jobs=1).reused_files == 1
    SequenceStore.open(tmp_path / "out").verify()


def test_two_concurrent_runs_into_one_store(tmp_path: Path) -> None:
    (path,) = write_chain_files(tmp_path, 1)
    with build._exclusive_lock(tmp_path / "out.work", tmp_path / "out"), pytest.raises(ValueError, match="another run"):
        index([path], tmp_path / "out", jobs=1)


# --- subsets ------------------------------------------------------------------------------------------------------


def test_subset(tmp_path: Path) -> None:
    path = write(tmp_path / "g.fa", ">a one\nACGTNNacgt\n>b two\nGGGgggNNNN\n>c\nTTTT\n>d\nnnAC\n")
    index([path], tmp_path / "out", jobs=1)
    store = SequenceStore.open(tmp_path / "out")
    made = write_subset(store, [3, np.int64(0), 1, Range(2, 0, 4), Range(1, 2, 8)], tmp_path / "some")
    made.verify()
    assert records_of(made) == [
        ("d", "nnAC"), ("a", "ACGTNNacgt"), ("b", "GGGgggNNNN"), ("c", "TTTT"), ("b:3-8", "GgggNN"),
    ]  # fmt: skip
    assert made.description(4) == "two"
    assert made.location(0) == f"{path}: line 7: record 'd'"
    assert made.unknown_mask(4).tolist() == [False] * 4 + [True] * 2
    assert made.find("b:3-8") == 4
    with pytest.raises(ValueError, match="'a' is chosen twice"):
        write_subset(store, [0, 1, 0], tmp_path / "bad")
    with pytest.raises(ValueError, match="nothing chosen"):
        write_subset(store, [], tmp_path / "bad")
    with pytest.raises(ValueError, match="exists"):
        write_subset(store, [0], tmp_path / "some")
    with pytest.raises(IndexError, match="no record 4"):
        write_subset(store, [4], tmp_path / "bad")
    with pytest.raises(ValueError, match="out of range"):
        write_subset(store, [Range(2, 0, 5)], tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    assert not index([path], tmp_path / "some", jobs=1).unchanged
