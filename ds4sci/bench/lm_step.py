"""Benchmark of a language model's training step: ds4sci, baseline: Hugging Face's ``Trainer``.

Each method runs in processes of its own, A B C A B C, so that each peak memory belongs to one method.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer

from ds4sci.bench import lm_longest
from ds4sci.bench.lm_training import KINDS, ds4sci_steps, trainer_steps
from ds4sci.bench.measurement import Measurement, spread, write
from ds4sci.bench.memory import limit_memory
from ds4sci.bench.registry import JsonFile, Quick, show
from ds4sci.machine.processor import usable_cores

COMMAND = "lm"
LENGTHS = (2048, 4096, 8192, 16384, 32768)
METHODS = ("Trainer", "Trainer, checkpointed", "ds4sci")
COLUMNS = ["model", "tokens", "method", "seconds", "spread", "peak memory (MB)", "speed-up", "memory reduction"]


def command(
    json: JsonFile,
    n: Annotated[
        list[int] | None, typer.Option("--n", min=64, help="Tokens per row. Repeatable. Default: 2048 to 32768.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option("--kind", metavar="NAME", help="causal_lm or masked_lm. Repeatable. Default: both."),
    ] = None,
    longest: Annotated[
        bool, typer.Option("--longest/--no-longest", help="Also search for the longest row that trains in 8 GB.")
    ] = True,
    quick: Quick = False,
) -> None:
    """Language-model training step, ds4sci and Hugging Face's Trainer: time, peak memory, longest row in 8 GB."""
    for name in kind or ():
        if name not in KINDS:
            raise ValueError(f"--kind {name}: unknown kind; expected one of: {', '.join(KINDS)}")
    measurement = run(n or (), out=json, kinds=kind or (), quick=quick, longest=longest)
    if quick or len(n or LENGTHS) < 2:
        show(measurement, json)
        return
    from ds4sci.bench.plot import plot

    show(measurement, json, plot(json))


def run(
    lengths: Sequence[int] = (), *, out: Path, kinds: Sequence[str] = (), quick: bool = False, longest: bool = True
) -> Measurement:
    """Measure every method at every length, then search for the longest row; write ``out`` after each length."""
    all_lengths = [256] if quick else list(lengths or LENGTHS)
    all_kinds = list(kinds or KINDS)
    rows: list[list[Any]] = []
    for n in all_lengths:
        for kind in all_kinds:
            rows += _measure_methods(kind, n, quick)
            rows.sort(key=lambda row: (all_kinds.index(row[0]), row[1]))
            measured = _measurement(kinds, lengths, rows, out)
            write(out, asdict(measured) | ({"plot": out.with_suffix(".png").name} if len(all_lengths) > 1 else {}))
    if longest and not quick:
        write(out.with_name(f"{out.stem}_longest.json"), asdict(lm_longest.search(all_kinds, out)))
    return measured


def _measure_methods(kind: str, n: int, quick: bool) -> list[list[Any]]:
    """Rows of the table: every method on a row of ``n`` tokens."""
    rounds, steps = (1, 2) if quick else (1, 1) if n >= 16384 else (3, 4)
    found: dict[str, tuple[list[float], list[int | None]]] = {method: ([], []) for method in METHODS}
    for _ in range(rounds):
        for method in METHODS:
            print(f"ds4sci: {kind}, {n} tokens, {method} …", file=sys.stderr, flush=True)
            times, peak = measure(method, kind, n, steps)
            found[method][0].extend(times)
            found[method][1].append(peak)
    base: tuple[float, int] | None = None
    rows: list[list[Any]] = []
    for method, (times, peaks) in found.items():
        held = [peak for peak in peaks if peak is not None]
        if not held:
            rows.append([kind, n, method, None, "out of memory", None, None, None])
            continue
        median, peak = statistics.median(times), min(held)
        if method == METHODS[0]:
            base = median, peak
        shown = f"{spread(times):.0%}" if len(times) > 1 else None
        ratios = [base[0] / median, base[1] / peak] if base else [None, None]
        rows.append([kind, n, method, median, shown, peak / 1e6, *ratios])
    return rows


def _measurement(kinds: Sequence[str], lengths: Sequence[int], rows: list[list[Any]], out: Path) -> Measurement:
    return Measurement(
        name="lm",
        title="A training step of a language model (4 layers, width 256), baseline: Hugging Face's Trainer",
        command="ds4sci bench lm"
        + "".join([*(f" --kind {k}" for k in kinds), *(f" --n {n}" for n in lengths), f" --json {out.name}"]),
        columns=COLUMNS,
        rows=rows,
        notes=[
            "one process, fp32, AdamW, one row; causal: Llama layers, one document; masked: ESM layers, the last "
            "quarter is padding; each method in its own processes, A B C A B C; peak memory of the whole process",
            "medians of 9 steps after 3 warm-up steps; from 16,384 tokens on one step without warm-up; "
            f"{usable_cores()} threads",
        ],
    )


def measure(method: str, kind: str, n: int, steps: int) -> tuple[list[float], int | None]:
    """Seconds of the steps and peak memory of a new process. Out of memory gives no seconds and None."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=limit_memory) as pool:
        if method == "ds4sci":
            future = pool.submit(ds4sci_steps, kind, n, steps)
        else:
            future = pool.submit(trainer_steps, kind, n, "checkpointed" in method, steps)
        try:
            return future.result()
        except (MemoryError, RuntimeError) as error:
            if not lm_longest.is_out_of_memory(error):
                raise
            return [], None
