"""Commands in the documents parse, links lead to existing files, and generated tables are up to date."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

from ds4sci.bench import tables
from ds4sci.cli import main
from ds4sci.config.run_file import RunConfig
from ds4sci.train.__main__ import parse
from tests.support.documents import DOCUMENTS, ROOT

MARKERS = {
    line.split(":")[0]
    for line in tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"][
        "markers"
    ]
}


def commands() -> list[tuple[str, str]]:
    """(document, line) of every shell line in a ```bash block. ``&&`` chains are split."""
    found = set()
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for block in re.findall(r"```bash\n(.*?)```", text, re.S):
            for part in re.split(r"&&|\n", block.replace("\\\n", " ")):
                if words := shlex.split(part, comments=True):
                    found.add((document.relative_to(ROOT).as_posix(), shlex.join(words)))
    return sorted(found)


def mentions() -> list[tuple[str, str]]:
    """(document, command) of every inline `ds4sci …`, `bash …`, `sbatch …` in the text."""
    pattern = r"`((?:bash|ds4sci|deepspeed|sbatch|python|pytest) [^`…\n]+)`"
    texts = {document: document.read_text(encoding="utf-8") for document in DOCUMENTS}
    return sorted({(d.relative_to(ROOT).as_posix(), c) for d, text in texts.items() for c in re.findall(pattern, text)})


def parses_as_ds4sci(words: list[str], *, whole: bool) -> None:
    """Raise if ``ds4sci`` would reject the command line. ``whole=False``: arguments may be missing."""
    command = typer.main.get_command(main.app)
    while hasattr(command, "commands"):
        assert words, "a command group needs a command"
        context = command.make_context("ds4sci", [], resilient_parsing=True)
        found = command.get_command(context, words[0])
        assert found is not None, f"unknown command {words[0]!r}; expected one of {command.list_commands(context)}"
        command, words = found, words[1:]
    command.make_context("ds4sci", list(words), resilient_parsing=not whole)


def check_run_file(words: list[str]) -> None:
    """Load the run file of a command line with its overrides, if it is one of ``configs/``."""
    file = next((word for word in words if word.endswith(".toml") and word.startswith("configs/")), None)
    if file is not None:
        assert (ROOT / file).is_file(), f"{file} does not exist"
        RunConfig.load(ROOT / file, [word for word in words if re.match(r"[\w.]+=", word)])


@pytest.mark.parametrize(("document", "command"), commands(), ids=lambda value: value[:70])
def test_command_would_start(document: str, command: str) -> None:
    would_start(document, command, whole=True)


@pytest.mark.parametrize(("document", "command"), mentions(), ids=lambda value: value[:70])
def test_mentioned_command_exists(document: str, command: str) -> None:
    would_start(document, command, whole=False)


def would_start(document: str, command: str, *, whole: bool) -> None:
    """Raise if the shell, or the program that it starts, would reject the command at once."""
    words = shlex.split(command)
    words = words[1:] if words[0] == "sudo" else words
    if words[0] == "env":
        words = [word for word in words[1:] if "=" not in word]
    while words and re.match(r"\w+=", words[0]):
        words = words[1:]
    if not words:
        return
    name, rest = words[0], words[1:]
    if name == "ds4sci":
        parses_as_ds4sci(rest, whole=whole)
    elif name in ("bash", "source", "sbatch") or (name == "python" and not rest[0].startswith("-")):
        script = next(word for word in rest if not word.startswith("-"))
        assert (ROOT / script).is_file(), f"{document} names {script}, which does not exist"
    elif name == "gdb":
        would_start(document, shlex.join(rest[rest.index("--args") + 1 :]), whole=whole)
    elif name == "python" and rest[0] == "-m":
        main_file = ROOT / rest[1].replace(".", "/") / "__main__.py"  # tests.fuzz: importable from the root only
        assert main_file.is_file() or importlib.util.find_spec(rest[1]) is not None
    elif name == "deepspeed":
        script = next((word for word in rest if word.endswith(".py")), None)
        assert script is not None, f"{document}: no script in {command}"
        assert (ROOT / script).is_file()
        parse(rest[rest.index(script) + 1 :])
    elif name == "pytest":
        for marker in [rest[i + 1] for i, word in enumerate(rest) if word == "-m"]:
            assert set(re.findall(r"\w+", marker)) - {"not", "and", "or"} <= MARKERS
        assert all((ROOT / word).exists() for word in rest if word.startswith("tests"))
    else:
        assert name in ("git", "cd", "pip", "apt-get", "pre-commit", "torchrun", "g++"), f"unknown program: {command}"
    check_run_file(rest)


def test_documents_name_every_kind_of_command() -> None:
    names = {command.split()[0] for _, command in [*commands(), *mentions()]}
    assert names >= {"bash", "ds4sci", "deepspeed", "sbatch", "pytest"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_paths_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    missing = [link for link in links if not (document.parent / link).exists()]
    named = re.findall(r"`((?:configs|launch|examples|tests|ds4sci)/[\w./-]+\.\w+)`", text)
    missing += [path for path in named if "NAME" not in path and not (ROOT / path).exists()]
    for file, test in re.findall(r"`(?:[\w/]+/)?(test_\w+\.py)::(test_\w+)`", text):
        files = (ROOT / "tests").rglob(file)
        if not any(f"def {test}(" in path.read_text(encoding="utf-8") for path in files):
            missing.append(f"{file}::{test}")
    assert missing == []


def test_generated_tables_are_up_to_date() -> None:
    assert tables.main(["--check"]) == 0


def test_stale_tables_are_found_and_rewritten(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"# x\n\n{tables.START}\n{tables.END}\nafter\n", encoding="utf-8")
    (tmp_path / "benchmarks").mkdir()
    measurement = {
        "title": "A title",
        "command": "ds4sci bench data",
        "columns": ["parser", "seconds", "speed-up"],
        "rows": [["gemmi", 0.12345, 5.25], ["biopython", 1234.5, 1.0]],
        "notes": ["a note"],
        "date": "2026-01-01",
        "machine": {"cpu": "a processor", "cores": 2, "python": "3.11", "versions": {"torch": "2"}, "commit": "f" * 40},
    }
    (tmp_path / "benchmarks" / "parsing.json").write_text(json.dumps(measurement), encoding="utf-8")
    root = ["--root", str(tmp_path)]
    assert tables.main(["--check", *root]) == 1
    assert tables.main(root) == 0
    assert tables.main(["--check", *root]) == 0
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| mmCIF parsing: speed-up | **5.25 ×** |" in text
    assert "`ffffffffffff`" in text
    assert text.endswith("after\n")
    page = (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")
    assert "## Data\n\n### A title" in page
    assert "| gemmi | 0.123 | 5.25 |" in page
    assert "| biopython | 1,234 | 1 |" in page
    assert "commit `ffffffffffff`" in page
