"""Atomic and synced writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ds4sci.files.atomic_files import Writer, new_folder, refuse_full, replace_text, replacing


def test_a_full_device_is_kept_as_an_error_and_nothing_more_is_written(tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    writer = Writer(tmp_path)
    writer.write_bytes(tmp_path / "fine", b"1")
    writer.write(tmp_path / "full", lambda handle: torch.save(torch.zeros(100_000), handle))
    assert "No space left on device" in (writer.error or "")
    assert "MB free" in (writer.error or "")
    writer.write_bytes(tmp_path / "after", b"1")
    assert not (tmp_path / "after").exists()
    assert set(writer.files) == {"fine"}


def test_replace_text_leaves_old_or_new(tmp_path: Path) -> None:
    file = tmp_path / "latest"
    replace_text(file, "one")
    with pytest.raises(UnicodeEncodeError):
        replace_text(file, "\ud800")
    assert file.read_text() == "one"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "x.bin"
    for sync in (True, False):
        with replacing(file, sync=sync) as handle:
            handle.write(b"old")
            assert not file.exists() or file.read_bytes() == b"old"
    with pytest.raises(TypeError), replacing(file) as handle:
        handle.write("text")  # type: ignore[arg-type]
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_appears_at_the_end_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError), new_folder(out) as folder:
        (folder / "absent" / "a").touch()
    assert not list(tmp_path.iterdir())
    with new_folder(out) as folder:
        (folder / "a").touch()
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["a"]
    with pytest.raises(ValueError, match="out: already exists and is not empty; choose a new folder"):
        refuse_full(out)
    with pytest.raises(ValueError, match="a: already exists and is not a folder"):
        refuse_full(out / "a")
