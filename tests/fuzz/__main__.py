"""Command line of the fuzz tests: ``python -m tests.fuzz --inputs 500000 [--only a3m] [--seed 1]``.

The exit code is 1 if any input caused a violation.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from . import runner


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "--inputs", type=int, default=10_000, help="total number of inputs of all modules (default 10000)"
    )
    parser.add_argument("--only", action="append", help="run only this module; may be given several times")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="index of the first input, to reproduce a failure")
    parser.add_argument("--jobs", type=int, default=1, help="number of modules to run in parallel")
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"), help="folder for failing inputs")
    given = parser.parse_args()
    chosen = runner.modules(given.only)
    shares = {name: float(getattr(module, "SHARE", 1.0)) for name, module in chosen.items()}
    counts = {name: max(1, round(given.inputs * share / sum(shares.values()))) for name, share in shares.items()}

    def run(name: str) -> tuple[int, list[Path]]:
        start = time.monotonic()
        tried, failed = runner.run_isolated(name, given.seed, given.first, counts[name], given.out)
        print(f"{name}: {tried:,} inputs, {len(failed)} failures, {time.monotonic() - start:.0f} s", flush=True)
        for path in failed:
            lines = path.with_name(path.name + ".txt").read_text(encoding="utf-8").strip().splitlines()
            print(f"  {path}: {lines[-1]}", flush=True)
        return tried, failed

    with ThreadPoolExecutor(given.jobs) as pool:
        results = list(pool.map(run, chosen))
    failures = sum(len(failed) for _, failed in results)
    print(f"{sum(tried for tried, _ in results):,} inputs, {failures} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
