"""Peak memory of the running program."""

from __future__ import annotations

import numpy as np

from ds4sci.bench.memory import peak_bytes


def test_peak_includes_an_allocation() -> None:
    before = peak_bytes()
    held = np.ones(60_000_000 // 8)
    after = peak_bytes()
    assert before is not None
    assert after is not None
    assert after >= before
    assert after >= held.nbytes
