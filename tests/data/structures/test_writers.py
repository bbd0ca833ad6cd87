"""Written structure files read by gemmi and Biopython, and structures that exceed the limits of a format."""

from __future__ import annotations

import datetime
import os
from dataclasses import replace
from pathlib import Path

import gemmi
import numpy as np
import pytest
from Bio.PDB import MMCIFParser, PDBParser
from Bio.PDB.MMCIF2Dict import MMCIF2Dict
from Bio.SeqUtils import seq1
from hypothesis import given, settings
from hypothesis import strategies as st

from ds4sci.chemistry.chains import number_chains
from ds4sci.chemistry.residue_constants import ATOM14, ATOM37_INDEX, RESTYPE_1TO3
from ds4sci.data.structures import writers
from ds4sci.types import RESIDUES, Prediction


def prediction(sequence: str = RESIDUES + "X", name: str = "1abc_A", seed: int = 0, start: int = 0) -> Prediction:
    """A prediction with all heavy atoms at random positions."""
    rng = np.random.default_rng(seed)
    n = len(sequence)
    mask = np.zeros((n, 37), dtype=bool)
    for row, letter in enumerate(sequence):
        mask[row, [ATOM37_INDEX[atom] for atom in ATOM14[RESTYPE_1TO3[letter]] if atom]] = True
    atoms = np.where(mask[:, :, None], rng.normal(0, 30, (n, 37, 3)), 0).astype(np.float32)
    index = np.arange(start, start + n, dtype=np.int32)
    maps = np.zeros((n, n), dtype=np.float32)
    return Prediction(name, sequence, index, atoms, mask, rng.uniform(0, 100, n).astype(np.float32), maps, maps)


@pytest.mark.parametrize("form", ["cif", "pdb"])
def test_gemmi_and_biopython_read_the_files(tmp_path: Path, form: str) -> None:
    given_prediction = prediction(start=6)
    write = writers.write_mmcif if form == "cif" else writers.write_pdb
    path = write(given_prediction, tmp_path / "deep" / f"x.{form}")
    mask = given_prediction.atom_mask
    names = [RESTYPE_1TO3[letter] for letter in given_prediction.sequence]

    by_gemmi = gemmi.read_structure(str(path))
    assert by_gemmi.entities[0].full_sequence == names
    by_gemmi.setup_entities()  # PDB files have no polymer type; gemmi derives it from the residues
    assert by_gemmi.entities[0].polymer_type == gemmi.PolymerType.PeptideL
    (chain,) = by_gemmi[0]
    assert [residue.name for residue in chain] == names
    assert [residue.seqid.num for residue in chain] == list(range(7, 28))

    parser = MMCIFParser(QUIET=True) if form == "cif" else PDBParser(QUIET=True, PERMISSIVE=False)
    (by_biopython,) = parser.get_structure("x", str(path))[0]
    assert seq1("".join(residue.get_resname() for residue in by_biopython)) == given_prediction.sequence
    for row, (first, second) in enumerate(zip(chain, by_biopython, strict=True)):
        assert len(first) == len(second) == mask[row].sum()
        for atom in first:
            column = ATOM37_INDEX[atom.name]
            assert mask[row, column]
            np.testing.assert_allclose(atom.pos.tolist(), given_prediction.atom37[row, column], atol=6e-4)
            np.testing.assert_allclose(second[atom.name].coord, given_prediction.atom37[row, column], atol=6e-4)
            assert atom.b_iso == pytest.approx(given_prediction.plddt[row], abs=6e-3)
            assert second[atom.name].bfactor == pytest.approx(given_prediction.plddt[row], abs=6e-3)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]  # no temporary file is left


def test_mmcif_has_confidence_and_entity(tmp_path: Path) -> None:
    given_prediction = prediction("AGXW", name="sp|P1 odd'name")
    block = gemmi.cif.read(str(writers.write_mmcif(given_prediction, tmp_path / "x.cif"))).sole_block()
    assert block.name == "sp_P1_odd_name"
    assert list(block.find_values("_entity_poly_seq.mon_id")) == ["ALA", "GLY", "UNK", "TRP"]
    assert float(block.find_values("_ma_qa_metric_global.metric_value")[0]) == pytest.approx(
        given_prediction.plddt.mean(), abs=0.006
    )
    local = [float(value) for value in block.find_values("_ma_qa_metric_local.metric_value")]
    np.testing.assert_allclose(local, given_prediction.plddt, atol=0.006)
    assert not block.find_values("_cell.length_a")


def test_structures_beyond_the_pdb_limits_raise(tmp_path: Path) -> None:
    base = prediction("ACD")
    far = base.atom37.copy()
    far[1, 1, 0] = 10_000
    below = base.atom37.copy()
    below[1, 1, 0] = -1000
    for bad, words in (
        (replace(base, residue_index=np.array([0, 1, 9999])), "1abc_A.*a residue number of 10000; the limit is 9999"),
        (replace(base, atom37=far), "1abc_A.*a coordinate of 10000; the limit is 10000"),
        (replace(base, atom37=below), "1abc_A.*a negated coordinate of 1000; the limit is 999.999"),
    ):
        with pytest.raises(ValueError, match=words):
            writers.write_pdb(bad, tmp_path / "x.pdb")
        assert writers.write_mmcif(bad, tmp_path / "x.cif").exists()
    many = 9000
    crowd = Prediction(
        "crowd",
        "W" * many,
        np.arange(many),
        np.zeros((many, 37, 3), dtype=np.float32),
        np.arange(37)[None] < np.full((many, 1), 14),
        np.zeros(many),
        np.zeros((0, 0)),
        np.zeros((0, 0)),
    )
    with pytest.raises(ValueError, match=r"crowd.*an atom number of 126001; the limit is 99999"):
        writers.write_pdb(crowd, tmp_path / "x.pdb")
    assert not (tmp_path / "x.pdb").exists()


def test_non_finite_coordinates_raise(tmp_path: Path) -> None:
    bad = prediction("ACD")
    bad.atom37[1, 1] = np.nan
    with pytest.raises(ValueError, match=r"1abc_A: .* 1 residues are not finite \(first: residue 2\)"):
        writers.write_mmcif(bad, tmp_path / "x.cif")
    with pytest.raises(ValueError, match=r"1abc_A: expected atom37 \[2, 37, 3\]"):
        writers.to_gemmi_structure(replace(prediction("ACD"), sequence="AC"))
    assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = writers.write_pdb(prediction("ACD"), tmp_path / "x.pdb")
    before = path.read_text()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        writers.write_pdb(prediction("WWW"), path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


@settings(max_examples=25, deadline=None)
@given(st.text(min_size=0, max_size=30), st.text(alphabet=RESIDUES + "X", min_size=1, max_size=12))
def test_any_name_gives_a_valid_file(name: str, sequence: str) -> None:
    block = gemmi.cif.read_string(writers.mmcif_text(prediction(sequence, name=name))).sole_block()
    assert len(block.find_values("_entity_poly_seq.mon_id")) == len(sequence)


TEMPLATE_KEYS = {
    "_chem_comp.id", "_chem_comp.type", "_entity_poly_seq.entity_id", "_entity_poly_seq.num", "_entity_poly_seq.mon_id",
    "_struct_asym.id", "_struct_asym.entity_id", "_exptl.method", "_pdbx_audit_revision_history.revision_date",
    "_atom_site.label_comp_id", "_atom_site.auth_asym_id", "_atom_site.label_asym_id", "_atom_site.auth_seq_id",
    "_atom_site.label_seq_id", "_atom_site.pdbx_PDB_ins_code", "_atom_site.group_PDB", "_atom_site.pdbx_PDB_model_num",
}  # fmt: skip
"""Keys that ``mmcif_parsing`` of AlphaFold 2, OpenFold and ColabFold reads from a template."""


def test_the_mmcif_is_a_valid_template(tmp_path: Path) -> None:
    """The file has all keys that AlphaFold's template parser reads, with the values of a protein chain."""
    given_prediction = prediction("AGXWG", start=6)
    text = writers.mmcif_text(given_prediction, date=datetime.date(2024, 2, 29))
    (tmp_path / "x.cif").write_text(text)
    found = MMCIF2Dict(str(tmp_path / "x.cif"))
    assert set(found) >= TEMPLATE_KEYS
    kinds = dict(zip(found["_chem_comp.id"], found["_chem_comp.type"], strict=True))
    assert kinds == {
        "ALA": "L-peptide linking", "GLY": "peptide linking", "TRP": "L-peptide linking", "UNK": "L-peptide linking",
    }  # fmt: skip
    assert (
        found["_entity_poly_seq.mon_id"] == found["_pdbx_poly_seq_scheme.mon_id"] == ["ALA", "GLY", "UNK", "TRP", "GLY"]
    )
    assert found["_entity_poly_seq.num"] == found["_pdbx_poly_seq_scheme.seq_id"] == ["1", "2", "3", "4", "5"]
    assert found["_pdbx_poly_seq_scheme.pdb_seq_num"] == ["7", "8", "9", "10", "11"]
    assert (found["_struct_asym.id"], found["_struct_asym.entity_id"]) == (["A"], ["1"])
    assert found["_pdbx_audit_revision_history.revision_date"] == ["2024-02-29"]
    assert found["_exptl.method"] == ["THEORETICAL MODEL"]
    atoms = len(found["_atom_site.id"])
    assert found["_atom_site.group_PDB"] == ["ATOM"] * atoms
    assert found["_atom_site.pdbx_PDB_model_num"] == ["1"] * atoms
    residues = dict(zip(found["_atom_site.label_seq_id"], found["_atom_site.auth_seq_id"], strict=True))
    assert residues == {"1": "7", "2": "8", "3": "9", "4": "10", "5": "11"}
    today = MMCIF2Dict(str(writers.write_mmcif(given_prediction, tmp_path / "y.cif")))
    written = datetime.date.fromisoformat(today["_pdbx_audit_revision_history.revision_date"][0])
    assert abs((datetime.datetime.now(datetime.UTC).date() - written).days) <= 1


def of_chains(sequences: list[str]) -> Prediction:
    """A complex whose residues are numbered from 0 in each chain."""
    index = np.concatenate([np.arange(len(one)) for one in sequences])
    return replace(prediction("".join(sequences)), residue_index=index, chain_ids=number_chains(sequences))


@pytest.mark.parametrize("form", ["cif", "pdb"])
def test_chains_of_a_complex(tmp_path: Path, form: str) -> None:
    """30 chains of two entities, read by gemmi and Biopython: letters after Z are a, b, …"""
    sequences = ["AGW", "CK"] * 15
    write = writers.write_mmcif if form == "cif" else writers.write_pdb
    path = write(of_chains(sequences), tmp_path / f"x.{form}")
    names = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcd")
    read = gemmi.read_structure(str(path))
    assert [chain.name for chain in read[0]] == names
    assert [[residue.seqid.num for residue in chain] for chain in read[0]] == [[1, 2, 3], [1, 2]] * 15
    parser = MMCIFParser(QUIET=True) if form == "cif" else PDBParser(QUIET=True, PERMISSIVE=False)
    by_biopython = parser.get_structure("x", str(path))[0]
    found = {chain.id: seq1("".join(residue.get_resname() for residue in chain)) for chain in by_biopython}
    assert found == dict(zip(names, sequences, strict=True))
    if form == "cif":
        assert {entity.name: list(entity.subchains) for entity in read.entities} == {"1": names[::2], "2": names[1::2]}
    else:
        lines = path.read_text().splitlines()
        assert [line[21] for line in lines if line.startswith("TER")] == names
        assert lines[-1].startswith("END")


def test_more_chains_than_pdb_letters(tmp_path: Path) -> None:
    many = of_chains(["AG"] * 63)
    path = writers.write_mmcif(many, tmp_path / "x.cif")
    assert [chain.name for chain in gemmi.read_structure(str(path))[0]][-2:] == ["9", "AA"]
    with pytest.raises(writers.PdbLimitError, match="a number of chains of 63; the limit is 62"):
        writers.write_pdb(many, tmp_path / "x.pdb")
