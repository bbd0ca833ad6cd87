"""Search for the longest crop on which a structure model trains with axial parallelism in a given memory per rank."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ds4sci.bench.fold_step import synthetic_batch
from ds4sci.bench.longest_rows import find_longest, is_out_of_memory
from ds4sci.bench.measurement import Measurement
from ds4sci.bench.memory import limit_memory, peak_bytes
from ds4sci.config.run_file import RunConfig
from ds4sci.train.distributed import free_port, rank_variables

CONFIG = "configs/fold/small.toml"
MEMORY_GB = 4.0
"""Gigabytes that a rank may hold: its peak resident memory, libraries included."""
RANKS = (1, 2, 4)
STEP = 4
"""Residues."""
DEEPSPEED: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "gradient_clipping": 0.1,
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}},
    "zero_optimization": {
        "stage": 3, "reduce_bucket_size": 1_000_000, "stage3_prefetch_bucket_size": 1_000_000,
        "stage3_max_live_parameters": 1_000_000,
    },
}  # fmt: skip


def search(out: Path, memory_gb: float = MEMORY_GB, config: str = CONFIG) -> Measurement:
    """Longest crop whose training step stays within ``memory_gb`` on every rank, for each number of ``RANKS``."""
    rows: list[list[Any]] = []
    for size in RANKS:
        print(f"ds4sci: the longest crop on {size} ranks …", file=sys.stderr, flush=True)
        peak = partial(peak_of_step, config, ranks=size, limit=1e9 * memory_gb)
        # about half the memory beyond that of the libraries
        first = int((max(memory_gb - 0.8, 0.2) * size / 2 / 24e-6) ** 0.5) // STEP * STEP
        found = find_longest(peak, step=STEP, first=first // 2, limit=1e9 * memory_gb, unit="residues")
        rows.append([size, found, found / rows[-1][1] if rows else 1.0])
    return Measurement(
        name=out.stem,
        title=f"Longest crop of `{Path(config).stem}` that trains in {memory_gb:g} GB per rank",
        command=f"ds4sci bench axial --json {out.name.replace('_crop', '')}"
        + (f" --memory {memory_gb:g}" if memory_gb != MEMORY_GB else ""),
        columns=["ranks P", "longest crop (residues)", "relative to half as many ranks"],
        rows=rows,
        notes=[
            "peak resident memory of a rank (VmHWM), libraries included, in a training step with DeepSpeed in fp32: "
            "forward with one recycling pass, loss by rows, backward, AdamW, ZeRO 3 over the ranks, without "
            "recomputation; found by running steps, to 2 % of the memory or 4 residues",
            "glibc returns freed tensors to the system (mallopt); this measures memory, not time",
        ],
    )


def peak_of_step(config: str, n: int, ranks: int, limit: float = 1e9 * MEMORY_GB) -> int:
    """Largest peak in bytes of the ``ranks`` in a step on a crop of n residues; 4 · ``limit`` if one runs out."""
    port = free_port()
    with ProcessPoolExecutor(ranks, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(_step_of_rank, rank, ranks, port, config, n, limit) for rank in range(ranks)]
        try:
            return max(future.result() for future in futures)
        except BrokenProcessPool:
            return int(4 * limit)


def _step_of_rank(rank: int, ranks: int, port: int, config: str, n: int, limit: float) -> int:
    os.environ.update(rank_variables(rank, ranks, port))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        limit_memory(1.5 * limit)
        return step_peak(config, n, ranks)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        os._exit(1)  # the other ranks wait for this one; the pool ends them when a process is gone


def step_peak(config_file: str, n: int, sequence: int) -> int:
    """Peak bytes of a training step on this rank, of the ranks that the environment variables define."""
    import torch

    from ds4sci.nn.activation_memory import return_freed_tensors
    from ds4sci.tasks.build import build_task, default_kernels
    from ds4sci.train import engine as engines
    from ds4sci.train.distributed import set_rank_environment

    set_rank_environment()
    engines.silence_deepspeed()
    torch.set_num_threads(1)
    return_freed_tensors()
    config = RunConfig.load(config_file)
    context = engines.init_distributed(DEEPSPEED, sequence)
    task: Any = build_task(config)
    if sequence > 1:
        task.set_parallel_groups(context.sequence)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "deepspeed.json"
        file.write_text(json.dumps(DEEPSPEED), encoding="utf-8")
        engine = engines.Engine(task.model, file, context)
    engine.module.train()
    start = time.perf_counter()
    for length in (16, n):  # the first step allocates what every step needs
        batch = synthetic_batch(config, length, recycling=1).to(context.device)
        with default_kernels(config):
            torch.manual_seed(0)
            loss, _ = task.loss(engine.deepspeed(batch), batch)
            engine.backward(loss, 1 / context.sequence.data_size)
            engine.step()
        assert torch.isfinite(loss.detach()), f"the loss of {length} residues is {float(loss)}"
    if context.is_main:
        print(f" {time.perf_counter() - start:.0f} s …", end="", file=sys.stderr, flush=True)
    peak = max(context.gather(peak_bytes() or 0))
    torch.distributed.destroy_process_group()
    return peak
