"""Headline results: one row per claim, computed from the JSON files of ``benchmarks/``.

To add a claim, add a ``Claim``. The table is part of README.md; ``docs/results.md`` has the full tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Figures = dict[str, Any]
"""A JSON file of ``benchmarks/``."""
BOTH = "forward + backward"


@dataclass(frozen=True)
class Claim:
    """``text`` of the claim, ``file`` with the measurement, ``figure`` that computes the cell, and the ``baseline``."""

    text: str
    file: str
    figure: Callable[[Figures], str]
    baseline: str


def records(figures: Figures, **conditions: Any) -> list[dict[str, Any]]:
    """Rows of the table as dictionaries by column. ``conditions``: values that the columns must have."""
    table = figures.get("table", figures)
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    return [row for row in rows if all(row[column] == value for column, value in conditions.items())]


def ratio(cell: Any) -> float:
    """Number at the start of a cell such as ``1.82 × (SDPA)``."""
    return float(cell.split()[0]) if isinstance(cell, str) else float(cell)


def span(cells: Iterable[Any]) -> str:
    """Smallest and largest ratio, such as ``1.4–4.5 ×``."""
    found = [ratio(cell) for cell in cells]
    low, high = (f"{value:.3g}" for value in (min(found), max(found)))
    return f"{low} ×" if low == high else f"{low}–{high} ×"


def _attention_memory(figures: Figures) -> str:
    rows = records(figures, direction=BOTH)
    return span(row["peak memory of naive (MB)"] / row["peak memory (MB)"] for row in rows)


def _block(column: str) -> Callable[[Figures], str]:
    return lambda figures: span(row[column] for row in records(figures, n=256, method="plain, compiled"))


def _longest_block(figures: Figures) -> str:
    longest = {
        method: max(row["n"] for row in figures["growth"] if row["method"] == method and row["memory_mb"] <= 8e3)
        for method in ("ds4sci", "plain")
    }
    return f"{longest['ds4sci']:,} residues (baseline: {longest['plain']:,})"


def _packed_attention(figures: Figures) -> str:
    column = f"speed-up of ds4sci, {BOTH}"
    rows = [row for row in records(figures) if row[column] and "packed" in row["case"]]
    cases = {(row["case"], row["dtype"]) for row in rows}
    return span(min(ratio(row[column]) for row in rows if (row["case"], row["dtype"]) == case) for case in cases)


def _fold_step(figures: Figures) -> str:
    ours, reference = records(figures)
    memory = "peak memory (MB)"
    return f"speed-up {span([ours['speed-up']])}, memory reduction {span([reference[memory] / ours[memory]])}"


def _patched(figures: Figures) -> str:
    rows = records(figures, n=256, direction=BOTH)
    speed, memory = (span(row[column] for row in rows) for column in ("speed-up", "memory reduction"))
    return f"speed-up {speed}, memory reduction {memory}"


def _lm_step(figures: Figures) -> str:
    found = []
    for dtype in ("fp32", "bf16"):
        rows = records(figures, tokens=16384, dtype=dtype, method="ds4sci, 1 GB kept")
        causal, masked = (row["speed-up"] for row in rows)
        found.append(f"{dtype} {causal:.1f} × (causal), {masked:.1f} × (masked)")
    return ", ".join(found)


def _longest_row(figures: Figures) -> str:
    (row,) = records(figures, model="causal", method="ds4sci, chunks")
    return f"{row['longest row in 8 GB (tokens)']:,} tokens ({row['relative to Trainer']:.1f} × the baseline)"


def _zero_coordinate_shift(figures: Figures) -> str:
    rows = [row for row in records(figures, method="zcs_reverse") if row["speed-up"] is not None]
    speed, memory = (span(row[column] for row in rows) for column in ("speed-up", "memory reduction"))
    return f"speed-up {speed}, memory reduction {memory}"


def _lddt(figures: Figures) -> str:
    *others, trained = records(figures)
    best = max(float(row["lDDT-Cα"]) for row in others if not row["method"].startswith("trained"))
    return f"{trained['lDDT-Cα']} (baseline: {best:.3f})"


def _operator_errors(figures: Figures) -> str:
    return ", ".join(f"{row['equation'].replace('_', '–')} {row['mean']}" for row in records(figures))


def _predicted_here(figures: Figures) -> str:
    here = [row for row in records(figures) if row["point"].startswith("this machine")]
    rows = [row for row in here if not row["point"].endswith("oversubscribed")]
    return f"within {max(abs(float(row['error'].strip('%+'))) for row in rows):.1f} %"


def _predicted_openfold(figures: Figures) -> str:
    rows = [row for row in records(figures, figure="time to quality") if row["point"].startswith("OpenFold")]
    return ", ".join(f"{row['point'].split()[1]}: {row['error']}" for row in rows)


FASTEST = "the fastest of the torch methods (SDPA, chunked, compiled, FlexAttention, …) in each case"
NO_MODEL = "median distances given the true secondary structure, no model"
CLAIMS = (
    Claim(
        f"Evoformer attention, {BOTH}: speed-up", "kernels_evoformer_attention",
        lambda figures: span(row["speed-up (baseline)"] for row in records(figures, direction=BOTH)), FASTEST,
    ),
    Claim(
        f"Evoformer attention, {BOTH}: memory reduction", "kernels_evoformer_attention", _attention_memory,
        "naive torch attention",
    ),
    Claim(
        f"Evoformer block, 256 residues, {BOTH}: speed-up", "evoformer_block", _block("speed-up of ds4sci"),
        "the same block in plain torch, compiled",
    ),
    Claim(
        f"Evoformer block, 256 residues, {BOTH}: memory reduction", "evoformer_block",
        _block("memory reduction by ds4sci"), "the same block in plain torch, compiled",
    ),
    Claim(f"Longest Evoformer block in 8 GB, fp32, {BOTH}", "evoformer_block", _longest_block, "plain torch"),
    Claim(
        f"Operations of the Evoformer block, 256 residues, {BOTH}: speed-up", "operations",
        lambda figures: span(row["speed-up"] for row in records(figures, direction=BOTH)), "plain torch, not compiled",
    ),
    Claim("Structure-model training step, crop 256", "step_small_256_against", _fold_step, "plain torch kernels"),
    Claim(
        f"ESMFold trunk with `ds4sci.integrations.patch`, 256 residues, {BOTH}", "esmfold", _patched,
        "unpatched transformers modules",
    ),
    Claim(
        f"Attention within packed proteins, {BOTH}: speed-up", "kernels_varlen_attention", _packed_attention,
        "the fastest SDPA method (mask, one by one, padded) in each case",
    ),
    Claim("Training step of a language model, 16,384 tokens: speed-up", "lm", _lm_step, "Hugging Face's Trainer"),
    Claim("Longest row of a causal LM in 8 GB", "longest_rows", _longest_row, "Hugging Face's Trainer"),
    Claim(
        "LM training on packed rows: speed-up in real tokens/s", "packing",
        lambda figures: span(row["speed-up"] for row in records(figures, method="packed rows")),
        "padded batches with transformers",
    ),
    Claim(
        "PDE derivatives by zero coordinate shift, 64 functions", "zcs", _zero_coordinate_shift,
        "the better of a loop over functions and repeated points",
    ),
    Claim(
        "Neural operators trained without solutions: mean relative L2 error", "operators", _operator_errors,
        "reference solutions of 100 unseen functions",
    ),
    Claim("lDDT-Cα on 160 held-out chains, quickstart", "quickstart", _lddt, NO_MODEL),
    Claim("lDDT-Cα on 160 held-out chains, run file `cpu_hour`", "cpu_hour", _lddt, NO_MODEL),
    Claim("Training step on 1 and 2 ranks, predicted from a calibration", "scaling", _predicted_here, "measured steps"),
    Claim(
        "Minutes of OpenFold's MLPerf HPC runs, predicted, by GPUs", "scaling", _predicted_openfold,
        "published runs; none is fitted to itself",
    ),
    Claim(
        "mmCIF parsing: speed-up", "parsing",
        lambda figures: span(row["speed-up"] for row in records(figures, parser="gemmi")), "Biopython (atoms only)",
    ),
    Claim(
        "Random reads from FASTA: speed-up", "sequences",
        lambda figures: span(row["speed-up, reads"] for row in records(figures, reader="ds4sci")), "pyfaidx",
    ),
)  # fmt: skip
