"""Locks between processes, and the cache folder."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from ds4sci.files import cache, locks


def _hold(file: Path, seconds: float) -> None:
    with locks.exclusive(file):
        file.with_suffix(".held").touch()
        time.sleep(seconds)


def _holder(file: Path, seconds: float) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=_hold, args=(file, seconds))
    process.start()
    while not file.with_suffix(".held").exists():
        time.sleep(0.01)
    return process


def test_a_held_lock_is_waited_for_or_raises(tmp_path: Path) -> None:
    file = tmp_path / "new" / "lock"
    waits: list[str] = []
    assert not locks.is_held(file)
    process = _holder(file, 0.5)
    assert locks.is_held(file)
    with pytest.raises(BlockingIOError), locks.exclusive_or_raise(file):
        pass
    with locks.exclusive(file, on_wait=lambda: waits.append("once")):
        assert waits == ["once"]
    process.join()
    with locks.exclusive(file, on_wait=lambda: waits.append("again")):
        assert locks.is_held(file)
    assert waits == ["once"]
    assert not locks.is_held(file)


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    process = _holder(tmp_path / "lock", 600)
    process.kill()
    process.join()
    with locks.exclusive_or_raise(tmp_path / "lock"):
        assert locks.is_held(tmp_path / "lock")


def test_the_cache_root_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DS4SCI_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_root() == tmp_path / ".cache" / "ds4sci"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_root() == tmp_path / "xdg" / "ds4sci"
    monkeypatch.setenv("DS4SCI_CACHE", str(tmp_path / "own"))
    assert cache.cache_root() == tmp_path / "own"
    assert not any(tmp_path.iterdir())


def test_a_derived_file_goes_to_the_cache_where_its_source_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS4SCI_CACHE", str(tmp_path / "cache"))
    source = tmp_path / "x.fasta"
    assert cache.derived_path(source, ".store", kind="sequences") == tmp_path / "x.fasta.store"
    monkeypatch.setattr(os, "access", lambda *_: False)
    path = cache.derived_path(source, ".store", kind="sequences")
    assert path.parents[1] == tmp_path / "cache" / "sequences"
    assert path.name == "x.fasta.store"
    assert path.parent.is_dir()
