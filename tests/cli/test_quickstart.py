"""The quickstart skips finished stages, resumes an interrupted training, and writes its results."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ds4sci.bench import tables
from ds4sci.cli import quickstart
from ds4sci.config.run_file import RunConfig
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.train import launch

ROOT = Path(__file__).resolve().parents[2]
OVERRIDES = ["train.steps=10"]


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paths in the quickstart are relative to the root of the repository."""
    monkeypatch.chdir(ROOT)


def write_checkpoint(run: Path, step: int) -> None:
    """Files of a checkpoint that the quickstart reads."""
    folder = run / "checkpoints" / f"step_{step:06d}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": step, "seconds": 90.0}), encoding="utf-8")
    (folder.parent / "latest").write_text(folder.name + "\n", encoding="utf-8")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Calls of a fake launcher: a new run stops at step 4, a resumed run finishes."""
    seen: list[Any] = []

    def train(config: Any, overrides: Any = (), *, resume: Path | None = None, **others: Any) -> int:
        seen.append(("resume", resume) if resume else ("train", list(overrides)))
        run = resume or tmp_path / "run"
        if resume is None:
            run.mkdir(parents=True)
            RunConfig.load(config, list(overrides)).save(run)
        write_checkpoint(run, 10 if resume else 4)
        return 0

    monkeypatch.setattr(launch, "train", train)
    return seen


def test_training_resumes_and_is_then_reused(calls: list[Any], tmp_path: Path) -> None:
    run, messages = tmp_path / "run", []
    with pytest.raises(ValueError, match=r"step 4 of 10.*resume from the last checkpoint"):
        quickstart.train(messages.append, quickstart.CONFIG, run, OVERRIDES)
    quickstart.train(messages.append, quickstart.CONFIG, run, OVERRIDES)
    assert calls[1:] == [("resume", run)]
    assert not any("reused" in line for line in messages)
    quickstart.train(messages.append, quickstart.CONFIG, run, OVERRIDES)
    assert len(calls) == 2, "a finished training is not run again"
    assert "reused" in messages[-1]


def test_other_settings_rename_the_old_run(calls: list[Any], tmp_path: Path) -> None:
    run, messages = tmp_path / "run", []
    for step in ("first", "resumed"):
        if step == "first":
            with pytest.raises(ValueError, match="step 4"):
                quickstart.train(messages.append, quickstart.CONFIG, run, OVERRIDES)
        else:
            quickstart.train(messages.append, quickstart.CONFIG, run, OVERRIDES)
    with pytest.raises(ValueError, match="step 4"):
        quickstart.train(messages.append, quickstart.CONFIG, run, [*OVERRIDES, "seed=1"])
    assert calls[-1][0] == "train"
    (renamed,) = (folder for folder in tmp_path.iterdir() if folder != run)
    assert (renamed / "checkpoints" / "latest").exists()
    assert str(renamed) in "".join(messages)


def test_results_older_than_the_checkpoint_are_recomputed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 10)
    result, made = tmp_path / "evaluations" / "x.json", []

    def make(value: int) -> Callable[[], None]:
        def write() -> None:
            made.append(value)
            result.parent.mkdir(exist_ok=True)
            result.write_text(json.dumps({"value": value}), encoding="utf-8")

        return write

    messages: list[str] = []
    assert quickstart.load_or_make(messages.append, result, tmp_path, make(1)) == {"value": 1}
    assert quickstart.load_or_make(messages.append, result, tmp_path, make(2)) == {"value": 1}
    assert "reused" in messages[-1]
    os.utime(result, (1, 1))
    assert quickstart.load_or_make(messages.append, result, tmp_path, make(3)) == {"value": 3}
    assert made == [1, 3]


def test_table_and_record(tmp_path: Path, calls: list[Any]) -> None:
    run = tmp_path / "run"
    with pytest.raises(ValueError, match="step 4"):
        quickstart.train(print, quickstart.CONFIG, run, OVERRIDES)
    (run / "machine.json").write_text(
        json.dumps({"cpu": "c", "cores": 2, "python": "3.11", "versions": {}, "commit": "abc"}), encoding="utf-8"
    )
    rows = [
        ("before training", {"lddt_ca": 0.0274, "rmsd": 20.04, "clash": 1.0}),
        ("trained", {"lddt_ca": 0.45, "tm_score": 0.3, "rmsd": 12.5, "right_handed": 0.981, "clash": 0.021}),
    ]
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(quickstart.result_table(rows, trained=1))
    shown = console.export_text()
    assert "0.450" in shown
    assert "98 %" in shown
    saved = quickstart.measurement(rows, quickstart.CONFIG, run).save(tmp_path / "benchmarks")
    table = tables.section(json.loads(saved.read_text(encoding="utf-8")))
    assert "| before training | 0.027 | – | – | 20.0 | – | – | 100 % |" in table
    assert "10 steps in 1.5 minutes" in table


def test_json_for_many_gpus_differs_only_in_batch_size() -> None:
    trees = [
        json.loads((ROOT / name).read_text(encoding="utf-8"))
        for name in (str(RunConfig.load(quickstart.CONFIG).deepspeed), quickstart.MANY_GPUS_JSON)
    ]
    assert trees[0].pop("train_batch_size") == 2 * trees[0]["train_micro_batch_size_per_gpu"]
    assert trees[0] == trees[1]


@pytest.mark.slow
def test_all_stages_in_a_few_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sets = {"TRAIN_CHAINS": 60, "CHAINS": 8}
    for name, chains in sets.items():
        source = ChainSet.open(getattr(quickstart, name))
        ChainSet.write(tmp_path / f"{name}.npz", [source[index] for index in range(chains)])
        monkeypatch.setattr(quickstart, name, tmp_path / f"{name}.npz")
    arguments = [
        f"--run={tmp_path / 'quickstart'}",
        "train.steps=6",
        f'data.train="{tmp_path / "TRAIN_CHAINS.npz"}"',
        f'data.valid="{tmp_path / "CHAINS.npz"}"',
    ]
    assert quickstart.main(arguments) == 0
    shown = capfd.readouterr().out
    assert "before training" in shown
    assert "trained, 6 steps" in shown
    assert (tmp_path / "quickstart" / "report.html").stat().st_size > 10_000
    assert len(list((tmp_path / "quickstart" / "predictions").glob("*.cif"))) == 3
    assert quickstart.main(arguments) == 0
    again = capfd.readouterr().out
    assert again.count("reused") == 6, again
