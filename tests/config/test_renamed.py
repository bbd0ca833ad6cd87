"""Renamed keys and values of run files, and run folders of older versions, are refused with the new name or remedy."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from ds4sci import __version__
from ds4sci.cli.main import app
from ds4sci.config import renamed, run_version
from ds4sci.config.run_file import CommonKeys, RunConfig, _fields
from ds4sci.kernels import KERNELS

ROOT = Path(__file__).parents[2]
CONFIGS = {
    "fold": "configs/fold/tiny_cpu.toml",
    "masked_lm": "configs/lm/protein_tiny.toml",
    "causal_lm": "configs/lm/genome_tiny.toml",
    "token_classification": "configs/lm/secondary_structure.toml",
    "neural_operator": "configs/operator/burgers.toml",
}
TASKS = {"all": list(CONFIGS), "language models": ["masked_lm", "causal_lm", "token_classification"]}


def test_the_documentation_page_is_current() -> None:
    page = (ROOT / "docs" / "renamed.md").read_text(encoding="utf-8")
    assert page == renamed.as_markdown(), "run: python -m ds4sci.config.renamed > docs/renamed.md"


@pytest.mark.parametrize("entry", renamed.KEYS, ids=lambda entry: entry.old)
def test_a_renamed_key_is_refused_with_its_new_name(entry: renamed.Renamed) -> None:
    for task in TASKS.get(entry.where) or entry.where.split(", "):
        old, new = entry.old, entry.new
        settings: type[BaseModel] = import_module(f"ds4sci.tasks.{task}").Config
        *sections, name = new.split(".")
        settings = CommonKeys if sections == ["train"] else settings
        assert name in (KERNELS if sections == ["kernels"] else _fields(settings, tuple(sections))), "no such new key"
        assert sections == ["kernels"] or old.split(".")[-1] not in _fields(settings, tuple(sections)), (
            "the old key is valid"
        )
        override = f"{old}=native" if sections == ["kernels"] else f"{old}=1"
        if old.startswith("data.phases."):
            override = f"data.phases=[{{{old.rpartition('.')[2]}=1, length=64}}]"
        if old.startswith("model.lora."):
            override = 'model.lora={targets=["query"]}'
        with pytest.raises(ValueError, match="is now") as caught:
            RunConfig.load(ROOT / CONFIGS[task], [override])
        assert f"is now {new}" in str(caught.value) or f"override '{override}'" in str(caught.value)


def test_the_message_names_file_line_and_both_names(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    text = (ROOT / CONFIGS["fold"]).read_text(encoding="utf-8").replace("stem_only_fraction", "alone_until")
    file.write_text(text, encoding="utf-8")
    line = 1 + text[: text.index("alone_until")].count("\n")
    with pytest.raises(ValueError, match="is now") as caught:
        RunConfig.load(file)
    expected = "model.stem.alone_until is now model.stem.stem_only_fraction; rename the key"
    assert str(caught.value) == f"{file}:{line}: {expected}"


@pytest.mark.parametrize("entry", renamed.VALUES["task.name"], ids=lambda entry: entry.old)
def test_a_renamed_task_is_refused_with_its_new_name(entry: renamed.Renamed) -> None:
    with pytest.raises(ValueError, match=f'is now task.name = "{entry.new}"'):
        RunConfig.load(ROOT / CONFIGS["fold"], [f"task.name={entry.old}"])


def test_a_renamed_operation_of_bench_is_refused_with_its_new_name() -> None:
    ended = CliRunner().invoke(app, ["bench", "kernels", "--op", "attention", "--json", "x.json"])
    assert "--op attention is now --op varlen_attention" in f"{ended.output} {ended.exception}"


@pytest.mark.parametrize("version", [None, "0.1.0", "broken"])
def test_a_run_folder_of_an_older_version_is_refused(version: str | None, tmp_path: Path) -> None:
    RunConfig.load(ROOT / CONFIGS["fold"]).save(tmp_path)
    file = tmp_path / "config.json"
    tree = json.loads(file.read_text(encoding="utf-8"))
    assert tree.pop(run_version.KEY) == __version__
    file.write_text(json.dumps(tree | ({run_version.KEY: version} if version else {})), encoding="utf-8")
    (tmp_path / "commit.txt").write_text("abc123\n", encoding="utf-8")
    (tmp_path / "machine.json").write_text('{"versions": {"ds4sci": "0.1.0"}}', encoding="utf-8")
    with pytest.raises(ValueError, match=rf"written by ds4sci {version or '0.1.0'} \(commit abc123\).*renamed\.md"):
        RunConfig.load(file)


def test_a_run_folder_without_any_version_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="written by ds4sci of an unknown version"):
        RunConfig.load(tmp_path / "config.json")
