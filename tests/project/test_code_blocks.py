"""Python and TOML blocks of README and the documentation: they parse, their imports exist, their keys are valid."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib

import pytest
from pydantic import ValidationError

from ds4sci.config.run_file import CommonKeys
from ds4sci.config.task_module import import_task
from tests.support.documents import DOCUMENTS, ROOT


def blocks(language: str) -> list[tuple[str, str]]:
    """(document and number of the block, text) of every fenced block of the language."""
    return [
        (f"{document.relative_to(ROOT).as_posix()}:{number}", text)
        for document in DOCUMENTS
        for number, text in enumerate(
            re.findall(rf"```{language}\n(.*?)```", document.read_text(encoding="utf-8"), re.S), 1
        )
    ]


@pytest.mark.parametrize(("place", "text"), blocks("python"), ids=lambda value: value[:60])
def test_python_blocks_parse_and_their_imports_exist(place: str, text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ds4sci"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), f"{place}: {node.module} has no {alias.name}"


@pytest.mark.parametrize(("place", "text"), blocks("toml"), ids=lambda value: value[:60])
def test_toml_blocks_have_valid_keys(place: str, text: str) -> None:
    """A block may leave out required keys, but none of its keys is unknown and no value is invalid."""
    tree = tomllib.loads(text)
    if "task" not in tree:
        return
    common = {key: tree.pop(key) for key in list(tree) if key in CommonKeys.model_fields}
    for model, values in ((CommonKeys, common), (import_task(common["task"]["name"]).Config, tree)):
        try:
            model.model_validate(values)
        except ValidationError as error:
            wrong = [e for e in error.errors() if e["type"] != "missing"]
            assert not wrong, f"{place}: {wrong}"


def test_blocks_are_found() -> None:
    assert len(blocks("python")) >= 5
    assert len(blocks("toml")) >= 2
