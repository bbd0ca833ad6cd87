"""Removal of files from the page cache, as the kernel reports it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ds4sci.machine import page_cache


def test_files_of_a_folder_are_dropped(tmp_path: Path) -> None:
    for name in ("a", "b/c"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes(300_000))
        file.read_bytes()
    record = page_cache.drop([tmp_path, tmp_path / "a", tmp_path / "missing"])
    assert (record["files"], record["bytes"], record["errors"]) == (2, 600_000, [])
    if record["in_memory"]:
        assert not record["cleared"]
        pytest.skip("the test's folder is on a file system in memory")
    assert record["cleared"]
    assert record["cached_before"] >= 600_000
    assert record["cached_after"] == 0


def test_a_file_system_in_memory_is_not_durable_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"x")
    monkeypatch.setattr(page_cache, "_is_in_memory", lambda file: True)
    assert not page_cache.drop([tmp_path])["cleared"]


def test_errors_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"x")

    def refuse(file: Path) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(page_cache, "_advise", refuse)
    monkeypatch.setattr(page_cache, "DROP_CACHES", tmp_path / "missing" / "drop_caches")
    record = page_cache.drop([tmp_path], whole_machine=True)
    assert len(record["errors"]) == 2
    assert not record["cleared"]
    assert page_cache.drop([])["cleared"]  # nothing to drop


def test_large_files_are_dropped_without_a_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(bytes(5000))
    monkeypatch.setattr(page_cache, "LARGEST_COUNT", 4096)
    record = page_cache.drop([tmp_path])
    assert (record["cached_before"], record["cached_after"], record["errors"]) == (None, None, [])
