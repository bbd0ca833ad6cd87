"""Benchmark of ``ds4sci.integrations.patch`` on ESMFold: trunk blocks of transformers, unpatched and patched.

Real widths, random weights, one process, A B A B, medians. Figures: time of forward and of forward + backward (all
gradients), and peak memory minus weights and inputs.
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from ds4sci.bench.machine_limits import EMULATED_RATIO
from ds4sci.bench.measurement import Measurement, spread, time_alternately, write
from ds4sci.bench.memory import peak_memory_mb
from ds4sci.bench.registry import Device, JsonFile, Quick, show
from ds4sci.integrations import patch
from ds4sci.kernels import machine_peak
from ds4sci.machine import provenance

LENGTHS = (64, 128, 256)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MAX_DIFFERENCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""Largest relative difference of the outputs: rounding accumulates over two blocks. Beyond it the benchmark fails."""
TIME_BUDGET_S = 10.0
"""Seconds after which no further round begins."""
COLUMNS = [
    "n", "dtype", "direction", "unpatched (s)", "patched (s)", "speed-up", "unpatched peak (MB)",
    "patched peak (MB)", "memory reduction",
]  # fmt: skip


class Trunk(nn.Module):
    """Blocks of ESMFold's trunk with random weights, called as the trunk calls them. ``settings`` go to TrunkConfig."""

    def __init__(self, blocks: int, **settings: Any) -> None:
        from transformers.models.esm.configuration_esm import TrunkConfig
        from transformers.models.esm.modeling_esmfold import EsmFoldTriangularSelfAttentionBlock

        super().__init__()
        self.config: Any = TrunkConfig(num_blocks=blocks, **settings)
        self.blocks = nn.ModuleList([EsmFoldTriangularSelfAttentionBlock(self.config) for _ in range(blocks)])
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():  # the default initialization has zeros where a block adds to its input
                scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 1.0
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))

    def forward(self, s: Tensor, z: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        for block in self.blocks:
            s, z = block(s, z, mask=mask, chunk_size=self.config.chunk_size)
        return s, z

    def inputs(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs for n residues without padding: s [1, n, c_s], z [1, n, n, c_z], mask [1, n]."""
        like = next(self.parameters())
        generator = torch.Generator().manual_seed(1)
        s = torch.randn(1, n, self.config.sequence_state_dim, generator=generator).to(like)
        z = torch.randn(1, n, n, self.config.pairwise_state_dim, generator=generator).to(like)
        return s, z, torch.ones(1, n, dtype=torch.int64, device=like.device)


def step(trunk: Trunk, given: tuple[Tensor, Tensor, Tensor], backward: bool) -> list[Tensor]:
    """Outputs and, if ``backward``, the gradients of half their sum of squares with respect to inputs and weights."""
    s, z, mask = given
    if not backward:
        with torch.no_grad():
            return list(trunk(s, z, mask))
    leaves = [s.detach().requires_grad_(), z.detach().requires_grad_()]
    outputs = trunk(*leaves, mask)
    values = [x.detach() for x in outputs]
    return [*values, *torch.autograd.grad(outputs, [*leaves, *trunk.parameters()], values)]


def relative_difference(one: list[Tensor], other: list[Tensor]) -> float:
    """Relative difference of two lists of tensors, each as one vector, because some gradients are only rounding."""
    difference, size = (
        torch.stack([x.float().norm() for x in tensors]).norm()
        for tensors in ([x - y for x, y in zip(one, other, strict=True)], other)
    )
    return float(difference / size)


def compare(unpatched: Trunk, patched: Trunk, n: int, *, backward: bool, rounds: int) -> list[dict[str, Any]]:
    """Seconds, spread and peak MB of both trunks at ``n``, and the relative difference of their outputs."""
    given = unpatched.inputs(n)
    difference = relative_difference(step(patched, given, False), step(unpatched, given, False))
    trunks = {"unpatched": unpatched, "patched": patched}
    actions = {name: partial(step, trunk, given, backward) for name, trunk in trunks.items()}
    memory: dict[str, float | None] = {}
    for name, action in actions.items():
        action()  # builds, warms up
        memory[name] = peak_memory_mb(action, given[0].device)
    times = time_alternately(actions, rounds, time_budget_s=TIME_BUDGET_S)
    return [
        {
            "n": n, "dtype": str(given[0].dtype).removeprefix("torch."), "method": name, "backward": backward,
            "seconds": statistics.median(taken), "spread": spread(taken), "memory_mb": memory[name],
            "difference": difference,
        }
        for name, taken in times.items()
    ]  # fmt: skip


def table(measured: list[dict[str, Any]]) -> list[list[Any]]:
    """One line per length, dtype and direction."""
    lines = []
    for unpatched, patched in zip(measured[::2], measured[1::2], strict=True):
        mb = unpatched["memory_mb"], patched["memory_mb"]
        lines.append(
            [
                unpatched["n"], unpatched["dtype"], "forward + backward" if unpatched["backward"] else "forward",
                unpatched["seconds"], patched["seconds"], f"{unpatched['seconds'] / patched['seconds']:.2f} ×", *mb,
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
    """Measure; write table and figures to ``out``. ``quick`` measures n 16 and one block.

    Raises ValueError for an unknown dtype, and if the outputs differ by more than ``MAX_DIFFERENCE``.
    """
    unknown = set(dtypes) - set(DTYPES)
    if unknown:
        raise ValueError(f"--dtype {sorted(unknown)[0]}: unknown dtype; expected one of: {', '.join(DTYPES)}")
    options = "".join([*(f" --n {n}" for n in lengths), *(f" --dtype {name}" for name in dtypes), " --quick" * quick])
    lengths, blocks = ((16,), 1) if quick else (lengths or LENGTHS, blocks)
    dtypes = tuple(dtypes or DTYPES)
    notes = []
    if (
        device == "cpu"
        and not quick
        and machine_peak.gemm_rate(torch.bfloat16) < EMULATED_RATIO * machine_peak.gemm_rate(torch.float32)
    ):
        dtypes = tuple(name for name in dtypes if name != "bfloat16")
        notes.append("torch emulates bf16 products on this CPU: bf16 not measured")
    measured: list[dict[str, Any]] = []
    for name in dtypes:
        unpatched = Trunk(blocks).to(device, DTYPES[name])
        patched = copy.deepcopy(unpatched)
        patch(patched, verbose=False)
        for n in lengths:
            print(f"ds4sci: n {n}, {name} …", file=sys.stderr, flush=True)
            for backward in (False, True):
                measured += compare(
                    unpatched, patched, n, backward=backward, rounds=2 if quick else 7 if n < 256 else 3
                )
                if not measured[-1]["difference"] < MAX_DIFFERENCE[name]:
                    found = measured[-1]["difference"]
                    raise ValueError(
                        f"n {n}, {name}: the outputs of the patched and the unpatched trunk differ by {found:.1e}, "
                        f"more than {MAX_DIFFERENCE[name]:.0e}"
                    )
    widths = unpatched.config
    measurement = Measurement(
        name=out.stem,
        title=f"ESMFold's trunk, {blocks} block{'s' * (blocks > 1)}, patched; baseline: unpatched",
        command=f"ds4sci bench esmfold --blocks {blocks} --device {device}{options} --json {out.name}",
        columns=COLUMNS,
        rows=table(measured),
        notes=[
            f"transformers' modules with random weights, c_s {widths.sequence_state_dim}, c_z "
            f"{widths.pairwise_state_dim}, heads of {widths.sequence_head_width} and {widths.pairwise_head_width}, "
            f"batch 1, chunk size {widths.chunk_size} as in the model",
            "memory minus weights and inputs, gradients included",
            "largest relative difference of the outputs: "
            + ", ".join(f"{max(r['difference'] for r in measured if r['dtype'] == d):.0e} in {d}" for d in dtypes),
            *notes,
            f"transformers {provenance.describe()['versions']['transformers']}, {torch.get_num_threads()} threads",
        ],
    )
    write(out, asdict(measurement) | {"measured": measured, "quick": quick})
    return measurement


def command(
    json: JsonFile,
    n: Annotated[
        list[int] | None, typer.Option("--n", min=2, help="Number of residues. Repeatable. Default: 64, 128, 256.")
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option("--dtype", metavar="NAME", help="float32 or bfloat16. Repeatable. Default: both."),
    ] = None,
    blocks: Annotated[int, typer.Option("--blocks", min=1, help="Number of trunk blocks.")] = 2,
    device: Device = "cpu",
    quick: Quick = False,
) -> None:
    """ESMFold with and without ds4sci.integrations.patch: time and peak memory of trunk blocks."""
    show(run(n or (), dtype or (), out=json, blocks=blocks, device=device, quick=quick), json)
