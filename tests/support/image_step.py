"""Tiny tasks on images and fields, and the program of one rank that does a step of them on DeepSpeed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ds4sci.data.array_shards import write_shard
from ds4sci.data.surrogate_variables import Variables
from ds4sci.tasks import denoising, segmentation, surrogate
from ds4sci.tasks.array_task import ArrayTask
from ds4sci.train import engine as engines
from ds4sci.train.distributed import set_rank_environment

SAMPLES = 4
TASKS = ("segmentation", "denoising", "surrogate")
MODEL = {"channels": 4, "levels": 2, "groups": 2}


def write_data(name: str, folder: Path) -> Path:
    """Write six training examples and three held-out ones of task ``name``."""
    folder = folder / name
    folder.mkdir()
    if name == "surrogate":
        return write_surrogate(folder)
    for split, count in (("train", 6), ("valid", 3)):
        rng = np.random.default_rng(count)
        if name == "segmentation":
            inputs = rng.normal(size=(count, 2, 7, 12)).astype(np.float32)
            targets = (rng.integers(3, size=(count, 13, 24)) * rng.integers(2, size=(count, 1, 1))).astype(np.uint8)
        else:
            targets = (1 + 0.1 * rng.normal(size=(count, 1, 16, 16))).astype(np.float32)
            inputs = rng.poisson(40 * np.maximum(targets, 0)).astype(np.uint16)
        write_shard(folder, split, 0, inputs, targets)
    return folder


def write_surrogate(folder: Path, train: int = 6, valid: int = 3) -> Path:
    """Write smooth functions of two parameters: two scalars, and a field of 3 × 4 cells; the experiment is biased."""
    variables = Variables(
        ("a", "b"),
        np.array([0.0, 10.0]),
        np.array([1.0, 20.0]),
        ("mean", "peak"),
        "u",
        (3, 4),
        ("simulation", "experiment"),
    )
    variables.write(folder)
    for number, source in enumerate(variables.sources):
        (folder / source).mkdir()
        for split, count in (("train", train), ("valid", valid)):
            rng = np.random.default_rng([number, count])
            inputs = rng.uniform(variables.low, variables.high, (count, 2)).astype(np.float32)
            a, b = variables.normalized(inputs.astype(float)).T
            field = np.sin(a[:, None] + 0.5 * np.arange(12)) * (1 + 0.3 * b[:, None]) + number * (
                0.5 + 0.2 * a[:, None]
            )
            scalars = np.stack([100 + 5 * field.mean(1), field.max(1)], axis=1)
            write_shard(folder / source, split, 0, inputs, np.hstack([scalars, field]).astype(np.float32))
    return folder


def sections(name: str, folder: Path) -> dict[str, Any]:
    """Sections of the run file for the data in ``folder``."""
    if name == "segmentation":
        data = {"classes": ["background", "a", "b"], "channels": ["u", "v"], "odd_channels": [1]}
        return {"data": {"path": str(folder)} | data, "model": MODEL | {"periodic": True}}
    if name == "surrogate":
        return {"data": {"path": str(folder), "source": "experiment"}, "model": {"hidden": [8, 6]}}
    baseline = {"patch": 3, "distance": 2, "calibration_images": 2}
    return {"data": {"path": str(folder), "crop": 13}, "model": MODEL, "baseline": baseline}


def make_task(name: str, folder: Path) -> ArrayTask:
    module = {"segmentation": segmentation, "denoising": denoising, "surrogate": surrogate}[name]
    return module.build(module.Config.model_validate(sections(name, folder)), seed=0, steps=1)


def batch(made: ArrayTask, rank: int = 0, world: int = 1) -> Any:
    """This rank's examples of step 0."""
    return next(
        made.batches(start_step=0, rank=rank, world_size=world, micro_batch_size=SAMPLES // world, accumulation_steps=1)
    )


def steps(folder: str, stages: str) -> None:
    """Do one step of every task with every ZeRO stage; rank 0 saves loss, gradients and scores to ``out.pt``."""
    from deepspeed.utils import safe_get_full_grad

    set_rank_environment()
    engines.silence_deepspeed()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    context = None
    for stage in json.loads(stages):
        settings = {
            "train_micro_batch_size_per_gpu": SAMPLES // 2, "zero_optimization": {"stage": stage},
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
        }  # fmt: skip
        context = context or engines.init_distributed(settings)
        file = Path(folder) / f"ds{stage}.json"
        if context.is_main:
            file.write_text(json.dumps(settings))
        context.barrier()
        for name in TASKS:
            made = make_task(name, Path(folder) / name)
            engine = engines.Engine(made.model, file, context)
            engine.module.train()
            own = batch(made, context.rank, context.world_size)
            loss, _ = made.loss(engine.deepspeed(own), own)
            engine.backward(loss, 1 / context.world_size)
            grads = {
                key: (p.grad if stage == 0 else safe_get_full_grad(p)).detach().double().clone()
                for key, p in engine.module.named_parameters()
            }
            engine.module.eval()
            rows = made.evaluate(
                engine.deepspeed, rank=context.rank, world_size=context.world_size, device=context.device
            )
            rows = [row for part in context.gather(rows) for row in part]
            total = sum(context.gather(float(loss.detach()))) / context.world_size
            found[f"{name} {stage}"] = {"loss": total, "grads": grads, "summary": made.summarize(rows)}
            engine.step()
            engine.deepspeed.destroy()
    if context is not None and context.is_main:
        torch.save(found, Path(folder) / "out.pt")
