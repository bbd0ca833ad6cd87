"""Study of cognitive simulation: corrections by hand, leave-one-out errors, and the command on its smallest size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ds4sci.bench import cogsim
from ds4sci.bench.cogsim_methods import PENALTIES, Training, affine, fine_tune, fine_tuned, retrain_heads
from ds4sci.models import surrogate as network
from tests.support import image_step
from tests.support.surrogate_runs import make_run


def model(seed: int) -> network.SurrogateNet:
    return network.build(network.Config(hidden=(8,)), parameters=2, scalars=1, cells=3, seed=seed)


def test_affine_finds_slope_and_offset_of_each_output() -> None:
    torch.manual_seed(0)
    predicted, probe = torch.randn(10, 4), torch.randn(5, 4)
    predicted[:, 3] = 2.0
    slope, offset = torch.tensor([2.0, -1.0, 0.5, 1.0]), torch.tensor([1.0, 0.0, -3.0, 7.0])
    found = affine(predicted, slope * predicted + offset, probe)
    torch.testing.assert_close(found, slope * probe + offset, rtol=1e-4, atol=1e-5)


def test_leave_one_out_errors_are_those_of_retraining_without_the_experiment() -> None:
    torch.manual_seed(1)
    features, others = torch.randn(7, 5), torch.randn(3, 5)
    predicted, measured, probe = torch.randn(7, 4), torch.randn(7, 4), torch.randn(3, 4)
    residual, blocks = measured - predicted, [slice(0, 1), slice(1, 4)]
    found = retrain_heads(features, predicted, measured, others, probe, blocks)
    best = {}
    for penalty in PENALTIES:
        errors = torch.empty(7, 4, dtype=torch.float64)
        for left in range(7):
            kept = [i for i in range(7) if i != left]
            errors[left] = residual[left] - ridge(features[kept], residual[kept], features[left], penalty)
        for number, block in enumerate(blocks):
            score = float(errors[:, block].square().mean())
            if number not in best or score < best[number][0]:
                best[number] = score, errors[:, block], penalty
    for number, block in enumerate(blocks):
        _, errors, penalty = best[number]
        torch.testing.assert_close(found.residuals[:, block].double(), errors, rtol=1e-3, atol=1e-3)
        change = torch.stack([ridge(features, residual[:, block], x, penalty) for x in others])
        torch.testing.assert_close(found.probe[:, block].double(), probe[:, block] + change, rtol=1e-3, atol=1e-3)


def ridge(h: torch.Tensor, r: torch.Tensor, at: torch.Tensor, penalty: float) -> torch.Tensor:
    """Ridge regression with a free intercept by its normal equations, at one point."""
    h, r, at = h.double(), r.double(), at.double()
    centre, mean = h.mean(0), r.mean(0)
    centred = h - centre
    gram = centred.T @ centred + penalty * h.shape[1] * torch.eye(h.shape[1], dtype=torch.float64)
    return mean + (at - centre) @ torch.linalg.solve(gram, centred.T @ (r - mean))


def test_networks_trained_together_are_those_trained_alone() -> None:
    torch.manual_seed(2)
    x, y, weights = torch.rand(3, 6, 2), torch.randn(3, 6, 4), torch.full((4,), 0.25)
    used = torch.ones(3, 6, dtype=torch.bool)
    used[1, 4:] = False
    probe = torch.rand(3, 5, 2)
    together = fine_tune([model(i) for i in range(3)], x, y, used, weights, 1e-2, (0, 7), probe)
    for i in range(3):
        own = slice(i, i + 1)
        alone = fine_tune([model(i)], x[own], y[own], used[own], weights, 1e-2, (0, 7), probe[own])
        torch.testing.assert_close(together[7][i], alone[7][0], rtol=1e-4, atol=1e-5)
    kept = fine_tune([model(1)], x[1:2, :4], y[1:2, :4], used[1:2, :4], weights, 1e-2, (0, 7), probe[1:2])
    torch.testing.assert_close(together[7][1], kept[7][0], rtol=1e-4, atol=1e-5)
    start = model(0)
    residual = (y[0] - start(x[0])).mean(0)
    torch.testing.assert_close(together[0][0], (start(probe[0]) + residual).detach(), rtol=1e-5, atol=1e-5)


def test_cross_validation_stops_before_noise_is_learned() -> None:
    torch.manual_seed(3)
    x, weights = torch.rand(2, 10, 2), torch.full((4,), 0.25)
    y = torch.randn(2, 10, 4)  # nothing to learn but the mean
    training = Training(rates=(3e-2,), steps=(0, 400), folds=5)
    _, choices = fine_tuned(lambda draw, member: model(member), 1, x, y, weights, training, x[0])
    assert [choice["steps"] for choice in choices] == [0, 0]


MEDIANS = {"source": 3.0, "scratch": 2.0, "full": 0.5, "affine": 1.0, "transfer": 0.7, "ladder": 0.4}


def test_summary_by_hand() -> None:
    draws = [
        {"method": method, "draw": draw, "nrmse": base + 0.01 * draw, "scalars": base, "field": base}
        for method, base in MEDIANS.items()
        for draw in range(5)
    ]
    rows = {row[1]: row for row in cogsim.summarize("lpt", draws)}
    assert rows["source"][2:] == [pytest.approx(3.02), "3.010–3.030", 3.0, 3.0, *["5 of 5 (p 3e-02)"] * 2]
    assert rows["full"][6:] == ["0 of 5 (p 1e+00)", "5 of 5 (p 3e-02)"]
    assert rows["transfer"][6:] == [None, "5 of 5 (p 3e-02)"]
    assert rows["ladder"][6:] == [None, None]
    assert cogsim.verdicts("lpt", draws) == (
        "lpt: transfer has the lower median error than source, scratch, affine, not than full; "
        "ladder has the lower median error than source, scratch, full, affine, transfer"
    )


def test_a_better_simulation_without_bias_leaves_the_experiments_nothing_to_correct() -> None:
    torch.manual_seed(4)
    source, known, probe = model(5), torch.rand(64, 2), torch.rand(9, 2)
    truth = model(5)
    with torch.no_grad():  # the same trunk, other output layers: the ladder can represent it
        truth.field.weight += 0.5 * torch.randn_like(truth.field.weight)
        x = torch.rand(3, 4, 2)
        better, y, true = (known, truth(known)), truth(x), truth(probe)
    transfer, ladder, _ = cogsim._retrained(source, known, better, x, y, probe, [slice(0, 1), slice(1, 4)])
    assert transfer.shape == ladder.shape == (3, 9, 4)
    assert (ladder - true).abs().max() < 0.1 * (transfer - true).abs().max()


def test_members_that_are_trained_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = image_step.write_data("surrogate", tmp_path)
    (tmp_path / "ds.json").write_text(json.dumps({"train_batch_size": 2, "optimizer": {"type": "Adam"}}))
    (tmp_path / "toy.toml").write_text(
        f"""deepspeed = "{tmp_path / "ds.json"}"
        benchmark = {{name = "toy", title = "toy", metric = "nrmse", target = 0.1, direction = "lower"}}
        task.name = "surrogate"
        train.steps = 1
        data = {{path = "{data}", source = "simulation"}}
        model.hidden = [8, 6]"""
    )
    for seed in range(2):
        make_run(tmp_path / f"runs/toy/seed_{seed}", data, seed)
    monkeypatch.setitem(cogsim.PAIRS, "lpt", tmp_path / "toy.toml")
    monkeypatch.setitem(cogsim.BETTER, "lpt", "simulation")
    members = cogsim.engine_members("lpt", cogsim.QUICK, tmp_path / "runs", print)
    assert len(members.models) == cogsim.QUICK.members
    assert not torch.equal(members.models[0].trunk[0].weight, members.models[1].trunk[0].weight)
    assert members.experiment.config.data.source == "experiment"
    weights = cogsim.output_weights(members.experiment)
    assert weights.tolist() == pytest.approx([0.25] * 2 + [0.5 / 12] * 12)


def test_the_command_writes_table_draws_coverage_and_picture(tmp_path: Path) -> None:
    out = tmp_path / "cogsim.json"
    cogsim.command(out, quick=True)
    saved = json.loads(out.read_text())
    assert [row[1] for row in saved["rows"]] == list(cogsim.METHODS)
    found = saved["studies"]["burgers"]
    assert len(found["draws"]) == cogsim.QUICK.draws * len(cogsim.METHODS)
    assert list(found["coverage"]) == list(cogsim.CALIBRATED)
    assert all(0 <= value <= 1 for values in found["coverage"].values() for value in values)
    assert out.with_suffix(".png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="--pair heat: expected one of lpt, burgers"):
        cogsim.command(out, pairs=["heat"])
