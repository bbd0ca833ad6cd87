"""Batch sizes of the runs of a scaling measurement, and their DeepSpeed JSON files.

Strong scaling keeps the global batch, weak scaling the batch of a data-parallel rank.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ds4sci.config.run_file import RunConfig
from ds4sci.files.atomic_files import replace_text

Mode = Literal["strong", "weak"]
MODES: tuple[Mode, ...] = ("strong", "weak")


@dataclass(frozen=True)
class BatchPlan:
    """Batch sizes on ``ranks`` ranks: ``batch`` samples per step in micro-batches of ``micro``, ``accumulation`` per
    rank."""

    mode: Mode
    ranks: int
    batch: int
    micro: int
    accumulation: int

    @property
    def name(self) -> str:
        """``strong_2``."""
        return f"{self.mode}_{self.ranks}"


def plan(config: RunConfig, mode: Mode, ranks: int, *, batch: int | None = None) -> BatchPlan:
    """Return the batch sizes of a run on ``ranks`` ranks.

    batch  strong: the global batch, by default ``train_batch_size`` of the DeepSpeed JSON, or else one micro-batch per
           accumulation step; weak: the batch of a data-parallel rank, by default one micro-batch

    Micro-batches are those of the JSON, or the largest smaller ones that divide the work of a rank. Raises ValueError
    with the numbers if the batch or the parallel sizes do not divide.
    """
    tree = config.deepspeed_config()
    shared = config.parallel.sequence * config.parallel.pipeline
    if ranks % shared:
        raise ValueError(
            f"--ranks {ranks}: {config.source} shares each example among {shared} ranks (parallel.sequence, "
            "parallel.pipeline); expected a multiple"
        )
    data_ranks = ranks // shared
    total = tree.get("train_batch_size")
    steps = int(tree.get("gradient_accumulation_steps") or 1)
    micro = int(tree.get("train_micro_batch_size_per_gpu") or max(1, int(total or 1) // steps))
    if mode == "strong":
        total = batch or int(total or micro * steps)
        if total % data_ranks:
            raise ValueError(
                f"--ranks {ranks}: a global batch of {total} samples cannot be divided among {data_ranks} "
                f"data-parallel ranks; expected a divisor of {total}, or another --batch"
            )
        each = total // data_ranks
    else:
        each = batch or micro
        total = each * data_ranks
    micro = max(k for k in range(1, min(micro, each) + 1) if each % k == 0)
    return BatchPlan(mode, ranks, total, micro, each // micro)


def deepspeed_tree(config: RunConfig, one: BatchPlan) -> dict[str, Any]:
    """Return the DeepSpeed JSON of the run file with the batch sizes of ``one``."""
    tree = copy.deepcopy(config.deepspeed_config())
    tree["train_batch_size"] = one.batch
    tree["train_micro_batch_size_per_gpu"] = one.micro
    tree["gradient_accumulation_steps"] = one.accumulation
    return tree


def write_deepspeed(config: RunConfig, one: BatchPlan, folder: Path) -> Path:
    """Write the DeepSpeed JSON of ``one`` into ``folder``, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{one.name}.json"
    replace_text(file, json.dumps(deepspeed_tree(config, one), indent=2) + "\n")
    return file
