"""LAMB and LARS: the formulas of the papers in fp64, and the same steps on every ZeRO stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ds4sci.config.run_file import RunConfig
from ds4sci.train import deepspeed_schema, layerwise_optimizers
from ds4sci.train.layerwise_optimizers import LAMB, LARS, OPTIMIZERS, Segment
from tests.support import layouts, rank_processes

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "lamb": [
        {"lr": 0.02, "weight_decay": 0.1},
        {"lr": 0.02, "betas": [0.8, 0.95], "eps": 1e-3, "weight_decay": 0.5, "bias_correction": False,
         "min_coeff": 0.2, "max_coeff": 1.5, "exclude_one_dimensional": True},
    ],
    "lars": [
        {"lr": 2.0, "weight_decay": 0.01, "trust_coefficient": 0.02},
        {"lr": 0.5, "momentum": 0.0, "trust_coefficient": 0.1, "eps": 1e-3, "exclude_one_dimensional": False},
    ],
}  # fmt: skip


class Written:
    """The formulas, written out for one parameter at a time.

    fills  parameters without gradient have a gradient of 0, as DeepSpeed sets it; torch's optimizers skip them
    """

    def __init__(self, name: str, given: dict[str, Any], parameters: list[nn.Parameter], *, fills: bool) -> None:
        defaults = {
            "lamb": {"betas": (0.9, 0.999), "eps": 1e-6, "bias_correction": True, "min_coeff": 0.01, "max_coeff": 10.0,
                     "exclude_one_dimensional": False},
            "lars": {"momentum": 0.9, "trust_coefficient": 1e-3, "eps": 1e-8, "exclude_one_dimensional": True},
        }[name]  # fmt: skip
        self.s: dict[str, Any] = {"weight_decay": 0.0} | defaults | given
        self.step_of: Callable[[Tensor, Tensor, list[Tensor], bool], Tensor] = getattr(self, name)
        self.parameters, self.fills, self.t = parameters, fills, 0
        self.moments = [[torch.zeros_like(p) for _ in range(2)] for p in parameters]

    def zero_grad(self) -> None:
        for p in self.parameters:
            p.grad = None

    @torch.no_grad()
    def step(self) -> None:
        self.t += 1
        for p, moments in zip(self.parameters, self.moments, strict=True):
            if p.grad is not None or self.fills:
                adapts = p.dim() > 1 or not self.s["exclude_one_dimensional"]
                p -= self.step_of(p, torch.zeros_like(p) if p.grad is None else p.grad, moments, adapts)

    def lamb(self, w: Tensor, g: Tensor, moments: list[Tensor], adapts: bool) -> Tensor:
        b1, b2 = self.s["betas"]
        moments[0], moments[1] = b1 * moments[0] + (1 - b1) * g, b2 * moments[1] + (1 - b2) * g**2
        c1, c2 = (1 - b1**self.t, 1 - b2**self.t) if self.s["bias_correction"] else (1, 1)
        u = (moments[0] / c1) / ((moments[1] / c2).sqrt() + self.s["eps"])
        if not adapts:
            return self.s["lr"] * u
        u = u + self.s["weight_decay"] * w
        ratio = 1.0
        if w.norm() > 0 and u.norm() > 0:
            ratio = min(max(float(w.norm() / u.norm()), self.s["min_coeff"]), self.s["max_coeff"])
        return self.s["lr"] * ratio * u

    def lars(self, w: Tensor, g: Tensor, moments: list[Tensor], adapts: bool) -> Tensor:
        decay = self.s["weight_decay"] if adapts else 0.0
        ratio = 1.0
        if adapts and w.norm() > 0 and g.norm() > 0:
            ratio = float(self.s["trust_coefficient"] * w.norm() / (g.norm() + decay * w.norm() + self.s["eps"]))
        moments[0] = self.s["momentum"] * moments[0] + self.s["lr"] * ratio * (g + decay * w)
        return moments[0]


CASES = [(name, number) for name, listed in SETTINGS.items() for number in range(len(listed))]


@pytest.mark.parametrize(("name", "number"), CASES)
def test_steps_are_those_of_the_formulas(name: str, number: int) -> None:
    """Ten steps in fp64, with a parameter of zeros, one without gradient, and a gradient of zeros."""
    given = SETTINGS[name][number]
    torch.manual_seed(number)
    shapes = [(5, 3), (7,), (4, 2, 3), (3, 3), (6,), (2, 2)]
    first = [nn.Parameter(torch.randn(*shape, dtype=torch.float64)) for shape in shapes]
    first[3].data.zero_()
    second = [nn.Parameter(p.detach().clone()) for p in first]
    optimizer, written = OPTIMIZERS[name](first, **given), Written(name, given, second, fills=False)
    for _ in range(10):
        for one, two, place in zip(first, second, range(6), strict=True):
            grad = torch.zeros_like(one) if place == 5 else torch.randn_like(one)
            one.grad, two.grad = (None, None) if place == 4 else (grad, grad.clone())
        optimizer.step()
        written.step()
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-13, atol=1e-14)
    assert all(torch.equal(p.detach(), q.detach()) for p, q in [(first[4], second[4])])


def test_parts_of_a_flat_tensor_take_the_steps_of_whole_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank of one: three parameters in a padded buffer, as ZeRO holds them."""
    torch.manual_seed(0)
    monkeypatch.setattr(layerwise_optimizers.dist, "all_reduce", lambda squares, group: None)
    for kind in (LAMB, LARS):
        whole = [nn.Parameter(torch.randn(*shape)) for shape in ((4, 3), (5,), (2, 6))]
        sizes = [p.numel() for p in whole]
        flat = nn.Parameter(torch.cat([*(p.detach().flatten() for p in whole), torch.zeros(3)]))
        one, two = (kind(of, weight_decay=0.1, exclude_one_dimensional=True) for of in (whole, [flat]))
        places = zip(range(3), (0, 12, 17), sizes, (2, 1, 2), strict=True)
        two.divide({flat: [Segment(*place) for place in places]}, 3, None)
        for _ in range(5):
            for p in whole:
                p.grad = torch.randn_like(p)
            flat.grad = torch.cat([*(p.grad.flatten() for p in whole if p.grad is not None), torch.zeros(3)])
            one.step()
            two.step()
        wanted = torch.cat([*(p.detach().flatten() for p in whole), torch.zeros(3)])
        torch.testing.assert_close(flat.detach(), wanted, rtol=1e-6, atol=1e-7)


def train(home: Path, ranks: int, trees: dict[str, dict[str, Any]], config: RunConfig) -> None:
    rows = []
    for name, tree in trees.items():
        (home / f"{name}.json").write_text(json.dumps(tree))
        rows.append({"config": str(config.source), "deepspeed": str(home / f"{name}.json"), "name": name})
    (home / "cases.json").write_text(json.dumps(rows))
    rank_processes.call(ranks, layouts.run, [str(home / "cases.json")], home, seconds=300)


@pytest.mark.parametrize(("task", "name", "numbers"), [
    ("masked_lm", "lamb", [0]), pytest.param("masked_lm", "lars", [0], marks=pytest.mark.nightly),
    pytest.param("masked_lm", "lamb", [1], marks=pytest.mark.nightly),
    pytest.param("masked_lm", "lars", [1], marks=pytest.mark.nightly),
    pytest.param("fold", "lamb", [0, 1], marks=pytest.mark.nightly),
])  # fmt: skip
def test_every_stage_takes_the_same_steps_on_two_ranks(
    task: str, name: str, numbers: list[int], tmp_path: Path
) -> None:
    """Two ranks on every stage, and offloaded, beside fp64 torch in one process.

    ε is above the rounding errors of gradients: below it, the sign of an error would be a whole step, as with Adam. No
    LARS on ``fold``, some of whose gradients are 0 but for rounding errors (attention over a single MSA row).
    """
    config = layouts.configure(task, tmp_path)
    for number in numbers:
        given = SETTINGS[name][number] | ({"eps": 1e-3} if name == "lamb" else {})
        optimizer = {"type": name.upper() if number else name.title(), "params": given}
        trees = {
            f"{number}_stage_{stage}": layouts.deepspeed(stage, *layouts.SPLITS[2][stage % 3], optimizer=optimizer)
            for stage in range(4)
        }
        trees[f"{number}_offload"] = layouts.deepspeed(2, 8, 1, optimizer=optimizer, zero={
            "offload_optimizer": {"device": "cpu"}
        })  # fmt: skip
        train(tmp_path, 2, trees, config)
        losses, norms, weights = layouts.plain(config, lambda of, given=given: Written(name, given, of, fills=True))
        assert min(norms) > layouts.CLIP
        size = torch.stack([w.norm() for w in weights.values()]).norm()
        start = layouts.plain(config, lambda of: torch.optim.SGD(of, lr=0.0))[2]
        moved = torch.stack([(w - start[key]).norm() for key, w in weights.items()]).norm()
        for tree in trees:
            found, _, after = layouts.curve(tmp_path / "runs" / tree)
            slack = 20 if task == "fold" else 1  # its gradients in fp32 err by 1e-5
            assert found == pytest.approx(losses, rel=2e-6 * slack), tree
            off = torch.stack([(after[key].double() - w).norm() for key, w in weights.items()]).norm()
            print(tree, f"{float(off / size):.1e} of the weights, {float(off / moved):.1e} of their change")
            assert float(off / size) <= 2e-7 * slack, tree
            assert float(off / moved) <= 3e-6 * slack, tree


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("parallel", "stages", "micro"),
    [({"pipeline": 2}, [1], 8), ({"sequence": 2}, [1, 3], 16)],
    ids=["pipeline", "ulysses"],
)
def test_ranks_that_share_rows_take_the_same_steps(
    parallel: dict[str, int], stages: list[int], micro: int, tmp_path: Path
) -> None:
    """Pipeline stages have parameters of their own; with sequence parallelism all ranks hold parts of all."""
    given = SETTINGS["lamb"][0] | {"eps": 1e-3}
    two_layers = {"config": layouts.SMALL_LLAMA | {"num_hidden_layers": 2}}
    plain = layouts.configure("causal_lm", tmp_path, model=two_layers, file_name="one process")
    config = layouts.configure("causal_lm", tmp_path, model=two_layers, parallel=parallel)
    trees = {
        f"stage_{stage}": layouts.deepspeed(stage, micro, 16 // micro, optimizer={"type": "Lamb", "params": given})
        for stage in stages
    }
    train(tmp_path, 2, trees, config)
    losses, _, weights = layouts.plain(plain, lambda of: Written("lamb", given, of, fills=True))
    size = torch.stack([w.norm() for w in weights.values()]).norm()
    for name in trees:
        found, _, after = layouts.curve(tmp_path / "runs" / name)
        assert found == pytest.approx(losses, rel=2e-6), name
        off = torch.stack([(after[key].double() - w).norm() for key, w in weights.items()]).norm()
        assert float(off / size) <= 1e-6, name


def test_wrong_settings_name_the_file_and_the_key(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    for params, message in (
        ({"lr": 1e-3, "max_grad_norm": 1.0}, "unknown key optimizer.params.max_grad_norm: Lamb has no such argument"),
        ({"lr": 1e-3, "max_coef": 1.0}, "did you mean optimizer.params.max_coeff"),
        ({"lr": "fast"}, "optimizer.params.lr: expected a number"),
    ):
        with pytest.raises(ValueError, match=r"ds\.json") as caught:
            deepspeed_schema.check({"train_batch_size": 2, "optimizer": {"type": "Lamb", "params": params}}, file)
        assert message in str(caught.value)
    for kind, given, message in (
        (LAMB, {"betas": [1.0, 0.9]}, r"LAMB: betas must be two numbers in \[0, 1\)"),
        (LAMB, {"min_coeff": 2.0, "max_coeff": 1.0}, "max_coeff = 1.0 is less than min_coeff = 2.0"),
        (LARS, {"momentum": 1.0}, r"LARS: momentum must be in \[0, 1\), got 1.0"),
        (LARS, {"trust_coefficient": 0}, "trust_coefficient must be positive, got 0"),
        (LARS, {"weight_decay": -1.0}, "weight_decay must be at least 0"),
        (LAMB, {"exclude_one_dimensional": "no"}, "exclude_one_dimensional must be true or false"),
    ):
        with pytest.raises(ValueError, match=message):
            kind([nn.Parameter(torch.ones(2))], **given)
