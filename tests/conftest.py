"""For every test: one torch thread (on a busy machine threads wait for each other longer than they work), hypothesis
without deadlines; GPU tests that say why they skip; a Triton interpreter fit for tests where TRITON_INTERPRET=1."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # helpers and the toy task are imported as tests.…
settings.register_profile("ds4sci", deadline=None)
settings.load_profile("ds4sci")
torch.set_num_threads(1)

if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
    from tests.support import triton_interpreter

    triton_interpreter.repair()
    triton_interpreter.small_tiles()
    triton_interpreter.check_overflow(False)


RANKS = "tests/train/"
"""Tests that start several ranks. They run one after the other: two ranks each take both cores of a small machine."""
LONGEST = (RANKS, "tests/kernels/test_triton_interp.py", "tests/kernels/test_triton_aot.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of several ranks first and then Triton's, since they take longest: two processes then end at about the same
    time. Skip those marked ``gpu`` where torch sees none."""
    items.sort(key=lambda item: [not item.nodeid.startswith(part) for part in LONGEST])
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if wanting and not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="needs a GPU that torch can use; here is none"))


@pytest.hookimpl(optionalhook=True)  # there where pytest-xdist is
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files stay whole, so that their fixtures are made once, and tests of several ranks on one process.

    pytest-xdist's own way to say so, its ``xdist_group``, has no effect with pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return RANKS if nodeid.startswith(RANKS) else nodeid.split("::")[0]

    return ByFile(config, log)
