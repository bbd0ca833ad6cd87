"""Exact resume: a killed and resumed run equals an uninterrupted one, bit for bit, for each ZeRO stage."""

from __future__ import annotations

import json

import pytest

from tests.support import rank_processes
from tests.support.checkpoint_layouts import train_in_old_format
from tests.support.run_files import assert_same_tree, digest, metrics, training_state

ZERO = {
    "stage 0": {},
    "stage 0 bf16": {"bf16": {"enabled": True}},
    "stage 1": {"zero_optimization": {"stage": 1}},
    "stage 1 accumulating": {
        "zero_optimization": {"stage": 1}, "train_batch_size": 8, "gradient_accumulation_steps": 2,
    },
    "stage 2 bf16": {"zero_optimization": {"stage": 2}, "bf16": {"enabled": True}},
    "stage 3": {"zero_optimization": {"stage": 3}},
    "stage 3 bf16, small parameters kept": {
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 20}, "bf16": {"enabled": True},
    },
}  # fmt: skip
"""ZeRO stages and precisions; each must resume exactly and skip non-finite steps."""


def kinds(*plain: str) -> list:
    """All keys of ``ZERO``; those not in ``plain`` are nightly tests."""
    return [kind if kind in plain else pytest.param(kind, marks=pytest.mark.nightly) for kind in ZERO]


@pytest.mark.parametrize("kind", kinds("stage 1 accumulating", "stage 3 bf16, small parameters kept"))
def test_a_killed_and_resumed_run_equals_the_uninterrupted_one(kind, tmp_path, run_file) -> None:
    """12 steps, checkpoints at 5 and 10, a skipped step at 7; rank 1 is killed by SIGKILL in step 9."""
    file = run_file(ds=ZERO[kind], data="nan_at = [7]\nkill_at = 8")
    rank_processes.run(2, ["--config", str(file), "train.name=whole", "data.kill_at=-1"], tmp_path)
    ended = rank_processes.run(2, ["--config", str(file), "train.name=broken"], tmp_path, code=None)
    assert ended.codes == [1, -9]
    assert "lost the connection to another rank" in ended.output
    assert "ds4sci train --resume runs/broken" in ended.output
    rank_processes.run(2, ["--resume", "runs/broken"], tmp_path)

    whole, broken = tmp_path / "runs/whole", tmp_path / "runs/broken"
    assert metrics(whole, "train", "eval") == metrics(broken, "train", "eval")
    assert len(metrics(whole, "train")) == 4
    assert len(metrics(whole, "eval")) == 3
    last = "checkpoints/step_000012"
    assert digest(whole / last / "model.safetensors") == digest(broken / last / "model.safetensors")
    for step in (4, 8, 12):
        name = f"evaluations/step_{step:06d}.jsonl"
        assert (whole / name).read_text() == (broken / name).read_text()
    assert_same_tree(training_state(whole, 12), training_state(broken, 12))
    assert len(training_state(whole, 12)["layers.0.weight"]) == 4, "step, weight and two moments"
    states = [json.loads((run / last / "state.json").read_text()) for run in (whole, broken)]
    assert_same_tree(*states, ignore=("seconds",))


@pytest.mark.parametrize("fault", ["nan_at = [5]", "bad_gradient_at = [5]"], ids=["loss", "gradient"])
@pytest.mark.parametrize("kind", kinds("stage 0", "stage 2 bf16"))
def test_a_non_finite_step_changes_nothing_on_any_rank(kind, fault, tmp_path, run_file) -> None:
    """Weights, optimizer state, schedule and EMA of the checkpoints after steps 5 and 6 are equal."""
    file = run_file(ds=ZERO[kind], data=fault, steps=6, save_every=1, keep_last=6, evaluate_every=0)
    ended = rank_processes.run(2, ["--config", str(file)], tmp_path)
    run = tmp_path / "runs/run"
    before, after = training_state(run, 5), training_state(run, 6)
    counters = ("global_steps", "global_samples", "skipped_steps", "overflow", "cur_iter", "last_overflow_iter")
    for name, part in before.items():
        assert_same_tree(part, after[name], name, ignore=counters)
    states = [json.loads((run / f"checkpoints/step_00000{s}/state.json").read_text()) for s in (5, 6)]
    assert [s["nonfinite"] for s in states] == [0, 1]
    assert states[0]["ema_updates"] == states[1]["ema_updates"]
    weights = [digest(run / f"checkpoints/step_00000{s}/model.safetensors") for s in (4, 5, 6)]
    assert weights[0] != weights[1] == weights[2]

    what = "loss" if "nan" in fault else "gradient"
    saved = json.loads((run / "nonfinite/step_000006.json").read_text())
    assert saved["what"] == what
    ids = [i for sample in saved["samples"] for i in sample["ids"]]
    assert "s5.1" in ids
    if what == "loss":
        assert [s["rank"] for s in saved["samples"]] == [0]
        assert saved["samples"][0]["loss"] == "nan"
    events = [m for m in metrics(run, "event") if m["event"] == "nonfinite"]
    assert [(e["step"], e["what"], e["total"], e["ids"]) for e in events] == [(6, what, 1, ids)]
    assert ended.output.count("is not finite; skipped on all ranks") == 1


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("stage 0 bf16", marks=pytest.mark.nightly),
        pytest.param("stage 1 accumulating", marks=pytest.mark.nightly),
        pytest.param("stage 3 bf16, small parameters kept", marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_of_an_older_version_resumes_on_its_own_layout(kind, tmp_path, run_file) -> None:
    """Bit by bit. On another layout it is refused with the remedy, which then works."""
    file = run_file(ds=ZERO[kind], steps=6, save_every=3, evaluate_every=0, keep_last=3)
    arguments = ["--config", str(file), "train.name=old", "train.steps=3"]
    rank_processes.call(2, train_in_old_format, [json.dumps(arguments)], tmp_path)
    rank_processes.run(2, ["--config", str(file), "train.name=whole"], tmp_path)
    old, whole = tmp_path / "runs/old", tmp_path / "runs/whole"
    assert (old / "checkpoints/step_000003/deepspeed").is_dir()
    (tmp_path / "other.json").write_text(
        json.dumps(json.loads((tmp_path / "ds.json").read_text()) | {"zero_optimization": {"stage": 2}})
    )
    elsewhere = ["--resume", "runs/old", "--deepspeed_config", "other.json", "train.steps=7"]
    ended = rank_processes.run(2, elsewhere, tmp_path, code=2)
    assert "step_000003: written by an older version in DeepSpeed's own format, with ZeRO stage" in ended.output
    rank_processes.run(2, ["--resume", "runs/old", "train.steps=6"], tmp_path)
    assert_same_tree(training_state(whole, 6), training_state(old, 6))
    assert digest(whole / "checkpoints/step_000006/model.safetensors") == digest(
        old / "checkpoints/step_000006/model.safetensors"
    )
    rank_processes.run(2, elsewhere, tmp_path)
