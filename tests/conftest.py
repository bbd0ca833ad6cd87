"""Settings of all tests: one torch thread (several wait for each other on a busy machine), hypothesis without
deadlines, reasons of skipped GPU tests, and a prepared Triton interpreter where TRITON_INTERPRET=1."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # helpers are imported as tests.support.…
settings.register_profile("ds4sci", deadline=None)
settings.load_profile("ds4sci")
torch.set_num_threads(1)

if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
    from tests.support import triton_interpreter

    triton_interpreter.repair()
    triton_interpreter.small_tiles()
    triton_interpreter.check_overflow(False)


RANKS = "tests/train/"
"""Tests that start several ranks. They run one after the other, because two ranks use both cores of a small machine."""
LONGEST = (RANKS, "tests/kernels/test_triton_interp.py", "tests/kernels/test_triton_aot.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest tests first, so that all processes end together. Skip ``gpu`` tests without a GPU."""
    items.sort(key=lambda item: [not item.nodeid.startswith(part) for part in LONGEST])
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_tests and not torch.cuda.is_available():
        for item in gpu_tests:
            item.add_marker(pytest.mark.skip(reason="needs a GPU that torch can use; this machine has none"))


@pytest.hookimpl(optionalhook=True)  # only with pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep files whole, so that their fixtures are made once, and tests of several ranks in one process.

    The ``xdist_group`` mark of pytest-xdist has no effect with pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return RANKS if nodeid.startswith(RANKS) else nodeid.split("::")[0]

    return ByFile(config, log)
