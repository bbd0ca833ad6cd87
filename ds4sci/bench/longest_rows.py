"""Benchmark: the longest row on which a language model trains within 8 GB per process, by search."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from typing import Annotated, Any

import typer

from ds4sci.bench.lm_training import HEADS, ds4sci_steps, trainer_steps
from ds4sci.bench.measurement import Measurement, write
from ds4sci.bench.memory import limit_memory
from ds4sci.bench.registry import JsonFile, Quick, show
from ds4sci.train.distributed import free_port, rank_variables

COMMAND = "longest_rows"
MEMORY_LIMIT = 8e9
"""Bytes that a process may hold."""
DOCUMENT = 128
"""Tokens per document in ds4sci's rows."""
CHUNK = 1024
"""Tokens of ``model.chunk_tokens``."""
MODELS: dict[str, dict[str, Any]] = {
    "causal": {"kind": "causal_lm"},
    "causal, 4:1 grouped queries": {"kind": "causal_lm", "key_heads": HEADS // 4},
    "causal, bf16": {"kind": "causal_lm", "bf16": True},
    "masked": {"kind": "masked_lm"},
}
"""Name → arguments of ``ds4sci_steps`` and ``trainer_steps``."""
METHODS: dict[str, dict[str, Any]] = {
    "Trainer": {"checkpointed": False},
    "Trainer, checkpointed": {"checkpointed": True},
    "ds4sci": {},
    "ds4sci, chunks": {"chunk_tokens": CHUNK},
    "ds4sci, 2 ranks": {"sequence": 2},
    "ds4sci, chunks, 2 ranks": {"chunk_tokens": CHUNK, "sequence": 2},
}
"""Name → further arguments."""
COLUMNS = ["model", "method", "longest row in 8 GB (tokens)", "relative to Trainer"]


def command(
    json: JsonFile,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME", help=f"{'; '.join(MODELS)}. Repeatable. Default: all."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method", metavar="NAME", help=f"{'; '.join(METHODS)}. Repeatable. Default: all. Trainer always runs."
        ),
    ] = None,
    quick: Quick = False,
) -> None:
    """Longest row that a language model trains on in 8 GB per process: ds4sci and Hugging Face's Trainer."""
    for name in model or ():
        if name not in MODELS:
            raise ValueError(f"--model {name}: unknown model; expected one of: {'; '.join(MODELS)}")
    models = model or list(MODELS)
    for name in method or ():
        if name not in METHODS:
            raise ValueError(f"--method {name}: unknown method; expected one of: {'; '.join(METHODS)}")
    chosen = method or (["ds4sci, chunks"] if quick else METHODS)
    methods = [name for name in METHODS if name == "Trainer" or name in chosen]
    rows: list[list[Any]] = []
    for name in models:
        found: dict[str, int] = {}
        for way in methods:
            print(f"ds4sci: the longest row, {name}, {way} …", file=sys.stderr, flush=True)
            peak, ranks = _probe(name, way), METHODS[way].get("sequence", 1)
            first, limit = (2048, 1.5e9) if quick else (32768 * ranks, MEMORY_LIMIT)
            found[way] = find_longest(peak, first=first, limit=limit)
            rows.append([name, way, found[way], found[way] / found["Trainer"]])
            measurement = _measurement({"model": model or (), "method": method or ()}, rows, json.name)
            write(json, asdict(measurement))
    show(measurement, json)


def _measurement(options: dict[str, Sequence[str]], rows: list[list[Any]], file: str) -> Measurement:
    return Measurement(
        name="longest_rows",
        title="Longest row that trains in 8 GB per process, 4 layers, width 256",
        command="ds4sci bench longest_rows"
        + "".join(f' --{key} "{name}"' for key, names in options.items() for name in names)
        + f" --json {file}",
        columns=COLUMNS,
        rows=rows,
        notes=[
            "exact to 2 %, found by running steps; this measures memory, not time. bf16: Trainer's is autocast, "
            "ds4sci's DeepSpeed's, with fp32 weights in the optimizer",
            f"chunks: model.chunk_tokens = {CHUNK:,}; 2 ranks: parallel.sequence = 2, each with 8 GB",
            f"ds4sci's rows consist of documents of {DOCUMENT:,} tokens. Of one whole document, attention packs keys: "
            "0.64 KB more per token and thread. Of a masked row, the last quarter is padding",
            "in all methods, matrix products return zeros without arithmetic, and so does Trainer's causal attention: "
            "the tensors are the same (peaks of causal rows agree to 3 %, tests/bench/test_longest_rows.py)",
        ],
    )


def _probe(model: str, method: str) -> Callable[[int], int]:
    """Function from n to the peak bytes of a step. Out of memory counts as more than ``MEMORY_LIMIT``."""
    arguments, more = MODELS[model], METHODS[method]

    def peak(n: int) -> int:
        if more.get("sequence", 1) > 1:
            return _two_ranks(n, arguments | more)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=limit_memory) as pool:
            try:
                if method.startswith("ds4sci"):
                    return pool.submit(ds4sci_memory, n, arguments | more).result()
                return pool.submit(trainer_memory, n=n, **arguments, **more).result()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                return int(4 * MEMORY_LIMIT)

    return peak


def ds4sci_memory(n: int, arguments: dict[str, Any]) -> int:
    """Peak bytes of a step with ds4sci, without the arithmetic of matrix products."""
    from ds4sci.bench.stand_ins import ProductStandIn

    return ds4sci_steps(n=n, steps=1, document=DOCUMENT, step_context=ProductStandIn, **arguments)[1]


def trainer_memory(kind: str, n: int, checkpointed: bool, **more: Any) -> int:
    """Peak bytes of a step with ``Trainer``, without the arithmetic of matrix products and causal attention."""
    import torch

    from ds4sci.bench.stand_ins import ProductStandIn, attention_stand_in

    if kind == "causal_lm":
        torch.nn.functional.scaled_dot_product_attention = attention_stand_in  # type: ignore[assignment]
    with ProductStandIn():
        return trainer_steps(kind, n, checkpointed, 1, **more)[1]


def _two_ranks(n: int, arguments: dict[str, Any]) -> int:
    port = free_port()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        ranks = [pool.submit(_step_of_rank, rank, port, n, arguments) for rank in range(2)]
        return max(rank.result() for rank in ranks)


def _step_of_rank(rank: int, port: int, n: int, arguments: dict[str, Any]) -> int:
    os.environ.update(rank_variables(rank, 2, port))
    return ds4sci_memory(n, arguments)


def find_longest(
    peak: Callable[[int], int], step: int = 1024, first: int = 32768, limit: float = MEMORY_LIMIT, unit: str = "tokens"
) -> int:
    """Largest multiple of ``step`` whose peak is within ``limit`` bytes, to 2 %.

    Three short lengths decide whether memory grows linearly or quadratically. The length at which that curve meets the
    limit is measured, and then refined by linear interpolation between the lengths on both sides of the limit.
    """
    known: dict[int, int] = {}

    def measured(n: int) -> int:
        if n in known:
            return known[n]
        print(f"ds4sci:   {n:,} {unit} …", end="", file=sys.stderr, flush=True)
        known[n] = peak(n)
        print(f" {known[n] / 1e9:.2f} GB", file=sys.stderr, flush=True)
        return known[n]

    while measured(first) > 0.5 * limit and first > step:
        first //= 2
    # four times the length takes at most four times the memory of twice the length
    fits = 4 * measured(2 * first) <= limit
    measured(4 * first if fits else first * 3 // 2)
    a, b, c = sorted(known)[:3]
    first_slope, second_slope = ((known[y] - known[x]) / (y - x) for x, y in ((a, b), (b, c)))
    quadratic = (second_slope - first_slope) / (c - a) if second_slope > 1.15 * first_slope else 0.0
    slope = first_slope - quadratic * (a + b) if quadratic else (known[c] - known[a]) / (c - a)
    available = 0.99 * limit - known[a] + slope * a + quadratic * a * a  # = slope·n + quadratic·n²
    if quadratic:
        n = (math.sqrt(slope * slope + 4 * quadratic * available) - slope) / (2 * quadratic)
    else:
        n = available / slope
    for _ in range(6):
        n = int(n) // step * step
        if n in known or 0.98 * limit <= measured(n) <= limit:
            break
        low = max(x for x, held in known.items() if held <= limit)
        high = min((x for x, held in known.items() if held > limit), default=None)
        if high is None:  # extrapolate from the last two lengths
            low, high = sorted(known)[-2:]
        n = low + (0.99 * limit - known[low]) * (high - low) / (known[high] - known[low])
    return max(x for x, held in known.items() if held <= limit)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed in Python or in torch's CPU allocator."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error)
