"""Losses and gradients do not depend on ranks, ZeRO stage, micro-batch and accumulation; reference: fp64 torch."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ds4sci.config.run_file import RunConfig
from ds4sci.tasks import batch_weight
from ds4sci.tasks.build import build_task
from ds4sci.types import in_double
from tests.support import layouts, rank_processes
from tests.support.layouts import SPLITS, Case
from tests.support.run_files import training_state


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@functools.cache
def fp64_reference(task: str, variant: str, home: Path) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    return layouts.plain(Case(task, 0, layouts.BATCH, 1, variant).configure(home))


def _run(home: Path, ranks: int, wanted_runs: dict[str, tuple[RunConfig, dict[str, Any]]]) -> dict[str, list[float]]:
    """Train each named (config, DeepSpeed JSON) on ``ranks`` ranks and return its losses."""
    rows = []
    for name, (config, tree) in wanted_runs.items():
        (home / f"{name}.json").write_text(json.dumps(tree))
        rows.append({"config": str(config.source), "deepspeed": str(home / f"{name}.json"), "name": name})
    (home / "cases.json").write_text(json.dumps(rows))
    rank_processes.call(ranks, layouts.run, [str(home / "cases.json")], home, seconds=300)
    return {name: layouts.curve(home / "runs" / name)[0] for name in wanted_runs}


def check(cases: list[Case], ranks: int, home: Path, **more: Any) -> dict[str, tuple[float, float, float]]:
    """Train every case on ``ranks`` ranks. Returns the relative errors of loss, gradient norm and weights.

    more  sections of the run file
    """
    _run(home, ranks, {
        case.name(ranks): (case.configure(home, **more), case.deepspeed()) for case in cases
    })  # fmt: skip
    errors = {}
    for case in cases:
        losses, norms, weights = layouts.curve(home / "runs" / case.name(ranks))
        want_losses, want_norms, want_weights = fp64_reference(case.task, case.variant, home)
        assert min(want_norms) > layouts.CLIP, "every step must be clipped"
        size = torch.stack([w.norm() for w in want_weights.values()]).norm()
        off = torch.stack([(weights[name].double() - w).norm() for name, w in want_weights.items()]).norm()
        errors[case.name(ranks)] = (
            max(abs(a / b - 1) for a, b in zip(losses, want_losses, strict=True)),
            max(abs(a / b - 1) for a, b in zip(norms, want_norms, strict=True)),
            float(off / size),
        )
    for name, found in errors.items():
        print(name, *(f"{x:.1e}" for x in found))
    wrong = {name: e for name, e in errors.items() if not (e[0] <= 2e-6 and e[1] <= 1e-5 and e[2] <= 1e-6)}
    assert not wrong
    return errors


def stages(task: str) -> list[int]:
    """ZeRO stages of a task; networks with derivatives by their inputs refuse stage 3."""
    return [0, 1, 2] if task == "neural_operator" else [0, 1, 2, 3]


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_train_as_fp64_torch_in_one_process(ranks, home) -> None:
    """One stage and one split for every kind of task."""
    tasks = ("fold", "masked_lm", "causal_lm unpacked", "token_classification", "neural_operator", "volume_regression")
    cases = [
        Case(task, min((number + ranks // 2) % 4, stages(task)[-1]), *SPLITS[ranks][(number + ranks) % 3])
        for number, task in enumerate(tasks)
    ]
    check(sorted(cases, key=lambda case: case.stage), ranks, home)


@pytest.mark.slow
def test_sequence_parallel_ranks_train_as_fp64_torch(tmp_path) -> None:
    """Each rank computes its part of the loss; DeepSpeed's stage 3 scales gradients differently from the others."""
    cases = [Case("causal_lm", 2, 8, 2, "causal_lm chunked"), Case("token_classification", 3, 8, 2)]
    check(cases, 2, tmp_path, parallel={"sequence": 2})


@pytest.mark.nightly
@pytest.mark.parametrize("task", layouts.TASKS)
@pytest.mark.parametrize("ranks", SPLITS)
def test_every_layout_trains_as_fp64_torch(task, ranks, home) -> None:
    check([Case(task, stage, *split) for stage in stages(task) for split in SPLITS[ranks]], ranks, home)


@pytest.mark.slow
def test_settings_that_save_memory_train_as_fp64_torch(home) -> None:
    """Recomputation, recycling, moving averages, offloading and adapters: every sixth one, on one layout each."""
    cases = [
        Case(layouts.VARIANTS[name][0], (stages := layouts.variant_stages(name))[-1 - number % len(stages)],
             *SPLITS[2][number % 3], name)
        for number, name in enumerate(list(layouts.VARIANTS)[::6])
    ]  # fmt: skip
    check(sorted(cases, key=lambda case: case.stage), 2, home)


@pytest.mark.nightly
@pytest.mark.parametrize("name", layouts.VARIANTS)
@pytest.mark.parametrize("ranks", SPLITS)
def test_every_setting_on_every_layout_trains_as_fp64_torch(name, ranks, home) -> None:
    task = layouts.VARIANTS[name][0]
    check(
        [Case(task, stage, *split, name) for stage in layouts.variant_stages(name) for split in SPLITS[ranks]],
        ranks,
        home,
    )


@pytest.mark.parametrize(
    "stage", [pytest.param(3, marks=pytest.mark.slow), *(pytest.param(x, marks=pytest.mark.nightly) for x in range(3))]
)
def test_complexes_train_as_fp64_torch(stage, home) -> None:
    """AlphaFold-Multimer with templates, two equal chains and another, on two ranks."""
    check([Case("fold", stage, *SPLITS[2][stage % 3], "fold multimer")], 2, home)


@pytest.mark.slow
def test_dropout_does_not_depend_on_ranks(tmp_path) -> None:
    """The same micro-batches have the same dropout masks on one rank and on two."""
    fold, esm = layouts.SMALL_FOLD, layouts.SMALL_ESM | {"hidden_dropout_prob": 0.5}
    dropped = fold["evoformer"] | {"dropout_msa": 0.5, "dropout_pair": 0.5}
    structure = fold["structure"] | {"dropout": 0.5}
    # not the head of aligned errors: its targets are bins, and rounding moves an error over an edge within four steps
    heads = [head for head in fold["heads"] if head != "tm"]
    configs = {
        "fold": layouts.configure(
            "fold", tmp_path, model={"evoformer": dropped, "structure": structure, "heads": heads}
        ),
        "masked_lm": layouts.configure("masked_lm", tmp_path, model={"config": esm}),
    }
    found = {
        ranks: _run(tmp_path, ranks, {
            f"{task}_{ranks}": (config, layouts.deepspeed(1, 2, 8 // ranks)) for task, config in configs.items()
        })
        for ranks in (1, 2)
    }  # fmt: skip
    for task in configs:
        one, two = (found[ranks][f"{task}_{ranks}"] for ranks in (1, 2))
        assert two == pytest.approx(one, rel=2e-6)
        still = layouts.plain(layouts.configure(task, tmp_path))[0]
        assert all(abs(a / b - 1) > 1e-3 for a, b in zip(one, still, strict=True)), "there is dropout"


def test_bf16_without_zero_takes_no_initial_step(home) -> None:
    """DeepSpeed's optimizer of stage 0 steps on zero gradients at construction; that of stage 1 does not."""
    adam = {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.1, "torch_adam": True}}
    config = layouts.configure("masked_lm", home)
    found = _run(home, 1, {
        f"bf16_{stage}": (config, layouts.deepspeed(stage, 4, 4, bf16={"enabled": True}, optimizer=adam))
        for stage in (0, 1)
    })  # fmt: skip
    assert found["bf16_0"] == pytest.approx(found["bf16_1"], rel=1e-5)
    state = training_state(home / "runs" / "bf16_0", layouts.STEPS)
    assert {own["step"] for name, own in state.items() if name != "engine"} == {layouts.STEPS}


@pytest.mark.parametrize("task", layouts.TASKS)
def test_any_split_of_a_batch_has_the_same_gradient(task, home) -> None:
    """Σ share · ∇ loss over parts of any size equals ∇ loss of the whole batch, in fp64."""
    made = build_task(layouts.configure(task, home))
    size = 7
    whole = in_double(
        next(made.batches(start_step=1, rank=0, world_size=1, micro_batch_size=size, accumulation_steps=1))
    )
    model = made.model.double().train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    wanted = None
    for pieces in layouts.splits(size, seed=5):
        batches = [layouts.part(whole, first, last) for first, last in pieces]
        weights = [batch_weight(made, batch) for batch in batches]
        total, loss = sum(weights), 0.0
        for parameter in parameters:
            parameter.grad = None
        for batch, weight in zip(batches, weights, strict=True):
            part = made.loss(model(batch), batch)[0] * (weight / total)
            part.backward()
            loss += float(part.detach())
        found = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        wanted = wanted or (loss, found)
        assert loss == pytest.approx(wanted[0], rel=1e-12)
        assert float((found - wanted[1]).norm() / wanted[1].norm()) < 1e-11, pieces
