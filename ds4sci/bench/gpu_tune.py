"""Search for tile sizes of the Triton kernels of evoformer attention: ``bash launch/gpu_check.sh OUT --tune``.

For each dtype, width and kernel, the shipped config and its neighbours are timed, and the fastest is kept if it is at
least 3 % faster than the shipped one in a second, alternating measurement. Configs that spill registers or do not fit
are left out. The table is written to ``triton_configs.json`` of this checkout and to ``OUT``; what a training run
computes depends on the table only, never on a measurement during the run.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ds4sci.bench.measurement import Measurement, time_alternately, timed, write
from ds4sci.kernels import aot, triton_launch
from ds4sci.kernels.evoformer_attention import triton as host
from ds4sci.kernels.evoformer_attention import triton_configs, triton_static
from ds4sci.kernels.evoformer_attention.triton_configs import Config

WIDTHS = (16, 32)
"""Padded channels per head that are tuned: those of AlphaFold 2."""
LENGTH, ROWS, HEADS = 384, 128, 4
"""Queries and keys where an entry has no longest length; rows that share a pair bias; heads."""
MIN_GAIN = 0.03
LIMITS = {"rows": (1, 4), "block_m": (16, 128), "block_n": (16, 128), "warps": (4, 8), "stages": (1, 4)}


def neighbours(config: Config) -> Iterator[Config]:
    """Yield configs that differ from ``config`` by one step of one number, or of both sides of the tile."""
    steps: dict[str, tuple[int, ...]] = {
        name: (value // 2, value * 2) if name.startswith(("block", "warps")) else (value - 1, value + 1)
        for name, value in asdict(config).items()
    }
    changes: list[dict[str, int]] = [{name: value} for name, values in steps.items() for value in values]
    changes += [{"block_m": m, "block_n": n} for m in steps["block_m"] for n in steps["block_n"]]
    for change in changes:
        if all(LIMITS[name][0] <= value <= LIMITS[name][1] for name, value in change.items()):
            yield replace(config, **change)


def action(
    purpose: str, config: Config, *, d: int, dtype: torch.dtype, n: int, device: torch.device, rows: int = ROWS
) -> Callable[[], None]:
    """Return a function that runs one kernel with ``config``, on inputs with mask, pair bias and gate."""
    arch = triton_launch.architecture(device)
    generator = torch.Generator(device).manual_seed(0)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, device=device).to(dtype)

    q, k, v, gate, grad = (normal(1, rows, n, HEADS, d) for _ in range(5))
    bias, mask = normal(1, HEADS, n, n), torch.ones(1, rows, n, dtype=torch.bool, device=device)
    scale = d**-0.5
    out, lse, lse_low = host.forward(q, k, v, mask, bias, gate, scale)

    def choose(wanted: str, *arguments: Any) -> Config:
        return config if wanted == purpose else triton_configs.choose(wanted, *arguments)

    if purpose == "attend":
        launches = [host.plan_forward(q, k, v, mask, bias, gate, out, lse, lse_low, scale, arch, choose)]
    else:
        needs_grad = [True, True, True, False, purpose == "grad_bias", True]
        _, planned = host.plan_backward(
            grad, None, q, k, v, mask, bias, gate, out, lse, lse_low, scale, needs_grad, arch, choose
        )
        host.run(planned[:1], device)  # what the large kernels read
        kernel = "grad_keys" if purpose == "grad_keys" else "grad_queries"
        launches = [launch for launch in planned if launch.kernel == kernel]
    return lambda: host.run(launches, device)


def spills(purpose: str, config: Config, *, d: int, dtype: torch.dtype, arch: str) -> bool:
    """Whether ``config`` may not be shipped for ``arch``; unknown architectures are not compiled ahead of time."""
    if arch not in aot.ARCHITECTURES:
        return False
    point = triton_static.Point(purpose, arch, d, dtype, "ieee", None, config)
    return any(one.violations(matrix=point.matrix) for one in triton_static.build(point))


def tune(
    purpose: str, shipped: Config, time_of: Callable[[Config], float], refused: Callable[[Config], bool]
) -> tuple[Config, dict[Config, float]]:
    """Return the fastest config among ``shipped`` and its neighbours, then its neighbours, and all times."""
    times = {shipped: time_of(shipped)}
    best = shipped
    while True:
        for config in neighbours(best):
            if config not in times:
                times[config] = time_of(config)
        order = sorted(times, key=lambda config: times[config])
        fastest = next((one for one in order if one == best or (times[one] < times[best] and not refused(one))), best)
        if times[fastest] >= (1 - MIN_GAIN) * times[best]:
            return best, times
        best = fastest


def updated(table: dict[str, Any], arch: str, bits: int, d: int, purpose: str, index: int, config: Config) -> None:
    """Replace an entry of ``table``. An architecture without entries gets a copy of those that it uses."""
    if arch not in table:
        table[arch] = copy.deepcopy(table[triton_configs.family(arch)])
    entry = table[arch][str(bits)][str(d)][purpose]
    entry[index] = [entry[index][0], *asdict(config).values()]


def text_of(table: dict[str, Any]) -> str:
    """Return ``triton_configs.json`` with ``table``, in its own layout: a line for each purpose."""
    columns = json.loads(triton_configs.FILE.read_text(encoding="utf-8"))["columns"]
    archs = []
    for arch, by_bits in table.items():
        kinds = []
        for bits, by_width in by_bits.items():
            widths = [
                f'   "{d}": {{\n'
                + ",\n".join(f'    "{purpose}": {json.dumps(rows)}' for purpose, rows in purposes.items())
                + "\n   }"
                for d, purposes in by_width.items()
            ]
            kinds.append(f'  "{bits}": {{\n' + ",\n".join(widths) + "\n  }")
        archs.append(f' "{arch}": {{\n' + ",\n".join(kinds) + "\n }")
    return f'{{\n"columns": {json.dumps(columns)},\n"configs": {{\n' + ",\n".join(archs) + "\n}\n}\n"


def main(out: Path, file: Path, *, device: torch.device, widths: tuple[int, ...], n: int, rows: int) -> None:
    """Tune every entry of ``widths`` in fp32 and bf16, and write ``file`` after each."""
    arch = triton_launch.architecture(device)
    table = copy.deepcopy(triton_configs.table())
    lines: list[list[Any]] = []
    for dtype in (torch.bfloat16, torch.float32):
        bits = dtype.itemsize * 8
        for d in widths:
            for purpose in triton_static.PURPOSES:
                for index, (longest, shipped) in enumerate(triton_configs.entries(purpose, arch, d, bits)):
                    length = min(longest or n, n)

                    def make(
                        config: Config, purpose: str = purpose, d: int = d, dtype: torch.dtype = dtype, n: int = length
                    ) -> Callable[[], None]:
                        return action(purpose, config, d=d, dtype=dtype, n=n, device=device, rows=rows)

                    def time_of(config: Config) -> float:
                        try:
                            run = make(config)
                            run()
                            return statistics.median(timed(run) for _ in range(5))
                        except Exception as error:  # too much shared memory, a shape that Triton cannot compile
                            print(f"{config}: {type(error).__name__}", flush=True)
                            return float("inf")

                    best, times = tune(
                        purpose, shipped, time_of,
                        lambda config: spills(purpose, config, d=d, dtype=dtype, arch=arch),  # noqa: B023
                    )  # fmt: skip
                    gain = 1.0
                    if best != shipped:
                        found = time_alternately({"shipped": make(shipped), "best": make(best)}, 9)
                        gain = statistics.median(found["shipped"]) / statistics.median(found["best"])
                    if gain >= 1 + MIN_GAIN:
                        updated(table, arch, bits, d, purpose, index, best)
                        file.write_text(text_of(table), encoding="utf-8")
                    kept = best if gain >= 1 + MIN_GAIN else shipped
                    lines.append([purpose, str(dtype).removeprefix("torch."), d, length, len(times), str(kept), gain])
                    print(*lines[-1], flush=True)
    columns = ["kernel", "dtype", "d", "n", "configs", "kept", "speed-up over the shipped config"]
    notes = [f"{arch}; b 1, {rows} rows, {HEADS} heads; neighbours of the fastest until none is 3 % faster"]
    write(out, asdict(Measurement("tune", "Tile sizes", "bash launch/gpu_check.sh OUT --tune", columns, lines, notes)))
    out.with_name("triton_configs.json").write_text(text_of(table), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    if given.dry_run:  # the interpreter; the table of the checkout stays
        target = given.out.with_name("tuned.json")
        main(given.out, target, device=torch.device("cpu"), widths=(16,), n=16, rows=1)
    else:
        main(given.out, triton_configs.FILE, device=torch.device("cuda"), widths=WIDTHS, n=LENGTH, rows=ROWS)
