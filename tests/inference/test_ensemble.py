"""Ensembles of surrogates: predictions of several runs, calibration, and refusal of bad input by file and reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from ds4sci.cli.main import app, main
from ds4sci.data.parameter_file import read_parameters
from ds4sci.inference.ensemble import Ensemble
from ds4sci.metrics.calibration import LEVELS, calibration_error, coverage
from tests.support import image_step
from tests.support.surrogate_runs import make_run


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    data = image_step.write_data("surrogate", tmp_path)
    return [make_run(tmp_path / f"seed_{seed}", data, seed) for seed in range(3)]


def flags(runs: list[Path]) -> list[str]:
    return [part for run in runs for part in ("--run", str(run))]


def test_predictions_are_mean_and_deviation_over_the_runs(runs: list[Path], tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("b,a\n12,0.25\n25,0.5\n")
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app, ["predict", *flags(runs), "--parameters", str(tmp_path / "in.csv"), "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    assert "1 of 2 rows have a parameter outside the range" in done.output
    found = np.load(out / "predictions.npz", allow_pickle=False)
    ensemble = Ensemble(runs)
    outputs = ensemble.predict(np.array([[0.25, 12.0], [0.5, 25.0]]))
    assert outputs.shape == (3, 2, 14)
    assert outputs.std(axis=0).min() > 0, "members differ by their seed"
    np.testing.assert_allclose(found["scalars_mean"], outputs[..., :2].mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found["field_std"], outputs[..., 2:].std(axis=0, ddof=1).reshape(2, 3, 4), rtol=1e-12)
    assert found["parameter_names"].tolist() == ["a", "b"]
    table = (out / "scalars.csv").read_text().splitlines()
    assert table[0] == "a,b,mean_mean,mean_std,peak_mean,peak_std"
    assert float(table[1].split(",")[2]) == pytest.approx(found["scalars_mean"][0, 0])
    one = tmp_path / "one"
    np.savez(tmp_path / "in.npz", parameters=[[0.25, 12.0]])
    arguments = ["predict", *flags(runs[:1]), "--parameters", str(tmp_path / "in.npz"), "--out", str(one)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert np.isnan(np.load(one / "predictions.npz")["scalars_std"]).all()


def test_an_ensemble_is_evaluated_with_its_calibration(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "ensemble.json"
    done = CliRunner().invoke(app, ["eval", *flags(runs), "--json", str(out)])
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    parameters, true = Ensemble(runs).tasks[0].held_out_examples()
    outputs = Ensemble(runs).predict(parameters)
    expected = coverage(outputs.mean(axis=0), outputs.std(axis=0, ddof=1), true)
    assert found["coverage"]["all outputs"] == pytest.approx(expected.tolist())
    assert found["nrmse"] <= np.mean(found["nrmse_of_members"])
    assert out.with_suffix(".png").stat().st_size > 5_000


def test_coverage_of_normal_errors_is_nominal() -> None:
    rng = np.random.default_rng(0)
    std = rng.uniform(0.5, 2, 40_000)
    true = std * rng.standard_normal(40_000)
    found = coverage(np.zeros(40_000), std, true)
    np.testing.assert_allclose(found, LEVELS, atol=0.01)
    assert calibration_error(coverage(np.zeros(40_000), std / 2, true)) > 0.15, "overconfident"
    with pytest.raises(ValueError, match="negative or not finite"):
        coverage(np.zeros(2), np.array([1.0, np.nan]), np.zeros(2))
    with pytest.raises(ValueError, match="expected one shape"):
        coverage(np.zeros(2), np.ones(3), np.zeros(2))


def test_runs_that_do_not_fit_are_refused(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "surrogate"
    variables = json.loads((data / "variables.json").read_text())
    other = tmp_path / "other"
    image_step.write_surrogate(_empty(other))
    (other / "variables.json").write_text(json.dumps(variables | {"scalars": ["mean", "top"]}))
    run = make_run(tmp_path / "other_run", other, 0)
    with pytest.raises(ValueError, match=r"other_run: its surrogate has the variables .*top.*; .*seed_0 has"):
        Ensemble([runs[0], run])
    (tmp_path / "in.csv").write_text("a,b\n0.5,15\n")
    for arguments, message in (
        (
            ["predict", *flags(runs), "--out", str(tmp_path / "x")],
            "give one of --fasta FILE (structure models)",
        ),
        (
            ["predict", *flags(runs), "--fasta", "x.fa", "--out", str(tmp_path / "x")],
            "--fasta and --images take one --run",
        ),
        (["eval", *flags(runs), "--json", str(tmp_path / "x.json"), "--ngrams"], "several --run are an ensemble"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", ", line 1: missing: a, b; expected the parameters a, b"),
        ("a\n1\n", ", line 1: missing: b"),
        ("a,b,c\n1,2,3\n", ", line 1: unknown: c"),
        ("a,b,a\n1,2,3\n", ", line 1: repeated: a"),
        ("a,b\n1\n", ", line 2: 1 values; expected 2"),
        ("a,b\n1,2\n\n1,x\n", ", line 4: 1, x: expected numbers"),
        ("a,b\n1,nan\n", ", line 2: b is nan; expected a finite number"),
        ("a,b\n", "no parameters"),
    ],
)
def test_bad_csv_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "in.csv"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"in\.csv") as caught:
        read_parameters(file, ("a", "b"))
    assert message in str(caught.value)


def test_bad_npz_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "in.npz"
    for arrays, message in (
        ({"parameters": np.zeros((3, 5))}, "parameters has the shape [3, 5]; expected [m, 2]"),
        ({"a": np.zeros(3)}, "missing: b"),
        ({"a": np.zeros(3), "b": np.zeros(4)}, "expected arrays [m] of one length"),
        ({"a": np.array(["x"]), "b": np.zeros(1)}, "the array a has the type"),
        ({"a": np.array([1.0, np.inf]), "b": np.zeros(2)}, "row 1: a is inf"),
        ({"a": np.array([None]), "b": np.zeros(1)}, "not a readable .npz file"),
    ):
        np.savez(file, **arrays)
        with pytest.raises(ValueError, match=r"in\.npz") as caught:
            read_parameters(file, ("a", "b"))
        assert message in str(caught.value)
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"not a readable \.npz file"):
        read_parameters(file, ("a", "b"))
    with pytest.raises(ValueError, match=r"expected a file with the suffix \.csv or \.npz"):
        read_parameters(tmp_path / "in.txt", ("a", "b"))
