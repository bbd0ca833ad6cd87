"""README's table of measured results, made from ``benchmarks/*.json``: ``python -m ds4sci.bench.tables``.

The text between the two markers is replaced; ``--check`` only says whether it is what the JSON files say.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

START = "<!-- results: made by `python -m ds4sci.bench.tables` from benchmarks/*.json -->"
END = "<!-- end of results -->"
ROOT = Path(__file__).resolve().parents[2]


def shown(value: Any) -> str:
    """A number with three figures that count, anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value)
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.3g}"


def where(machine: dict[str, Any]) -> str:
    """Processor or GPU, versions and commit, in one line."""
    gpus = machine.get("gpus") or []
    place = f"{len(gpus)} × {gpus[0]['name']}" if gpus else f"{machine['cpu']}, {machine['cores']} cores"
    versions = machine.get("versions", {})
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "deepspeed") if name in versions)
    commit = machine["commit"]
    short = commit[:12] + commit[40:] if len(commit) >= 40 else commit
    return f"{place}; Python {machine['python']}, {packages}; commit `{short}`"


def section(measurement: dict[str, Any]) -> str:
    """One table with its title and what it was measured on; ``table`` where not every row is to be shown."""
    table = measurement.get("table", measurement)
    lines = [f"**{measurement['title']}**", ""]
    lines.append("| " + " | ".join(table["columns"]) + " |")
    lines.append("|" + "---|" * len(table["columns"]))
    lines += ["| " + " | ".join(shown(value) for value in row) + " |" for row in table["rows"]]
    if measurement.get("plot"):
        lines += ["", f"![{measurement['title']}](benchmarks/{measurement['plot']})"]
    notes = [*measurement["notes"], where(measurement["machine"]), measurement["date"], f"`{measurement['command']}`"]
    return "\n".join([*lines, "", "<sub>" + " · ".join(notes) + "</sub>"])


def results(folder: Path) -> str:
    """Every measurement of ``folder``, the quickstart's first."""
    files = sorted(folder.glob("*.json"), key=lambda file: (file.stem != "quickstart", file.stem))
    return "\n\n".join(section(json.loads(file.read_text(encoding="utf-8"))) for file in files)


def replaced(text: str, table: str) -> str:
    """``text`` with ``table`` between the markers. Raises ValueError when they are not there."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"README.md: expected the lines\n{START}\n{END}")
    return f"{before}{START}\n\n{table}\n\n{END}{after}"


def main(arguments: list[str] | None = None) -> int:
    """Rewrite README.md, or with ``--check`` compare; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when README.md is out of date")
    parser.add_argument("--root", type=Path, default=ROOT, help="the repository")
    options = parser.parse_args(arguments)
    readme = options.root / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = replaced(old, results(options.root / "benchmarks"))
    if options.check:
        if old != new:
            print("README.md does not say what benchmarks/*.json say; run: python -m ds4sci.bench.tables")
        return int(old != new)
    readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
