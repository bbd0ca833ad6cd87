"""``ds4sci bench esmfold``: blocks of ESMFold's trunk as transformers has them, plain and patched, side by side.

Real widths, random weights, one process, A B A B, medians. Time and peak memory over weights and inputs, forward, and
forward with the gradients of everything.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ds4sci.bench.evoformer_attention import LEAST, PATIENCE, peak_over_inputs
from ds4sci.bench.measurement import Measurement, spread, synchronize, write
from ds4sci.integrations import patch
from ds4sci.kernels import machine_peak
from ds4sci.machine import provenance

LENGTHS = (64, 128, 256)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ALIKE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Relative difference of the outputs above which nothing is measured: two blocks add up what rounding makes."""
EMULATED = 0.1
"""bf16 products slower than this share of fp32's are emulated, and not worth anybody's waiting."""
COLUMNS = ["n", "dtype", "", "plain s", "patched s", "times as fast", "plain MB", "patched MB", "times less memory"]


class Trunk(nn.Module):
    """Blocks of ESMFold's trunk with random weights, called as the trunk calls them; ``settings`` of TrunkConfig."""

    def __init__(self, blocks: int, **settings: Any) -> None:
        from transformers.models.esm.configuration_esm import TrunkConfig
        from transformers.models.esm.modeling_esmfold import EsmFoldTriangularSelfAttentionBlock

        super().__init__()
        self.config: Any = TrunkConfig(num_blocks=blocks, **settings)
        self.blocks = nn.ModuleList([EsmFoldTriangularSelfAttentionBlock(self.config) for _ in range(blocks)])
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():  # fresh ones are zero where a block adds to its input
                scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1.0
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))

    def forward(self, s: Tensor, z: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            s, z = block(s, z, mask=mask, chunk_size=self.config.chunk_size)
        return s, z

    def inputs(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """A sequence of n residues, all real: s [1, n, c_s], z [1, n, n, c_z], mask [1, n]."""
        like = next(self.parameters())
        generator = torch.Generator().manual_seed(1)
        s = torch.randn(1, n, self.config.sequence_state_dim, generator=generator).to(like)
        z = torch.randn(1, n, n, self.config.pairwise_state_dim, generator=generator).to(like)
        return s, z, torch.ones(1, n, dtype=torch.int64, device=like.device)


def step(trunk: Trunk, given: tuple[Tensor, Tensor, Tensor], backward: bool) -> list[Tensor]:
    """Outputs and, ``backward``, the gradients of half their sum of squares to inputs and weights."""
    s, z, mask = given
    if not backward:
        with torch.no_grad():
            return list(trunk(s, z, mask))
    leaves = [s.detach().requires_grad_(), z.detach().requires_grad_()]
    outputs = trunk(*leaves, mask)
    values = [x.detach() for x in outputs]
    return [*values, *torch.autograd.grad(outputs, [*leaves, *trunk.parameters()], values)]


def apart(one: list[Tensor], other: list[Tensor]) -> float:
    """The relative difference of two lists of tensors, each taken together: some gradients are nothing but rounding."""
    difference, size = (
        torch.stack([x.float().norm() for x in tensors]).norm()
        for tensors in ([x - y for x, y in zip(one, other, strict=True)], other)
    )
    return float(difference / size)


def beside(plain: Trunk, patched: Trunk, n: int, *, backward: bool, rounds: int) -> list[dict[str, Any]]:
    """Seconds, spread and peak MB of both at ``n``, and how far their outputs are apart."""
    ways = {"plain": plain, "patched": patched}
    given = plain.inputs(n)
    differ = apart(step(patched, given, False), step(plain, given, False))
    memory: dict[str, float | None] = {}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for name, trunk in ways.items():
        step(trunk, given, backward)  # builds, warms
        memory[name] = peak_over_inputs(partial(step, trunk, given, backward), given[0].device)
    started = time.perf_counter()
    for turn in range(rounds):
        if turn >= LEAST and time.perf_counter() - started > PATIENCE:
            break
        for name, trunk in ways.items():
            synchronize()
            began = time.perf_counter()
            step(trunk, given, backward)
            synchronize()
            times[name].append(time.perf_counter() - began)
    return [
        {
            "n": n, "dtype": str(given[0].dtype).removeprefix("torch."), "way": name, "backward": backward,
            "seconds": statistics.median(taken), "spread": spread(taken), "memory_mb": memory[name], "apart": differ,
        }
        for name, taken in times.items()
    ]  # fmt: skip


def table(measured: list[dict[str, Any]]) -> list[list[Any]]:
    """A line for each length, dtype and direction."""
    lines = []
    for plain, patched in zip(measured[::2], measured[1::2], strict=True):
        mb = plain["memory_mb"], patched["memory_mb"]
        lines.append(
            [
                plain["n"], plain["dtype"], "forward + backward" if plain["backward"] else "forward",
                plain["seconds"], patched["seconds"], f"{plain['seconds'] / patched['seconds']:.2f} ×", *mb,
                "–" if None in mb else f"{mb[0] / mb[1]:.2f} ×",
            ]
        )  # fmt: skip
    return lines


def run(
    lengths: Sequence[int],
    dtypes: Sequence[str],
    *,
    out: Path,
    blocks: int = 2,
    device: str = "cpu",
    quick: bool = False,
) -> Measurement:
    """Measure; the table and every figure go to ``out``. ``quick`` takes n 16 and one block.

    Raises ValueError for an unknown dtype, and where plain and patched differ by more than rounding.
    """
    unknown = set(dtypes) - set(DTYPES)
    if unknown:
        raise ValueError(f"--dtype {sorted(unknown)[0]}: there are: {', '.join(DTYPES)}")
    asked = "".join([*(f" --n {n}" for n in lengths), *(f" --dtype {name}" for name in dtypes), " --quick" * quick])
    lengths, blocks = ((16,), 1) if quick else (lengths or LENGTHS, blocks)
    dtypes = tuple(dtypes or DTYPES)
    notes = []
    if (
        device == "cpu"
        and not quick
        and machine_peak.gemm_rate(torch.bfloat16) < EMULATED * machine_peak.gemm_rate(torch.float32)
    ):
        dtypes = tuple(name for name in dtypes if name != "bfloat16")
        notes.append("torch emulates bf16 products on this processor: bf16 left out")
    measured: list[dict[str, Any]] = []
    for name in dtypes:
        plain = Trunk(blocks).to(device, DTYPES[name])
        patched = copy.deepcopy(plain)
        patch(patched, verbose=False)
        for n in lengths:
            print(f"ds4sci: n {n}, {name} …", file=sys.stderr, flush=True)
            for backward in (False, True):
                measured += beside(plain, patched, n, backward=backward, rounds=2 if quick else 7 if n < 256 else 3)
                if not measured[-1]["apart"] < ALIKE[name]:
                    raise ValueError(f"n {n}, {name}: patched and plain differ by {measured[-1]['apart']:.1e}")
    widths = plain.config
    measurement = Measurement(
        name=out.stem,
        title=f"ESMFold's trunk, {blocks} block{'s' * (blocks > 1)}, plain and patched",
        command=f"ds4sci bench esmfold --blocks {blocks} --device {device}{asked} --json {out.name}",
        columns=COLUMNS,
        rows=table(measured),
        notes=[
            f"transformers' modules with random weights, c_s {widths.sequence_state_dim}, c_z "
            f"{widths.pairwise_state_dim}, heads of {widths.sequence_head_width} and {widths.pairwise_head_width}, "
            f"batch 1, chunk size {widths.chunk_size} as the model has it",
            "MB over weights and inputs, gradients included",
            "outputs differ by at most "
            + ", ".join(f"{max(r['apart'] for r in measured if r['dtype'] == d):.0e} in {d}" for d in dtypes),
            *notes,
            f"transformers {provenance.describe()['versions']['transformers']}, {torch.get_num_threads()} threads",
        ],
    )
    write(out, asdict(measurement) | {"measured": measured, "quick": quick})
    return measurement
