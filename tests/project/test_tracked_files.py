"""Files in the repository: sources, small data and results, nothing that a build or an installation left behind."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BINARY = {".gz": 1e6, ".npz": 1e7, ".png": 5e5}
"""Suffix → bytes that a binary file with it may have."""
LARGEST_TEXT = 6e5
"""3Dmol.js, minified, is the largest."""


def test_tracked_files_are_text_or_small_data() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listing.split("\0") if name and (ROOT / name).exists()]
    assert len(files) > 500
    unexpected = []
    for file in files:
        limit = BINARY.get(file.suffix)
        damaged_on_purpose = file.is_relative_to(ROOT / "tests" / "fixtures")
        if limit is None and not damaged_on_purpose and b"\0" in file.read_bytes():
            unexpected.append(f"{file.relative_to(ROOT)}: a binary file; expected text, or one of {', '.join(BINARY)}")
        elif file.stat().st_size > (limit or LARGEST_TEXT):
            unexpected.append(f"{file.relative_to(ROOT)}: {file.stat().st_size:,} bytes")
    assert not unexpected, "\n".join(unexpected)
