"""Variant effects, contacts and losses by class against scipy, formulas, optimality conditions and real chains."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from ds4sci import metrics
from ds4sci.metrics.contacts import l1_logistic_regression
from ds4sci.metrics.variants import Mutation, Variant
from ds4sci.types import RESIDUES

CHAINS = Path(__file__).parents[2] / "examples" / "fold" / "data" / "chains_valid.npz"
SEQUENCE = "MKVLAGR"


@given(st.lists(st.tuples(st.integers(-4, 4), st.floats(-1e3, 1e3)), min_size=2, max_size=60))
def test_spearman_equals_scipy(pairs: list[tuple[int, float]]) -> None:
    x, y = np.array([a for a, _ in pairs]), np.array([b for _, b in pairs])
    ours = metrics.spearman(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(ours)
    else:
        assert ours == pytest.approx(float(spearmanr(x, y).statistic), abs=1e-12)


def test_spearman_of_invalid_input() -> None:
    assert math.isnan(metrics.spearman(np.array([]), np.array([])))
    with pytest.raises(ValueError, match="NaN"):
        metrics.spearman(np.array([1.0, np.nan]), np.array([1.0, 2.0]))
    with pytest.raises(ValueError, match="equal length"):
        metrics.spearman(np.ones(3), np.ones(4))


def test_variant_positions_are_one_based() -> None:
    assert metrics.parse_variant("K2R", SEQUENCE) == (Mutation("K", 1, "R"),)
    assert metrics.parse_variant(" m1A:R7K ", SEQUENCE) == (Mutation("M", 0, "A"), Mutation("R", 6, "K"))
    assert metrics.parse_variant("K101R", SEQUENCE, first=100) == (Mutation("K", 1, "R"),)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("K2B", "mutant 'B' is not an amino acid"),
        ("X2A", "wild type 'X' is not an amino acid"),
        ("A2R", "the sequence has 'K' at 2, not 'A'"),
        ("K0R", "position 0 is outside"),
        ("R8K", "residues 1 to 7"),
        ("K2", "not a substitution"),
        ("", "not a substitution"),
        ("K2R:K2A", "is repeated"),
        ("K2R,A5G", "not a substitution"),
        ("K٢R", "not a substitution"),  # a digit that is not ASCII
    ],
)
def test_invalid_variant_reports_line_and_column(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "dms.csv"
    file.write_text(f'id,mutant,DMS_score\n1,K2R,0.5\n2,"{text}",1\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"dms\.csv: line 3: column 'mutant': ") as caught:
        metrics.read_variants(file, SEQUENCE)
    assert says in str(caught.value)


def test_read_variants(tmp_path: Path) -> None:
    file = tmp_path / "dms.csv"
    file.write_bytes(b"\xef\xbb\xbfmutant,DMS_score,note\r\nK2R,0.5,x\r\nV3A:R7K,-1e-2,y\r\n")
    first, second = metrics.read_variants(file, SEQUENCE)
    assert (first.text, first.measured) == ("K2R", 0.5)
    assert second.measured == -0.01
    assert len(second.mutations) == 2
    assert math.isnan(metrics.read_variants(file, SEQUENCE, measured_column=None)[0].measured)
    np.testing.assert_array_equal(metrics.mutated_positions([first, second]), [1, 2, 6])
    for content, says in [
        ("mutant,score\nK2R,1\n", "line 1: no column 'DMS_score'"),
        ("mutant,DMS_score\n", "no variants"),
        ("", "line 1: no column 'mutant'"),
        ("mutant,DMS_score\nK2R,1\nK2A,nan\n", "line 3: column 'DMS_score'"),
        ("mutant,DMS_score\nK2R\n", "line 2: column 'DMS_score': None"),
        ('mutant,DMS_score\n"K2R,1\n', "line 2: unexpected end of data"),
    ]:
        file.write_text(content)
        with pytest.raises(ValueError, match=rf"{file}: .*{says}"):
            metrics.read_variants(file, SEQUENCE)
    file.write_bytes(b"mutant,DMS_score\n\xff\xfe,1\n")
    with pytest.raises(ValueError, match="byte 17 is not UTF-8"):
        metrics.read_variants(file, SEQUENCE)


@given(st.binary(max_size=80))
def test_arbitrary_bytes_give_variants_or_a_value_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.csv"
    file.write_bytes(b"mutant,DMS_score\n" + content)
    said = str(file)
    try:
        assert metrics.read_variants(file, SEQUENCE)
    except ValueError as error:
        said = str(error)
    assert str(file) in said  # only ValueError may be raised, and it names the file


def test_marginal_scores_add_log_ratios() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(20), len(SEQUENCE))
    variants = [
        Variant("K2R", metrics.parse_variant("K2R", SEQUENCE)),
        Variant("V3A:R7K", metrics.parse_variant("V3A:R7K", SEQUENCE)),
        Variant("A5A", metrics.parse_variant("A5A", SEQUENCE)),
    ]
    k, r, v, a = (RESIDUES.index(letter) for letter in "KRVA")
    expected = [math.log(p[1, r] / p[1, k]), math.log(p[2, a] / p[2, v] * p[6, k] / p[6, r]), 0]
    np.testing.assert_allclose(metrics.marginal_scores(np.log(p), variants), expected, atol=1e-12)
    masked = np.log(p)
    masked[[0, 3, 5]] = np.nan  # positions that no variant changes
    np.testing.assert_allclose(metrics.marginal_scores(masked, variants), expected, atol=1e-12)
    masked[6] = np.nan
    with pytest.raises(ValueError, match="V3A:R7K: its log-probabilities are NaN"):
        metrics.marginal_scores(masked, variants)
    with pytest.raises(ValueError, match=r"got \[7, 33\]"):
        metrics.marginal_scores(np.zeros((7, 33)), variants)
    with pytest.raises(ValueError, match="position 6"):
        metrics.marginal_scores(np.log(p[:4]), variants)


def test_apc_removes_position_propensities() -> None:
    rng = np.random.default_rng(0)
    propensity = rng.uniform(1, 2, 30)
    product = np.outer(propensity, propensity)
    np.testing.assert_allclose(metrics.apc(product), 0, atol=1e-9)
    coupled = product.copy()
    coupled[3, 20] += 1  # half of a symmetric pair: apc symmetrizes it
    corrected = metrics.apc(np.stack([coupled, product]))
    assert np.unravel_index(corrected[0].argmax(), (30, 30)) in [(3, 20), (20, 3)]
    np.testing.assert_allclose(corrected[0], corrected[0].T)
    np.testing.assert_allclose(corrected.sum(axis=-1), 0, atol=1e-9)
    assert not metrics.apc(np.zeros((4, 4))).any()
    with pytest.raises(ValueError, match=r"\[4, 5\]"):
        metrics.apc(np.zeros((4, 5)))


@pytest.fixture(scope="module")
def betas() -> list[np.ndarray]:
    """One point per residue of some real chains, [n, 3] Å (here Cα)."""
    with np.load(CHAINS, allow_pickle=False) as data:
        bounds = data["offsets"]
        atoms = data["backbone_centi_angstrom"].astype(np.float64) / 100
    return [atoms[a:b, 1] for a, b in itertools.pairwise(bounds)][:8]


def test_precision_table_equals_contact_precision(betas: list[np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    for points in betas:
        n = len(points)
        present = rng.random(n) < 0.9
        distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
        guess = -distance + rng.normal(0, 6, (n, n))
        table = metrics.precision_table(guess, metrics.contact_map(points, present), present)
        assert len(table) == 9
        for top, apart in itertools.product(("L", "L/2", "L/5"), (6, 12, 24)):
            expected = metrics.contact_precision(guess, points, present, top, apart)  # type: ignore[arg-type]
            assert table[f"P@{top}, ≥ {apart}"] == pytest.approx(expected, nan_ok=True)
        assert metrics.precision_table(guess, distance, present) == pytest.approx(table, nan_ok=True)
    assert all(math.isnan(v) for v in metrics.precision_table(np.zeros((5, 5)), np.zeros((5, 5), bool)).values())
    with pytest.raises(ValueError, match="contacts or distances"):
        metrics.precision_table(np.zeros((5, 5)), np.zeros((5, 4)))


@pytest.mark.parametrize("c", [0.01, 0.15, 10])
def test_l1_logistic_regression_satisfies_optimality_conditions(c: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 8)) * [1, 1, 1, 1, 0.1, 3, 1, 1]
    x[:, 7] = x[:, 0] + 0.1 * x[:, 1]  # two nearly equal features
    y = x[:, 0] - 0.5 * x[:, 1] + 3 + rng.logistic(size=600) > 4
    weight, bias = l1_logistic_regression(x, y, c)
    p = 1 / (1 + np.exp(-(x @ weight + bias)))
    gradient = c * x.T @ (p - y)
    assert abs(c * (p - y).sum()) < 1e-5
    zero = weight == 0
    assert (np.abs(gradient[zero]) <= 1 + 1e-5).all()
    np.testing.assert_allclose(gradient[~zero], -np.sign(weight[~zero]), atol=1e-5)
    assert zero.any() if c < 1 else (~zero).sum() > 2


def test_l1_logistic_regression_of_separable_data() -> None:
    """The penalty bounds the weights; only the bias is not penalized."""
    x = np.array([[-2.0], [-1.0], [1.0], [2.0]] * 20)
    weight, bias = l1_logistic_regression(x, x[:, 0] > 0, 1.0)
    assert 0 < weight[0] < 20
    assert bias == pytest.approx(0, abs=1e-4)


def test_contact_regression_selects_informative_heads(betas: list[np.ndarray]) -> None:
    rng = np.random.default_rng(0)

    def attention(points: np.ndarray) -> np.ndarray:
        """Four heads: one attends to half of the contacts, one to neighbors in the chain, two to random positions."""
        n = len(points)
        near = metrics.contact_map(points)
        seen = near & (rng.random((n, n)) < 0.5)
        neighbours = np.abs(np.subtract.outer(np.arange(n), np.arange(n))) < 3
        heads = np.stack([seen, neighbours, np.zeros((n, n)), np.zeros((n, n))]) * 5 + rng.normal(size=(4, n, n))
        heads = np.exp(heads)
        return heads / heads.sum(axis=-1, keepdims=True)

    examples = [metrics.pair_features(attention(p), metrics.contact_map(p)) for p in betas[:5]]
    model = metrics.fit_contact_regression(examples)
    assert model.weight[0] > 0
    assert np.abs(model.weight[1:]).max() < model.weight[0] / 4
    for points in betas[5:]:
        probability = model(attention(points))
        np.testing.assert_allclose(probability, probability.T)
        table = metrics.precision_table(probability, metrics.contact_map(points))
        blind = metrics.precision_table(rng.random(probability.shape), metrics.contact_map(points))
        assert table["P@L/5, ≥ 6"] > 0.8
        assert table["P@L, ≥ 6"] > blind["P@L, ≥ 6"] + 0.3
    with pytest.raises(ValueError, match="0 of them contacts"):
        metrics.fit_contact_regression([(np.zeros((5, 2)), np.zeros(5, bool))])


def test_pair_features_exclude_near_and_absent_pairs() -> None:
    maps = np.random.default_rng(0).random((3, 12, 12))
    contacts = np.zeros((12, 12), bool)
    contacts[0, 11] = True
    present = np.ones(12, bool)
    present[5] = False
    features, labels = metrics.pair_features(maps, contacts, present, min_separation=6)
    pairs = [(i, j) for i in range(12) for j in range(i + 6, 12) if 5 not in (i, j)]
    assert features.shape == (len(pairs), 3)
    np.testing.assert_array_equal(labels, [contacts[pair] for pair in pairs])
    np.testing.assert_allclose(features[:, 1], [metrics.apc(maps[1])[pair] for pair in pairs])


def test_loss_sums_add_up_over_batches() -> None:
    rng = np.random.default_rng(0)
    letters = rng.choice(np.frombuffer(b"ACGT", np.uint8), 1000)
    soft, losses = rng.random(1000) < 0.3, rng.exponential(1.3, 1000)
    whole = metrics.class_losses(losses, letters, soft)
    parts = metrics.LossSums.from_losses(losses[:400], letters[:400], soft[:400])
    parts += metrics.LossSums.from_losses(losses[400:], letters[400:], soft[400:])
    table = parts.table()
    assert list(table) == ["all", "unmasked", "soft_masked", "A", "C", "G", "T"]
    for name, selected in {
        "all": losses > -1,
        "soft_masked": soft,
        "unmasked": ~soft,
        "G": letters == ord("G"),
    }.items():
        assert table[name]["count"] == selected.sum()
        assert table[name]["nats"] == pytest.approx(losses[selected].mean())
        assert table[name]["perplexity"] == pytest.approx(math.exp(losses[selected].mean()))
        assert whole[name] == pytest.approx(table[name])
    assert list(metrics.class_losses(losses[:1], letters[:1])) == ["all", chr(letters[0])]


def test_infinite_losses_of_weight_zero_are_ignored() -> None:
    letters = np.frombuffer(b"ACN", np.uint8)
    table = metrics.class_losses(np.array([1.0, 3.0, np.inf]), letters, weights=np.array([1.0, 0.5, 0.0]))
    assert table["all"]["nats"] == pytest.approx(2.5 / 1.5)
    assert "N" not in table
    with pytest.raises(ValueError, match="token 1 is NaN"):
        metrics.class_losses(np.array([1.0, np.nan, 2.0]), letters)
    with pytest.raises(ValueError, match=r"letters \[3\] for losses \[2\]"):
        metrics.class_losses(np.ones(2), letters)
    assert metrics.perplexity(1e4) == math.inf
