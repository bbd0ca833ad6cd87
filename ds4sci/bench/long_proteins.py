"""Benchmark of inference on long proteins: a trunk block without gradient, beside plain torch and ESMFold's trunk.

Widths of AlphaFold 2 and ESMFold, random weights, one sequence. Memory beside the weights, in units of the pair
representation, which is part of it; seconds of a block; and the longest chain in 8 GB, where one block decides, since
the memory of a block is free before the next one runs.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from ds4sci.bench.esmfold import Trunk
from ds4sci.bench.evoformer_block import PLAIN
from ds4sci.bench.measurement import Measurement, spread, write
from ds4sci.bench.memory import peak_memory_mb
from ds4sci.bench.registry import Device, JsonFile, Quick, show
from ds4sci.integrations import patch
from ds4sci.kernels import KERNELS
from ds4sci.kernels.spec import set_default_implementations
from ds4sci.machine.processor import usable_cores
from ds4sci.models.fold import EvoformerConfig
from ds4sci.nn.evoformer import BlockConfig, EvoformerBlock

COMMAND = "long_proteins"
LENGTHS = (256, 512, 1024)
LIMIT_MB = 8e3
ROUNDS = {256: 5, 512: 3}
"""Timed runs of a length; longer ones run once."""
FIT_LENGTHS = (192, 256, 320, 384)
"""Lengths of the methods whose memory grows fast, from which the longest chain is estimated."""
C_M, C_Z = 256, 128

Run = Callable[[int], float]
"""n → seconds of a block on new inputs of that length."""


def command(
    json: JsonFile,
    n: Annotated[list[int] | None, typer.Option("--n", help="Length in residues; may be repeated.")] = None,
    longest: Annotated[bool, typer.Option("--longest/--no-longest", help="Also search the longest chain.")] = True,
    device: Device = "cpu",
    quick: Quick = False,
) -> None:
    """Inference on long proteins: time and peak memory of a trunk block, longest chain in 8 GB."""
    measurement = measure((32, 48) if quick else (n or LENGTHS), torch.device(device), longest and not quick)
    write(json, asdict(measurement))
    show(measurement, json)


def evoformer(device: torch.device, *, plain: bool) -> Run:
    """An Evoformer block of one MSA row; ``plain``: the reference of every kernel, new tensors for all sums."""
    torch.manual_seed(0)
    config = EvoformerConfig().model_dump(exclude={"blocks"})
    block = EvoformerBlock(BlockConfig(c_m=C_M, c_z=C_Z, **config))
    for parameter in block.parameters():
        if parameter.dim() == 2:  # the last layers are initialized with 0
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    block = block.to(device).eval()

    def run(n: int) -> float:
        m, z = torch.randn(1, 1, n, C_M, device=device), torch.randn(1, n, n, C_Z, device=device)
        masks = (torch.ones(1, *shape, dtype=torch.bool, device=device) for shape in ((1, n), (n, n)))
        with set_default_implementations(PLAIN if plain else {}, KERNELS):
            return _seconds(lambda: block(m, z, *masks, in_place=not plain), device)

    return run


def esmfold(device: torch.device, *, patched: bool) -> Run:
    """A block of ESMFold's trunk in transformers, which computes triangle attention 128 rows at a time."""
    torch.manual_seed(0)
    trunk = Trunk(1).to(device).eval()
    if patched:
        patch(trunk)

    def run(n: int) -> float:
        s, z, mask = trunk.inputs(n)
        return _seconds(lambda: trunk(s, z, mask), device)

    return run


def _seconds(action: Callable[[], tuple[Tensor, Tensor]], device: torch.device) -> float:
    began = time.perf_counter()
    with torch.no_grad():
        action()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(lengths: Sequence[int], device: torch.device, longest: bool) -> Measurement:
    """Seconds and peak memory of every method, A B C D, and the longest chain in ``LIMIT_MB``."""
    methods = {
        "ds4sci": evoformer(device, plain=False),
        "plain torch": evoformer(device, plain=True),
        "ESMFold's trunk, patched": esmfold(device, patched=True),
        "ESMFold's trunk, transformers": esmfold(device, patched=False),
    }
    for run in methods.values():
        run(16)  # builds, warms up
    rows: list[list[Any]] = []
    for n in lengths:
        fitting = [name for name in methods if n <= 600 or name != "plain torch"]
        peaks = {name: peak_memory_mb(partial(methods[name], n), device) for name in fitting}
        times: dict[str, list[float]] = {name: [] for name in fitting}
        for _ in range(ROUNDS.get(n, 1)):
            for name in fitting:
                times[name].append(methods[name](n))
        for name in fitting:
            print(f"ds4sci:   {n} {name}: {times[name][0]:.1f} s, {peaks[name]:.0f} MB", file=sys.stderr, flush=True)
            peak = peaks[name]
            rows.append([
                n, name, statistics.median(times[name]), f"{spread(times[name]):.0%}", peak,
                None if peak is None else peak * 1e6 / (4 * C_Z * n * n),
            ])  # fmt: skip
    notes = [
        "one block, fp32, one sequence, no gradient; memory with the pair representation (c_z 128) and without the "
        "weights; ESMFold's block also updates a sequence representation of 1,024 channels",
        f"{usable_cores()} threads",
    ]
    if longest:
        found = {name: find_longest(name, run, device) for name, run in methods.items()}
        notes += [
            f"{name}: {n:,} residues fit into {LIMIT_MB / 1e3:.0f} GB ({peak / 1e3:.2f} GB, {seconds:.0f} s)"
            for name, (n, peak, seconds) in found.items()
        ]
    return Measurement(
        name="long_proteins",
        title="Inference on long proteins: a trunk block without gradient",
        command="ds4sci bench long_proteins --json long_proteins.json",
        columns=["residues", "method", "seconds", "spread", "peak memory (MB)", "in pair representations"],
        rows=rows,
        notes=notes,
    )


def find_longest(name: str, run: Run, device: torch.device) -> tuple[int, float, float]:
    """Longest chain measured to fit into ``LIMIT_MB``, its peak in MB and seconds.

    The peaks of four lengths give a polynomial a n² + b n³, whose length at the limit is measured; if it does not fit,
    3 % less is tried.
    """
    lengths = FIT_LENGTHS if name == "plain torch" else tuple(2 * n for n in FIT_LENGTHS)
    squares = torch.tensor(lengths, dtype=torch.float64)
    taken: list[float] = []
    peaks = torch.tensor([_peak(run, n, device, taken) for n in lengths], dtype=torch.float64)
    terms = torch.stack([squares**2, squares**3], 1)
    a, b = torch.linalg.lstsq(terms, peaks.unsqueeze(1)).solution.flatten().clamp(min=0).tolist()
    n = lengths[-1]
    while a * (n + 16) ** 2 + b * (n + 16) ** 3 < 0.98 * LIMIT_MB:
        n += 16
    while (peak := _peak(run, n, device, taken)) > LIMIT_MB:
        n = int(0.97 * n) // 16 * 16
    print(f"ds4sci:   longest of {name}: {n}, {peak:.0f} MB, {taken[-1]:.0f} s", file=sys.stderr, flush=True)
    return n, peak, taken[-1]


def _peak(run: Run, n: int, device: torch.device, taken: list[float]) -> float:
    peak = peak_memory_mb(lambda: taken.append(run(n)), device)
    if peak is None:
        raise ValueError("the longest chain needs a system that reports the peak memory of a process; use --no-longest")
    return peak
