"""Benchmark of a language model's training step: ds4sci, baseline: Hugging Face's ``Trainer``.

Each method runs in processes of its own, A B C A B C, so that each peak memory belongs to one method.
"""

from __future__ import annotations

import itertools
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer

from ds4sci.bench import longest_rows
from ds4sci.bench.lm_training import KINDS, ds4sci_steps, trainer_steps
from ds4sci.bench.measurement import Measurement, spread, write
from ds4sci.bench.memory import limit_memory
from ds4sci.bench.registry import JsonFile, Quick, show
from ds4sci.machine.processor import usable_cores

COMMAND = "lm"
LENGTHS = (2048, 4096, 8192, 16384, 32768)
DTYPES = ("fp32", "bf16")
BUDGET = 1.0
"""GB of ``train.activation_budget`` of the last method. It keeps all activations of 8,192 tokens, and the outputs of
attention of 65,536."""
METHODS = ("Trainer", "Trainer, checkpointed", "ds4sci", f"ds4sci, {BUDGET:g} GB kept")
COLUMNS = [
    "model",
    "tokens",
    "dtype",
    "method",
    "seconds",
    "spread",
    "peak memory (MB)",
    "speed-up",
    "memory reduction",
]


def command(
    json: JsonFile,
    n: Annotated[
        list[int] | None, typer.Option("--n", min=64, help="Tokens per row. Repeatable. Default: 2048 to 32768.")
    ] = None,
    kind: Annotated[
        list[str] | None,
        typer.Option("--kind", metavar="NAME", help="causal_lm or masked_lm. Repeatable. Default: both."),
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option("--dtype", metavar="NAME", help="fp32 or bf16. Repeatable. Default: both.")
    ] = None,
    quick: Quick = False,
) -> None:
    """Language-model training step, ds4sci and Hugging Face's Trainer: time and peak memory."""
    for name in kind or ():
        if name not in KINDS:
            raise ValueError(f"--kind {name}: unknown kind; expected one of: {', '.join(KINDS)}")
    for name in dtype or ():
        if name not in DTYPES:
            raise ValueError(f"--dtype {name}: unknown dtype; expected one of: {', '.join(DTYPES)}")
    measurement = run(n or (), out=json, kinds=kind or (), dtypes=dtype or (), quick=quick)
    if quick or len(n or LENGTHS) < 2:
        show(measurement, json)
        return
    from ds4sci.bench.plot import plot

    show(measurement, json, plot(json))


def run(
    lengths: Sequence[int] = (), *, out: Path, kinds: Sequence[str] = (), dtypes: Sequence[str] = (),
    quick: bool = False,
) -> Measurement:  # fmt: skip
    """Measure every method at every length; write ``out`` after each length."""
    all_lengths = [256] if quick else list(lengths or LENGTHS)
    all_kinds = list(kinds or KINDS)
    rows: list[list[Any]] = []
    for n in all_lengths:
        for kind, dtype in itertools.product(all_kinds, dtypes or DTYPES):
            rows += _measure_methods(kind, n, dtype, quick)
            rows.sort(key=lambda row: (all_kinds.index(row[0]), DTYPES.index(row[2]), row[1]))
            measured = _measurement(kinds, lengths, dtypes, rows, out)
            write(out, asdict(measured) | ({"plot": out.with_suffix(".png").name} if len(all_lengths) > 1 else {}))
    return measured


def _measure_methods(kind: str, n: int, dtype: str, quick: bool) -> list[list[Any]]:
    """Rows of the table: every method on a row of ``n`` tokens."""
    rounds, steps = (1, 2) if quick else (1, 1) if n >= 16384 else (2, 3) if n >= 8192 else (3, 4)
    found: dict[str, tuple[list[float], list[int | None]]] = {method: ([], []) for method in METHODS}
    for _ in range(rounds):
        for method in METHODS:
            print(f"ds4sci: {kind}, {n} tokens, {dtype}, {method} …", file=sys.stderr, flush=True)
            times, peak = measure(method, kind, n, steps, dtype)
            found[method][0].extend(times)
            found[method][1].append(peak)
    base: tuple[float, int] | None = None
    rows: list[list[Any]] = []
    for method, (times, peaks) in found.items():
        held = [peak for peak in peaks if peak is not None]
        if not held:
            rows.append([kind, n, dtype, method, None, "out of memory", None, None, None])
            continue
        median, peak = statistics.median(times), min(held)
        if method == METHODS[0]:
            base = median, peak
        shown = f"{spread(times):.0%}" if len(times) > 1 else None
        ratios = [base[0] / median, base[1] / peak] if base else [None, None]
        rows.append([kind, n, dtype, method, median, shown, peak / 1e6, *ratios])
    return rows


def _measurement(
    kinds: Sequence[str], lengths: Sequence[int], dtypes: Sequence[str], rows: list[list[Any]], out: Path
) -> Measurement:
    return Measurement(
        name="lm",
        title="A training step of a language model (4 layers, width 256), baseline: Hugging Face's Trainer",
        command="ds4sci bench lm"
        + "".join(
            f" --{key} {value}"
            for key, values in (("kind", kinds), ("dtype", dtypes), ("n", lengths))
            for value in values
        )
        + f" --json {out.name}",
        columns=COLUMNS,
        rows=rows,
        notes=[
            "one process, AdamW, one row; bf16: Trainer's is autocast, ds4sci's DeepSpeed's, with fp32 weights in the "
            "optimizer; causal: Llama layers, one document; masked: ESM layers, the last "
            "quarter is padding; each method in its own processes, A B C A B C; peak memory of the whole process",
            "medians of 9 steps, from 8,192 tokens on of 4, after a warm-up step in each process; from 16,384 tokens "
            f"on one step without warm-up; {usable_cores()} threads",
            f"{METHODS[-1]}: train.activation_budget = {BUDGET:g}; the first step counts what layers keep, so that the "
            "second is measured",
        ],
    )


def measure(method: str, kind: str, n: int, steps: int, dtype: str = "fp32") -> tuple[list[float], int | None]:
    """Seconds of the steps and peak memory of a new process. Out of memory gives no seconds and None."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=limit_memory) as pool:
        bf16 = dtype == "bf16"
        if method.startswith("ds4sci"):
            budget = BUDGET if method == METHODS[-1] else None
            count = steps if budget is None else max(steps, 2)
            future = pool.submit(ds4sci_steps, kind, n, count, activation_budget=budget, bf16=bf16)
        else:
            future = pool.submit(trainer_steps, kind, n, "checkpointed" in method, steps, bf16=bf16)
        try:
            return future.result()
        except (MemoryError, RuntimeError) as error:
            if not longest_rows.is_out_of_memory(error):
                raise
            return [], None
