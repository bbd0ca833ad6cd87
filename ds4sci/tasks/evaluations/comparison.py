"""Result of an evaluation that compares a model with baselines: values, table, and figures for the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from rich.table import Table

from ds4sci.tasks.evaluations import EvaluationResult


@dataclass(frozen=True)
class ComparisonFigure:
    """A figure of the report.

    name   of its file, without suffix
    title  heading
    alt    description for readers who do not see it
    draw   function of (file, kind=) that writes the figure as ``png`` or ``svg``
    """

    name: str
    title: str
    alt: str
    draw: Callable[..., object]


def comparison_result(
    values: dict[str, Any],
    rows: list[dict[str, Any]],
    *,
    header: list[str],
    table: list[list[str]],
    title: str,
    figures: Sequence[ComparisonFigure],
) -> EvaluationResult:
    """Return ``values`` and ``rows`` (one per example) with the table and the figures.

    The table is printed and, as ``comparison``, shown in the report; its first column holds names, the others numbers.
    The figures are shown in the report; the first one is also the attachment ``.png``.
    """
    report = {
        "comparison": {"header": header, "rows": table},
        "figures": [{"file": f"{one.name}.svg", "title": one.title, "alt": one.alt} for one in figures],
    }
    printed = Table(title=title, title_justify="left")
    for number, name in enumerate(header):
        printed.add_column(name, justify="right" if number else "left")
    for row in table:
        printed.add_row(*row)
    return EvaluationResult(
        values | report | {"rows": rows},
        printed,
        attachments={".png": partial(figures[0].draw, kind="png")},
        is_validation=True,
        report_files={f"{one.name}.svg": partial(one.draw, kind="svg") for one in figures},
    )


def first_middle_last(order: np.ndarray) -> list[int]:
    """Return the first, the middle and the last entry of ``order``, without repetition."""
    return [int(order[i]) for i in sorted({0, len(order) // 2, len(order) - 1})]
