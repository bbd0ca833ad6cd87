"""Chain sets: round trips, and errors for invalid arrays and records."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ds4sci.chemistry.residue_codes import PROFILE_ORDER, encode, secondary_classes
from ds4sci.data.alignments import msa
from ds4sci.data.sequences import fasta_records
from ds4sci.data.structures import chain_file
from ds4sci.data.structures.chain_set import ChainSet, write_files
from ds4sci.data.structures.parsers import mmcif
from ds4sci.types import RESIDUES, Msa, Record

DATA = Path(__file__).parents[2] / "fixtures"
BUNDLED = Path(__file__).parents[3] / "examples" / "fold" / "data" / "chains_valid.npz"


def rich_records() -> list[Record]:
    """Two chains with side chains, gaps and resolution; the first also has an alignment, a profile and DSSP."""
    first, second = mmcif.read(DATA / "mmcif" / "2q2k.cif.gz")
    alignment = msa.read(DATA / "msa" / "uniref90_hits.sto")
    profile = np.full((70, 20), 0.05, np.float32)
    profile[3] = 0.0
    profile[3, RESIDUES.index("W")] = 1.0
    return [replace(msa.attach(first, alignment, "x"), profile=profile, dssp="CH" * 35), second]


def plain_arrays(**changes: Any) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {
        "ids": np.array(["1ABC_A", "2ABC_B"]),
        "offsets": np.array([0, 2, 5]),
        "sequence": np.frombuffer(b"ACDEX", "S1"),
        "backbone_centi_angstrom": np.arange(60, dtype=np.int16).reshape(5, 4, 3),
    }
    arrays.update(changes)
    return {key: value for key, value in arrays.items() if value is not None}


def test_write_and_open_round_trip(tmp_path: Path) -> None:
    records = rich_records()
    ChainSet.write(tmp_path / "set.npz", records)
    chains = ChainSet.open(tmp_path / "set.npz")
    assert len(chains) == 2
    assert chains.ids == ["2Q2K_A", "2Q2K_B"]
    assert chains.lengths.tolist() == [70, 70]
    for got, record in zip(chains, records, strict=True):
        assert (got.id, got.sequence, got.dssp, got.resolution) == (record.id, record.sequence, record.dssp, 3.0)
        np.testing.assert_array_equal(got.atom_mask, record.atom_mask)
        np.testing.assert_array_equal(got.residue_index, record.residue_index)
        # 0.01 Å in the file, and half a float32 step at these magnitudes
        np.testing.assert_allclose(got.atom_positions, record.atom_positions, atol=0.005 + 1e-5)
        assert not got.atom_positions[~got.atom_mask].any()
    assert records[0].msa is not None
    assert chains[0].msa is not None
    np.testing.assert_array_equal(chains[0].msa.sequences, records[0].msa.sequences)
    np.testing.assert_array_equal(chains[0].msa.deletions, records[0].msa.deletions)
    assert chains[0].msa.names == records[0].msa.names
    np.testing.assert_allclose(chains[0].profile, records[0].profile, atol=0.5e-4)
    assert chains[1].msa is None
    assert chains[1].profile is None
    assert chains[1].dssp is None


def test_opens_the_bundled_set() -> None:
    chains = ChainSet.open(BUNDLED)
    assert len(chains) == 160
    assert int(chains.lengths.sum()) == 14798
    record = chains[chains.index("1B9M_B")]
    assert record.sequence == chains.sequence(0)
    assert record.sequence.startswith("QHVDVLLADGKTRLK")
    alpha = record.atom_positions[:, 1]
    np.testing.assert_allclose(np.linalg.norm(record.atom_positions[:, 0] - alpha, axis=1).mean(), 1.46, atol=0.01)
    np.testing.assert_allclose(alpha.mean(0), 0.0, atol=0.01)
    assert record.profile is not None
    raw = np.load(BUNDLED, allow_pickle=False)["profile_e4"][0]
    assert record.profile[0, RESIDUES.index("W")] == np.float32(1e-4) * raw[PROFILE_ORDER.index("W")]
    assert record.dssp is not None
    assert set(np.unique(secondary_classes(record.dssp))) <= {0, 1, 2}


def test_opens_dense_atom_arrays() -> None:
    mask = np.zeros((5, 37), bool)
    mask[:, [0, 1, 2, 4, 7]] = True
    dense = np.zeros((5, 37, 3), np.int32)
    dense[mask] = np.arange(75).reshape(25, 3)
    packed = dense[mask]
    one = ChainSet(plain_arrays(atom37_mask=mask, atom37_centi_angstrom=dense))
    other = ChainSet(plain_arrays(atom37_mask=mask, atom37_centi_angstrom=packed))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.atom_positions, b.atom_positions)
        np.testing.assert_array_equal(a.atom_mask, b.atom_mask)
    assert one[1].atom_positions[0, 0].tolist() == [np.float32(0.01) * 30, np.float32(0.01) * 31, np.float32(0.01) * 32]


def test_indices_slices_and_names() -> None:
    chains = ChainSet(plain_arrays())
    assert chains[-1].id == "2ABC_B"
    assert [record.id for record in chains[0:2]] == ["1ABC_A", "2ABC_B"]
    assert chains.index("2ABC_B") == 1
    with pytest.raises(IndexError, match="2 chains; index 2 is out of range"):
        chains[2]
    with pytest.raises(ValueError, match="not in list"):
        chains.index("9XYZ_A")


def test_concatenated_parts_equal_the_whole() -> None:
    records = [*rich_records(), fasta_records.make_record("single", "ACDEFGHIKLX")]
    whole = chain_file.pack_all_arrays(records)
    joined = chain_file.concatenate(
        [
            chain_file.pack_all_arrays(records[:1]),
            chain_file.pack_all_arrays(records[1:2]),
            chain_file.pack_all_arrays(records[2:]),
        ]
    )
    assert whole.keys() == joined.keys()
    for key, array in whole.items():
        np.testing.assert_array_equal(joined[key], array, err_msg=key)
    with pytest.raises(ValueError, match="two records have the id 'single'"):
        chain_file.concatenate([chain_file.pack_all_arrays(records[2:])] * 2)


def test_alignment_names_may_be_any_text() -> None:
    alignment = Msa(encode("ACD")[None].repeat(2, 0), np.zeros((2, 3), np.int32), ("søknad", "二"))
    record = replace(fasta_records.make_record("x", "ACD"), msa=alignment)
    got = ChainSet.from_records([record])[0]
    assert got.msa is not None
    assert got.msa.names == ("søknad", "二")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence": None}, "missing arrays: sequence"),
        ({"offsets": np.array([0, 2, 4])}, "offsets must increase from 0 to 5"),
        ({"offsets": np.array([0, 5, 5])}, "without empty chains"),
        ({"offsets": np.array([0, 5])}, "in 2 steps"),
        ({"sequence": np.frombuffer(b"ACDBX", "S1")}, "chain 2ABC_B has 'B' at residue 2"),
        ({"dssp": np.frombuffer(b"HHH", "S1")}, r"dssp has shape \(3,\); expected \(5,\)"),
        ({"profile_e4": np.zeros((5, 21))}, "profile_e4 has shape"),
        ({"atom37_mask": np.ones((5, 37), bool)}, "expected both or neither"),
        ({"backbone_centi_angstrom": np.zeros((5, 3, 3), np.int16)}, r"expected \(5, 4, 3\)"),
    ],
)
def test_invalid_sets_raise(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", **plain_arrays(**changes))
    with pytest.raises(ValueError, match=message) as caught:
        ChainSet.open(tmp_path / "set.npz")
    assert "set.npz" in str(caught.value)


def test_other_files_raise(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    with pytest.raises(FileNotFoundError, match="chain set not found"):
        ChainSet.open(path)
    np.savez(path, **plain_arrays())
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"set\.npz: not a chain set"):
        ChainSet.open(path)
    np.savez(path, **plain_arrays(ids=np.array(["a", None], dtype=object)))
    with pytest.raises(ValueError, match=r"set\.npz: not a chain set"):  # pickles are never loaded
        ChainSet.open(path)
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"array\.npy: not a chain set"):
        ChainSet.open(tmp_path / "array.npy")


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "at least one record"),
        ([fasta_records.make_record("x", "AC"), fasta_records.make_record("x", "AC")], "two records have the id 'x'"),
        ([fasta_records.make_record("x", "")], "x: the sequence is empty or"),
        ([fasta_records.make_record("x", "ACB")], "x: the sequence is empty or"),
    ],
)
def test_invalid_records_raise(records: list[Record], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        ChainSet.write(tmp_path / "set.npz", records)
    assert list(tmp_path.iterdir()) == []


def test_a_chain_too_wide_for_int16_raises() -> None:
    record = rich_records()[1]
    positions = record.atom_positions.copy()
    positions[30, 1] = 1000.0
    with pytest.raises(ValueError, match="2Q2K_B: an atom is more than 327 Å"):
        chain_file.pack([replace(record, atom_positions=positions)])


def test_a_full_disk_leaves_the_old_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "set.npz"
    ChainSet.write(path, rich_records())
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        ChainSet.write(path, rich_records()[:1])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def write_folder(folder: Path) -> Path:
    """The records of ``rich_records`` as a set of two files."""
    parts = [chain_file.pack_all_arrays([record]) for record in rich_records()]
    folder.mkdir()
    assert write_files(folder, iter(parts), 1) == 2
    return folder


def test_files_of_a_folder_are_mapped_into_memory(tmp_path: Path) -> None:
    chains = ChainSet.open(write_folder(tmp_path / "set"))
    stored = {name for file in chains._files for name, array in file.arrays.items() if isinstance(array, np.memmap)}
    assert stored >= {"sequence", "backbone_centi_angstrom", "atom37_centi_angstrom", "profile_e4", "msa_letters"}
    again = pickle.loads(pickle.dumps(chains))
    expected = ChainSet.from_records(rich_records())
    for found in (chains, again):
        assert found.ids == expected.ids == ["2Q2K_A", "2Q2K_B"]
        for i in (0, 1, -1):
            np.testing.assert_array_equal(found[i].atom_positions, expected[i].atom_positions)
            assert found.sequence(i) == expected.sequence(i)
        assert found[0].msa.names == expected[0].msa.names
    with pytest.raises(IndexError, match="has 2 chains; index 2"):
        chains[2]


def test_invalid_folders(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \.npz file in this folder"):
        ChainSet.open(tmp_path / "empty")
    folder = write_folder(tmp_path / "set")
    shutil.copy(folder / "000000.npz", folder / "copy.npz")
    with pytest.raises(ValueError, match=r"000000.npz and copy.npz both have a chain '2Q2K_A'"):
        ChainSet.open(folder)
    whole = (folder / "000000.npz").read_bytes()
    (folder / "copy.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"copy.npz: not a chain set \(.npz\), or truncated"):
        ChainSet.open(folder)


def test_python_objects_are_not_loaded(tmp_path: Path) -> None:
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "set.npz", **plain_arrays(), notes=np.array([{"a": 1}], object))
        with pytest.raises(ValueError, match=r"set.npz: not a chain set .*(Python objects|allow_pickle)"):
            ChainSet.open(tmp_path / "set.npz")


def test_subsets_and_checksums(tmp_path: Path) -> None:
    """Some chains as a file or as a folder; a checksum changes with any file of the set."""
    chains = ChainSet.open(write_folder(tmp_path / "set"))
    chains.write_subset(tmp_path / "one.npz", [1])
    chains.write_subset(tmp_path / "two", [1, 0])
    assert ChainSet.open(tmp_path / "one.npz").ids == ["2Q2K_B"]
    assert ChainSet.open(tmp_path / "two").ids == ["2Q2K_B", "2Q2K_A"]
    assert ChainSet.checksum(tmp_path / "one.npz") == hashlib.sha256((tmp_path / "one.npz").read_bytes()).hexdigest()
    before = ChainSet.checksum(tmp_path / "set")
    assert before == ChainSet.checksum(tmp_path / "set")
    (tmp_path / "set" / "000001.npz").unlink()
    assert ChainSet.checksum(tmp_path / "set") != before
