"""Reference convergence: the test of ``mlperf_logging.rcp_checker``, and the file of reference runs."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from ds4sci.mlperf.reference import Reference, ReferenceRun, convergence


def upstream_limit(reference: list[int]) -> tuple[float, float]:
    """Mean and smallest accepted mean of upstream's checker for cosmoflow, which needs 10 runs."""
    from mlperf_logging.rcp_checker.rcp_checker import RCP_Checker

    record = {"Benchmark": "cosmoflow", "BS": 64, "Epochs to converge": list(reference), "Hyperparams": {}}
    checker = RCP_Checker("hpc", "3.0.0", "cosmoflow", False, io.StringIO(json.dumps({"ref": record})))
    return tuple(float(checker.rcp_data["ref"][key]) for key in ("RCP Mean", "Min Epochs"))


@pytest.mark.parametrize("count", [20, 24, 31])
def test_limit_and_mean_are_upstreams(count: int) -> None:
    reference = [int(x) for x in np.random.default_rng(count).normal(90_000, 9_000, count)]
    mean, limit = upstream_limit(reference)
    own = convergence([90_000.0] * 10, reference, 10)
    assert own.mean == pytest.approx(mean, rel=1e-12)
    assert own.limit == pytest.approx(limit, abs=2e-4)  # upstream bisects to 1e-4
    assert not own.is_provisional
    for shift, passed in ((1e-3, True), (-1e-3, False)):
        assert convergence([limit + shift] * 10, reference, 10).passed is passed


def test_p_value_and_scale() -> None:
    from scipy.stats import ttest_ind_from_stats

    reference = [float(x) for x in range(80, 120, 2)]
    own = [float(x) for x in (95, 90, 99, 93, 97, 94, 96, 92, 98, 91)]
    result = convergence(own, reference, 10)
    sigma = float(np.std(reference))
    expected = ttest_ind_from_stats(result.own, sigma, 8, result.mean, sigma, 18, alternative="less").pvalue
    assert result.p_value == pytest.approx(expected, rel=1e-9)
    assert result.p_value > 0.05
    assert result.passed
    assert result.scale == pytest.approx(result.mean / result.own)
    assert convergence([150.0] * 10, reference, 10).scale == 1.0
    fast = convergence([80.0] * 10, reference, 10)
    assert not fast.passed
    assert fast.p_value < 0.05


def test_few_reference_runs_are_provisional_and_one_failed_run_is_the_slowest() -> None:
    result = convergence([10.0, 12.0, 14.0, 16.0, float("inf")], [10.0, 12.0, 14.0, 16.0, 18.0], 5)
    assert result.is_provisional
    assert result.own == 14.0
    assert result.passed
    assert convergence([5.0] * 5, [5.0] * 5, 5).passed
    with pytest.raises(ValueError, match="at least 3 reference runs"):
        convergence([1.0] * 5, [1.0, 2.0], 5)


def test_file_of_reference_runs(tmp_path: Path) -> None:
    runs = [
        ReferenceRun(seed=i, batch=16, steps=10 + i, samples=160 + 16 * i, seconds=3.5, machine="m", commit="c")
        for i in range(3)
    ]
    reference = Reference(benchmark="tiny", metric="score", direction="higher", target=0.5, runs=tuple(runs))
    file = tmp_path / "new" / "tiny.json"
    reference.write(file)
    assert Reference.read(file) == reference
    assert len(file.read_text().splitlines()) == 11
    assert reference.samples(16) == [160, 176, 192]
    assert reference.samples(8) == []
    tree = json.loads(file.read_text())
    tree["runs"][2]["seed"] = 0
    file.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match="same seed and batch size"):
        Reference.read(file)
    del tree["runs"][0]["samples"]
    file.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=r"runs\.0\.samples: Field required"):
        Reference.read(file)
    with pytest.raises(ValueError, match="expected the JSON of reference runs"):
        Reference.read(tmp_path / "none.json")
