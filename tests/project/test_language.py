"""Rules of ``CONTRIBUTING.md`` for texts: how module docstrings begin, and phrases that are not plain English."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("ds4sci", "kernels", "launch", "configs", "examples", "tests", "docs")
SUFFIXES = {".py", ".md", ".toml", ".sh", ".h", ".cpp"}
FILES = sorted(
    path
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*")
    if path.suffix in SUFFIXES and not {"_build", "generated", "fixtures", "__pycache__"} & {*path.parts}
)
FILES += [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]

PHRASES = (
    "anew", "as it came", "at a time's", "goes on with", "in sight of", "is there where", "kept from", "leaner",
    "nobody", "none knows", "of the machine's", "put right", "say so", "says so", "somebody", "that asks",
    "there where", "times as fast", "told", "what asks", "who asks", "whom",
)  # fmt: skip
"""Turns of phrase that this project once used. Each has a plain word: *again*, *no one*, *reported*, *speed-up*, …"""


@pytest.mark.parametrize("folder", ["ds4sci", "launch", "tests", "docs"])
def test_module_docstrings_begin_with_a_noun_phrase(folder: str) -> None:
    """A docstring names what the module holds; a sentence that begins with a question word does not."""
    wrong = []
    for path in FILES:
        if path.suffix == ".py" and path.is_relative_to(ROOT / folder):
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            if re.match(r"(What|Which|How|Where|Whether|When|Who|Why)\b", docstring):
                wrong.append(f"{path.relative_to(ROOT)}: {docstring.splitlines()[0]}")
    assert not wrong, "\n".join(wrong)


def test_texts_are_plain_english() -> None:
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, PHRASES)) + r")\b")
    wrong = [
        f"{path.relative_to(ROOT)}:{number}: {found.group()}"
        for path in FILES
        if path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for found in pattern.finditer(line)
    ]
    assert not wrong, "\n".join(wrong)
