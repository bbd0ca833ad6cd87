"""DeepSpeed JSONs for another batch size, by hand, and the command that writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ds4sci.cli.main import app
from ds4sci.select.batch_scaling import scale_to_batch


def config(kind: str = "AdamW", **more: Any) -> dict[str, Any]:
    return {
        "train_batch_size": 64, "train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 4,
        "optimizer": {"type": kind, "params": {"lr": 1e-3, "weight_decay": 0.1}},
        "scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 1000, "warmup_num_steps": 50}},
    } | more  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "rule", "rate"),
    [("AdamW", None, 2e-3), ("Lamb", None, 2e-3), ("SGD", None, 4e-3), ("LARS", None, 4e-3), ("AdamW", "linear", 4e-3),
     ("SGD", "none", 1e-3)],
)  # fmt: skip
def test_four_times_the_batch(kind: str, rule: Any, rate: float) -> None:
    old = config(kind)
    new, changes = scale_to_batch(old, 256, rule=rule)
    assert new == {
        "train_batch_size": 256, "train_micro_batch_size_per_gpu": 8,
        "optimizer": {"type": kind, "params": {"lr": rate, "weight_decay": 0.1}},
        "scheduler": {"type": "WarmupCosineLR", "params": {"total_num_steps": 250, "warmup_num_steps": 12}},
    }  # fmt: skip
    assert old == config(kind), "the old one is unchanged"
    assert changes[0] == "train_batch_size: 64 → 256"
    assert "scheduler.params.total_num_steps: 1000 → 250" in changes


def test_a_smaller_batch_and_other_schedules() -> None:
    cycle = {"cycle_min_lr": 0.0, "cycle_max_lr": 2e-3, "cycle_first_step_size": 802, "cycle_second_step_size": 698}
    new, _ = scale_to_batch(config(scheduler={"type": "OneCycle", "params": cycle}), 16, rule="linear")
    assert new["scheduler"]["params"] == {
        "cycle_min_lr": 0.0, "cycle_max_lr": 5e-4, "cycle_first_step_size": 3208, "cycle_second_step_size": 2792
    }  # fmt: skip
    assert scale_to_batch(config(), 64, warmup_steps=7)[0]["scheduler"]["params"]["warmup_num_steps"] == 7


def test_the_micro_batch_stays_where_accumulation_decides_it() -> None:
    old = {key: value for key, value in config().items() if key != "train_micro_batch_size_per_gpu"}
    new, changes = scale_to_batch(old, 256)
    assert new["gradient_accumulation_steps"] == 16
    assert "gradient_accumulation_steps: 4 → 16" in changes
    with pytest.raises(ValueError, match=r"gradient_accumulation_steps = 4 × 1\.01562 is not a whole number"):
        scale_to_batch(old, 65)
    del old["gradient_accumulation_steps"]
    assert any("micro-batch grows with the batch" in line for line in scale_to_batch(old, 256)[1])


def test_zeros_stay_and_lists_are_scaled() -> None:
    rates = {"warmup_num_steps": 0, "total_num_steps": 100, "max_lr": [1e-3, 2e-3], "decay_step_size": 0}
    new = scale_to_batch(config(scheduler={"type": "OneCycleLR", "params": rates}), 256)[0]
    assert new["scheduler"]["params"] == {
        "warmup_num_steps": 0, "total_num_steps": 25, "max_lr": [2e-3, 4e-3], "decay_step_size": 0
    }  # fmt: skip


def test_the_command_writes_a_json_and_refuses_what_cannot_be_scaled(tmp_path: Path) -> None:
    file, out = tmp_path / "ds.json", tmp_path / "large.json"
    file.write_text(json.dumps(config()))

    def run(*arguments: Any) -> Any:
        return CliRunner().invoke(app, ["select", "scale", *map(str, arguments)])

    done = run(file, "--batch", 256, "--out", out)
    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text()) == scale_to_batch(config(), 256)[0]
    assert "Learning rate: sqrt rule" in done.output
    assert "multiply train.steps of the run file by 0.25" in done.output
    assert "exists" in str(run(file, "--batch", 256, "--out", out).exception)
    assert run(file, "--batch", 128, "--out", out, "--overwrite").exit_code == 0
    for changed, arguments, message in (
        (
            {},
            ["--batch", 100],
            f"{file}: a batch of 100 samples is not a multiple of train_micro_batch_size_per_gpu = 8",
        ),
        ({"train_batch_size": None}, ["--batch", 128], "train_batch_size is missing"),
        ({"train_batch_size": 0}, ["--batch", 128], "train_batch_size is 0: expected a whole number above 0"),
        ({"scheduler": {}}, ["--batch", 128, "--warmup_steps", 5], "the scheduler has no warmup_num_steps to set"),
    ):
        file.write_text(json.dumps({k: v for k, v in (config() | changed).items() if v is not None}))
        failed = run(file, *arguments, "--out", tmp_path / "no.json")
        assert message in str(failed.exception)
        assert not (tmp_path / "no.json").exists()
