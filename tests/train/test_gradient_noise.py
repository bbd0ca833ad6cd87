"""Gradient noise scale: the truth of a distribution, and the gradients of micro-batches on every ZeRO stage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ds4sci.tasks import batch_weight
from ds4sci.tasks.build import build_task
from ds4sci.train.gradient_noise import GradientNoise, NoiseSums
from ds4sci.types import in_double
from tests.support import layouts, rank_processes


def test_the_estimate_is_that_of_the_distribution() -> None:
    """Samples with a known mean and covariance of gradients, in micro-batches of unequal sizes on two ranks."""
    rng = np.random.default_rng(0)
    mean, deviation = np.array([1.0, -2.0, 0.5]), np.array([3.0, 1.0, 2.0])
    sizes, batch, steps, factor = [[3, 1], [4, 8]], 16, 4000, 2.0
    p = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    ranks = [GradientNoise([p], factor, torch.device("cpu")) for _ in sizes]
    for one in ranks:
        one.close()
    for _ in range(steps):
        whole = torch.zeros(3, dtype=torch.float64)
        for one, micro_batches in zip(ranks, sizes, strict=True):
            for size in micro_batches:
                gradient = torch.from_numpy(mean + deviation * rng.normal(size=(size, 3)).mean(0) * 1.0)
                whole += gradient * size / batch
                one._add(gradient * factor * size / batch)
                one.end_micro_batch(size / batch)
        for one in ranks:
            one.end_step(float(whole.norm()), is_finite=True)
    found = NoiseSums.estimate([one.reset() for one in ranks], batch)
    assert found is not None
    assert found["trace"] == pytest.approx(float((deviation**2).sum()), rel=0.05)
    assert found["squared_norm"] == pytest.approx(float((mean**2).sum()), rel=0.05)
    assert found["batch"] == pytest.approx(float((deviation**2).sum() / (mean**2).sum()), rel=0.08)
    assert NoiseSums.estimate([one.reset() for one in ranks], batch) is None, "no step since"


def test_steps_that_are_not_finite_do_not_count() -> None:
    p = nn.Parameter(torch.ones(2))
    noise = GradientNoise([p], 1.0, torch.device("cpu"))
    (p * float("nan")).sum().backward()
    noise.end_micro_batch(1.0)
    noise.end_step(float("nan"), is_finite=False)
    p.grad = None
    for _ in range(2):
        p.sum().backward()
        noise.end_micro_batch(0.5)
    noise.end_micro_batch(0.0)  # a micro-batch without a token to predict
    noise.end_step(2.0, is_finite=True)
    sums = noise.reset()
    assert (sums.steps, sums.count, sums.whole) == (1, 2, 4.0)
    assert sums.micro_batches == pytest.approx(2 * 2.0 / 0.5)
    noise.close()
    p.sum().backward()
    noise.end_micro_batch(0.5)
    noise.end_step(0.0, is_finite=True)
    assert noise.reset().micro_batches == 0.0, "the hooks are gone"


def test_a_run_logs_the_noise_of_its_micro_batches(tmp_path: Path) -> None:
    """Two ranks with two micro-batches each on every stage, beside the gradients of fp64 torch."""
    config = layouts.configure("masked_lm", tmp_path, train={"gradient_noise": True})
    rows = []
    for stage in range(4):
        file = tmp_path / f"stage_{stage}.json"
        file.write_text(json.dumps(layouts.deepspeed(stage, 4, 2)))
        rows.append({"config": str(config.source), "deepspeed": str(file), "name": file.stem})
    (tmp_path / "cases.json").write_text(json.dumps(rows))
    rank_processes.call(2, layouts.run, [str(tmp_path / "cases.json")], tmp_path, seconds=300)

    import safetensors.torch

    task = build_task(config)
    assert config.train.weights is not None
    task.model.load_state_dict(safetensors.torch.load_file(config.train.weights), strict=False)
    model = task.model.double().train()
    batch = next(task.batches(start_step=0, rank=0, world_size=1, micro_batch_size=16, accumulation_steps=1))
    parts = [in_double(layouts.part(batch, first, first + 4)) for first in range(0, 16, 4)]
    weights = [batch_weight(task, part) for part in parts]
    gradients = []
    for part in parts:
        model.zero_grad()
        task.loss(model(part), part)[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    shares = [weight / sum(weights) for weight in weights]
    whole = torch.stack([w * g for w, g in zip(shares, gradients, strict=True)]).sum(0)
    mean = sum(w * float(g.square().sum()) for w, g in zip(shares, gradients, strict=True))
    trace = (mean - float(whole.square().sum())) * 16 / 3
    for row in rows:
        lines = [json.loads(x) for x in (tmp_path / "runs" / row["name"] / "metrics.jsonl").read_text().splitlines()]
        first = next(line for line in lines if line["kind"] == "train")["gradient_noise"]
        assert first["trace"] == pytest.approx(trace, rel=1e-4), row["name"]
        assert first["squared_norm"] == pytest.approx(float(whole.square().sum()) - trace / 16, rel=1e-3, abs=1e-6)


def test_one_micro_batch_per_step_is_refused(tmp_path: Path) -> None:
    config = layouts.configure("masked_lm", tmp_path, train={"gradient_noise": True})
    (tmp_path / "whole.json").write_text(json.dumps(layouts.deepspeed(1, 16, 1)))
    rows = [{"config": str(config.source), "deepspeed": str(tmp_path / "whole.json"), "name": "whole"}]
    (tmp_path / "cases.json").write_text(json.dumps(rows))
    with pytest.raises(AssertionError, match="a step has one micro-batch"):
        rank_processes.call(1, layouts.run, [str(tmp_path / "cases.json")], tmp_path, seconds=300)
