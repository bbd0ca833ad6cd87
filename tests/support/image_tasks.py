"""Tiny tasks ``image`` of every head, in two and three dimensions, and a step of them on DeepSpeed by one rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ds4sci.data.array_shards import write_shard
from ds4sci.data.images.recipe import IGNORED
from ds4sci.nn.activation_budget import set_budget
from ds4sci.tasks import image
from ds4sci.train import engine as engines
from ds4sci.train.distributed import set_rank_environment

SAMPLES = 4
SIZES = {2: ((8, 12), (4, 4)), 3: ((4, 6, 8), (2, 3, 4))}
"""Number of axes → shape of an example and of a patch: 6 and 8 patches."""
CASES = (("segmentation", 2), ("segmentation", 3), ("masked_autoencoder", 3), ("classification", 2))
CONFIG = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32}
DECODER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


def write_data(head: str, axes: int, folder: Path) -> Path:
    """Write six training examples and three held-out ones, two channels, a part of a mask not labelled."""
    folder = folder / f"{head}{axes}"
    folder.mkdir(parents=True)
    size, _ = SIZES[axes]
    for split, count in (("train", 6), ("valid", 3)):
        rng = np.random.default_rng(count)
        inputs = rng.normal(size=(count, 2, *size)).astype(np.float32)
        targets = rng.integers(3, size=(count, *size) if head == "segmentation" else (count,)).astype(np.uint8)
        if head == "segmentation":
            targets[:2, 5:] = IGNORED
        write_shard(folder, split, 0, inputs, targets)
    return folder


def sections(head: str, axes: int, folder: Path, **model: Any) -> dict[str, Any]:
    """Sections of the run file for the data in ``folder``."""
    settings = {"head": head, "patch": SIZES[axes][1], "config": CONFIG, "decoder": DECODER, "mask_ratio": 0.6}
    data = {"path": str(folder), "flips": [-1]}
    if head != "masked_autoencoder":
        data["classes"] = ["a", "b", "c"]
    return {"data": data, "model": settings | model, "loss": {"class_weight_power": 0.5}}


def make_task(head: str, axes: int, folder: Path, **model: Any) -> image.ImageTask:
    return image.build(image.Config.model_validate(sections(head, axes, folder, **model)), seed=0, steps=1)


def batch(made: image.ImageTask, rank: int = 0, world: int = 1) -> Any:
    """This rank's examples of step 0."""
    return next(
        made.batches(start_step=0, rank=rank, world_size=world, micro_batch_size=SAMPLES // world, accumulation_steps=1)
    )


def steps(folder: str, sequence: int, stages: str) -> None:
    """Do one step of every case with every ZeRO stage; rank 0 saves loss, gradients and scores to ``out.pt``."""
    from deepspeed.utils import safe_get_full_grad

    set_rank_environment()
    engines.silence_deepspeed()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    context = None
    for stage in json.loads(stages):
        settings = {
            "train_micro_batch_size_per_gpu": SAMPLES // (2 // sequence), "zero_optimization": {"stage": stage},
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
        }  # fmt: skip
        context = context or engines.init_distributed(settings, sequence)
        file = Path(folder) / f"ds{stage}.json"
        if context.is_main:
            file.write_text(json.dumps(settings))
        context.barrier()
        group = context.sequence
        for head, axes in CASES:
            made = make_task(head, axes, Path(folder) / f"{head}{axes}")
            if stage == 2:
                set_budget(made.model, 0)
            made.set_parallel_groups(group)
            engine = engines.Engine(made.model, file, context)
            engine.module.train()
            own = batch(made, group.data_rank, group.data_size)
            loss, _ = made.loss(engine.deepspeed(own), own)
            weight = made.weight(own)
            share = weight / (context.all_reduce_sum(weight) / group.size)
            engine.backward(loss, share)
            grads = {
                key: (p.grad if stage == 0 else safe_get_full_grad(p)).detach().double().clone()
                for key, p in engine.module.named_parameters()
            }
            engine.module.eval()
            rows = made.evaluate(
                engine.deepspeed, rank=group.data_rank, world_size=group.data_size, device=context.device
            )
            parts = context.gather(rows)
            rows = [row for part in parts[:: group.size] for row in part]
            total = context.all_reduce_sum(share * float(loss.detach()))
            found[f"{head} {axes} {stage}"] = {"loss": total, "grads": grads, "summary": made.summarize(rows)}
            engine.step()
            engine.deepspeed.destroy()
    if context is not None and context.is_main:
        torch.save(found, Path(folder) / "out.pt")
