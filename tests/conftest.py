"""For every test: one torch thread (on a busy machine threads wait for each other longer than they work), hypothesis
without deadlines; GPU tests that say why they skip; a Triton interpreter fit for tests where TRITON_INTERPRET=1."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("ds4sci", deadline=None)
settings.load_profile("ds4sci")
torch.set_num_threads(1)

if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
    import triton_interpreter

    triton_interpreter.repair()
    triton_interpreter.small_tiles()
    triton_interpreter.check_overflow(False)


RANKS = Path(__file__).parent / "train"
"""Tests that start several ranks. They run one after the other: two ranks each take both cores of a small machine."""


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where torch sees none; say which tests pytest-xdist must keep on one process.

    A file stays whole, so that its fixtures are made once. Tests of several ranks are one group, the first to start,
    since it takes longest.
    """
    items.sort(key=lambda item: RANKS not in item.path.parents)
    for item in items:
        group = RANKS if RANKS in item.path.parents else item.path
        item.add_marker(pytest.mark.xdist_group(str(group.relative_to(RANKS.parent))))
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if wanting and not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="needs a GPU that torch can use; here is none"))
