"""``train.stage_to``: the dataset is copied before training, reported as a stage, and read from the copy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ds4sci.config.run_file import RunConfig
from ds4sci.datasets.dataset import MANIFEST
from ds4sci.train import listeners
from ds4sci.train.run import train
from tests.support import rank_processes
from tests.support.toy_array_task import write_dataset


def run_file(folder: Path, data: Path) -> Path:
    """Write a run file of the toy task on arrays, and its DeepSpeed JSON."""
    settings = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": 0,
        "optimizer": {"type": "Adam", "params": {"lr": 0.01, "torch_adam": True}},
    }
    (folder / "ds.json").write_text(json.dumps(settings))
    file = folder / "toy.toml"
    file.write_text(
        f'deepspeed = "ds.json"\n[task]\nname = "tests.support.toy_array_task"\n[train]\nsteps = 3\nlog_every = 1\n'
        f'output = "{folder}"\n[data]\npath = "{data}"\n'
    )
    return file


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


class Remover:
    """Listener that removes the original shards when the stage ``staging`` ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stages: list[tuple[str, dict[str, Any]]] = []

    def begin(self, stage: str, values: Mapping[str, Any]) -> None: ...

    def message(self, key: str, values: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...

    def end(self, stage: str, values: Mapping[str, Any]) -> None:
        self.stages.append((stage, dict(values)))
        if stage == "staging":
            shutil.rmtree(self.folder)


def test_a_run_reads_the_staged_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_dataset(tmp_path / "toy_arrays-1")
    size = sum(path.stat().st_size for path in data.iterdir() if path.name != MANIFEST)
    file = run_file(tmp_path, data)
    train(RunConfig.load(file, ["train.name=plain"]))
    remover = Remover(data)
    monkeypatch.setattr(listeners, "of_rank", lambda *_: [remover])
    train(RunConfig.load(file, ["train.name=staged", f'train.stage_to="{tmp_path / "scratch"}"']))
    assert [stage for stage, _ in remover.stages[:2]] == ["staging", "init"]
    assert remover.stages[0][1] == {"files": 4, "copied_bytes": size, "kept_bytes": 0, "refused": []}
    assert not data.exists()
    assert losses(tmp_path / "staged") == losses(tmp_path / "plain")
    assert len(losses(tmp_path / "staged")) == 3
    saved = RunConfig.load(tmp_path / "staged" / "config.json")
    assert saved.settings.data.path == data  # type: ignore[attr-defined]


def test_data_that_cannot_be_staged_is_an_error(tmp_path: Path) -> None:
    overrides = [f'train.output="{tmp_path}"', f'train.stage_to="{tmp_path}"', "train.steps=1"]
    with pytest.raises(ValueError, match=r"train\.stage_to = .* but the data of the task \w+ cannot be staged"):
        train(RunConfig.load("configs/operator/reaction_diffusion.toml", overrides))


@pytest.mark.slow
def test_two_ranks_divide_the_files_and_both_refuse_a_damaged_one(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "toy_arrays-1")
    file = run_file(tmp_path, data)
    arguments = ["--config", str(file), "train.name=staged", f'train.stage_to="{tmp_path / "scratch"}"']
    damaged = data / "train-00001.safetensors"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    ended = rank_processes.run(2, arguments, tmp_path, code=None)
    assert all(code != 0 for code in ended.codes)
    assert f"{damaged}: sha256" in ended.output
    damaged.write_bytes(content)
    ended = rank_processes.run(2, arguments, tmp_path)
    assert "Staged in " in ended.output
    (staged,) = (tmp_path / "scratch").glob("toy_arrays-1-*")
    assert (staged / MANIFEST).read_bytes() == (data / MANIFEST).read_bytes()
    assert damaged.read_bytes() == (staged / damaged.name).read_bytes()
