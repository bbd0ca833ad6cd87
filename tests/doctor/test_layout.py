"""Findings about a run file: the batch, heads and layers against the ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ds4sci.doctor import layout
from ds4sci.doctor.finding import Finding

ROOT = Path(__file__).parents[2]


def findings(file: str, *overrides: str, ranks: int, deepspeed: Path | None = None) -> dict[str, Finding]:
    check = layout.run_file(ROOT / "configs" / file, overrides, ranks=ranks, deepspeed=deepspeed)
    return {finding.name: finding for finding in check()}


def test_a_run_file_that_fits() -> None:
    found = findings("fold/small.toml", ranks=2)
    assert {finding.level for finding in found.values()} == {"ok"}
    assert found["batch"].detail.startswith("2 = 2 ")


def test_heads_that_do_not_divide_leave_ranks_idle() -> None:
    heads = 'model.config={model_type="llama", hidden_size=64, num_attention_heads=4, num_key_value_heads=2}'
    found = findings("lm/genome_extend.toml", "parallel.sequence=3", heads, ranks=3)
    assert found["attention heads"].level == "optional"
    assert "4 on 3 ranks" in found["attention heads"].detail
    assert "33 %" in found["attention heads"].detail  # one rank has two heads, the others wait: 1 − 4 / (3 · 2)
    assert "parallel.sequence = 2" in found["attention heads"].remedy
    assert "each is sent to 2 ranks" in found["key and value heads"].detail
    found = findings("lm/genome_extend.toml", "parallel.sequence=8", heads, ranks=8)
    assert "4 ranks have none" in found["attention heads"].detail
    assert "50 %" in found["attention heads"].detail


def test_more_stages_than_layers_are_a_problem() -> None:
    found = findings("lm/genome_extend.toml", "parallel.sequence=1", "parallel.pipeline=8", ranks=8)
    assert found["layers"].level == "problem"
    assert "4 on 8 ranks (parallel.pipeline)" in found["layers"].detail
    found = findings("lm/genome_extend.toml", "parallel.sequence=1", "parallel.pipeline=3", ranks=3)
    assert found["layers"].level == "optional"


def test_fold_divides_residues_and_channels() -> None:
    found = findings("fold/small.toml", "parallel.sequence=4", ranks=4)
    assert "128 on 4 ranks" in found["residues of the shortest crop"].detail
    assert "64 on 4 ranks" in found["channels of the triangle multiplication"].detail


@pytest.mark.parametrize(
    ("overrides", "ranks", "json_keys", "name", "words"),
    [
        (["parallel.sequence=2"], 3, {}, "groups", "parallel.sequence = 2 does not divide 3 ranks"),
        ([], 2, {"train_batch_size": 3}, "batch", "does not fit 2 ranks"),
        ([], 2, {"gradient_cliping": 1}, "DeepSpeed JSON", "did you mean gradient_clipping"),
        (["parallel.pipeline=2"], 2, {}, "valid", "needs ZeRO stage 1"),
        (["train.stepz=3"], 2, {}, "valid", "train.stepz"),
        ([], 2, {"zero_optimization": {"offload_param": {"device": "nvme"}}}, "valid", "libaio-dev"),
    ],
)
def test_what_will_fail_is_a_problem(
    overrides: list[str], ranks: int, json_keys: dict[str, Any], name: str, words: str, tmp_path: Path
) -> None:
    tree = json.loads((ROOT / "configs/deepspeed/zero2_bf16.json").read_text()) | json_keys
    (tmp_path / "ds.json").write_text(json.dumps(tree))
    found = findings("fold/small.toml", *overrides, ranks=ranks, deepspeed=tmp_path / "ds.json")
    assert found[name].level == "problem"
    assert words in found[name].detail


def test_a_model_that_is_not_here_is_no_problem(tmp_path: Path) -> None:
    found = findings("lm/secondary_structure.toml", f'model.path="{tmp_path}/absent"', "parallel.sequence=2", ranks=2)
    assert found["heads"].level == "optional"


@pytest.mark.parametrize(("axis", "method"), [("sequence", "set_parallel_groups"), ("pipeline", "pipeline_stage")])
def test_a_task_that_shares_nothing(axis: str, method: str, tmp_path: Path) -> None:
    json_file = tmp_path / "ds.json"
    tree = json.loads((ROOT / "configs/deepspeed/tiny_cpu.json").read_text())
    json_file.write_text(json.dumps(tree | {"zero_optimization": {"stage": 1}}))
    found = findings("operator/burgers.toml", f"parallel.{axis}=2", ranks=2, deepspeed=json_file)
    assert found[f"parallel.{axis}"].level == "optional"
    assert method in found[f"parallel.{axis}"].remedy
