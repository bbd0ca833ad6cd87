"""``ds4sci bench kernels --op varlen_attention``: attention within documents beside torch's own, whole and padded.

One process, A B A B, medians; forward alone, and with all gradients; peak memory over the inputs.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ds4sci.bench.evoformer_attention import BOTH, forced, machine_rates, peak_over_inputs
from ds4sci.bench.measurement import Measurement, spread, synchronize, write
from ds4sci.kernels import varlen_attention
from ds4sci.kernels.varlen_attention.doc_spans import document_ids

Way = Callable[[Tensor, Tensor, Tensor], Tensor]
ROUNDS, LEAST, PATIENCE = 15, 5, 8.0
"""Rounds at most, rounds that are always made, and seconds after which no further one begins."""


@dataclass(frozen=True)
class Row:
    """Documents of these ``lengths``, one after the other."""

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
        """That count: half of them where the row is causal."""
        return self.h * sum(n * (n + 1) / 2 if self.causal else n * n for n in self.lengths)


def proteins(tokens: int, mean: int, seed: int = 0) -> tuple[int, ...]:
    """Lengths from half to one and a half times ``mean`` that fill a row of ``tokens``."""
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
    Row("the same, causal", proteins(8192, 200), True, d=32),
)
QUICK = (Row("quick, packed", (40, 17, 63), False, 2, 16), Row("quick, causal", (120,), True, 2, 16))


def ways(row: Row, dtype: torch.dtype, device: torch.device) -> dict[str, tuple[Way, list[Tensor]]]:
    """Name, function and q, k, v of each contender: the packed row, or for ``padded`` a batch of its documents."""
    generator = torch.Generator().manual_seed(0)
    tokens, doc_spans = sum(row.lengths), row.doc_spans
    packed = [torch.randn(tokens, row.h, row.d, generator=generator).to(device, dtype) for _ in range(3)]
    found: dict[str, tuple[Way, list[Tensor]]] = {
        "ds4sci": (lambda q, k, v: varlen_attention(q, k, v, doc_spans, causal=row.causal), packed)
    }
    if len(row.lengths) == 1:
        found["SDPA"] = (lambda q, k, v: _torchs(q[None], k[None], v[None], None, row.causal)[0], packed)
        return found
    document = document_ids(doc_spans, tokens, device)
    same = document[:, None] == document[None, :]
    whole = same.tril() if row.causal else same
    found["SDPA, row with a mask"] = (lambda q, k, v: _torchs(q[None], k[None], v[None], whole, False)[0], packed)
    found["SDPA, documents one by one"] = (
        lambda q, k, v: varlen_attention(q, k, v, doc_spans, causal=row.causal, implementation="sdpa"), packed
    )  # fmt: skip
    longest = max(row.lengths)
    real = torch.arange(longest)[None] < torch.tensor(row.lengths)[:, None]
    keep = real[:, None, None, :].to(device)
    if row.causal:
        keep = keep & torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
    padded = [x.new_zeros(len(row.lengths), longest, row.h, row.d) for x in packed]
    for whole_batch, x in zip(padded, packed, strict=True):
        whole_batch[real.to(device)] = x
    found["SDPA, padded batch with a mask"] = (lambda q, k, v: _torchs(q, k, v, keep, False), padded)
    return found


def _torchs(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """``[b, n, h, d]``, as models' projections make them."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal).transpose(1, 2)


def once(way: Way, given: list[Tensor], backward: bool) -> Tensor:
    if not backward:
        with torch.no_grad():
            return way(*given)
    leaves = [x.detach().requires_grad_() for x in given]
    out = way(*leaves)
    torch.autograd.grad(out, leaves, torch.ones_like(out))
    return out.detach()


def measure(row: Row, dtype: torch.dtype, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    """Rows (contender, direction, seconds, spread, MB). Raises ValueError when their numbers differ."""
    found, rows = ways(row, dtype, device), []
    for backward in (False, True):
        times: dict[str, list[float]] = {name: [] for name in found}
        memory: dict[str, float | None] = {}
        want: Tensor | None = None
        for name, (way, given) in found.items():
            out = once(way, given, backward).float()  # builds, warms
            if out.dim() == 4:
                lengths = torch.tensor(row.lengths, device=device)
                out = out[torch.arange(out.shape[1], device=device)[None] < lengths[:, None]]
            want = out if want is None else want
            if not (apart := float((out - want).norm() / want.norm())) < 0.02:
                raise ValueError(f"{row.name}: the numbers of {name} differ by {apart:.0%}")
            memory[name] = peak_over_inputs(lambda w=way, x=given: once(w, x, backward), device)  # type: ignore[misc]  # noqa: B023
        started = time.perf_counter()
        for turn in range(rounds):
            if turn >= LEAST and time.perf_counter() - started > PATIENCE:
                break
            for name, (way, given) in found.items():
                synchronize()
                began = time.perf_counter()
                once(way, given, backward)
                synchronize()
                times[name].append(time.perf_counter() - began)
        rows += [
            {
                "case": row.name, "dtype": str(dtype).removeprefix("torch."), "backward": backward, "way": name,
                "seconds": statistics.median(own), "spread": spread(own), "memory_mb": memory[name],
                "flops": (14 if backward else 4) * row.scores * row.d,
            }
            for name, own in times.items()
        ]  # fmt: skip
    return rows


def table(rows: list[dict[str, Any]]) -> list[list[Any]]:
    """A line for each contender: forward, forward and backward, how much faster and leaner ours is."""
    lines = []
    for key in dict.fromkeys((r["case"], r["dtype"], r["way"]) for r in rows):
        ahead, both = (r for r in rows if (r["case"], r["dtype"], r["way"]) == key)
        ours = [r for r in rows if (r["case"], r["dtype"], r["way"]) == (*key[:2], "ds4sci")]
        lines.append(
            [
                *key, 1e3 * ahead["seconds"], 1e3 * both["seconds"], f"{both['spread']:.0%}", both["memory_mb"],
                both["flops"] / both["seconds"] / 1e9,
                *(
                    "" if r is own else f"{r['seconds'] / own['seconds']:.2f} ×"
                    for r, own in zip((ahead, both), ours, strict=True)
                ),
            ]
        )  # fmt: skip
    return lines


def run(device_name: str, *, quick: bool, out: Path) -> Measurement:
    """Measure; the table and every figure go to ``out``."""
    device = torch.device(device_name)
    rates = machine_rates() if device.type == "cpu" else {}
    rows = []
    for row in QUICK if quick else ROWS:
        for dtype in BOTH:
            print(f"ds4sci: {row.name}, {dtype} …", file=sys.stderr, flush=True)
            rows += measure(row, dtype, device, 1 if quick else ROUNDS)
    measurement = Measurement(
        name=out.stem,
        title="Attention within documents beside torch's scaled_dot_product_attention",
        command=f"ds4sci bench kernels --op varlen_attention --device {device_name}",
        columns=[
            "case", "dtype", "", "forward ms", "forward + backward ms", "spread", "MB over inputs", "GFLOP/s",
            "ds4sci is faster, forward", "forward + backward",
        ],
        rows=table(rows),
        notes=[
            f"{torch.get_num_threads()} threads; 8 heads, of 64 channels where no d is told (proteins: 32)",
            "GFLOP/s: forward + backward, 14·d for each score that counts (7 products)",
            "in the same run: " + ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items()),
            *forced(),
        ],
    )  # fmt: skip
    write(out, asdict(measurement) | {"measured": rows, "rates": rates, "quick": quick})
    return measurement
