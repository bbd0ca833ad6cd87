"""Study of data selection: data, noise, choice and summary by hand; the command on its smallest size."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ds4sci.bench import data_selection, stacked_networks
from ds4sci.bench.data_selection import TRAIN, VALID, WINDOW, Residues
from ds4sci.bench.stacked_networks import Job, mlp
from ds4sci.train.layerwise_optimizers import LAMB


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


def test_networks_trained_together_are_those_trained_alone() -> None:
    torch.manual_seed(0)
    data = Residues(torch.randn(90, 5), torch.randint(0, 3, (90,)))
    jobs = [Job(data.x, data.y, np.arange(80 - 10 * seed), seed) for seed in range(3)]
    found = [mlp((5, 7, 4, 3), job.seed) for job in jobs]
    stacked_networks.train(found, jobs, 16, 20)
    for job, model in zip(jobs, found, strict=True):
        alone = mlp((5, 7, 4, 3), job.seed)
        optimizer = LAMB(alone.parameters(), lr=1.0, weight_decay=stacked_networks.WEIGHT_DECAY)
        rng, order = np.random.default_rng((job.seed, 2)), np.zeros(0, np.int64)
        while len(order) < 20 * 16:
            order = np.concatenate([order, rng.permutation(len(job.rows))])
        for step in range(20):
            rows = order[16 * step :][:16]
            rate = (step + 1) / 2 if step < 2 else 0.5 * (1 + math.cos(math.pi * (step - 2) / 18))
            optimizer.param_groups[0]["lr"] = 0.02 * math.sqrt(16 / 512) * rate
            optimizer.zero_grad()
            F.cross_entropy(alone(data.x[rows]), data.y[rows]).backward()
            optimizer.step()
        for one, other in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_large_batches_are_trained_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Residues(torch.randn(40, 4), torch.randint(0, 3, (40,)))
    jobs = [Job(data.x, data.y, np.arange(40), seed) for seed in range(5)]
    seen: list[tuple[int, int]] = []

    def models() -> list[torch.nn.Sequential]:
        found = [mlp((4, 3), seed) for seed in range(5)]
        stacked_networks.train(found, jobs, 8, 3, observe=lambda job, step, *_: seen.append((job, step)))
        return found

    together = models()
    monkeypatch.setattr(stacked_networks, "ROWS_AT_ONCE", 16)
    for one, other in zip(together, models(), strict=True):
        torch.testing.assert_close(one[0].weight, other[0].weight)
    assert sorted(seen) == sorted(2 * [(job, step) for job in range(5) for step in range(3)])


def test_scores_are_those_of_single_samples() -> None:
    torch.manual_seed(0)
    data = Residues(torch.randn(6, 4), torch.randint(0, 3, (6,)))
    model = mlp((4, 5, 3), 0)
    found = data_selection.pass_scores(model, data)
    for number in range(6):
        loss = F.cross_entropy(model(data.x[number : number + 1]), data.y[number : number + 1])
        squares = [float(g.square().sum()) for g in torch.autograd.grad(loss, list(model.parameters()))]
        assert found["loss"][number] == pytest.approx(float(loss.detach()), rel=1e-5)
        assert found["gradient_norm"][number] == pytest.approx(sum(squares[2:]) ** 0.5, rel=1e-5)
        assert found["gradient_norm_full"][number] == pytest.approx(sum(squares) ** 0.5, rel=1e-5)


def test_scores_of_networks_find_wrong_labels() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.random((1200, 315)).astype(np.float32))
    own = x.view(1200, 21, 15)[:, :3, WINDOW]
    own.mul_(5)
    clean = Residues(x, own.argmax(1))
    noisy = data_selection.with_noise(clean.take(np.arange(800)), 0.2, 0)
    wrong = (noisy.y != clean.y[:800]).numpy()
    scores = data_selection.scores_of([noisy], data_selection.ALL_METHODS, 12, clean.take(np.arange(800, 1200)))[0]
    assert set(scores) == set(data_selection.ALL_METHODS) - {"full", "random"}
    for method in set(scores) - {"learned"}:
        order = np.argsort(np.argsort(scores[method], kind="stable")) / 800
        difference = order[wrong].mean() - order[~wrong].mean()
        # what no other network can learn either is not learnable: it has the lowest values
        assert (-difference if method == "learnability" else difference) > 0.03, method


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
        {"noise": 0.2, "batch": 64, "method": method, "seed": seed, "quality": accuracy, "lambda_train": 1.0 + seed,
         "lambda_valid": 2.0}
        for method, values in (("random", (0.5, 0.7)), ("el2n", (0.8, 0.9))) for seed, accuracy in enumerate(values)
    ]  # fmt: skip
    control, chosen = data_selection.summarize(runs)
    assert control[:4] == ["20%", 64, "random", pytest.approx(0.6)]
    assert control[5:] == [None, None, 1.5, 2.0]
    assert chosen[3] == pytest.approx(0.85)
    assert chosen[5] == pytest.approx(0.25)
    assert chosen[6] == pytest.approx(12.7062 * 0.05, rel=1e-4), "t of one degree of freedom, standard error 0.05"


def test_an_interrupted_study_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = data_selection.Plan(120, 60, 1, (16, 32), (0.0, 0.2), 1, ("full", "random"))
    whole = data_selection.run(plan, tmp_path / "whole.json")
    partial, finished = tmp_path / "partial.json", []

    def stop(text: str) -> None:
        finished.append(text)
        if len(finished) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        data_selection.run(plan, partial, stop)
    found = data_selection.run(plan, partial, finished.append)
    assert len(finished) == 4, "one batch size of one noise was left"
    assert [{**one, "seconds": 0} for one in found] == [{**one, "seconds": 0} for one in whole]
    with pytest.raises(ValueError, match=r"partial.json is of a study with other sizes"):
        data_selection.run(data_selection.QUICK, partial)


def test_the_command_writes_runs_table_and_picture(tmp_path: Path) -> None:
    out = tmp_path / "data_selection.json"
    data_selection.command(out, quick=True)
    saved = json.loads(out.read_text())
    plan = data_selection.QUICK
    assert len(saved["runs"]) == len(plan.batches) * len(plan.noises) * plan.seeds * len(data_selection.METHODS)
    assert len(saved["rows"]) == len(plan.batches) * len(plan.noises) * len(data_selection.METHODS)
    assert {one["samples"] for one in saved["runs"] if one["method"] != "full"} == {480}
    assert out.with_suffix(".png").stat().st_size > 10_000
