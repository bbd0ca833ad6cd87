"""Page of ``ds4sci bench gpu_check``: status of each part, tests, and measurements as share of the physical floor."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from html import escape
from pathlib import Path
from typing import Any

from ds4sci.report import page

FLOOR_COLUMNS = ("case", "dtype", "direction", "implementation", "ms", "floor (ms)", "share of the floor", "bound by")


def read_tests(file: Path) -> dict[str, Any]:
    """Return counts and failures of a JUnit XML file that pytest wrote; nothing if there is none."""
    if not file.exists():
        return {"passed": 0, "failed": 0, "skipped": 0, "failures": []}
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failures = []
    for case in ElementTree.parse(file).iter("testcase"):
        found = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        kind = "passed" if found is None else "skipped" if found.tag == "skipped" else "failed"
        counts[kind] += 1
        if kind == "failed" and found is not None:
            message = (found.get("message") or "").splitlines()
            failures.append([f"{case.get('classname')}::{case.get('name')}", message[0][:300] if message else ""])
    return counts | {"failures": failures}


def floor(row: dict[str, Any], limits: dict[str, Any]) -> tuple[float, str] | None:
    """Return the seconds that no kernel can beat, and what bounds it: products at the measured rate of their dtype, or
    inputs and results at the measured bandwidth. None if the row has no counts, or the rates were not measured."""
    rate = (limits.get("flops") or {}).get(row.get("dtype"))
    if not rate or not limits.get("bytes_per_second") or "bytes" not in row:
        return None
    compute, memory = row["flops"] / rate, row["bytes"] / limits["bytes_per_second"]
    return max((compute, "products"), (memory, "memory"))


def floor_rows(measured: list[dict[str, Any]], limits: dict[str, Any]) -> list[list[str]]:
    """Return a row of the table of floors for each measured row that has one."""
    found = []
    for row in measured:
        least = floor(row, limits)
        if least is None:
            continue
        case = " ".join(str(row[key]) for key in ("operation", "case", "shape") if key in row)
        found.append(
            [
                case, row["dtype"], "forward + backward" if row["backward"] else "forward",
                row.get("implementation") or row.get("method") or "", f"{1e3 * row['seconds']:.3g}",
                f"{1e3 * least[0]:.3g}", f"{least[0] / row['seconds']:.0%}", least[1],
            ]
        )  # fmt: skip
    return found


def html(summary: dict[str, Any]) -> str:
    """Return the page. It needs no other file."""
    parts = summary["parts"]
    limits = parts.get("limits", {}).get("measurement", {}).get("limits", {})
    name = limits.get("name") or ("dry run on a CPU" if summary["dry_run"] else "GPU not reached")
    passed = [one for one in parts.values() if one["status"] == "passed"]
    tests = [one["tests"] for one in parts.values() if "tests" in one]
    tiles = [(f"{len(passed)} of {len(parts)}", "parts passed", f"{sum(p['seconds'] for p in parts.values()):.0f} s")]
    if tests:
        failed = sum(one["failed"] for one in tests)
        tiles.append((str(sum(one["passed"] for one in tests)), "tests passed", f"{failed} failed"))
    for dtype, rate in (limits.get("flops") or {}).items():
        if rate:
            tiles.append((f"{rate / 1e12:.3g} TFLOP/s", f"{dtype} products", "measured"))
    if limits.get("bytes_per_second"):
        tiles.append((f"{limits['bytes_per_second'] / 1e12:.3g} TB/s", "copies of memory", "measured"))
    body = [page.section("Overview", page.tiles(tiles))]
    if summary["dry_run"]:
        body.append(page.missing("A dry run on a CPU at the smallest sizes. Its figures are not a measurement."))
    rows = [[one["title"], one["status"], f"{one['seconds']:.0f}"] for one in parts.values()]
    body.append(page.section("Parts", page.table(("part", "status", "seconds"), rows, words=True)))
    body += [_section(one, limits) for one in parts.values()]
    machine = summary["machine"]
    facts = [
        ("machine", f"{machine['cpu']}, {machine['cores']} cores"),
        ("GPUs", ", ".join(map(str, machine["gpus"])) or "none"),
        ("versions", ", ".join(f"{key} {value}" for key, value in machine["versions"].items())),
        ("commit", str(machine["commit"])), ("date", summary["date"]),
    ]  # fmt: skip
    body.append(page.section("Conditions", page.table((), facts, words=True)))
    return page.page(
        f"GPU check: {name}", f"<h1>GPU check</h1><p>{escape(str(name))}</p>", body, "ds4sci bench gpu_check"
    )


def _section(one: dict[str, Any], limits: dict[str, Any]) -> str:
    inside = []
    tests = one.get("tests")
    if tests:
        inside.append(
            page.paragraph(f"{tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped.")
        )
        if tests["failures"]:
            inside.append(page.table(("test", "message"), tests["failures"], words=True))
    measured = one.get("measurement")
    if measured:
        cells = [[_cell(value) for value in row] for row in measured["rows"]]
        inside.append(page.table(measured["columns"], cells))
        inside += [page.paragraph(note) for note in measured["notes"]]
        floors = floor_rows(measured.get("measured") or [], limits)
        if floors:
            text = "Floor: the larger of FLOPs at the measured rate of products, and inputs and results at the measured"
            inside.append(page.paragraph(f"{text} bandwidth."))
            inside.append(page.table(FLOOR_COLUMNS, floors))
    if one["status"] != "passed":
        inside.append(page.missing(f"{one['status']}. Command: python {one.get('command', '')}"))
        if one.get("log"):
            inside.append(page.collapsible("End of the log", "\n".join(one["log"])))
    return page.section(one["title"], *inside)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    return "–" if value is None else str(value)
