"""Peak memory of the running program."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch

from ds4sci.bench.memory import peak_bytes, peak_memory_mb


def test_peak_includes_an_allocation() -> None:
    before = peak_bytes()
    held = np.ones(60_000_000 // 8)
    after = peak_bytes()
    assert before is not None
    assert after is not None
    assert after >= before
    assert after >= held.nbytes


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_garbage_of_earlier_work_does_not_hide_an_allocation() -> None:
    """A cycle that is collected during the action frees as much as the action allocates."""

    class Node:
        def __init__(self) -> None:
            self.itself, self.held = self, torch.ones(5_000_000)

    def action() -> None:
        gc.collect()
        torch.ones(5_000_000).sum()

    gc.disable()
    try:
        Node()
        peak = peak_memory_mb(action, torch.device("cpu"))
    finally:
        gc.enable()
    assert peak is not None
    assert peak > 15
