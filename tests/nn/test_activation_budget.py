"""Budget of activations: the choice by hand, equal bits for every budget, and memory within the budget."""

from __future__ import annotations

import gc
import math
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ds4sci.models import vision_transformer
from ds4sci.models.vision_transformer import Layers
from ds4sci.nn.activation_budget import GB, Keep, LayerBytes, choose, log_decisions, set_budget, stacks
from ds4sci.nn.evoformer import BlockConfig, EvoformerStack
from ds4sci.parallel.groups import SINGLE_RANK
from ds4sci.planner.trace import Recorder
from ds4sci.tasks.build import build_task
from tests.support import language_oracle as oracle
from tests.support import layouts

INPUT, OPERATORS, ALL = Keep.INPUT, Keep.OPERATORS, Keep.ALL
SIZE = LayerBytes(input=10, operators=25, all=100)


@pytest.mark.parametrize(
    ("budget", "size", "expected"),
    [
        (0, SIZE, [INPUT] * 3),
        (30, SIZE, [INPUT] * 3),
        (44, SIZE, [INPUT] * 3),
        (45, SIZE, [INPUT, INPUT, OPERATORS]),
        (75, SIZE, [OPERATORS] * 3),
        (149, SIZE, [OPERATORS] * 3),
        (150, SIZE, [OPERATORS, OPERATORS, ALL]),
        (299, SIZE, [OPERATORS, ALL, ALL]),
        (300, SIZE, [ALL] * 3),
        (120, LayerBytes(10, 10, 100), [INPUT, INPUT, ALL]),
        (0, LayerBytes(10, 10, 10), [ALL] * 3),
    ],
)
def test_choice_by_hand(budget: float, size: LayerBytes, expected: list[Keep]) -> None:
    found = choose(budget, 3, size)
    assert found == expected
    kept = sum({INPUT: size.input, OPERATORS: size.operators, ALL: size.all}[keep] for keep in found)
    assert kept <= max(budget, 3 * size.input)


class Calls(TorchDispatchMode):
    """Number of calls of every operator of ds4sci, backward included."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "ds4sci":
            self.found[func._overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def language(kind: str) -> tuple[torch.nn.Module, Any]:
    config = (oracle.LLAMA if kind == "causal_lm" else oracle.ESM) | {"num_hidden_layers": 4}
    return oracle.model(kind, config, tile_size=16).train(), oracle.batch(kind, [[170, 61, 25]], 256)


def image() -> tuple[torch.nn.Module, Any]:
    torch.manual_seed(0)
    settings = vision_transformer.Config(patch=(4, 4), config={
        "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 64})  # fmt: skip
    return Layers(vision_transformer.vit_config(settings, 1, (64, 64)), settings).train(), torch.randn(1, 256, 32)


def evoformer() -> tuple[torch.nn.Module, Any]:
    torch.manual_seed(0)
    config = BlockConfig(
        c_m=16, c_z=16, heads_msa=2, d_msa=8, heads_pair=2, d_pair=8, c_outer=4, c_multiplication=8,
        transition_factor=2, convolution_width=3, dropout_msa=0.15, dropout_pair=0.25,
        msa_updates=("row_attention", "column_attention", "transition"),
        pair_updates=(
            "outer_product_mean", "multiplication_outgoing", "multiplication_incoming", "attention_starting",
            "attention_ending", "transition",
        ),
    )  # fmt: skip
    return EvoformerStack(config, 4, False).train(), (torch.randn(1, 6, 40, 16), torch.randn(1, 40, 40, 16))


def step(model: torch.nn.Module, given: Any) -> tuple[list[torch.Tensor], Counter[str], int]:
    """Gradients of a step, calls of operators, and bytes that exist between forward and backward."""
    torch.manual_seed(3)
    model.zero_grad()
    recorder, calls = Recorder(), Calls()
    with recorder, calls:
        if isinstance(model, EvoformerStack):
            m, z = (x.clone().requires_grad_() for x in given)
            n = m.shape[2]
            m, z = model(m, z, torch.ones(1, 6, n, dtype=torch.bool), torch.ones(1, n, n, dtype=torch.bool))
            loss = m.square().mean() + z.square().mean()
        elif isinstance(model, Layers):
            loss = model(given.clone().requires_grad_(), 250, SINGLE_RANK).square().mean()
        else:
            loss = model(given).losses.mean()
        kept = recorder.current
        loss.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None], calls.found, kept


CASES = {"causal_lm": 2, "masked_lm": 2, "image": 1, "evoformer": 6}
"""Model → kernels of attention and triangle multiplication in a layer."""


@pytest.mark.parametrize("name", CASES)
def test_same_bits_and_fewer_operations_for_every_budget(name: str) -> None:
    make = {"image": image, "evoformer": evoformer}.get(name, lambda: language(name))
    model, given = make()
    messages: list[str] = []
    log_decisions(model, messages.append)
    (stack,) = stacks(model)
    set_budget(model, "unlimited")
    plain, fewest, most = step(model, given)
    set_budget(model, 0)
    wanted, _, least = step(model, given)
    for x, y in zip(plain, wanted, strict=True):  # not the same bits: products of all tokens, and of 16 at a time
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)
    assert not messages, "nothing is counted where nothing is to be decided"
    set_budget(model, most / GB)
    for _ in range(2):  # counts
        same(step(model, given)[0], wanted)
    assert len(messages) == 1
    assert "of 4 " in messages[0]
    (size,) = stack._sizes.values()
    attention = {key: n for key, n in fewest.items() if not key.endswith("_backward") and is_costly(key)}
    assert attention
    for operators, whole in ((1, 0), (4, 0), (4, 1), (4, 3), (4, 4)):
        kept = 4 * size.input + operators * (size.operators - size.input) + whole * (size.all - size.operators)
        set_budget(model, (kept + 1) / GB)
        found, calls, memory = step(model, given)
        same(found, wanted)
        for key, once in attention.items():
            assert calls[key] == once * (8 - operators) // 4, (key, operators, whole)
        assert memory - least == pytest.approx(kept - 4 * size.input, rel=0.05, abs=30_000), (operators, whole)
    set_budget(model, 2 * most / GB)  # more than enough: projections inside operations are kept as well
    found, _, memory = step(model, given)
    same(found, wanted)
    assert memory == pytest.approx(most, rel=0.05)  # the last norm is tiled


def test_spare_bytes_go_to_projections() -> None:
    """As many as fit, in the order of the operations; the log names the bytes."""
    model, given = evoformer()
    messages: list[str] = []
    log_decisions(model, messages.append)
    (stack,) = stacks(model)
    set_budget(model, 1.0)
    for _ in range(2):
        step(model, given)
    (size,) = stack._sizes.values()
    assert messages == [f"{stack.describe(next(iter(stack._sizes)), 4)}"]
    assert "4 keep all for backward" in messages[0]
    assert f"and up to {1 - 4 * size.all / GB:.2f} GB of projections" in messages[0]
    memory = []
    row_attention = 6 * 40 * 4 * 16 * 4
    for spare in (0, 0.9 * row_attention, 2.5 * row_attention):
        set_budget(model, (4 * size.all + spare) / GB)
        memory.append(step(model, given)[2])
    assert memory[1] == memory[0]
    assert memory[2] - memory[0] == 2 * row_attention, "row and column attention of the first block"
    assert stack.spare == pytest.approx(2.5 * row_attention)


def is_costly(name: str) -> bool:
    return name in ("varlen_attention", "gated_self_attention", "triangle_multiplication", "evoformer_attention")


def test_frozen_layers_do_not_hide_what_others_keep() -> None:
    """The budget holds where the last layer is frozen, and so keeps less than the others."""
    config = oracle.LLAMA | {"num_hidden_layers": 4}
    model = oracle.model("causal_lm", config, tile_size=16, freeze=("*layers.3.*",)).train()
    batch = oracle.batch("causal_lm", [[170, 61, 25]], 256)
    set_budget(model, 0)
    least = step(model, batch)[2]
    budget = 1.9e6
    set_budget(model, budget / GB)
    for _ in range(3):
        memory = step(model, batch)[2]
    (size,) = stacks(model)[0]._sizes.values()
    assert size.all > 700_000
    assert memory - least + 4 * size.input <= budget


@pytest.mark.parametrize(("budget", "steps"), [(1e-9, 0), (4.5e-4, 1)])
def test_a_second_backward_is_right(budget: float, steps: int) -> None:
    """In the step that counts, and where the outputs of attention are kept."""
    model, batch = language("causal_lm")
    set_budget(model, budget)
    for _ in range(steps):
        step(model, batch)
    loss = model(batch).losses.mean()
    found = []
    for keep in (True, False):
        model.zero_grad()
        loss.backward(retain_graph=keep)
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    same(found[1], found[0])


def test_a_counting_step_without_backward_leaves_no_tensors() -> None:
    model, batch = language("causal_lm")
    set_budget(model, 5.0)
    model(batch)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def same(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    assert len(found) == len(wanted) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_long_rows_say_which_budget_keeps_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ds4sci.nn.activation_budget.CHECKPOINT_MIN_TOKENS", 100)
    model, batch = language("causal_lm")
    messages: list[str] = []
    log_decisions(model, messages.append)
    for _ in range(2):
        calls = step(model, batch)[1]
        assert calls["varlen_attention"] == 8
    assert len(messages) == 1
    assert messages[0].startswith("Activations: 4 layers keep their input for backward and are computed again; ")
    assert "train.activation_budget (GB)" in messages[0]


def test_run_file(tmp_path: Path) -> None:
    for value, limit in ((1.5, 1.5e9), ("unlimited", math.inf), (None, None)):
        config = layouts.configure("masked_lm", tmp_path, train={"activation_budget": value})
        assert [stack.limit for stack in stacks(build_task(config).model)] == [limit]
    with pytest.raises(ValueError, match=r"train\.activation_budget"):
        layouts.configure("masked_lm", tmp_path, train={"activation_budget": -1.0})
    with pytest.raises(ValueError, match=r"train.activation_budget: .* has no layers that can be recomputed"):
        build_task(layouts.configure("neural_operator", tmp_path, train={"activation_budget": 1.5}))
