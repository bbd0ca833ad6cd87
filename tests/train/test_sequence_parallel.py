"""Sequence parallelism on every ZeRO stage: loss, gradients and their norm equal those of one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import language_oracle as oracle
from tests.support import rank_processes, shared_rows

ADAM = {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}


def plain(case: dict[str, Any], dtype: torch.dtype) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of transformers in one process."""
    kind, sizes, rows = shared_rows.rows(case)
    model = oracle.model(kind, sizes, dtype)
    loss = oracle.plain_loss(model, oracle.batch(kind, rows, 64))
    loss.backward()
    return float(loss.detach()), {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def run(cases: list[dict[str, Any]], world: int, folder: Path) -> list[dict[str, Any]]:
    for case in cases:
        case["deepspeed"] = {
            "train_micro_batch_size_per_gpu": 4 // (world // case["sequence"]), "optimizer": ADAM,
            "gradient_clipping": 1.0, "zero_optimization": {"stage": case["stage"]} | case.get("zero", {}),
        }  # fmt: skip
    (folder / "cases.json").write_text(json.dumps(cases))
    rank_processes.call(world, shared_rows.steps, [str(folder / "cases.json"), str(folder / "out.pt")], folder)
    return torch.load(folder / "out.pt", weights_only=True)


def assert_as_right_as_one_process(case: dict[str, Any], found: dict[str, Any]) -> None:
    """Errors against fp64 are at most 3 times those of transformers in fp32 in one process."""
    exact_loss, exact = plain(case, torch.float64)
    one_loss, one = plain(case, torch.float32)
    allowed = 3 * max(float((one[name] - grad).norm() / grad.norm()) for name, grad in exact.items())
    assert allowed < 1e-4
    assert abs(found["loss"] - exact_loss) <= 3 * max(abs(one_loss - exact_loss), 1e-7 * abs(exact_loss))
    assert {name for name, grad in found["grads"].items() if grad is not None} >= set(exact)
    for name, grad in exact.items():
        error = float((found["grads"][name].view_as(grad) - grad).norm() / grad.norm())
        assert error <= allowed, f"{name}: {error} of {allowed}"
    norm = torch.stack([grad.norm() for grad in exact.values()]).norm()
    assert found["norm"] == pytest.approx(float(norm), rel=max(allowed, 1e-6))


def cases(sequence: int, stage: int, **more: Any) -> list[dict[str, Any]]:
    return [
        {"kind": kind, "rows": rows, "stage": stage, "sequence": sequence, "dtype": "float32"} | more
        for kind in ("masked_lm", "causal_lm")
        for rows in ("packed", "padded")
    ]


def check(asked: list[dict[str, Any]], world: int, folder: Path) -> None:
    for case, found in zip(asked, run(asked, world, folder), strict=True):
        assert_as_right_as_one_process(case, found)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_per_row(stage, tmp_path) -> None:
    """With ZeRO 2, layers keep the output of attention, and the last one all."""
    more = {"activation_budget": 4e-4} if stage == 2 else {}
    check(cases(2, stage, **more), 2, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("budget", [0, 1e-4, 4e-4])
def test_recomputed_layers_and_tiled_mlps(budget, tmp_path) -> None:
    check(cases(2, 3, activation_budget=budget), 2, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize(("world", "sequence"), [(4, 4), (4, 2)])
def test_four_ranks(world, sequence, stage, tmp_path) -> None:
    """Two heads read one key head, and one rank has one head of five; then two groups with different rows."""
    check(cases(sequence, stage), world, tmp_path)


@pytest.mark.nightly
def test_stage_3_without_reduce_scatter(tmp_path) -> None:
    """Here DeepSpeed scales gradients correctly, and the measured correction is 1."""
    check(cases(2, 3, zero={"reduce_scatter": False}), 2, tmp_path)


def test_a_model_with_layerdrop_is_refused() -> None:
    """Its ranks would wait for each other in different layers."""
    import transformers

    from ds4sci.tasks.language_task import reject_layer_dropping

    sizes = {"hidden_size": 8, "ffn_dim": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    made = {rate: transformers.OPTModel(transformers.OPTConfig(**sizes, layerdrop=rate)) for rate in (0.0, 0.1)}
    reject_layer_dropping(made[0.0])
    with pytest.raises(ValueError, match=r"decoder skips layers at random \(layerdrop = 0\.1\)"):
        reject_layer_dropping(made[0.1])
