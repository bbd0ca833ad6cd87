"""``ds4sci bench commits``: the kernels of this checkout beside those of another commit.

Two processes, one for each checkout, take turns: A B A B for every case. Medians of seconds and of processor seconds,
and peak memory over the inputs; the geometric mean and the worst of their ratios. Cases are those that both checkouts'
benchmarks have. Memory is measured by processes of its own, whose allocator keeps nothing that was given back: what an
earlier case left in the heap would hide what a case takes.
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
from typing import Any

ROUNDS, LEAST_SECONDS = 7, 0.2
"""Turns of each checkout, and how long a case is repeated within a turn."""
MEASURED = ("seconds", "cpu_seconds", "memory_mb")
KEEPS_NOTHING = {"MALLOC_MMAP_THRESHOLD_": "65536"}
"""For glibc's allocator."""
Action = Callable[[], object]


def cases() -> Iterator[tuple[str, Callable[[], Action]]]:
    """Name of every case, and what makes its inputs; of the checkout that this process imports."""
    import torch

    from ds4sci.bench import evoformer_attention, kernel_op, varlen_attention
    from ds4sci.kernels import KERNELS

    def normal_of(dtype: torch.dtype) -> Callable[..., torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        return lambda *size, scale=1.0: (scale * torch.randn(*size, generator=generator)).to(dtype)

    def given_of(problem: Any, dtype: torch.dtype) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Operation, tensors that may want gradients, and its other arguments."""
        normal = normal_of(dtype)
        if isinstance(problem, evoformer_attention.Shape):
            return "evoformer_attention", problem.inputs(dtype, torch.device("cpu")), {}
        if isinstance(problem, varlen_attention.Row):
            size = (sum(problem.lengths), problem.h, problem.d)
            fixed = {"doc_spans": problem.doc_spans, "causal": problem.causal}
            return "varlen_attention", {x: normal(*size) for x in "qkv"}, fixed
        return problem.operation, problem.make(128, normal), {}

    def prepare(problem: Any, dtype: torch.dtype, backward: bool) -> Action:
        operation, given, fixed = given_of(problem, dtype)

        def once() -> None:
            asked: list[torch.Tensor] = []
            with torch.set_grad_enabled(backward):
                out = KERNELS[operation](**(kernel_op._leaves(given, asked) if backward else given), **fixed)
            if backward:
                torch.autograd.grad(out, asked, torch.ones_like(out))

        return once

    problems: list[tuple[str, Any]] = [
        *((f"evoformer_attention, {x.name}", x) for x in evoformer_attention.SHAPES),
        *((f"{x.operation}, {x.name}, n 128", x) for x in kernel_op.PROBLEMS),
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
    """A checkout's process: ``time`` or ``memory`` and a case's name on each line of standard input, its figures as
    JSON on each of the output."""
    import torch

    from ds4sci.bench.evoformer_attention import peak_over_inputs

    known = dict(cases())
    print(json.dumps({"package": __import__("ds4sci").__file__, "cases": list(known)}), flush=True)
    name, action = "", None
    for line in sys.stdin:
        what, _, case = line.strip().partition(" ")
        if case != name or action is None:
            name, action = case, None  # the case before gives back its memory first
            action = known[name]()
            action()
        if what == "memory":
            print(json.dumps({"memory_mb": peak_over_inputs(action, torch.device("cpu"))}), flush=True)
            continue
        times: list[float] = []
        began, cpu = time.perf_counter(), time.process_time()
        while not times or times[-1] - began < LEAST_SECONDS:
            action()
            times.append(time.perf_counter())
        figures = {"seconds": (times[-1] - began) / len(times), "cpu_seconds": (time.process_time() - cpu) / len(times)}
        print(json.dumps(figures), flush=True)


class Checkout:
    """A process of one checkout, with more environment variables."""

    def __init__(self, root: Path, **variables: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__], env=os.environ | {"PYTHONPATH": str(root)} | variables, cwd=root,
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        hello = self._answer()
        if not Path(hello["package"]).is_relative_to(root.resolve()):
            raise ValueError(f"{root}: the process imported {hello['package']}; name the root of a checkout of ds4sci")
        self.cases: list[str] = hello["cases"]

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ValueError(f"the process of a checkout ended with {self.process.wait()}; its words are above")
        found: dict[str, Any] = json.loads(line)
        return found

    def measure(self, what: str, case: str) -> dict[str, Any]:
        """``what``: time or memory."""
        assert self.process.stdin is not None
        print(what, case, file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


@contextlib.contextmanager
def checkout_of(against: str) -> Iterator[Path]:
    """``against`` itself where it is a folder; else that commit, checked out for as long as it takes."""
    if Path(against).is_dir():
        yield Path(against).resolve()
        return
    here = Path(__file__).resolve().parents[2]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "checkout"
        made = subprocess.run(
            ["git", "-C", str(here), "worktree", "add", "--detach", str(root), against],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if made.returncode:
            raise ValueError(f"--against {against}: neither a folder nor a commit: {made.stderr.strip()}")
        try:
            yield root
        finally:
            subprocess.run(["git", "-C", str(here), "worktree", "remove", "--force", str(root)], check=True)


def compare(against: str, *, only: Sequence[str] = (), rounds: int = ROUNDS) -> dict[str, Any]:
    """Every case that both know and whose name has one of ``only`` in it. Ratios are this checkout's over the other's:
    ``rows`` by case, ``geometric_mean`` and ``worst`` of each figure. ValueError where no case is left."""
    here = Path(__file__).resolve().parents[2]
    rows: list[dict[str, Any]] = []
    with checkout_of(against) as root, contextlib.ExitStack() as stack:
        other, own = Checkout(root), Checkout(here)
        memory = Checkout(root, **KEEPS_NOTHING), Checkout(here, **KEEPS_NOTHING)
        for one in (other, own, *memory):
            stack.callback(one.close)
        chosen = [x for x in own.cases if x in other.cases and (not only or any(part in x for part in only))]
        if not chosen:
            raise ValueError(f"--case {list(only)}: no case has it in its name; there are: {'; '.join(own.cases)}")
        for case in chosen:
            print(f"ds4sci: {case} …", file=sys.stderr, flush=True)
            held = [one.measure("memory", case) for one in memory]
            turns = [
                tuple(one.measure("time", case) | more for one, more in zip((other, own), held, strict=True))
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
    """``compare`` as a ``Measurement``, every figure written to ``out``."""
    from ds4sci.bench.measurement import Measurement, write

    found = compare(against, only=only, rounds=rounds)
    measurement = Measurement(
        name=out.stem,
        title=f"Kernels beside those of {against}",
        command=f"ds4sci bench commits --against {against} --rounds {rounds}" + "".join(f" --case '{x}'" for x in only),
        columns=["case", "ms before", "ms", "time", "processor time", "peak memory"],
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


if __name__ == "__main__":
    serve()
