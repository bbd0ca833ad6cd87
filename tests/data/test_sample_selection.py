"""Files of scores and the choice of samples by them; what cannot be used is refused with file, sample and remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from ds4sci.data import score_file
from ds4sci.data.sample_selection import (
    SelectionConfig,
    WeightConfig,
    identity_of,
    kept_samples,
    require_a_step,
    sample_weights,
)
from ds4sci.data.score_file import ScoreFile

NAMES = [f"chain {i}" for i in range(20)]
VALUES = np.random.default_rng(0).permutation(20).astype(float)


def written(folder: Path, **changes: Any) -> Path:
    """A file of scores; ``changes`` replace its arrays."""
    path = folder / "scores.npz"
    about = {"dataset": score_file.dataset_fingerprint(NAMES)}
    order = np.random.default_rng(1).permutation(20)  # the lines need no order
    scores = ScoreFile(path, order.astype(np.int64), np.array(NAMES)[order], {"el2n": VALUES[order]}, about)
    score_file.write(path, scores)
    if changes:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file) | changes
        np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def chosen(folder: Path, keep: Any, fraction: float, **more: Any) -> list[int]:
    return kept_samples(SelectionConfig(keep=keep, fraction=fraction, scores=written(folder), **more), NAMES).tolist()


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    numbers = np.array([2**53 + 1, 2**31, 257, 0])  # beyond the integers of fp64, fp32 and bf16
    scores = ScoreFile(tmp_path / "x.npz", numbers, np.array(["a", "β", "c d", ""]), {"loss": np.arange(4.0)}, {"k": 1})
    score_file.write(scores.path, scores)
    found = score_file.read(scores.path)
    assert found.sample.dtype == np.int64
    assert found.sample.tolist() == numbers.tolist()
    assert found.name.tolist() == ["a", "β", "c d", ""]
    assert found.score("loss").tolist() == [0.0, 1.0, 2.0, 3.0]
    assert found.about == {"k": 1}


def test_what_is_kept(tmp_path: Path) -> None:
    rank = np.argsort(np.argsort(VALUES))
    assert chosen(tmp_path, "lowest", 0.25) == np.flatnonzero(rank < 5).tolist()
    assert chosen(tmp_path, "highest", 0.25) == np.flatnonzero(rank >= 15).tolist()
    assert chosen(tmp_path, "middle", 0.3) == np.flatnonzero((rank >= 7) & (rank < 13)).tolist()
    for keep in ("lowest", "highest", "middle", "stratified"):
        assert chosen(tmp_path, keep, 1.0) == list(range(20))
    halves = [chosen(tmp_path, "stratified", 0.5, seed=seed) for seed in range(8)]
    for half in halves:
        assert len(half) == 10
        assert np.bincount(rank[half] // 2, minlength=10).tolist() == [1] * 10, "one of each tenth"
    assert len({tuple(half) for half in halves}) > 1
    drawn = [SelectionConfig(keep="random", fraction=0.5, seed=seed) for seed in (0, 0, 1)]
    random = [kept_samples(config, NAMES).tolist() for config in drawn]
    assert random[0] == random[1] != random[2]
    assert len(set(random[0])) == 10
    assert kept_samples(SelectionConfig(keep="random", fraction=0.001), NAMES).shape == (1,)


def test_equal_scores_are_drawn(tmp_path: Path) -> None:
    path = written(tmp_path, score_el2n=np.zeros(20))
    found = [
        kept_samples(SelectionConfig(keep="lowest", fraction=0.5, scores=path, seed=seed), NAMES).tolist()
        for seed in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]
    assert found[0] != list(range(10)), "not the first ones of the file"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": None}, "no array name; expected sample, name and score_NAME"),
        ({"sample": np.arange(20.0)}, "sample has the type float64; expected int64"),
        ({"score_el2n": np.arange(3.0)}, r"score_el2n has the shape \(3,\), and sample \(20,\); expected equal ones"),
        ({"sample": np.array([*range(19), 3])}, r"sample 3 \(chain \d+\) occurs more than once"),
        (
            {"score_el2n": np.where(VALUES == 4, np.nan, VALUES)},
            r"of sample \d+ \(chain \d+\) is nan, and 1 of 20",
        ),
        ({"score_el2n": None}, "no score 'el2n'; it has none"),
        ({"name": np.array(["other"] * 20)}, r"those of another training set: sample \d+ is other, and chain \d+ here"),
        (
            {"sample": np.arange(1, 21), "name": np.array([*NAMES[1:], "chain 20"])},
            "training set: sample 20 of 20",
        ),
        ({"about": np.array('{"dataset": "0"}')}, "the scores are those of another training set; compute them"),
        ({"about": np.array("{")}, "the array about is not a JSON object"),
        ({"about": np.array("[1]")}, "the array about is not a JSON object"),
        ({"score_el2n": np.array(["high"] * 20)}, "score_el2n has the type <U4; expected real numbers"),
        ({"score_el2n": VALUES * 1j}, "score_el2n has the type complex128; expected real numbers"),
        ({"name": np.array([b"x"] * 20)}, r"name has the type \|S1; expected strings"),
        ({"sample": np.arange(20)[:, None]}, r"sample has the shape \(20, 1\)"),
    ],
)
def test_files_that_cannot_be_used(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        kept_samples(SelectionConfig(keep="lowest", fraction=0.5, scores=path), NAMES)
    assert str(path) in str(caught.value)


def test_samples_without_a_score_and_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "few.npz"
    about = {"dataset": score_file.dataset_fingerprint(NAMES)}
    few = ScoreFile(path, np.arange(18), np.array(NAMES[:18]), {"el2n": np.zeros(18)}, about)
    score_file.write(path, few)
    config = SelectionConfig(keep="lowest", fraction=0.5, scores=path)
    with pytest.raises(ValueError, match=r"2 of 20 samples have no score, the first is sample 18 \(chain 18\)"):
        kept_samples(config, NAMES)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a file of scores"):
        kept_samples(config, NAMES)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="ds4sci select score"):
        kept_samples(config, NAMES)


def test_settings_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="needs a file of scores"):
        SelectionConfig(keep="lowest", fraction=0.5)
    with pytest.raises(ValidationError, match="needs no file of scores"):
        SelectionConfig(keep="random", fraction=0.5, scores=tmp_path / "x.npz")
    with pytest.raises(ValidationError):
        SelectionConfig(keep="random", fraction=0.0)
    config = SelectionConfig(keep="random", fraction=0.01)
    with pytest.raises(ValueError, match=r"fraction = 0.01 leaves 3 samples or rows, and a step needs 8"):
        require_a_step(config, 3, 8)
    require_a_step(config, 8, 8)
    require_a_step(None, 3, 8)


def test_identity_changes_with_the_file_and_the_section(tmp_path: Path) -> None:
    config = SelectionConfig(keep="lowest", fraction=0.5, scores=written(tmp_path))
    first = identity_of(selection=config)
    assert first == identity_of(selection=config)
    assert first != identity_of(selection=config.model_copy(update={"fraction": 0.6}))
    written(tmp_path, score_el2n=VALUES + 1)
    assert first["data.selection"] == identity_of(selection=config)["data.selection"]
    assert first["data.selection.scores"] != identity_of(selection=config)["data.selection.scores"]
    assert identity_of(selection=None, weights=None) == {}


def test_weights_have_the_mean_one_over_the_kept_samples(tmp_path: Path) -> None:
    path = written(tmp_path, score_weight=np.ones(20))
    assert sample_weights(WeightConfig(scores=path), NAMES).tolist() == [1.0] * 20
    order = np.random.default_rng(1).permutation(20)
    path = written(tmp_path, score_weight=order.astype(float))  # the weight of sample i is i
    found = sample_weights(WeightConfig(scores=path), NAMES)
    np.testing.assert_allclose(found, np.arange(20) / 9.5)
    kept = np.array([2, 4])
    np.testing.assert_allclose(sample_weights(WeightConfig(scores=path), NAMES, kept)[kept], [2 / 3, 4 / 3])
    for values, message in ((order - 1.0, r"the weight of sample 0 \(chain 0\) is -1; expected at least 0"),
                            (np.zeros(20), "all weights 'weight' are 0")):  # fmt: skip
        path = written(tmp_path, score_weight=values)
        with pytest.raises(ValueError, match=message):
            sample_weights(WeightConfig(scores=path), NAMES)


def test_large_weights_do_not_overflow(tmp_path: Path) -> None:
    path = written(tmp_path, score_weight=np.full(20, 1e308))
    np.testing.assert_allclose(sample_weights(WeightConfig(scores=path), NAMES), 1.0)


def test_names_cannot_be_confused() -> None:
    assert score_file.dataset_fingerprint(["a\nb", "c"]) != score_file.dataset_fingerprint(["a", "b\nc"])


def test_a_missing_file_is_named_with_its_key(tmp_path: Path) -> None:
    config = SelectionConfig(keep="lowest", fraction=0.5, scores=tmp_path / "none.npz")
    with pytest.raises(FileNotFoundError, match=r"data\.selection\.scores = .*none\.npz.*no such file"):
        identity_of(selection=config)
