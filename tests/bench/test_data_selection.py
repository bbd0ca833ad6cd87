"""Study of data selection: data, noise, choice and summary by hand; the command on its smallest size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ds4sci.bench import data_selection
from ds4sci.bench.data_selection import TRAIN, VALID, WINDOW, Residues


def test_residues_are_windows_of_profiles_with_their_class() -> None:
    found = data_selection.read_residues(VALID, 300, 0)
    assert found.x.shape == (300, 21 * (2 * WINDOW + 1))
    profiles = found.x.view(300, 21, 2 * WINDOW + 1)
    torch.testing.assert_close(profiles[:, :20, WINDOW].sum(1), torch.ones(300), rtol=1e-2, atol=1e-2)
    assert (profiles[:, 20, WINDOW] == 1).all(), "the residue itself is in the chain"
    assert 0 < float((profiles[:, 20] == 0).float().mean()) < 0.2, "some windows reach beyond an end"
    assert set(found.y.tolist()) == {0, 1, 2}
    assert not torch.equal(found.y, data_selection.read_residues(VALID, 300, 1).y)
    assert TRAIN != VALID


def test_noise_changes_the_given_part_to_other_classes() -> None:
    data = Residues(torch.zeros(20_000, 1), torch.randint(0, 3, (20_000,)))
    noisy = data_selection.with_noise(data, 0.2, 0)
    assert float((noisy.y != data.y).float().mean()) == pytest.approx(0.2, abs=0.01)
    assert torch.equal(data_selection.with_noise(data, 0.0, 0).y, data.y)


def test_what_each_method_keeps(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(100)
    kept = {m: data_selection.kept_by(m, {"el2n": values}, 100, 3, tmp_path) for m in ("full", "random", "el2n")}
    assert kept["full"].tolist() == list(range(100))
    assert len(kept["random"]) == len(kept["el2n"]) == 80
    assert values[kept["el2n"]].max() < np.sort(values)[80]


def test_curvature_is_that_of_the_dense_hessian() -> None:
    torch.manual_seed(0)
    data = Residues(torch.randn(50, 4), torch.randint(0, 3, (50,)))
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    names = list(dict(model.named_parameters()))

    def loss(flat: torch.Tensor) -> torch.Tensor:
        values = dict(zip(names, (flat[:12].view(3, 4), flat[12:]), strict=True))
        return F.cross_entropy(torch.func.functional_call(model, values, data.x.double()), data.y)

    flat = torch.cat([p.detach().double().reshape(-1) for p in model.parameters()])
    wanted = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))[-1]
    assert data_selection.largest_curvature(model, data) == pytest.approx(float(wanted), rel=5e-3)


def test_summary_by_hand() -> None:
    runs = [
        {"noise": 0.2, "batch": 64, "method": method, "seed": seed, "accuracy": accuracy, "lambda_train": 1.0 + seed,
         "lambda_valid": 2.0}
        for method, values in (("random", (0.5, 0.7)), ("el2n", (0.8, 0.9))) for seed, accuracy in enumerate(values)
    ]  # fmt: skip
    control, chosen = data_selection.summarize(runs)
    assert control[:4] == ["20%", 64, "random", pytest.approx(0.6)]
    assert control[5:] == [None, None, 1.5, 2.0]
    assert chosen[3] == pytest.approx(0.85)
    assert chosen[5] == pytest.approx(0.25)
    assert chosen[6] == pytest.approx(12.7062 * 0.05, rel=1e-4), "t of one degree of freedom, standard error 0.05"


def test_the_command_writes_runs_table_and_picture(tmp_path: Path) -> None:
    out = tmp_path / "data_selection.json"
    data_selection.command(out, quick=True)
    saved = json.loads(out.read_text())
    plan = data_selection.QUICK
    assert len(saved["runs"]) == len(plan.batches) * len(plan.noises) * plan.seeds * len(data_selection.METHODS)
    assert len(saved["rows"]) == len(plan.batches) * len(plan.noises) * len(data_selection.METHODS)
    assert {one["samples"] for one in saved["runs"] if one["method"] != "full"} == {480}
    assert out.with_suffix(".png").stat().st_size > 10_000
