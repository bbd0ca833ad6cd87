"""Replacement of ``ds4sci.train.launch.run_launchers``: ranks forked from a server that has imported everything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ds4sci.train.launch import MODULE, Launch
from tests.support.rank_processes import RankProcesses


def run_launchers(launches: Sequence[Launch], folder: Path) -> list[int]:
    """Run the ranks of all launches at the same time; each launch has a working folder of its own in ``folder``."""
    running = []
    for number, launch in enumerate(launches):
        command = launch.command
        count = int(command[command.index("--num_accelerators") + 1])
        own = folder / f"launch_{number}"
        own.mkdir(exist_ok=True)
        running.append((launch, RankProcesses(count, command[command.index(MODULE) + 1 :], own)))
    codes = []
    for launch, ranks in running:
        ended = ranks.join()
        codes.append(max(ended.codes, key=lambda code: abs(code or 0)) or 0)
        if launch.log is not None:
            launch.log.write_text(ended.output)
    return codes
