"""Check that ranks of this machine reach each other: two processes with gloo, and every pair of GPUs with NCCL.

The ranks are real processes (``python -m ds4sci.doctor.rank_probe``) that connect as those of a run do. Each prints the
phase that it begins, so that a failure or a timeout names where it happened.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ds4sci.doctor.finding import Finding, gpu_count, installed

LIMIT = 120.0
"""Seconds for all ranks of a probe, from the start of the processes; importing torch from a slow disk takes most."""

INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
"""Environment variables that name the network interface of a backend."""


def rank_connections(limit: float = LIMIT) -> Iterator[Finding]:
    """Results of the probes of this machine: gloo with two ranks, NCCL with a rank per GPU."""
    if installed("torch") is None:
        return
    yield probe("gloo", 2, limit)
    if gpus := gpu_count():
        yield probe("nccl", gpus, limit)


def probe(backend: str, ranks: int, limit: float = LIMIT) -> Finding:
    """Start ``ranks`` processes that reduce a number over every pair of ranks. Ends within about ``limit`` seconds."""
    name = f"{backend}, {ranks} rank{'s' if ranks > 1 else ''}"
    began = time.monotonic()
    try:
        port = _free_port()
    except OSError as error:
        detail = f"no TCP port can be opened on 127.0.0.1: {error}"
        return Finding("ranks", name, "problem", detail, "allow connections to the loopback interface")
    with tempfile.TemporaryDirectory(prefix="ds4sci-doctor-") as folder:
        logs = [Path(folder) / f"rank{rank}" for rank in range(ranks)]
        processes = [_start(backend, rank, ranks, port, logs[rank]) for rank in range(ranks)]
        try:
            while any(p.poll() is None for p in processes):
                failed = any(p.poll() not in (None, 0) for p in processes)
                if failed or time.monotonic() - began > limit:
                    time.sleep(0.2 if failed else 0.0)  # the other ranks report that they lost the connection
                    break
                time.sleep(0.05)
            codes = [p.poll() for p in processes]
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
        outcomes = [Outcome.read(rank, code, logs[rank]) for rank, code in enumerate(codes)]
    seconds = time.monotonic() - began
    wrong = [one for one in outcomes if one.code != 0]
    if not wrong:
        pairs = f"{ranks * (ranks - 1) // 2} pair{'s' if ranks > 2 else ''}" if ranks > 1 else "one rank"
        return Finding("ranks", name, "ok", f"all-reduce of {pairs} gave the right sums; {seconds:.1f} s")
    first = min(wrong, key=lambda one: (one.code is None, one.rank))  # an error says more than a wait
    return Finding("ranks", name, "problem", first.describe(limit), remedy(backend, first))


@dataclass(frozen=True)
class Outcome:
    """End of a rank of the probe. ``code`` is None if it was stopped at the time limit."""

    rank: int
    code: int | None
    phase: str
    error: str

    @classmethod
    def read(cls, rank: int, code: int | None, log: Path) -> Outcome:
        """Read the phase that the rank began last, and its last line that is not a phase."""
        phase, error = "start", ""
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("phase: "):
                phase = line.removeprefix("phase: ")
            elif line.strip():
                error = line.strip()
        return cls(rank, code, phase, error)

    def describe(self, limit: float) -> str:
        """Return what happened, in a sentence."""
        if self.code is None:
            return f"rank {self.rank} was still at '{self.phase}' after {limit:.0f} s"
        signal = f" (killed by signal {-self.code})" if self.code < 0 else ""
        return f"rank {self.rank} failed at '{self.phase}'{signal}: {self.error[:300] or 'no message'}"


def remedy(backend: str, outcome: Outcome) -> str:
    """Return what to do: the first of the known causes that applies here, else where to look."""
    for variable in INTERFACES:
        wanted = os.environ.get(variable, "")
        if wanted and (missing := sorted({n.lstrip("^=") for n in wanted.split(",")} - _interfaces())):
            return f"{variable}={wanted} names no interface of this machine ({', '.join(missing)}): unset it"
    if (problem := hostname_problem()) is not None:
        return f"{problem}: add `127.0.0.1 {socket.gethostname()}` to /etc/hosts, or set GLOO_SOCKET_IFNAME=lo"
    if "import" in outcome.phase or outcome.phase == "start":
        return "run `python -c 'import torch.distributed'`: its error or its duration is the cause"
    if backend == "nccl":
        return "run again with NCCL_DEBUG=WARN; NCCL_P2P_DISABLE=1 and NCCL_SHM_DISABLE=1 tell which transport fails"
    return "check firewall rules for the loopback interface, and GLOO_SOCKET_IFNAME"


def hostname_problem() -> str | None:
    """Return why the name of this machine cannot be resolved, or None if it can."""
    name = socket.gethostname()
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        return f"the hostname {name} does not resolve ({error})"
    return None


def _interfaces() -> set[str]:
    import psutil

    return set(psutil.net_if_addrs())


def _free_port() -> int:
    """As ``ds4sci.train.distributed.free_port``, whose module imports torch: only the ranks may fail at that."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _start(backend: str, rank: int, ranks: int, port: int, log: Path) -> subprocess.Popen[bytes]:
    launched = {
        "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "ds4sci.doctor.rank_probe", json.dumps({"backend": backend})]
    with log.open("wb") as handle:
        return subprocess.Popen(
            command, env=os.environ | launched, stdin=subprocess.DEVNULL, stdout=handle, stderr=subprocess.STDOUT
        )


def main(arguments: list[str]) -> int:
    """Program of one rank: connect, then reduce over every pair of ranks. Returns its exit code."""
    backend = json.loads(arguments[0])["backend"]
    begin("import torch")
    import torch
    import torch.distributed as dist

    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        begin(f"initialise GPU {rank}")
        torch.cuda.set_device(device)
    begin("connect the ranks")
    dist.init_process_group(backend)
    for pair in itertools.combinations(range(size), 2) if size > 1 else [(0,)]:
        begin(f"all-reduce of ranks {', '.join(map(str, pair))}")
        group = dist.new_group(list(pair))
        if rank in pair:
            values = torch.full((1024,), float(rank + 1), device=device)
            dist.all_reduce(values, group=group)
            if not bool((values == sum(other + 1 for other in pair)).all()):
                print(f"wrong sum: {values[0].item()} instead of {sum(other + 1 for other in pair)}")
                return 1
    begin("disconnect")
    dist.destroy_process_group()
    return 0


def begin(phase: str) -> None:
    """Print the phase that begins."""
    print(f"phase: {phase}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
