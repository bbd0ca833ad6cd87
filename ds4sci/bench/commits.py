"""Comparison of the kernels of this checkout with those of another commit.

Two processes, one per checkout, take turns: A B A B for every case. Each runs the file ``commits.py`` of its own
checkout, and the cases are those that both have. Figures: medians of seconds and of CPU seconds, peak memory minus the
inputs, and the geometric mean and maximum of their ratios. Separate processes measure memory: their allocator returns
freed memory at once, because memory left in the heap by an earlier case would hide what a case needs.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ds4sci.bench.registry import JsonFile, show

ROOT = Path(__file__).resolve().parents[2]
ROUNDS, MIN_SECONDS = 7, 0.2
"""Turns of each checkout, and seconds for which a case is repeated within a turn."""
MEASURED = ("seconds", "cpu_seconds", "memory_mb")
RETURN_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""Environment variable for glibc's allocator."""
Action = Callable[[], object]


def cases() -> Iterator[tuple[str, Callable[[], Action]]]:
    """Name of every case of the imported checkout, and a function that makes its inputs and returns its action."""
    import torch

    from ds4sci.bench import evoformer_attention, kernels, varlen_attention
    from ds4sci.kernels import KERNELS

    def normal_of(dtype: torch.dtype) -> Callable[..., torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return lambda *size, scale=1.0: (scale * torch.randn(*size, generator=generator)).to(dtype)

    def arguments_of(problem: Any, dtype: torch.dtype) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Operation, arguments that may require gradients, and other arguments."""
        normal = normal_of(dtype)
        if isinstance(problem, evoformer_attention.Shape):
            return "evoformer_attention", problem.inputs(dtype, torch.device("cpu")), {}
        if isinstance(problem, varlen_attention.Row):
            size = (sum(problem.lengths), problem.h, problem.d)
            fixed = {"doc_spans": problem.doc_spans, "causal": problem.causal}
            return "varlen_attention", {x: normal(*size) for x in "qkv"}, fixed
        return problem.operation, problem.make(128, normal), {}

    def prepare(problem: Any, dtype: torch.dtype, backward: bool) -> Action:
        operation, given, fixed = arguments_of(problem, dtype)

        def run_once() -> None:
            leaves: list[torch.Tensor] = []
            with torch.set_grad_enabled(backward):
                out = KERNELS[operation](**(kernels.with_grad(given, leaves) if backward else given), **fixed)
            if backward:
                torch.autograd.grad(out, leaves, torch.ones_like(out))

        return run_once

    problems: list[tuple[str, Any]] = [
        *((f"evoformer_attention, {x.name}", x) for x in evoformer_attention.SHAPES),
        *((f"{x.operation}, {x.name}, n 128", x) for x in kernels.OPERATION_CASES),
        *((f"attention, {x.name}", x) for x in varlen_attention.ROWS),
    ]
    for dtype in (torch.float32, torch.bfloat16):
        for backward in (False, True):
            for name, problem in problems:
                if dtype in getattr(problem, "dtypes", (dtype,)):
                    direction = "forward + backward" if backward else "forward"
                    full = f"{name}, {str(dtype).removeprefix('torch.')}, {direction}"
                    yield full, functools.partial(prepare, problem, dtype, backward)


def serve() -> None:
    """Main loop of a checkout's process. Each line of standard input has ``time`` or ``memory`` and the name of a case;
    each line of standard output has the figures as JSON."""
    import torch

    from ds4sci.bench.memory import peak_memory_mb

    known = dict(cases())
    print(json.dumps({"package": __import__("ds4sci").__file__, "cases": list(known)}), flush=True)
    name, action = "", None
    for line in sys.stdin:
        what, _, case = line.strip().partition(" ")
        if case != name or action is None:
            name, action = case, None  # frees the previous case first
            action = known[name]()
            action()
        if what == "memory":
            print(json.dumps({"memory_mb": peak_memory_mb(action, torch.device("cpu"))}), flush=True)
            continue
        times: list[float] = []
        start, cpu = time.perf_counter(), time.process_time()
        while not times or times[-1] - start < MIN_SECONDS:
            action()
            times.append(time.perf_counter())
        figures = {"seconds": (times[-1] - start) / len(times), "cpu_seconds": (time.process_time() - cpu) / len(times)}
        print(json.dumps(figures), flush=True)


class Checkout:
    """A process of one checkout. ``variables``: additional environment variables."""

    def __init__(self, root: Path, **variables: str) -> None:
        # the checkout's own file: names within ds4sci.bench may differ between commits
        script = next((root / "ds4sci").rglob("*commits.py"), None)
        if script is None:
            raise ValueError(f"{root}: no commits.py in its ds4sci folder; name a checkout of ds4sci that has one")
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(script)], env=os.environ | {"PYTHONPATH": str(root)} | variables, cwd=root,
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        hello = self._answer()
        if not Path(hello["package"]).is_relative_to(root.resolve()):
            raise ValueError(f"{root}: its process imported {hello['package']}; name the root of a checkout of ds4sci")
        self.cases: list[str] = hello["cases"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ValueError(f"the process of a checkout exited with code {self.process.wait()}; see its output above")
        found: dict[str, Any] = json.loads(line)
        return found

    def measure(self, what: str, case: str) -> dict[str, Any]:
        """Figures of a case. ``what``: time or memory."""
        assert self.process.stdin is not None
        print(what, case, file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextlib.contextmanager
def checkout_of(against: str) -> Iterator[Path]:
    """``against`` if it is a folder; otherwise a temporary worktree of that commit."""
    if Path(against).is_dir():
        yield Path(against).resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "checkout"
        made = subprocess.run(
            ["git", "-C", str(ROOT), "worktree", "add", "--detach", str(root), against],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if made.returncode:
            raise ValueError(f"--against {against}: not a folder and not a commit: {made.stderr.strip()}")
        try:
            yield root
        finally:
            subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(root)], check=True)


def compare(against: str, *, only: Sequence[str] = (), rounds: int = ROUNDS) -> dict[str, Any]:
    """Compare every case that both checkouts have and whose name contains one of ``only``.

    Ratios are this checkout divided by the other: ``rows`` by case, ``geometric_mean`` and ``worst`` by figure.
    Raises ValueError if no case matches.
    """
    rows: list[dict[str, Any]] = []
    with checkout_of(against) as root, contextlib.ExitStack() as stack:
        other, own = Checkout(root), Checkout(ROOT)
        memory = Checkout(root, **RETURN_FREED_MEMORY), Checkout(ROOT, **RETURN_FREED_MEMORY)
        for checkout in (other, own, *memory):
            stack.callback(checkout.close)
        chosen = [x for x in own.cases if x in other.cases and (not only or any(part in x for part in only))]
        if not chosen:
            raise ValueError(f"--case {list(only)}: matches no case; expected a part of one of: {'; '.join(own.cases)}")
        for case in chosen:
            print(f"ds4sci: {case} …", file=sys.stderr, flush=True)
            held = [checkout.measure("memory", case) for checkout in memory]
            turns = [
                tuple(x.measure("time", case) | more for x, more in zip((other, own), held, strict=True))
                for _ in range(rounds)
            ]
            row: dict[str, Any] = {"case": case}
            for figure in MEASURED:
                before, after = ([turn[i][figure] for turn in turns] for i in range(2))
                if None not in (*before, *after):
                    row[figure] = [statistics.median(before), statistics.median(after)]
                    row[f"{figure} ratio"] = row[figure][1] / row[figure][0] if row[figure][0] else 1.0
            rows.append(row)
    found: dict[str, Any] = {"rows": rows, "geometric_mean": {}, "worst": {}}
    for figure in MEASURED:
        ratios = {row["case"]: row[f"{figure} ratio"] for row in rows if f"{figure} ratio" in row}
        if ratios:
            found["geometric_mean"][figure] = math.exp(statistics.fmean(map(math.log, ratios.values())))
            worst = max(ratios, key=ratios.__getitem__)
            found["worst"][figure] = {"case": worst, "ratio": ratios[worst]}
    return found


def run(against: str, *, out: Path, only: Sequence[str] = (), rounds: int = ROUNDS) -> Any:
    """``compare`` as a ``Measurement``. Writes table and figures to ``out``."""
    from ds4sci.bench.measurement import Measurement, write

    found = compare(against, only=only, rounds=rounds)
    measurement = Measurement(
        name=out.stem,
        title=f"Kernels, baseline: commit {against}",
        command=f"ds4sci bench commits --against {against} --rounds {rounds}" + "".join(f" --case '{x}'" for x in only)
        + f" --json {out.name}",
        columns=["case", "baseline (ms)", "ms", "time ratio", "CPU time ratio", "peak memory ratio"],
        rows=[
            [
                row["case"], 1e3 * row["seconds"][0], 1e3 * row["seconds"][1],
                *(f"{row[f'{figure} ratio']:.3f} ×" if f"{figure} ratio" in row else "–" for figure in MEASURED),
            ]
            for row in found["rows"]
        ],
        notes=[
            f"{figure}: geometric mean {mean:.3f} ×, worst {found['worst'][figure]['ratio']:.3f} × "
            f"({found['worst'][figure]['case']})"
            for figure, mean in found["geometric_mean"].items()
        ],
    )  # fmt: skip
    write(out, asdict(measurement) | found)
    return measurement


def command(
    against: Annotated[
        str, typer.Option("--against", metavar="COMMIT", help="Commit, or folder of a checkout, to compare with.")
    ],
    json: JsonFile,
    case: Annotated[
        list[str] | None,
        typer.Option(
            "--case", metavar="PART", help="Measure cases whose name contains this. Repeatable. Default: all."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Number of turns of each checkout.")] = ROUNDS,
) -> None:
    """Kernels of this checkout and of another commit, A B A B: ratios of time and of peak memory."""
    show(run(against, out=json, only=case or (), rounds=rounds), json)


if __name__ == "__main__":
    serve()
