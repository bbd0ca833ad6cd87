"""Everything that a first day on a GPU needs, in one command: tests, kernels, a block, training steps, NCCL.

Every part runs in a process of its own, with a time limit; one that fails or takes too long does not stop the others.
Parts that have succeeded with the same commit are not repeated, so that an interrupted check continues. The results
are ``OUT/summary.json`` and the page ``OUT/index.html``; ``OUT/parts`` has the JSON and the log of each part.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ds4sci.bench import gpu_page
from ds4sci.machine import provenance

COMMAND = "gpu_check"
ROOT = Path(__file__).resolve().parents[2]
INTERPRETED = "tests/kernels/interpreted/pointwise.py"
GPU_TESTS = ("tests/kernels/test_gpu_pointwise.py", "tests/kernels/test_gpu_evoformer_attention.py", "tests/nn")
LOG_LINES = 40
"""Lines of the log of a part that did not succeed, in summary and page."""


@dataclass(frozen=True)
class Part:
    """A part of the check.

    name, title  file name, and heading on the page
    arguments    of ``python``; ``{json}`` stands for the file that the part writes
    seconds      after which it is stopped
    environment  added variables
    """

    name: str
    title: str
    arguments: tuple[str, ...]
    seconds: float
    environment: tuple[tuple[str, str], ...] = ()


def parts(dry_run: bool) -> list[Part]:
    """Return the parts, the most important first."""

    def probe(name: str, title: str, seconds: float) -> Part:
        more = ("--dry-run",) if dry_run else ()
        return Part(name, title, ("-m", "ds4sci.bench.gpu_probe", name, "{json}", *more), seconds)

    def tests(name: str, title: str, seconds: float, *arguments: str) -> Part:
        interpreter = (("TRITON_INTERPRET", "1"),) if dry_run else ()
        common = ("-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider", "--junitxml={json}")
        return Part(name, title, (*common, *arguments), seconds, (("PYTHONPATH", str(ROOT)), *interpreter))

    if dry_run:
        first = tests("tests", "Tests (Triton's interpreter)", 120, INTERPRETED, "-k", "norm and not backward")
        last: list[Part] = []
    else:
        pointwise, attention, activations = GPU_TESTS
        first = tests(
            "tests", "Tests: kernels between products, offloaded activations", 90, "-m", "gpu", pointwise, activations
        )
        last = [tests("tests_attention", "Tests: Evoformer attention", 120, "-m", "gpu", attention)]
    return [
        probe("limits", "Environment and limits", 40),
        first,
        probe("attention", "Evoformer attention", 80),
        probe("operations", "Operations of the block", 60),
        probe("language_model", "Language model, training step", 60),
        probe("fold", "Structure model, training step", 90),
        probe("block", "Evoformer block", 70),
        probe("packed_attention", "Attention in packed rows", 40),
        *last,
    ]


def run_part(part: Part, folder: Path, seconds: float) -> dict[str, Any]:
    """Run ``part`` for at most ``seconds`` and return its record: status, seconds, results, end of the log."""
    result, log = folder / f"{part.name}.json", folder / f"{part.name}.log"
    result.unlink(missing_ok=True)
    command = [sys.executable, *(x.format(json=result) for x in part.arguments)]
    began = time.monotonic()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | dict(part.environment), stdout=stream, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # also if this process is interrupted, and children that outlive the part
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    record: dict[str, Any] = {
        "title": part.title,
        "seconds": time.monotonic() - began,
        "command": " ".join(command[1:]),
    }
    text = log.read_text(encoding="utf-8", errors="replace")
    if "pytest" in part.arguments:
        record["tests"] = gpu_page.read_tests(result)
    elif result.exists():
        record["measurement"] = json.loads(result.read_text(encoding="utf-8"))
    ran = record.get("measurement") or (record.get("tests") or {}).get("passed")
    if code is None:
        record["status"] = f"stopped after {seconds:.0f} s"
    elif code:
        record["status"] = f"exit code {code}"
    else:
        record["status"] = "passed" if ran else "nothing was measured or tested"
    if record["status"] != "passed":
        record["log"] = text.splitlines()[-LOG_LINES:]
    return record


def check(chosen: Sequence[Part], out: Path, minutes: float, log: Any, *, dry_run: bool) -> dict[str, Any]:
    """Run the parts that have not passed yet, and write summary and page after each. Returns the summary."""
    folder = out / "parts"
    folder.mkdir(parents=True, exist_ok=True)
    file = out / "summary.json"
    machine = provenance.describe()
    before: dict[str, Any] = {}
    if file.exists():
        old = json.loads(file.read_text(encoding="utf-8"))
        if (old["machine"]["commit"], old["machine"]["gpus"], old["dry_run"]) == (
            machine["commit"], machine["gpus"], dry_run
        ):  # fmt: skip
            before = {name: one for name, one in old["parts"].items() if one["status"] == "passed"}
    summary: dict[str, Any] = {"machine": machine, "dry_run": dry_run, "date": time.strftime("%Y-%m-%d"), "parts": {}}
    deadline = time.monotonic() + 60 * minutes
    for part in chosen:
        left = deadline - time.monotonic()
        if part.name in before:
            summary["parts"][part.name] = before[part.name]
            log(f"{part.title}: passed before")
        elif left < 5:
            summary["parts"][part.name] = {"title": part.title, "seconds": 0.0, "status": "not run: no time was left"}
            log(f"{part.title}: not run, no time was left; the same command continues")
        else:
            log(f"{part.title} …")
            record = summary["parts"][part.name] = run_part(part, folder, min(part.seconds, left))
            log(f"  {record['status']}, {record['seconds']:.0f} s")
        summary["commit"] = machine["commit"]
        file.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (out / "index.html").write_text(gpu_page.html(summary), encoding="utf-8")
    return summary


def command(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the results. The same folder continues.")
    ],
    minutes: Annotated[float, typer.Option("--minutes", min=0.1, help="Time for all parts.")] = 8.0,
    part: Annotated[
        list[str] | None, typer.Option("--part", metavar="NAME", help="Run this part only. Repeatable.")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="First search for tile sizes of the Triton kernels, for up to 20 minutes.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Smallest sizes on the CPU, Triton interpreted: proves the command.")
    ] = False,
) -> None:
    """First day on a GPU: tests, kernels beside their floor and baselines, training steps, one page."""
    known = {one.name: one for one in parts(dry_run)}
    for name in part or ():
        if name not in known:
            raise ValueError(f"--part {name}: unknown part; expected one of: {', '.join(known)}")
    if tune:
        more = ("--dry-run",) if dry_run else ()
        interpreter = (("TRITON_INTERPRET", "1"),) if dry_run else ()
        arguments = ("-m", "ds4sci.bench.gpu_tune", "{json}", *more)
        check([Part("tune", "Tile sizes", arguments, 1200, interpreter)], out / "tune", 20, typer.echo, dry_run=dry_run)
    summary = check([known[name] for name in part or known], out, minutes, typer.echo, dry_run=dry_run)
    statuses = [one["status"] for one in summary["parts"].values()]
    typer.echo(f"{statuses.count('passed')} of {len(statuses)} parts passed; {out / 'index.html'}")
    if statuses.count("passed") < len(statuses):
        raise typer.Exit(1)
