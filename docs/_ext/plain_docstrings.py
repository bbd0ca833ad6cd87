"""Docstrings written for readers of the source as reStructuredText: aligned columns stay aligned, signs stay signs."""

from __future__ import annotations

import re

from sphinx.application import Sphinx

COLUMNS = re.compile(r"^\s*\S+(?: \S+)*  +\S")


def paragraphs(lines: list[str]) -> list[list[str]]:
    """Runs of lines that are not blank."""
    found: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [one for one in found if one]


def escaped(text: str) -> str:
    """``text`` with the signs of reStructuredText escaped, but for ``literals``."""
    parts = re.split(r"(``.+?``)", text, flags=re.S)
    return "".join(part if i % 2 else re.sub(r"([*|`\\]|_(?=\W|$))", r"\\\1", part) for i, part in enumerate(parts))


def converted(lines: list[str]) -> list[str]:
    """Paragraphs with aligned columns become literal blocks, lists and plain paragraphs stay."""
    found: list[str] = []
    for paragraph in paragraphs(lines):
        bullets = paragraph[0].lstrip().startswith(("- ", "* "))
        if paragraph[0].startswith("===="):
            found += [*paragraph, ""]  # a table of reStructuredText
        elif not bullets and (len([x for x in paragraph if COLUMNS.match(x)]) >= 1 or paragraph[0].startswith("  ")):
            found += [".. code-block:: text", "", *(f"    {line.replace('``', '')}" for line in paragraph), ""]
        elif bullets:
            marker = [re.sub(r"^(\s*[-*] )(.*)$", lambda m: m[1] + escaped(m[2]), x) for x in paragraph]
            found += [m if m != x else escaped(x) for m, x in zip(marker, paragraph, strict=True)] + [""]
        else:
            found += [escaped(line.strip()) for line in paragraph] + [""]
    return found


def process(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = converted(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", process)
    return {"parallel_read_safe": True}
