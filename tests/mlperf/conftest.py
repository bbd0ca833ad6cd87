"""Logs of runs with different seeds, all of which pass the rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mlperf_logs import set_duration, tiny_config, write_log


@pytest.fixture
def passing_logs(tmp_path: Path) -> Callable[..., list[Path]]:
    """Function that writes one log per duration in minutes, into ``runs/N/mlperf/result_0.txt``."""

    def write(*minutes: float, benchmark: str | None = None) -> list[Path]:
        extra = {} if benchmark is None else {"benchmark": benchmark}
        return [
            set_duration(write_log(tiny_config(tmp_path, f"seed={i}", **extra), tmp_path / "runs" / str(i)), length)
            for i, length in enumerate(minutes)
        ]

    return write
