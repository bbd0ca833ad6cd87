"""Facts about the processor."""

from __future__ import annotations

import os

import pytest

from ds4sci.machine import processor, provenance


def test_usable_cores_follow_the_affinity_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 5, 8}, raising=False)
    assert processor.usable_cores() == 3
    assert provenance.describe()["cores"] == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert processor.usable_cores() == os.cpu_count()


def test_the_model_name_is_never_empty() -> None:
    assert processor.model_name()
    assert all(flag == flag.strip() for flag in processor.instruction_flags())
