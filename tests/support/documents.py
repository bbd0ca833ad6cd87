"""README, contributing guide, pages of the site and of the examples: the documents whose contents are tested."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PAGES = [page for page in (ROOT / "docs").rglob("*.md") if not {"_build", "generated"} & {*page.parts}]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *_PAGES, *(ROOT / "examples").rglob("*.md")])
