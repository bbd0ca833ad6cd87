"""Learned scores: found where sequences decide them, reported as useless where they do not, refused where too few."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from typer.testing import CliRunner

from ds4sci.cli.main import app
from ds4sci.data import score_file
from ds4sci.data.score_file import ScoreFile
from ds4sci.select.learned_scorer import features
from ds4sci.select.scoring import score_runs
from ds4sci.tasks.build import build_task
from tests.select.test_scoring import train
from tests.support import layouts


def select(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["select", *map(str, arguments)])


def test_features_by_hand() -> None:
    one, two = features(["AAC", "WwW*"])
    assert one[0] == pytest.approx(np.log(3))
    assert one[1:27].tolist() == [2 / 3, 0, 1 / 3] + [0] * 23
    assert one[27] == pytest.approx(-(2 / 3) * np.log(2 / 3) - np.log(1 / 3) / 3)
    assert one[28] == 0.5
    assert two[1 + ord("W") - ord("A")] == 0.75, "the stop is a letter of none"
    assert features([""]).shape == (1, 29)


@pytest.fixture
def many(tmp_path: Path) -> tuple[Path, list[str]]:
    """A run file of a language model with 160 random proteins, and their names."""
    config = layouts.configure("masked_lm", tmp_path)
    rng = np.random.default_rng(0)
    letters = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), rng.integers(20, 60))) for _ in range(160)]
    (tmp_path / "many.fa").write_text("".join(f">p{i}\n{x}\n" for i, x in enumerate(letters)))
    tree = json.loads(config.source.read_text())
    tree["data"]["path"] = str(tmp_path / "many.fa")
    file = tmp_path / "many.json"
    file.write_text(json.dumps(tree))
    from ds4sci.config.run_file import RunConfig

    task: Any = build_task(RunConfig.load(file))
    return file, task.sample_names()


def test_a_score_that_the_sequence_decides_is_learned(many: tuple[Path, list[str]], tmp_path: Path) -> None:
    file, names = many
    fractions = features([line for line in (tmp_path / "many.fa").read_text().split("\n")[1::2] if line])
    truth = fractions[:, 1 + ord("G") - ord("A")] - fractions[:, 1 + ord("W") - ord("A")] + 0.1 * fractions[:, 0]
    noise = np.random.default_rng(1).normal(size=160)
    given = {"real": np.where(np.arange(160) % 2 == 0, truth, np.nan), "noise": noise}
    part = tmp_path / "part.npz"
    score_file.write(part, ScoreFile(part, np.arange(160), np.array(names), given))
    done = select("learn", part, file, "--score", "real", "--out", tmp_path / "learned.npz")
    assert done.exit_code == 0, done.output
    found = score_file.read(tmp_path / "learned.npz")
    assert found.about["samples"] == 80
    assert found.about["spearman"] > 0.7
    hidden = np.arange(160) % 2 == 1
    assert spearmanr(found.score("learned_real")[hidden], truth[hidden]).statistic > 0.7
    assert f"rank correlation {found.about['spearman']:.2f}" in done.output

    select("learn", part, file, "--score", "noise", "--out", tmp_path / "noise.npz")
    assert abs(score_file.read(tmp_path / "noise.npz").about["spearman"]) < 0.35
    assert "exists" in str(select("learn", part, file, "--score", "noise", "--out", tmp_path / "noise.npz").exception)


def test_what_cannot_be_learned(many: tuple[Path, list[str]], tmp_path: Path) -> None:
    file, names = many
    part = tmp_path / "part.npz"
    for sample, listed, values, message in (
        (np.arange(20), names[:20], np.arange(20.0), "20 samples have a finite score 'x'; a network needs at least 50"),
        (np.arange(160), names, np.ones(160), "with different values"),
        (np.arange(160), names[::-1], np.arange(160.0), "is no training sample of"),
    ):
        score_file.write(part, ScoreFile(part, sample, np.array(listed), {"x": values}))
        failed = select("learn", part, file, "--score", "x", "--out", tmp_path / "no.npz")
        assert message in str(failed.exception)
    assert "no score 'y'" in str(select("learn", part, file, "--score", "y", "--out", tmp_path / "no.npz").exception)
    other = layouts.configure("volume_regression", tmp_path).source
    assert "trains on no sequences" in str(select("learn", part, other, "--score", "x", "--out", "no.npz").exception)


def test_a_part_of_the_samples_is_scored(tmp_path: Path) -> None:
    """The scored ones have the same scores as in a pass over all."""
    run = train(tmp_path, "token_classification")
    whole = score_runs([run], tmp_path / "whole.npz", wanted=("loss",)).scores["loss"]
    part = score_runs([run], tmp_path / "part.npz", wanted=("loss",), fraction=0.25, seed=3).scores["loss"]
    scored = np.isfinite(part)
    assert scored.sum() == 6
    np.testing.assert_array_equal(part[scored], whole[scored])
    done = select("score", run, "--fraction", 0.25, "--out", tmp_path / "x.npz")
    assert "6 samples" in done.output
    assert "--fraction 2" in str(select("score", run, "--fraction", 2, "--out", tmp_path / "y.npz").exception)
