"""Comparison of a run with the reference hyperparameters of its benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds4sci.config import hyperparameters
from ds4sci.config.benchmark import BenchmarkConfig
from ds4sci.config.run_file import RunConfig

RUN_FILE = """deepspeed = "ds.json"
[task]
name = "tests.support.toy_task"
[train]
steps = 4
[data]
nan_at = [3, 5]
[benchmark]
name = "toy"
title = "A toy"
metric = "score"
target = -0.5
direction = "higher"
[benchmark.hyperparameters]
train_batch_size = 4
optimizer.params.lr = 0.01
"optimizer.type" = "AdamW"
train.ema_decay = 0.999
data.nan_at = [3, 5]
data.nan_at.1 = 5
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    json_file = {"train_batch_size": 4, "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}}}
    (tmp_path / "ds.json").write_text(json.dumps(json_file))
    run_file = tmp_path / "toy.toml"
    run_file.write_text(RUN_FILE.replace("data.nan_at = [3, 5]\n", ""))
    return run_file


def test_nested_tables_and_quoted_keys_are_dotted_keys(file) -> None:
    config = RunConfig.load(file)
    assert config.benchmark is not None
    assert config.benchmark.hyperparameters == {
        "train_batch_size": 4, "optimizer.params.lr": 0.01, "optimizer.type": "AdamW", "train.ema_decay": 0.999,
        "data.nan_at.1": 5,
    }  # fmt: skip
    assert hyperparameters.differences(config) == []
    copy = BenchmarkConfig.model_validate(config.resolved()["benchmark"])
    assert copy == config.benchmark


def test_differences_are_listed(file) -> None:
    reference = RunConfig.load(file).benchmark
    own = RunConfig.load(file, ["train.ema_decay=0.5", "data.nan_at=[3]", "benchmark.target=-0.9"])
    assert hyperparameters.differences(own) == [
        "train.ema_decay = 0.5 (reference: 0.999)", "data.nan_at.1 = not set (reference: 5)",
    ]  # fmt: skip
    assert hyperparameters.differences(own, reference)[-1] == "benchmark.target = -0.9 (reference: -0.5)"
    other = file.with_name("other.json")
    other.write_text(json.dumps({"train_batch_size": 8, "optimizer": {"type": "AdamW", "params": {"lr": 1e-2}}}))
    changed = RunConfig.load(file, deepspeed=other)
    assert hyperparameters.differences(changed) == ["train_batch_size = 8 (reference: 4)"]


def test_a_run_file_without_benchmark_has_no_differences(file) -> None:
    plain = file.with_name("plain.toml")
    plain.write_text(file.read_text().split("[benchmark]")[0])
    assert hyperparameters.differences(RunConfig.load(plain)) == []


def test_texts_of_a_benchmark_may_change_between_start_and_resume(file) -> None:
    from ds4sci.config.settings_difference import differences

    saved = RunConfig.load(file)
    changed = ['benchmark.title="B toy"', "benchmark.hyperparameters.seed=1", 'benchmark.datasets=["x"]']
    assert differences(saved, RunConfig.load(file, changed)) == []
    assert differences(saved, RunConfig.load(file, ["benchmark.target=0.5"])) == [
        "benchmark.target: -0.5 there, 0.5 here"
    ]
