"""A run folder of the fold task, made in a second: real chains, a small untrained model, synthetic curves."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch

from ds4sci.config.run_file import RunConfig
from ds4sci.config.task_module import import_task
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.machine import provenance

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "fold" / "tiny_cpu.toml"
CHAINS = ROOT / "examples" / "fold" / "data" / "chains_valid.npz"
SMALL = [
    "model.c_m=16", "model.c_z=8", "model.c_s=16", "model.evoformer.blocks=1", "model.evoformer.heads_msa=2",
    "model.evoformer.d_msa=4", "model.stem.blocks=1", "model.evoformer.c_outer=2", "model.evoformer.c_multiplication=4",
    "model.structure.iterations=1", "model.structure.heads=2", "model.structure.d_ipa=4", "model.structure.c_angle=8",
    "train.steps=200", "train.name=small_fold", "seed=3",
]  # fmt: skip


def make_fold_run(folder: Path, *, chains: int = 6, overrides: Sequence[str] = ()) -> Path:
    """Write ``folder/runs/small_fold`` with checkpoint ``step_000200``, configuration, machine and metrics.

    overrides  of ``tiny_cpu.toml`` in addition to ``SMALL``
    """
    records = ChainSet.open(CHAINS)
    ChainSet.write(folder / "train.npz", records[:40])
    ChainSet.write(folder / "valid.npz", sorted(records[40:], key=lambda record: len(record.sequence))[:chains])
    data = [f"data.train={folder / 'train.npz'}", f"data.valid={folder / 'valid.npz'}"]
    config = RunConfig.load(CONFIG, [*SMALL, *data, *overrides])
    run = folder / "runs" / "small_fold"
    checkpoint = run / "checkpoints" / "step_000200"
    checkpoint.mkdir(parents=True)
    task = import_task("fold").build(config.settings, seed=11, steps=200)
    # Initial weights of the last layers are zero for any seed; noise makes the predictions differ, as training does.
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=noise)
    weights = {name: tensor.contiguous() for name, tensor in task.model.state_dict().items()}
    safetensors.torch.save_file(weights, checkpoint / "model.safetensors")
    for place in (run, checkpoint):
        config.save(place)
    (checkpoint.parent / "best").write_text("step_000200\n")
    (checkpoint.parent / "latest").write_text("step_000200\n")
    (run / "machine.json").write_text(json.dumps(provenance.describe()))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in curves(200)))
    return run


def curves(steps: int) -> list[dict[str, object]]:
    """Lines of ``metrics.jsonl`` as a run that learns writes them."""
    lines: list[dict[str, object]] = []
    for step in range(10, steps + 1, 10):
        fall = math.exp(-step / steps) + 0.05 * math.sin(step)
        terms = {
            "backbone_fape": fall,
            "distogram": 2.5 * fall,
            "smooth_lddt": 0.5 + 0.3 * fall,
            "secondary": 0.6 * fall,
        }
        lines.append(
            {
                "kind": "train", "step": step, "progress": step / steps, "loss": sum(terms.values()),
                "loss_terms": terms, "lr": 1e-3, "grad_norm": 1.0, "samples_per_second": 16.0, "seconds": step / 4,
                "cpu_seconds": step / 2, "memory_mb": 900.0,
            }
        )  # fmt: skip
        if step % 50 == 0:
            lines.append(
                {
                    "kind": "eval",
                    "step": step,
                    "lddt_ca": 0.45 - 0.2 * fall,
                    "tm_score": 0.3 - 0.1 * fall,
                    "seconds": 2.0,
                }
            )
    return lines
