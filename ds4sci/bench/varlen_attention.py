"""Benchmark of ``varlen_attention``: attention within packed documents, baseline: torch's SDPA.

One process, A B A B, medians. Figures: time of forward and of forward + backward (all gradients), and peak memory minus
the inputs.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ds4sci.bench.machine_limits import DTYPES, cpu_rates, dtype_name, machine_notes
from ds4sci.bench.measurement import Measurement, spread, time_alternately, write
from ds4sci.bench.memory import peak_memory_mb
from ds4sci.kernels import varlen_attention
from ds4sci.kernels.varlen_attention.doc_spans import document_ids

Method = Callable[[Tensor, Tensor, Tensor], Tensor]
ROUNDS, MIN_ROUNDS, TIME_BUDGET_S = 15, 5, 8.0
"""Maximum and minimum number of rounds, and seconds after which no further round begins."""


@dataclass(frozen=True)
class Row:
    """Packed row: documents of these ``lengths``, one after the other."""

    name: str
    lengths: tuple[int, ...]
    causal: bool
    h: int = 8
    d: int = 64

    @property
    def doc_spans(self) -> Tensor:
        ends = torch.tensor(self.lengths).cumsum(0)
        return torch.stack([ends - torch.tensor(self.lengths), ends], 1)

    @property
    def scores(self) -> float:
        """Number of scores that are not masked. A causal row has about half of them."""
        return self.h * sum(n * (n + 1) / 2 if self.causal else n * n for n in self.lengths)


def proteins(tokens: int, mean: int, seed: int = 0) -> tuple[int, ...]:
    """Document lengths, uniform from 0.5 to 1.5 times ``mean``, that fill a row of ``tokens``."""
    generator, lengths = torch.Generator().manual_seed(seed), list[int]()
    while (left := tokens - sum(lengths)) > 0:
        lengths.append(min(left, int(mean * (0.5 + torch.rand((), generator=generator).item()))))
    return tuple(lengths)


ROWS = (
    Row("2,048 causal", (2048,), True),
    Row("2,048 bidirectional", (2048,), False),
    Row("2,048 causal, d 32", (2048,), True, d=32),
    Row("2,048 bidirectional, d 32", (2048,), False, d=32),
    Row("8,192 causal", (8192,), True),
    Row("packed proteins of about 200, 8,192 tokens", proteins(8192, 200), False, d=32),
    Row("packed proteins of about 200, 8,192 tokens, causal", proteins(8192, 200), True, d=32),
)
QUICK = (Row("quick, packed", (40, 17, 63), False, 2, 16), Row("quick, causal", (120,), True, 2, 16))


def methods(row: Row, dtype: torch.dtype, device: torch.device) -> dict[str, tuple[Method, list[Tensor]]]:
    """Name, function and q, k, v of each method: the packed row, or for padding a batch of its documents."""
    generator = torch.Generator().manual_seed(0)
    tokens, doc_spans = sum(row.lengths), row.doc_spans
    packed = [torch.randn(tokens, row.h, row.d, generator=generator).to(device, dtype) for _ in range(3)]
    found: dict[str, tuple[Method, list[Tensor]]] = {
        "ds4sci": (lambda q, k, v: varlen_attention(q, k, v, doc_spans, causal=row.causal), packed)
    }
    if len(row.lengths) == 1:
        found["SDPA"] = (lambda q, k, v: _sdpa(q[None], k[None], v[None], None, row.causal)[0], packed)
        return found
    document = document_ids(doc_spans, tokens, device)
    same = document[:, None] == document[None, :]
    allowed = same.tril() if row.causal else same
    found["SDPA, row with a mask"] = (lambda q, k, v: _sdpa(q[None], k[None], v[None], allowed, False)[0], packed)
    found["SDPA, documents one by one"] = (
        lambda q, k, v: varlen_attention(q, k, v, doc_spans, causal=row.causal, implementation="sdpa"), packed
    )  # fmt: skip
    longest = max(row.lengths)
    real = torch.arange(longest)[None] < torch.tensor(row.lengths)[:, None]
    keep = real[:, None, None, :].to(device)
    if row.causal:
        keep = keep & torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
    padded = [x.new_zeros(len(row.lengths), longest, row.h, row.d) for x in packed]
    for batch, x in zip(padded, packed, strict=True):
        batch[real.to(device)] = x
    found["SDPA, padded batch with a mask"] = (lambda q, k, v: _sdpa(q, k, v, keep, False), padded)
    return found


def _sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """SDPA on ``[b, n, h, d]``, the layout of a model's projections."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal).transpose(1, 2)


def run_once(method: Method, given: list[Tensor], backward: bool) -> Tensor:
    """Output of ``method``. With ``backward``, all gradients are computed too."""
    if not backward:
        with torch.no_grad():
            return method(*given)
    leaves = [x.detach().requires_grad_() for x in given]
    out = method(*leaves)
    torch.autograd.grad(out, leaves, torch.ones_like(out))
    return out.detach()


def measure(row: Row, dtype: torch.dtype, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Rows (method, direction, seconds, spread, MB). Raises ValueError if the outputs of the methods differ."""
    found, rows = methods(row, dtype, device), []
    for backward in (False, True):
        actions: dict[str, Callable[[], Tensor]] = {}
        memory: dict[str, float | None] = {}
        want: Tensor | None = None
        for name, (method, given) in found.items():
            actions[name] = partial(run_once, method, given, backward)
            out = actions[name]().float()  # builds, warms up
            if out.dim() == 4:
                lengths = torch.tensor(row.lengths, device=device)
                out = out[torch.arange(out.shape[1], device=device)[None] < lengths[:, None]]
            want = out if want is None else want
            if not (difference := float((out - want).norm() / want.norm())) < 0.02:
                raise ValueError(f"{row.name}: the output of {name} differs from ds4sci's by {difference:.0%}")
            memory[name] = peak_memory_mb(actions[name], device)
        times = time_alternately(actions, rounds, min_rounds=MIN_ROUNDS, time_budget_s=TIME_BUDGET_S)
        rows += [
            {
                "case": row.name, "dtype": dtype_name(dtype), "backward": backward, "method": name,
                "seconds": statistics.median(own), "spread": spread(own), "memory_mb": memory[name],
                "flops": (14 if backward else 4) * row.scores * row.d,
                "bytes": (8 if backward else 4) * sum(row.lengths) * row.h * row.d * dtype.itemsize,
            }
            for name, own in times.items()
        ]  # fmt: skip
    return rows


def table(rows: list[dict[str, Any]]) -> list[list[Any]]:
    """One line per method: forward, forward + backward, memory, and the speed-up of ds4sci over the method."""
    lines = []
    for key in dict.fromkeys((r["case"], r["dtype"], r["method"]) for r in rows):
        forward, both = (r for r in rows if (r["case"], r["dtype"], r["method"]) == key)
        ours = [r for r in rows if (r["case"], r["dtype"], r["method"]) == (*key[:2], "ds4sci")]
        lines.append(
            [
                *key, 1e3 * forward["seconds"], 1e3 * both["seconds"], f"{both['spread']:.0%}", both["memory_mb"],
                both["flops"] / both["seconds"] / 1e9,
                *(
                    "" if r is own else f"{r['seconds'] / own['seconds']:.2f} ×"
                    for r, own in zip((forward, both), ours, strict=True)
                ),
            ]
        )  # fmt: skip
    return lines


def run(device_name: str, *, quick: bool, out: Path, rounds: int = ROUNDS) -> Measurement:
    """Measure all rows; write table and figures to ``out``."""
    device = torch.device(device_name)
    rates = cpu_rates(device)
    rows = []
    for row in QUICK if quick else ROWS:
        for dtype in DTYPES:
            print(f"ds4sci: {row.name}, {dtype} …", file=sys.stderr, flush=True)
            rows += measure(row, dtype, device, 1 if quick else rounds)
    measurement = Measurement(
        name=out.stem,
        title="Attention within packed documents, baseline: torch's scaled_dot_product_attention",
        command=f"ds4sci bench kernels --op varlen_attention --device {device_name} --json {out.name}",
        columns=[
            "case", "dtype", "method", "forward (ms)", "forward + backward (ms)", "spread", "peak memory (MB)",
            "GFLOP/s", "speed-up of ds4sci, forward", "speed-up of ds4sci, forward + backward",
        ],
        rows=table(rows),
        notes=[
            f"{torch.get_num_threads()} threads; 8 heads of 64 channels unless the case names d (proteins: 32)",
            "GFLOP/s: forward + backward, 14·d FLOP per unmasked score (7 products); memory minus the inputs",
            *machine_notes(rates),
        ],
    )  # fmt: skip
    write(out, asdict(measurement) | {"measured": rows, "rates": rates, "quick": quick})
    return measurement
