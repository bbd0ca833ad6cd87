"""Complexes: built from real structures, stored, cropped, and made into features and batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ds4sci.chemistry.chains import chain_slices, entity_numbers, number_chains
from ds4sci.chemistry.residue_codes import GAP, UNKNOWN, encode
from ds4sci.cli.main import main
from ds4sci.data.alignments import pairing
from ds4sci.data.alignments.profile import with_msa_input
from ds4sci.data.clustering.chain_split import clusters, leakage, split
from ds4sci.data.loader import CropPhase, Plan, batches
from ds4sci.data.sequences.fasta_records import make_record
from ds4sci.data.structures.batch import collate
from ds4sci.data.structures.build import build
from ds4sci.data.structures.chain_filters import BuildSettings
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.structures.complexes import ALIGNED_COPY, attach_alignments, join_chains, split_chains
from ds4sci.data.structures.crops import contiguous_crop, crop_complex, interface_residues, spatial_crop
from ds4sci.data.structures.features import FeatureConfig, featurize
from ds4sci.data.structures.parsers import mmcif
from ds4sci.data.structures.template_features import ABSENT
from ds4sci.inference.evaluate import evaluate_run
from ds4sci.inference.trained_run import TrainedRun
from ds4sci.metrics import chain_metrics
from ds4sci.tasks import fold
from ds4sci.tasks.evaluations.structures import torsions
from ds4sci.types import Msa, Prediction, Record, TemplateSet
from tests.support.fold_run import make_fold_run

DATA = Path(__file__).parents[2] / "fixtures"
SEQUENCE_INPUT = FeatureConfig(msa_input="sequence")


@pytest.fixture(scope="module")
def complexes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """1KD8: a heterohexamer A₃B₃; 2Q2K: a homodimer; 1UBQ: one chain. Both layouts of the set must agree."""
    folder = tmp_path_factory.mktemp("complexes")
    (folder / "in").mkdir()
    for name in ("1kd8", "2q2k", "1ubq"):
        (folder / "in" / f"{name}.cif.gz").write_bytes((DATA / "mmcif" / f"{name}.cif.gz").read_bytes())
    settings = BuildSettings(complexes=True)
    build(folder / "in", folder / "set.npz", jobs=1, settings=settings)
    build(folder / "in", folder / "set", jobs=1, settings=settings, chains_per_file=1)
    from_file, from_folder = ChainSet.open(folder / "set.npz"), ChainSet.open(folder / "set")
    for one, other in zip(from_file, from_folder, strict=True):
        assert one.id == other.id
        assert (one.chain_ids is None) == (other.chain_ids is None)
        if one.chain_ids is not None:
            np.testing.assert_equal(vars(one.chain_ids), vars(other.chain_ids))
    return {one.id: one for one in from_file}


def test_chains_of_real_structures(complexes: dict[str, Record]) -> None:
    assert list(complexes) == ["1KD8", "1UBQ_A", "2Q2K"]
    assert complexes["1UBQ_A"].chain_ids is None
    hexamer = complexes["1KD8"].chain_ids
    assert hexamer is not None
    firsts = [own.start for own in chain_slices(hexamer.asym_id)]
    assert hexamer.asym_id[firsts].tolist() == [1, 2, 3, 4, 5, 6]
    assert hexamer.entity_id[firsts].tolist() == [1, 2, 1, 2, 2, 1]
    assert hexamer.sym_id[firsts].tolist() == [1, 1, 2, 2, 3, 3]
    chains = mmcif.read(DATA / "mmcif" / "1kd8.cif.gz")
    for chain, part in zip(chains, split_chains(complexes["1KD8"]), strict=True):
        assert (part.sequence, part.residue_index.tolist()) == (chain.sequence, chain.residue_index.tolist())
        np.testing.assert_array_equal(part.atom_mask, chain.atom_mask)
        np.testing.assert_allclose(part.atom_positions, chain.atom_positions, atol=0.006)


def test_every_chain_is_reported(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, copy in (("1kd8", "1kd8"), ("2q2k", "2q2k"), ("2q2k", "copy"), ("1ubq", "1ubq")):
        (tmp_path / "in" / f"{copy}.cif.gz").write_bytes((DATA / "mmcif" / f"{name}.cif.gz").read_bytes())
    settings = BuildSettings(complexes=True, max_chains=5)
    report = build(tmp_path / "in", tmp_path / "set.npz", jobs=1, settings=settings)
    rows = {(row["file"], row["chain"]): row for row in report.rows if row["status"] != "read"}
    assert rows["2q2k.cif.gz", "2Q2K"]["status"] == "accepted"
    assert rows["2q2k.cif.gz", "2Q2K_A"]["reason"] == "chain of 2Q2K"
    assert rows["1kd8.cif.gz", "1KD8"]["kind"] == "too many chains"
    assert rows["1kd8.cif.gz", "1KD8_C"]["kind"] == "chain of a rejected complex"
    assert rows["1kd8.cif.gz", "1KD8_C"]["reason"] == rows["1kd8.cif.gz", "1KD8"]["reason"]
    assert rows["copy.cif.gz", "2Q2K"]["reason"] == rows["copy.cif.gz", "2Q2K_B"]["reason"]
    assert rows["copy.cif.gz", "2Q2K_B"]["status"] == "rejected"
    assert report.counts == {
        "accepted": 2, "joined": 2, "same id": 1, "too many chains": 1, "chain of a rejected complex": 8,
        "not a protein": 2,
    }  # fmt: skip
    kept = sum(int(one.atom_mask.sum()) for one in ChainSet.open(tmp_path / "set.npz"))
    assert report.atoms["kept"] == kept
    assert "1 chains and 1 complexes" in report.summary()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "2q2k.cif.gz").write_bytes((DATA / "mmcif" / "2q2k.cif.gz").read_bytes())
    with pytest.raises(SystemExit) as end:
        main(
            [
                "data",
                "build",
                "--complexes",
                "--jobs",
                "1",
                str(tmp_path / "in"),
                str(tmp_path / "set.npz"),
                "min_length=60",
            ]
        )
    assert end.value.code == 0
    assert "0 chains and 1 complexes, 140 residues from 1 files" in capsys.readouterr().out
    assert ChainSet.open(tmp_path / "set.npz").chain_sequences(0)[0].startswith("M")


def test_alignments_of_a_build(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1kd8.cif.gz").write_bytes((DATA / "mmcif" / "1kd8.cif.gz").read_bytes())
    first, second = (mmcif.read(DATA / "mmcif" / "1kd8.cif.gz", chain).sequence for chain in "AB")
    own = tmp_path / "msa" / "1kd8_A"
    own.mkdir(parents=True)
    (own / "uniref90_hits.a3m").write_text(f">q\n{first}\n>one\n{'-' * 9}{first[9:]}\n>two\n{'W' * 9}{first[9:]}\n")
    (own / "uniprot_hits.a3m").write_text(f">q\n{first}\n>tr|Q00001|Q00001_HUMAN\n{'K' * 9}{first[9:]}\n")
    (tmp_path / "msa" / "1kd8_B.a3m").write_text(f">q\n{second}\n>sp|P00001|XY_HUMAN\n{'-' * 5}{second[5:]}\n")
    (tmp_path / "msa" / "1kd8_C.a3m").write_text(f">q\n{first}\n")
    settings = BuildSettings(complexes=True)
    report = build(tmp_path / "in", tmp_path / "set.npz", msa_dir=tmp_path / "msa", jobs=1, settings=settings)
    record = ChainSet.open(tmp_path / "set.npz")[0]
    msa = record.msa
    assert msa is not None
    assert record.profile is not None
    assert len(msa.names) == 4  # the chains, one pair, two unpaired rows of A; the row of B is in the pair
    assert msa.names[1] == "+".join({"A": "tr|Q00001|Q00001_HUMAN", "B": "sp|P00001|XY_HUMAN"}[one] for one in "ABABBA")
    blocks = [(msa.sequences[:, one] != GAP).any(1).tolist() for one in chain_slices(record.chain_ids.asym_id)]  # type: ignore[union-attr]
    of = {"A": [True, True, True, True], "B": [True, True, False, False]}
    assert blocks == [of[one] for one in "ABABBA"]
    row = next(row for row in report.rows if row["chain"] == "1KD8")
    assert {"chain": "1KD8_C", "file": "1kd8_C.a3m", "skipped": ALIGNED_COPY} in row["alignments"]
    for counts in row["pairing"]:
        assert counts["rows"] == counts["kept"] + sum(counts["excluded"].values())
    assert f"1 unpaired rows: {pairing.IN_PAIRED}" not in report.summary()  # of two entities
    assert pairing.IN_PAIRED in report.summary()
    assert build(tmp_path / "in", tmp_path / "set.npz", msa_dir=tmp_path / "msa", settings=settings).cached == 1
    (tmp_path / "msa" / "1kd8_B.a3m").unlink()
    assert build(tmp_path / "in", tmp_path / "set.npz", msa_dir=tmp_path / "msa", settings=settings).cached == 0


def test_templates_stay_in_their_chain() -> None:
    first, second = make_record("a", "AGW"), make_record("b", "CK")
    atoms = np.random.default_rng(0).normal(size=(2, 3, 37, 3)).astype(np.float32)
    templates = TemplateSet(("T1", "T2"), np.full((2, 3), 7, np.uint8), atoms, np.ones((2, 3, 37), bool))
    joined = join_chains("ab", [first, replace(first, templates=templates), second]).templates
    assert joined is not None
    assert joined.names == ("-+T1+-", "-+T2+-")
    assert joined.aatype.tolist() == [[ABSENT] * 3 + [7] * 3 + [ABSENT] * 2] * 2
    assert joined.atom_mask[:, 3:6].all()
    assert joined.atom_mask.sum() == 2 * 3 * 37
    np.testing.assert_array_equal(joined.atom_positions[:, 3:6], atoms)


def test_profile_of_a_chain_without_alignment() -> None:
    profile = np.full((2, 20), 0.05, np.float32)
    record = join_chains("x", [replace(make_record("a", "AG"), profile=profile), make_record("b", "C")])
    assert record.profile is not None
    np.testing.assert_array_equal(record.profile[:2], profile)
    assert record.profile[2].argmax() == "ARNDC".index("C")
    assert record.profile[2].max() == 1.0
    made, reports, counts = attach_alignments("x", [make_record("a", "AG"), make_record("b", "C")], lambda at: [])
    assert made.msa is None
    assert made.profile is None
    assert not counts
    assert not any(one.files for one in reports)


# ---- crops


def toy(lengths: tuple[int, ...], distance: float = 8.0) -> Record:
    """Straight chains along x, ``distance`` Å apart from the next."""
    sequences = ["AGWKC"[number] * length for number, length in enumerate(lengths)]
    chains = []
    for number, sequence in enumerate(sequences):
        one = make_record(f"c{number}", sequence)
        positions, mask = one.atom_positions.copy(), one.atom_mask.copy()
        positions[:, :3, 0] = 3.8 * np.arange(len(sequence))[:, None] + np.array([-1, 0, 1])
        positions[:, :3, 1] = distance * number
        mask[:, :3] = True
        chains.append(replace(one, atom_positions=positions, atom_mask=mask))
    return join_chains("toy", chains)


def test_contiguous_crops() -> None:
    """Each chain gives one stretch; sizes are those of Algorithm 1, and every residue is reached."""
    record = toy((5, 9, 7))
    assert record.chain_ids is not None
    reached, sizes = np.zeros(21, int), []
    for seed in range(400):
        crop = contiguous_crop(record.chain_ids, 12, np.random.default_rng(seed))
        assert len(crop) == 12
        assert (np.diff(crop) > 0).all()
        parts = [crop[record.chain_ids.asym_id[crop] == chain] for chain in (1, 2, 3)]
        assert all((np.diff(part) == 1).all() for part in parts)
        sizes.append([len(part) for part in parts])
        reached[crop] += 1
    assert reached.min() > 100
    assert {size[0] for size in sizes} == set(range(6))
    assert {size[1] for size in sizes} == set(range(10))


def test_sizes_of_contiguous_crops_have_the_published_distribution() -> None:
    """Two chains of 4 and 6, crop 6: the first chain drawn has a uniform size, and the order is uniform."""
    record = toy((4, 6))
    assert record.chain_ids is not None
    draws = [int((contiguous_crop(record.chain_ids, 6, np.random.default_rng(i)) < 4).sum()) for i in range(4000)]
    # chain 1 first: uniform 0…4; chain 2 first: its size is uniform 2…6, so chain 1 has 6 − size, uniform 0…4 too
    assert np.bincount(draws, minlength=5).tolist() == pytest.approx([800] * 5, rel=0.12)


def test_spatial_crops_are_the_nearest_residues() -> None:
    record = toy((9, 9))
    crop = spatial_crop(record, 4, 7)
    assert crop.tolist() == [2, 3, 4, 5, 6, 12, 13]  # 14 is as far as 12, whose number is smaller
    hidden = record.atom_mask.copy()
    hidden[5] = False
    assert 5 not in spatial_crop(replace(record, atom_mask=hidden), 4, 17)


def test_interface_is_that_of_all_pairs_of_atoms(complexes: dict[str, Record]) -> None:
    record = complexes["2Q2K"]
    assert record.chain_ids is not None
    residue, column = np.nonzero(record.atom_mask)
    points, chain = record.atom_positions[residue, column].astype(float), record.chain_ids.asym_id[residue]
    close = np.linalg.norm(points[:, None] - points[None], axis=-1) < 4
    expected = np.unique(residue[(close & (chain[:, None] != chain[None])).any(1)])
    found = interface_residues(record, 4.0)
    assert found.tolist() == [one for one in expected if record.atom_mask[one, 1]]
    assert 0 < len(found) < record.atom_mask[:, 1].sum()
    assert not len(interface_residues(complexes["1UBQ_A"], 10.0))


def test_crops_of_complexes(complexes: dict[str, Record]) -> None:
    record = complexes["1KD8"]
    assert record.chain_ids is not None
    for seed in range(20):
        spatial = crop_complex(record, 60, np.random.default_rng(seed), spatial=1.0)
        assert len(np.unique(record.chain_ids.asym_id[spatial])) > 1
    far = toy((9, 9), distance=50.0)
    assert len(crop_complex(far, 5, np.random.default_rng(0), spatial=1.0)) == 5  # no interface: contiguous
    mask = np.zeros_like(far.atom_mask)
    mask[16, :3] = True
    crops = [crop_complex(replace(far, atom_mask=mask), 2, np.random.default_rng(seed)) for seed in range(20)]
    assert all(16 in crop for crop in crops)  # the only residue with a training signal
    with pytest.raises(ValueError, match="at least 1 residue"):
        crop_complex(far, 0, np.random.default_rng(0))


# ---- features and batches


def test_features_of_a_crop(complexes: dict[str, Record]) -> None:
    record = complexes["1KD8"]
    assert record.chain_ids is not None
    whole = featurize(record, SEQUENCE_INPUT, np.random.default_rng(0))
    np.testing.assert_array_equal(whole.asym_id, record.chain_ids.asym_id)
    assert whole.residue_index.tolist() == list(range(36)) * 6
    for seed in range(8):
        cropped = featurize(record, SEQUENCE_INPUT, np.random.default_rng(seed), crop=70)
        again = featurize(record, SEQUENCE_INPUT, np.random.default_rng(seed), crop=70)
        np.testing.assert_equal(vars(cropped), vars(again))
        place = {
            (int(asym), int(index)): at
            for at, (asym, index) in enumerate(zip(whole.asym_id, whole.residue_index, strict=True))  # type: ignore[arg-type]
        }
        at = [place[int(a), int(i)] for a, i in zip(cropped.asym_id, cropped.residue_index, strict=True)]  # type: ignore[arg-type]
        assert at == sorted(at)
        assert len(at) == 70
        for name in ("aatype", "entity_id", "sym_id", "atom_positions", "atom_mask", "secondary"):
            np.testing.assert_array_equal(getattr(cropped, name), getattr(whole, name)[at])


def test_masked_msa_targets_are_residues_of_the_row() -> None:
    """A gap that stands for a missing partner is hidden from the targets, as in AlphaFold-Multimer's bert_mask."""
    record = toy((6, 5))
    own = np.minimum(encode(record.sequence), UNKNOWN)
    rows = np.stack([own, np.where(np.arange(11) < 6, own, GAP), np.where(np.arange(11) < 6, GAP, own)])
    msa = Msa(rows.astype(np.uint8), np.zeros(rows.shape, np.int32), ("q", "a", "b"))
    every = FeatureConfig(msa_input="msa", masked_msa_probability=1.0)
    made = featurize(replace(record, msa=msa), every, np.random.default_rng(0))
    assert made.masked_msa.tolist() == (made.true_msa != GAP).tolist()
    assert made.masked_msa.sum() == 11 + 6 + 5
    single = featurize(replace(record, msa=msa, chain_ids=None), every, np.random.default_rng(0))
    assert single.masked_msa.all()


def test_templates_of_a_crop() -> None:
    record = toy((9, 9))
    n = 18
    atoms = np.random.default_rng(1).normal(size=(1, n, 37, 3)).astype(np.float32)
    templates = TemplateSet(("T",), np.arange(n, dtype=np.uint8)[None], atoms, np.ones((1, n, 37), bool))
    settings = FeatureConfig(msa_input="sequence", max_templates=2, subsample_templates=False)
    made = featurize(replace(record, templates=templates), settings, np.random.default_rng(3), crop=7)
    assert made.template_aatype is not None
    assert made.template_positions is not None
    at = made.template_aatype[0]
    np.testing.assert_array_equal(made.template_positions[0], atoms[0, at])
    np.testing.assert_array_equal(made.asym_id, np.where(at < 9, 1, 2))


def test_batches_of_complexes_and_single_chains(complexes: dict[str, Record]) -> None:
    made = {name: featurize(record, SEQUENCE_INPUT, np.random.default_rng(0)) for name, record in complexes.items()}
    batch = collate([made["2Q2K"], made["1UBQ_A"]], multiple=50)
    assert batch.asym_id is not None
    assert batch.sym_id is not None
    assert batch.entity_id is not None
    assert batch.asym_id.shape == (2, 150)
    assert batch.asym_id[0].tolist() == [1] * 70 + [2] * 70 + [0] * 10
    assert batch.entity_id[0].tolist() == [1] * 140 + [0] * 10
    assert batch.sym_id[1].tolist() == [1] * 76 + [0] * 74
    assert collate([made["1UBQ_A"]]).asym_id is None


def test_training_batches_resume(complexes: dict[str, Record]) -> None:
    def from_step(step: int, workers: int = 0):
        made = batches(
            [complexes["1KD8"], complexes["2Q2K"]], seed=5, start_step=step, steps=9, rank=0, world_size=1,
            micro_batch_size=2, accumulation_steps=1, plan=Plan(phases=(CropPhase(crops=(48, 60)),)),
            feature_config=SEQUENCE_INPUT,
            workers=workers,
        )  # fmt: skip
        return [next(made) for _ in range(3)]

    whole = from_step(0) + from_step(3)
    for one, other in zip(whole[2:5], from_step(2, workers=1), strict=True):
        assert one.ids == other.ids
        assert one.asym_id is not None
        assert one.asym_id.tolist() == other.asym_id.tolist()  # type: ignore[union-attr]
        assert one.residue_index.tolist() == other.residue_index.tolist()


def test_numbers_of_entities() -> None:
    """In the order of their first chains; ``number_chains`` has the same."""
    sequences = ["GG", "AAA", "GG", "CC", "AAA"]
    assert entity_numbers(sequences) == [1, 2, 1, 3, 2]
    assert number_chains(sequences).entity_id.tolist() == [1, 1, 2, 2, 2, 1, 1, 3, 3, 2, 2, 2]
    assert entity_numbers([]) == []


def test_wrong_chain_numbers_of_a_set() -> None:
    record = toy((3, 4))
    chains = ChainSet.from_records([make_record("s", "AGW"), record])
    assert chains[0].chain_ids is None
    np.testing.assert_equal(vars(chains[1].chain_ids), vars(number_chains(["AAA", "GGGG"])))
    for wrong in ([0, 0, 0, 1, 1, 1, 3, 3, 3, 3], [0, 1, 0, 1, 1, 1, 2, 2, 2, 2], [0, 0, 0, 2, 2, 2, 2, 2, 2, 2]):
        arrays = dict(chains._files[0].arrays) | {"asym_id": np.array(wrong)}
        with pytest.raises(ValueError, match=r"memory: asym_id of (toy|s) must be 0 in a single chain"):
            ChainSet(arrays)
    with pytest.raises(ValueError, match=r"asym_id has shape \(3,\)"):
        ChainSet(dict(chains._files[0].arrays) | {"asym_id": np.zeros(3)})


# ---- scores


def as_prediction(record: Record) -> Prediction:
    n = len(record.sequence)
    maps = np.zeros((n, n), np.float32)
    return Prediction(
        record.id, record.sequence, record.residue_index, record.atom_positions, record.atom_mask,
        np.full(n, 50.0, np.float32), maps, maps, chain_ids=record.chain_ids,
    )  # fmt: skip


def test_the_border_of_two_chains_is_no_bond() -> None:
    """Chains that touch: the last residue of the first is 3.8 Å from the first of the second."""
    record = toy((6, 6), distance=9.0)
    row = chain_metrics(as_prediction(record), record)
    assert (row["bond_ok"], row["clash"], row["lddt_ca"]) == (1.0, 0.0, 1.0)
    joined = replace(record, chain_ids=None, residue_index=np.arange(12))
    assert chain_metrics(as_prediction(joined), joined)["bond_ok"] == pytest.approx(10 / 11)
    close = toy((6, 6), distance=2.0)
    assert chain_metrics(as_prediction(close), close)["clash"] == 1.0  # also of residues with the same number


def test_torsions_end_at_each_chain(complexes: dict[str, Record]) -> None:
    record = complexes["2Q2K"]
    assert record.chain_ids is not None
    whole = torsions(record.atom_positions, record.atom_mask, record.chain_ids)
    parts = [torsions(one.atom_positions, one.atom_mask) for one in split_chains(record)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert np.isfinite(whole).sum() > 100


def test_a_split_separates_no_related_chains(complexes: dict[str, Record]) -> None:
    """A complex shares one of its chains with another, and is related to it, however different the others are."""
    random = np.random.default_rng(0)
    shared, *others = ("".join(np.array(list("ARNDCQEGHILKMFPSTWYV"))[random.integers(0, 20, 60)]) for _ in range(6))
    records = [
        join_chains("one", [make_record("a", shared), make_record("b", others[0])]),
        join_chains("two", [make_record("a", others[1]), make_record("b", others[2]), make_record("c", shared)]),
        make_record("three_A", others[3]),
        make_record("four_A", others[4]),
        make_record("one_A", others[1][::-1]),
    ]
    for chains in (records, ChainSet.from_records(records)):
        assert [0, 1] in clusters(chains)
        train, valid = split(chains, 0.4, seed=1)
        assert any({0, 1, 4} <= set(part) for part in (train, valid))
        with pytest.warns(UserWarning, match="leakage"):
            (pair,) = leakage(chains[1:2], chains[:1])
        assert pair == ("two", "one", 1.0)
    assert ChainSet.from_records(records).has_complexes
    single = ChainSet.from_records(records[2:])
    assert single.require_single_chains() is single
    with pytest.raises(ValueError, match="memory: has complexes, whose chains would be taken for one"):
        ChainSet.from_records(records).require_single_chains()
    assert ChainSet.from_records(records).chain_sequences(1) == [others[1], others[2], shared]


def test_a_model_of_single_chains_refuses_complexes(tmp_path: Path, complexes: dict[str, Record]) -> None:
    run = make_fold_run(tmp_path)
    ChainSet.write(tmp_path / "train.npz", list(complexes.values()))
    ChainSet.write(tmp_path / "valid.npz", [complexes["2Q2K"]])
    task = TrainedRun.load(run).task
    with pytest.raises(ValueError, match=r"2Q2K: a complex of several chains, which this model would join"):
        task.featurize(complexes["2Q2K"])  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"train.npz: a complex of several chains"):
        task.train_samples()


def test_evaluation_of_complexes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold, "takes_complexes", lambda config: True)
    run = make_fold_run(tmp_path)
    both = toy((9, 7))
    records = [both, replace(split_chains(both)[0], id="one")]
    ChainSet.write(tmp_path / "complexes.npz", [with_msa_input(record, "profile") for record in records])
    values = evaluate_run(run, files={"chains": tmp_path / "complexes.npz"}, show=False)
    rows = {row["id"]: row for row in values["per_chain"]}
    assert rows["toy"]["chains"] == 2
    assert "chains" not in rows["one"]
    assert rows["toy"]["tm_score"] is not None
