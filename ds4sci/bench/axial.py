"""Benchmark of axial parallelism: memory of a rank, bytes sent, and step times of one Evoformer block.

Memory and bytes are traced: one process with torch's process group ``fake`` is one rank of P, and its tensors have no
data. Step times are measured on real ranks of this machine, and so is the longest crop that trains in a given memory
(``ds4sci.bench.axial_crop``).
"""

from __future__ import annotations

import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ds4sci.bench import axial_crop
from ds4sci.bench.measurement import Measurement, synchronize, timed, write
from ds4sci.bench.registry import JsonFile, Quick, show
from ds4sci.kernels import KERNELS
from ds4sci.kernels.spec import set_default_implementations
from ds4sci.machine import processor
from ds4sci.models.fold import EvoformerConfig
from ds4sci.nn.evoformer import BlockConfig, EvoformerBlock
from ds4sci.parallel.axial import AxialShards
from ds4sci.parallel.collectives import record_sent_bytes
from ds4sci.parallel.groups import SINGLE_RANK, SequenceGroup, fake_group
from ds4sci.train.distributed import free_port

TRACED_RANKS, TIMED_RANKS = (1, 2, 4, 8), (1, 2, 4)
TRACED_SIZES, TIMED_SIZES, QUICK_SIZES = (512, 384), (32, 128), (8, 24)
"""(MSA rows, residues)."""
COLLECTIVES = ("all_to_all", "all_gather", "reduce_scatter")


def command(
    out: JsonFile,
    longest: Annotated[
        bool, typer.Option("--longest/--no-longest", help="Also search for the longest crop that trains.")
    ] = True,
    memory: Annotated[float, typer.Option("--memory", min=1, help="GB that a rank may hold in that search.")] = (
        axial_crop.MEMORY_GB
    ),
    quick: Quick = False,
) -> None:
    """Axial parallelism: saved bytes and bytes sent of a rank, step times of an Evoformer block, longest crop."""
    show(run(out, quick=quick), out)
    if longest and not quick:
        file = out.with_name(f"{out.stem}_crop.json")
        crops = axial_crop.search(file, memory)
        write(file, asdict(crops))
        show(crops, file)


def run(out: Path, *, quick: bool) -> Measurement:
    """Trace the block for each number of ranks, time it, and write everything to ``out``."""
    (s, n), (timed_s, timed_n) = (QUICK_SIZES, QUICK_SIZES) if quick else (TRACED_SIZES, TIMED_SIZES)
    traced = [trace(size, s, n) for size in TRACED_RANKS]
    rounds = 1 if quick else 3
    seconds = {
        size: step_seconds(size, timed_s, timed_n, rounds) for size in (TIMED_RANKS[:2] if quick else TIMED_RANKS)
    }
    whole = traced[0]["saved"]
    measurement = Measurement(
        name=out.stem,
        title="Axial parallelism: one Evoformer block at AlphaFold 2's widths",
        command=f"ds4sci bench axial --json {out.name}",
        columns=[
            "ranks P", "saved by a rank (MB)", "relative to 1/P of one rank's", "sent forward (MB)",
            "sent backward (MB)", "step (s)",
        ],
        rows=[
            [
                one["ranks"], one["saved"] / 1e6, f"{one['ranks'] * one['saved'] / whole:.3f}",
                one["forward"]["total"] / 1e6, one["backward"]["total"] / 1e6, _time(one["ranks"], seconds),
            ]
            for one in traced
        ],
        notes=[
            f"memory and bytes are traced: bf16, n = {n}, {s} MSA rows, no recomputation, the rank with the most rows; "
            "saved: storages saved for backward, with the inputs and without the parameters; sent: to other ranks",
            f"step: forward + backward, fp32, n = {timed_n}, {timed_s} MSA rows, gloo, median of {rounds}, slowest "
            f"rank; oversubscribed: more ranks than the {processor.usable_cores()} cores",
        ],
    )  # fmt: skip
    write(out, asdict(measurement) | {"traced": traced, "seconds": seconds, "quick": quick})
    return measurement


def _time(size: int, seconds: dict[int, float]) -> str:
    if size not in seconds:
        return "–"
    return f"{seconds[size]:.2f}" + (" (oversubscribed)" if size > processor.usable_cores() else "")


def block_config() -> BlockConfig:
    """The published sizes of the Evoformer block."""
    return BlockConfig(c_m=256, c_z=128, **EvoformerConfig().model_dump(exclude={"blocks"}))


def trace(size: int, s: int, n: int) -> dict[str, Any]:
    """Bytes saved for backward and bytes sent by the last of ``size`` ranks, which has the most rows.

    The process group of this process is ``fake`` meanwhile (``fake_group``).
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    # the C++ and Triton implementations read memory, which fake tensors do not have; all save the same
    names = {
        name: "tiled" if any(i.name == "tiled" for i in k.implementations) else "reference"
        for name, k in KERNELS.items()
    }
    block = EvoformerBlock(block_config()).to(torch.bfloat16)
    fake_tensors = FakeTensorMode(allow_non_fake_inputs=True)
    with fake_group(size) as group, fake_tensors, set_default_implementations(names, KERNELS):
        block, inputs, weights = _prepare(block, group, s, n, torch.bfloat16)
        parameters = {p.untyped_storage()._cdata for p in block.parameters()}
        saved: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            storage = x.untyped_storage()
            if storage._cdata not in parameters:
                saved[storage._cdata] = storage.nbytes()
            return x

        with saved_tensors_hooks(pack, lambda x: x), record_sent_bytes() as forward:
            out = block(*inputs)
        with record_sent_bytes() as backward:
            torch.autograd.backward(out, weights)
    sent = {
        name: {kind: record[kind] for kind in COLLECTIVES if kind in record} | {"total": record.total()}
        for name, record in (("forward", forward), ("backward", backward))
    }
    return {"ranks": size, "saved": sum(saved.values())} | sent


def _prepare(
    block: EvoformerBlock, group: SequenceGroup, s: int, n: int, dtype: torch.dtype
) -> tuple[EvoformerBlock, Any, Any]:
    """The block in ``dtype``, its arguments and the gradients of its outputs, with the rows of one rank."""
    config = block_config()
    shards = AxialShards.divide(group, s, n)
    rows, residues = len(shards.msa[group.rank]), len(shards.residues[group.rank])
    block = block.to(dtype).train()
    m = torch.randn(1, rows, n, config.c_m, dtype=dtype, requires_grad=True)
    z = torch.randn(1, residues, n, config.c_z, dtype=dtype, requires_grad=True)
    masks = torch.ones(1, s, n, dtype=torch.bool), torch.ones(1, n, n, dtype=torch.bool)
    return block, (m, z, *masks, shards), (torch.randn_like(m), torch.randn_like(z))


def step_seconds(size: int, s: int, n: int, rounds: int) -> float:
    """Seconds of a forward and backward pass of the block on ``size`` ranks: median of the slowest rank."""
    port = free_port()
    with ProcessPoolExecutor(size, mp_context=get_context("spawn")) as pool:
        ranks = [pool.submit(_rank_seconds, rank, size, port, s, n, rounds) for rank in range(size)]
        return max(rank.result() for rank in ranks)


def _rank_seconds(rank: int, size: int, port: int, s: int, n: int, rounds: int) -> float:
    torch.set_num_threads(max(1, processor.usable_cores() // size))
    group = SINGLE_RANK
    if size > 1:
        dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
        group = SequenceGroup(rank, size, 0, 1, dist.group.WORLD)
    torch.manual_seed(0)
    block, inputs, weights = _prepare(EvoformerBlock(block_config()), group, s, n, torch.float32)

    def step() -> None:
        torch.manual_seed(0)
        torch.autograd.backward(block(*inputs), weights)
        synchronize()

    step()
    return statistics.median(timed(step) for _ in range(rounds))
