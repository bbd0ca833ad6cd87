"""Biological assemblies in builds of complexes: operators, names, limits, and the report of what is left out."""

from __future__ import annotations

import functools
import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import pytest

from ds4sci.chemistry.chains import chain_slices
from ds4sci.cli.main import main
from ds4sci.data.structures.assemblies import NO_RECORDS, assembly_chains
from ds4sci.data.structures.build import build
from ds4sci.data.structures.build_report import BuildReport
from ds4sci.data.structures.chain_filters import BuildSettings
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.structures.complexes import split_chains
from ds4sci.data.structures.parsers import assembly_records, mmcif, pdb
from ds4sci.types import Record

ENTRIES = Path(__file__).parents[2] / "fixtures" / "mmcif"
TURN = "0 -1 0 10.5 1 0 0 -2.25 0 0 1 3"
"""A quarter turn about z, by matrix rows, each followed by its component of the shift."""
CATEGORIES = "_pdbx_struct_assembly_gen and _pdbx_struct_oper_list"
IDENTITY = "1 0 0 0 0 1 0 0 0 0 1 0"
SHIFT = "1 0 0 40 0 1 0 0 0 0 1 0"


def synthetic(
    generators: Sequence[str] = ("1 1,2 A,B",),
    operators: Sequence[str] = (f"1 {IDENTITY}", f"2 {TURN}", f"3 {SHIFT}"),
    *,
    sequence: slice = slice(0, 20),
    chains: Sequence[str] = ("AA", "B"),
) -> str:
    """Two copies of a stretch of ubiquitin, 15 Å apart, with label ids A and B. Fewer rows without ``generators``."""
    source = mmcif.read(ENTRIES / "1ubq.cif.gz")[0]
    names = gemmi.expand_one_letter_sequence(source.sequence, gemmi.ResidueKind.AA)
    lines = ["data_T", "_entry.id TOY", "loop_"]
    columns = (
        "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_seq_id"
        " Cartn_x Cartn_y Cartn_z auth_asym_id auth_seq_id"
    )
    lines += [f"_atom_site.{one}" for one in columns.split()]
    for number, author in enumerate(chains):
        for at in range(*sequence.indices(len(names))):
            for column, atom in enumerate(("N", "CA", "C")):
                x, y, z = source.atom_positions[at, column] + np.array([15.0 * number, 0, 0])
                label = "AB"[number]
                place = f"{x:.3f} {y:.3f} {z:.3f}"
                lines.append(f"ATOM {len(lines)} {atom[0]} {atom} . {names[at]} {label} {at} {place} {author} {at}")
    if generators:
        ids = dict.fromkeys(row.split()[0] for row in generators)
        lines.append("loop_")
        columns = "id details method_details oligomeric_details oligomeric_count"  # gemmi reads none with fewer
        lines += [f"_pdbx_struct_assembly.{one}" for one in columns.split()]
        lines += [f"{one} author_defined_assembly ? ? ?" for one in ids]
        lines += ["loop_", *(f"_pdbx_struct_assembly_gen.{one}" for one in ("assembly_id", "oper_expression"))]
        lines += ["_pdbx_struct_assembly_gen.asym_id_list", *generators]
        lines += ["loop_", "_pdbx_struct_oper_list.id", "_pdbx_struct_oper_list.type"]
        for row in (1, 2, 3):
            lines += [f"_pdbx_struct_oper_list.matrix[{row}][{column}]" for column in (1, 2, 3)]
            lines.append(f"_pdbx_struct_oper_list.vector[{row}]")
        lines += [one.replace(" ", " 'crystal symmetry operation' ", 1) for one in operators]
    return "\n".join(lines) + "\n"


def built(folder: Path, assembly: str, texts: dict[str, str | bytes], **settings: Any) -> tuple[BuildReport, ChainSet]:
    (folder / "in").mkdir(exist_ok=True, parents=True)
    for name, text in texts.items():
        (folder / "in" / name).write_bytes(text.encode() if isinstance(text, str) else text)
    chosen = BuildSettings(complexes=True, assembly=assembly, **settings)
    report = build(folder / "in", folder / "set.npz", jobs=1, settings=chosen)
    return report, ChainSet.open(folder / "set.npz")


def row_of(report: BuildReport, chain: str) -> dict[str, Any]:
    (row,) = [row for row in report.rows if row["chain"] == chain]
    return row


def expanded_by_gemmi(structure: gemmi.Structure, name: str) -> list[dict[tuple[int, str], list[np.ndarray]]]:
    """Positions of the polymer atoms of each protein chain, by residue number and atom name, alternates included."""
    structure.add_entity_types()
    (assembly,) = [one for one in structure.assemblies if one.name == name]
    model = gemmi.make_assembly(assembly, structure[0], gemmi.HowToNameCopiedChain.Dup)
    found = []
    for chain in model:
        polymer = chain.get_polymer()
        if polymer.check_polymer_type() != gemmi.PolymerType.PeptideL:
            continue
        atoms: dict[tuple[int, str], list[np.ndarray]] = {}
        for residue in polymer:
            for atom in residue:
                atoms.setdefault((residue.label_seq, atom.name), []).append(np.array(atom.pos.tolist()))
        found.append(atoms)
    return found


def assert_same_atoms(record: Record, atoms: dict[tuple[int, str], list[np.ndarray]], tolerance: float) -> None:
    """Backbone atoms of ``record`` are where gemmi put an atom of this name and residue."""
    count = 0
    for at in range(len(record.sequence)):
        for column, name in enumerate(("N", "CA", "C")):
            places = atoms.get((int(record.residue_index[at]) + 1, name), [])
            assert bool(record.atom_mask[at, column]) == bool(places)
            if places:
                nearest = min(np.abs(record.atom_positions[at, column] - place).max() for place in places)
                assert nearest < tolerance
                count += 1
    assert count > 40


@pytest.mark.parametrize(
    ("entry", "name", "chains"), [("1a8q", "2", 3), ("4zey", "2", 2), ("2q2k", "1", 4), ("1kd8", "3", 2)]
)
def test_real_assemblies_are_those_of_gemmi(entry: str, name: str, chains: int) -> None:
    path = ENTRIES / f"{entry}.cif.gz"
    expected = expanded_by_gemmi(gemmi.read_structure(str(path)), name)
    made = assembly_chains(mmcif.parse(path), name)
    assert made.failure is None
    assert len(made.chains) == len(expected) == chains
    for record, atoms in zip(made.chains, expected, strict=True):
        assert_same_atoms(record, atoms, 1e-4)
        assert not record.atom_positions[~record.atom_mask].any()


def test_a_homotetramer_is_built_from_two_chains(tmp_path: Path) -> None:
    text = (ENTRIES / "2q2k.cif.gz").read_bytes()
    report, chains = built(tmp_path, "first", {"2q2k.cif.gz": text})
    (record,) = chains
    assert record.id == "2Q2K"
    ids = record.chain_ids
    assert ids is not None
    firsts = [own.start for own in chain_slices(ids.asym_id)]
    assert ids.asym_id[firsts].tolist() == [1, 2, 3, 4]
    assert ids.entity_id[firsts].tolist() == [1, 1, 1, 1]
    assert ids.sym_id[firsts].tolist() == [1, 2, 3, 4]
    expected = expanded_by_gemmi(gemmi.read_structure(str(ENTRIES / "2q2k.cif.gz")), "1")
    for part, atoms in zip(split_chains(record), expected, strict=True):
        assert_same_atoms(part, atoms, 0.006)  # a chain set has hundredths of an Å
    joined = [row["chain"] for row in report.rows if row["status"] == "joined"]
    assert joined == ["2Q2K_A", "2Q2K_B", "2Q2K_A-2", "2Q2K_B-2"]
    assert row_of(report, "2Q2K_B-2")["copy_of"] == "2Q2K_B"
    assert report.rows[0]["assembly"] == "1"
    assert report.rows[0]["copies"] == 2
    copied = row_of(report, "2Q2K_A-2")["copied_atoms"] + row_of(report, "2Q2K_B-2")["copied_atoms"]
    assert report.atoms["kept"] + copied == record.atom_mask.sum()
    assert report.copied_atoms == copied
    records = gzip.decompress(text).count(b"\nATOM") + gzip.decompress(text).count(b"\nHETATM")
    assert sum(report.atoms.values()) == records
    assert (
        "biological assemblies of 1 files; their operators added 2 copies of chains with 762 atoms" in report.summary()
    )


def test_an_assembly_of_the_identity_is_the_asymmetric_unit(tmp_path: Path) -> None:
    """Assembly 1 of 4ZEY and 1UBQ has every chain once: the set has the same bytes."""
    texts: dict[str, str | bytes] = {
        f"{one}.cif.gz": (ENTRIES / f"{one}.cif.gz").read_bytes() for one in ("4zey", "1ubq")
    }
    texts["toy.cif"] = synthetic(["1 1 A,B"])
    _, made = built(tmp_path / "assembly", "1", texts)
    _, unit = built(tmp_path / "unit", "asymmetric_unit", texts)
    assert [one.id for one in made] == ["1UBQ_A", "4ZEY_A", "TOY"]
    for key, array in unit._files[0].arrays.items():
        np.testing.assert_array_equal(made._files[0].arrays[key], array)


def test_chains_outside_the_assembly_are_reported(tmp_path: Path) -> None:
    report, chains = built(tmp_path, "2", {"1kd8.cif.gz": (ENTRIES / "1kd8.cif.gz").read_bytes()})
    assert [len(chains.chain_sequences(at)) for at in range(len(chains))] == [2]
    for chain in "ABEF":
        row = row_of(report, f"1KD8_{chain}")
        assert (row["status"], row["kind"]) == ("rejected", "not in the assembly")
        assert row["reason"] == "assembly 2 has the protein chains C, D"
    assert report.atoms["kept"] == chains[0].atom_mask.sum()
    assert report.copied_atoms == 0


@pytest.mark.parametrize(
    ("expression", "products"),
    [
        ("1,2", ["1", "2"]),
        ("1-3", ["1", "2", "3"]),
        ("(1-3)", ["1", "2", "3"]),
        ("2,3", ["2", "3"]),
        ("(1,2)(2,3)", ["12", "13", "22", "23"]),
        ("2(3)", ["23"]),
        ("'(2)(3)(1-2)'", ["231", "232"]),
    ],
)
def test_operator_expressions(tmp_path: Path, expression: str, products: list[str]) -> None:
    """The copies are those of gemmi for its own product of the operators. The names fit two-letter chain ids.

    gemmi reads only the first factor of a product in a file (0.7.5), so the products are made here.
    """
    path = tmp_path / "toy.cif"
    path.write_text(synthetic([f"1 {expression} A,B"]))
    made = assembly_chains(mmcif.parse(path), "first")
    assert made.failure is None
    path.write_text(synthetic(["1 1-3 A,B"]))
    structure = gemmi.read_structure(str(path))
    generator = structure.assemblies[0].generators[0]
    transforms = {one.name: one.transform.combine(gemmi.Transform()) for one in generator.operators}  # copies
    del generator.operators[:]
    for product in products:
        operator = gemmi.Assembly.Operator()
        operator.transform = functools.reduce(gemmi.Transform.combine, [transforms[one] for one in product])
        generator.operators.append(operator)
    expected = expanded_by_gemmi(structure, "1")
    assert len(made.chains) == len(expected)
    for record, atoms in zip(made.chains, expected, strict=True):
        places = np.concatenate([*atoms.values()])
        found = record.atom_positions[record.atom_mask]
        assert found.shape == places.shape
        np.testing.assert_allclose(found, places, atol=1e-4)
    count = len(made.chains) // 2
    names = [f"TOY_{chain}" + f"-{number + 1}" * bool(number) for number in range(count) for chain in ("AA", "B")]
    assert [one.id for one in made.chains] == names
    assert made.copy_of == {name: name.rpartition("-")[0] for name in names[2:]}


def test_copies_of_two_generators(tmp_path: Path) -> None:
    """Each chain counts its own copies, and a name that another chain has is not used again."""
    text = synthetic(["1 1 A,B", "1 2,3 A"], chains=("A", "A-2"))
    report, chains = built(tmp_path, "1", {"toy.cif": text})
    joined = [row["chain"] for row in report.rows if row["status"] == "joined"]
    assert joined == ["TOY_A", "TOY_A-2", "TOY_A-3", "TOY_A-4"]
    assert row_of(report, "TOY_A-4")["copy_of"] == "TOY_A"
    assert chains[0].chain_ids is not None
    assert chains[0].chain_ids.sym_id.max() == 4


def test_a_copy_in_the_same_place_is_left_out(tmp_path: Path) -> None:
    report, chains = built(tmp_path, "1", {"toy.cif": synthetic(["1 1,2 A,B", "1 1 A"])})
    row = row_of(report, "TOY_AA-3")
    assert (row["status"], row["kind"], row["copied_atoms"]) == ("rejected", "same place", 60)
    assert row["reason"] == "assembly 1 has TOY_AA twice with the same operator"
    assert report.atoms["kept"] + report.copied_atoms == chains[0].atom_mask.sum() == 240


def test_without_records_the_asymmetric_unit_is_used(tmp_path: Path) -> None:
    texts: dict[str, str | bytes] = {"toy.cif": synthetic([]), "1ubq.cif.gz": (ENTRIES / "1ubq.cif.gz").read_bytes()}
    report, chains = built(tmp_path, "first", texts)
    assert [one.id for one in chains] == ["1UBQ_A", "TOY"]
    (row,) = [row for row in report.rows if row["status"] == "read" and row["file"] == "toy.cif"]
    assert (row["assembly"], row["copies"], row["reason"]) == ("asymmetric_unit", 0, NO_RECORDS)
    assert f"1 files such as toy.cif have {NO_RECORDS}" in report.summary()


@pytest.mark.parametrize(
    ("assembly", "generators", "operators", "reason"),
    [
        ("2", ["1 1 A,B"], None, "the file has no assembly '2'; it has 1"),
        ("1", ["1 1,9 A,B"], None, f"assembly 1: operator '9' of '1,9' is not in {CATEGORIES}, which"),
        ("1", ["1 2-1 A,B"], None, "assembly 1: operators 2-1 of '2-1'; expected an increasing range"),
        ("1", ["1 '(1,2' A,B"], None, "assembly 1: operator expression '(1,2'; expected one such as"),
        ("1", ["1 1, A,B"], None, "assembly 1: operator '' of '1,' is not in"),
        ("1", ["1 1 ,"], None, f"assembly 1: {CATEGORIES} list no chains"),
        ("1", ["1 1 X,Y"], None, "assembly 1 has chains X, Y, and none of the protein chains A, B"),
        ("1", [f"1 '{'(1-3)' * 9}' A,B"], None, "assembly 1: 19683 operators; expected at most 10000"),
        ("1", ["1 1 A,B"], ["1 -1 0 0 0 0 1 0 0 0 0 1 0"], f"assembly 1: operator 1 of {CATEGORIES} is no rotation"),
        ("1", ["1 1 A,B"], ["1 2 0 0 0 0 1 0 0 0 0 1 0"], f"assembly 1: operator 1 of {CATEGORIES} is no rotation"),
        ("1", ["1 1 A,B"], ["1 1 0 0 0 0 1 0 0 0 0 1 ?"], f"assembly 1: operator 1 of {CATEGORIES}: could"),
        ("1", ["1 1 A,B"], ["1 1 0 0 1e39 0 1 0 0 0 0 1 0"], f"assembly 1: operator 1 of {CATEGORIES} does"),
        ("1", ["1 1 A,B"], ["1 1 0 0 inf 0 1 0 0 0 0 1 0"], f"assembly 1: operator 1 of {CATEGORIES} does"),
    ],
)  # fmt: skip
def test_faults(tmp_path: Path, assembly: str, generators: list[str], operators: list[str] | None, reason: str) -> None:
    """An assembly that cannot be made rejects the chains of its file, with the reason. It is not replaced."""
    text = synthetic(generators) if operators is None else synthetic(generators, operators)
    report, chains = built(tmp_path, assembly, {"toy.cif": text, "other.cif": synthetic([], sequence=slice(20, 40))})
    assert [one.id for one in chains] == ["TOY"]
    assert chains.chain_sequences(0)[0] == mmcif.read(ENTRIES / "1ubq.cif.gz")[0].sequence[20:40]
    rows = [row for row in report.rows if row["file"] == "toy.cif" and row["status"] != "read"]
    assert [row["chain"] for row in rows] == ["TOY_AA", "TOY_B", "TOY"]
    assert {row["status"] for row in rows} == {"rejected"}
    assert all(row["reason"].startswith(reason) for row in rows)
    assert rows[2]["kind"] == ("no such assembly" if assembly == "2" else "assembly")
    assert report.atoms["kept"] == chains[0].atom_mask.sum()
    assert sum(report.atoms.values()) == 240


def test_limits_count_the_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = synthetic([], sequence=slice(20, 40)).replace("TOY", "SMALL")
    texts: dict[str, str | bytes] = {"toy.cif": synthetic(["1 1-3 A,B"]), "other.cif": other}
    report, _ = built(tmp_path / "chains", "first", texts, max_chains=5)
    row = row_of(report, "TOY")
    assert (row["kind"], row["reason"]) == ("too many chains", "6 chains; expected at most 5")
    assert row_of(report, "TOY_B-3")["kind"] == "chain of a rejected complex"
    assert report.copied_atoms == 0
    assert report.atoms["kept"] == 120
    report, _ = built(tmp_path / "length", "first", texts, max_length=119)
    assert row_of(report, "TOY")["reason"] == "120 residues in 6 chains; expected at most 119"
    monkeypatch.setattr("ds4sci.data.structures.assemblies.MAX_RESIDUES", 100)
    report, _ = built(tmp_path / "memory", "first", texts)
    assert row_of(report, "TOY")["reason"] == "assembly 1 has 120 residues in 6 protein chains; expected at most 100"


def test_copies_share_the_alignment_of_their_chain(tmp_path: Path) -> None:
    folder = tmp_path / "msa"
    folder.mkdir()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "toy.cif").write_text(synthetic(["1 1,2 A"]))
    sequence = mmcif.read(tmp_path / "in" / "toy.cif", "AA").sequence
    (folder / "toy_AA.a3m").write_text(f">q\n{sequence}\n>r\n{'W' * 5}{sequence[5:]}\n")
    settings = BuildSettings(complexes=True, assembly="1")
    report = build(tmp_path / "in", tmp_path / "set.npz", msa_dir=folder, jobs=1, settings=settings)
    (record,) = ChainSet.open(tmp_path / "set.npz")
    assert record.msa is not None
    assert record.msa.sequences.shape == (2, 40)
    np.testing.assert_array_equal(record.msa.sequences[:, :20], record.msa.sequences[:, 20:])
    assert row_of(report, "TOY_B")["kind"] == "not in the assembly"
    assert not report.unused_alignments


def test_copies_of_a_renamed_entry(tmp_path: Path) -> None:
    texts: dict[str, str | bytes] = {"a.cif": synthetic(), "b.cif": synthetic(sequence=slice(20, 40))}
    report, chains = built(tmp_path, "1", texts)
    assert [one.id for one in chains] == ["TOY", "b"]
    assert row_of(report, "b_AA-2")["copy_of"] == "b_AA"


def test_pdb_files_have_assemblies_in_remark_350(tmp_path: Path) -> None:
    structure = gemmi.read_structure(str(ENTRIES / "1a8q.cif.gz"))
    (tmp_path / "1a8q.pdb").write_text(structure.make_pdb_string())
    made = assembly_chains(pdb.parse(tmp_path / "1a8q.pdb"), "2")
    assert made.failure is None
    expected = assembly_chains(mmcif.parse(ENTRIES / "1a8q.cif.gz"), "2")
    assert [one.id for one in made.chains] == [one.id for one in expected.chains] == ["1A8Q_A", "1A8Q_A-2", "1A8Q_A-3"]
    for one, other in zip(made.chains, expected.chains, strict=True):
        np.testing.assert_allclose(one.atom_positions[:, 1], other.atom_positions[:, 1], atol=2e-3)


@pytest.mark.parametrize(
    ("line", "replacement", "assembly", "reason"),
    [
        (
            "REMARK 350   BIOMT1   2",
            "REMARK 350   BIOMT1   2 -0.5",
            "2",
            "assembly 2: operator 2:2 of REMARK 350 does not",
        ),
        (
            "REMARK 350   BIOMT1   2",
            "",
            "2",
            "assembly 2: operator 2:2 of REMARK 350 does not have twelve numbers",
        ),
        ("REMARK 350 APPLY", "", "2", "assembly 2: REMARK 350 list no chains"),
        ("REMARK 350   BIOMT", "", "first", "assembly 1 has no operators in REMARK 350"),
        ("REMARK 350 BIOMOLECULE: 2", "", "2", "the file has no assembly '2'; it has 1"),
    ],
)
def test_damaged_remarks(tmp_path: Path, line: str, replacement: str, assembly: str, reason: str) -> None:
    """The asymmetric unit must not take the place of the assembly."""
    lines = gemmi.read_structure(str(ENTRIES / "1a8q.cif.gz")).make_pdb_string().split("\n")
    (tmp_path / "1a8q.pdb").write_text("\n".join(replacement if one.startswith(line) else one for one in lines))
    failure = assembly_chains(pdb.parse(tmp_path / "1a8q.pdb"), assembly).failure
    assert failure is not None
    assert failure[1].startswith(reason)


def test_remarks_with_several_groups_of_chains() -> None:
    rows = ["  BIOMT1   1  1 0 0 0", "  BIOMT2   1  0 1 0 0", "  BIOMT3   1  0 0 1 7"]
    remarks = [" APPLY THE FOLLOWING TO CHAINS: A, B,", "                    AND CHAINS: C", *rows]
    remarks += [" APPLY THE FOLLOWING TO CHAINS: D", *rows]
    records = assembly_records.read_pdb([f"REMARK 350{one}" for one in remarks])
    first, second = records.expand("1")
    assert (first.chains, second.chains) == (("A", "B", "C"), ("D",))
    assert first.operators.tolist() == second.operators.tolist() == [[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 7]]]


def test_a_file_without_protein_chains_reports_its_chains(tmp_path: Path) -> None:
    """A DNA from 2Q2K alone."""
    structure = gemmi.read_structure(str(ENTRIES / "2q2k.cif.gz"))
    for name in ("A", "B"):
        structure[0].remove_chain(name)
    texts: dict[str, str | bytes] = {"dna.cif": structure.make_mmcif_document().as_string(), "toy.cif": synthetic()}
    for assembly in ("asymmetric_unit", "first"):
        report, chains = built(tmp_path / assembly, assembly, texts)
        assert [one.id for one in chains] == ["TOY"]
        assert row_of(report, "2Q2K_F")["kind"] == "not a protein"


def test_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "toy.cif").write_text(synthetic())
    command = ["data", "build", "--jobs", "1", "--assembly", "1", str(tmp_path / "in"), str(tmp_path / "set.npz")]
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code == 2
    assert "assembly '1' is for complexes; add --complexes" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main([*command, "--complexes"])
    assert end.value.code == 0
    assert "their operators added 2 copies of chains" in capsys.readouterr().out
    assert len(ChainSet.open(tmp_path / "set.npz").chain_sequences(0)) == 4


def test_records_without_an_operator_table() -> None:
    records = assembly_records.AssemblyRecords({"1": ""}, [("1", "1", ("A",))])
    with pytest.raises(ValueError, match=r"operator '1' of '1' is not in .*, which has no operators"):
        records.expand("1")
    with pytest.raises(ValueError, match="assembly 2 has no operators in _pdbx_struct_assembly_gen"):
        records.expand("2")
