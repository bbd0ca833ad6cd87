"""``ds4sci bench operators``: train the equations' run files, each to its end, and score unseen functions."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from ds4sci.bench.measurement import Measurement
from ds4sci.inference.evaluate_neural_operator import evaluate_operator
from ds4sci.machine.processor import usable_cores
from ds4sci.physics.pdes import PDES
from ds4sci.train import launch


def measure(
    names: Sequence[str] = (),
    overrides: Sequence[str] = (),
    *,
    folder: Path,
    out: Path,
    ranks: int | None = None,
) -> Measurement:
    """A row for each equation; runs, scores and pictures go to ``folder``, rows of other equations in ``out`` stay.

    Raises RuntimeError where a run fails.
    """
    before = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.is_file() else []
    rows = [row for row in before if row[0] not in (names or PDES)]
    for name in names or PDES:
        began = time.monotonic()
        own = [f"train.output={folder}", f"train.name={name}", *overrides]
        if launch.train(f"configs/operator/{name}.toml", own, ranks=ranks):
            raise RuntimeError(f"{folder / name}: the run did not end in order")
        minutes = (time.monotonic() - began) / 60
        found = evaluate_operator(folder / name, folder / f"{name}.json")
        line = json.loads((folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0])
        parts = found["components"]
        by_component = ", ".join(f"{c} {x:.1%}" for c, x in parts.items()) if len(parts) > 1 else None
        rows.append(
            [
                name, found["step"], minutes, f"{found['relative_l2']:.2%}", f"{found['median']:.2%}",
                f"{found['worst']:.1%}", by_component, line["ranks"],
            ]
        )  # fmt: skip
    rows.sort(key=lambda row: PDES.index(row[0]) if row[0] in PDES else len(PDES))
    return Measurement(
        name="operators",
        title="Solution operators learnt from the equation alone: relative L2 on 100 unseen functions",
        command="ds4sci bench operators",
        columns=["equation", "steps", "minutes", "mean", "median", "worst", "by component", "ranks"],
        rows=rows,
        notes=[
            "minutes from the command to the end of the run, evaluations within it included; a step is 64 functions; "
            f"no solution is used to train; {usable_cores()} cores",
        ],
    )
