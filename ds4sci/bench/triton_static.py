"""Static figures of the shipped Triton configs, compiled without a GPU: ``python -m ds4sci.bench.triton_static``.

The figures are registers, shared memory and instructions, not speed. The result is
``benchmarks/triton_evoformer_attention_static.json``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ds4sci.bench.measurement import FOLDER, Measurement
from ds4sci.kernels.evoformer_attention import triton_static
from ds4sci.kernels.evoformer_attention.triton_static import Point, points

COMMAND = "python -m ds4sci.bench.triton_static"


@dataclass(frozen=True)
class Table(Measurement):
    """``rows`` is a selection for the table. ``points`` has every config with the figures of each launch."""

    points: list[dict[str, Any]] = field(default_factory=list)


def rows(built: list[dict[str, Any]]) -> Iterator[list[Any]]:
    """Rows of the table: 32 channels in bf16, lengths without a limit."""
    for entry in built:
        point, config, stats = entry["point"], entry["config"], entry["launches"][-1]
        purpose, arch, d, kind, longest = point.split("-")
        if (d, kind, longest) == ("d32", "bfloat16", "any"):
            matrix = triton_static.MATRIX[arch]
            tile = f"{config['rows']} × {config['block_m']} × {config['block_n']}"
            yield [
                purpose, arch, tile, config["warps"], stats["registers"], stats["spilled"],
                stats["shared"] / 1024, f"{stats['mix'][matrix]} {matrix}", stats["mix"].get("exp2", 0),
                stats["instructions"],
            ]  # fmt: skip


def measure(chosen: list[Point]) -> Table:
    """Compile every config and collect its figures."""
    built = []
    for i, point in enumerate(chosen, 1):
        print(f"\r{i}/{len(chosen)} {point}\033[K", end="", file=sys.stderr, flush=True)
        all_stats = [asdict(stats) for stats in triton_static.build(point)]
        built.append({"point": str(point), "config": asdict(point.config), "launches": all_stats})
    print(file=sys.stderr)
    return Table(
        name="triton_evoformer_attention_static",
        title="Evoformer attention in Triton: static figures of the compiled kernels (not run)",
        command=COMMAND,
        columns=[
            "kernel", "compiled for", "tile (rows × queries × keys)", "warps", "registers", "spilled bytes",
            "shared memory (KB)", "matrix instructions", "exp2", "instructions",
        ],
        rows=list(rows(built)),
        notes=[
            "d 32, bf16, bool mask, pair bias, gate; grad_bias: gradients of queries and pair bias in one kernel",
            "instructions: static count of the whole kernel in the binary",
        ],
        points=built,
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Write the table, or with ``--arch`` print figures. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder to write the JSON to")
    parser.add_argument(
        "--arch", action="append", help="such as sm_90: print the figures of this architecture only, write nothing"
    )
    parser.add_argument("--d", type=int, action="append", help="channels per head, with --arch")
    options = parser.parse_args(arguments)
    if options.arch:
        for point in points(tuple(options.arch), tuple(options.d or triton_static.WIDTHS)):
            for stats in triton_static.build(point):
                print(point, *(f"{name} {value}" for name, value in asdict(stats).items()))
        return 0
    print(measure(list(points())).save(options.folder))
    return 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
