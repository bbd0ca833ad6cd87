"""``train.weights``: a run from OpenFold's and AlphaFold's files, its record, and its export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from ds4sci.cli.main import app
from ds4sci.config.run_file import RunConfig
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.inference.trained_run import TrainedRun
from ds4sci.models.fold import Config, FoldModel
from ds4sci.models.published_weights import read_weights
from ds4sci.models.published_weights.inspection import convert
from ds4sci.models.published_weights.sizes import differing_sizes, read_contents
from ds4sci.models.published_weights.weight_file import read_record
from ds4sci.tasks.build import build_task
from ds4sci.train import checkpoint
from ds4sci.train.initial_weights import load_initial_weights
from tests.support import rank_processes
from tests.support import synthetic_weights as synthetic
from tests.support.fold_run import CHAINS, ROOT

RUN_FILE = ROOT / "configs" / "fold" / "small.toml"


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    file = tmp_path / "params_model_3_ptm.npz"
    np.savez(file, **synthetic.parameters(synthetic.shapes(synthetic.SMALL, templates=False)))
    return file


def settings(folder: Path, file: Path) -> list[str]:
    """Overrides of ``small.toml`` for the sizes of ``file``, with data and a learning rate of 0 in ``folder``."""
    records = sorted(ChainSet.open(CHAINS), key=lambda record: len(record.sequence))
    ChainSet.write(folder / "train.npz", records[:4])
    ChainSet.write(folder / "valid.npz", records[4:6])
    optimizer = {"type": "AdamW", "params": {"lr": 0.0, "torch_adam": True}}
    tree = {"train_micro_batch_size_per_gpu": 1, "optimizer": optimizer, "gradient_clipping": 1.0}
    (folder / "ds.json").write_text(json.dumps(tree))
    model = Config.model_validate(RunConfig.load(RUN_FILE).resolved()["model"])
    sizes = differing_sizes(read_contents(read_weights(file).tensors).config, model).split()
    return [
        *sizes, f"deepspeed={folder / 'ds.json'}", f"data.train={folder / 'train.npz'}", "data.workers=0",
        f"data.valid={folder / 'valid.npz'}", "data.plan.phases=[{crops=[24]}]", "data.plan.max_recycling=0",
        "data.evaluation_recycling=0", "data.evaluation_chains=1", "model.structure.iterations=1", "train.steps=2",
        "train.log_every=1",
    ]  # fmt: skip


def test_a_run_from_openfolds_file_and_its_export(npz: Path, tmp_path: Path) -> None:
    """Two steps, with a new head; learning rate 0, so that the checkpoint holds the weights of the file."""
    file = tmp_path / "openfold.pt"
    convert(npz, file)
    weights = [f"train.weights={file}", 'train.weights_new=["heads.secondary.*"]', "train.name=tuned"]
    arguments = ["--config", str(RUN_FILE), *settings(tmp_path, file), *weights]
    ended = rank_processes.run(1, arguments, tmp_path)
    run = tmp_path / "runs" / "tuned"
    assert f"Initial weights: 451 tensors (23,830 parameters) from {file} (OpenFold names, .pt)" in ended.output
    assert "Note: 2 tensors of the file are not loaded (model.heads does not list this head)" in ended.output
    assert "Note: 4 tensors keep their initial values: heads.secondary.0.weight" in ended.output
    assert "License: The published AlphaFold parameters are licensed under CC BY 4.0" in ended.output

    saved, expected = load_file(run / "checkpoints/step_000002/model.safetensors"), read_weights(file).tensors
    assert set(saved) == {name for name in expected if "heads.tm" not in name} | set(read_record(run)["new"])
    assert all(torch.equal(saved[name], expected[name]) for name in saved if name in expected)
    record = read_record(run)
    assert sorted(record["unused"]) == ["heads.tm.bias", "heads.tm.weight"]
    assert len(record["sha256"]) == 64

    with pytest.warns(UserWarning, match="without the head secondary"):
        done = CliRunner().invoke(app, ["export", "--run", str(run), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    exported = read_weights(tmp_path / "out" / "openfold.pt")
    assert exported.names == "openfold"
    assert all(torch.equal(exported.tensors[name], saved[name]) for name in exported.tensors)
    assert "Jumper et al. 2021" in (tmp_path / "out" / "notice.txt").read_text()
    assert "Jumper et al. 2021" in exported.notice

    untrained = TrainedRun.load(run, "untrained").task.model.state_dict()  # the weights before the first step
    assert all(torch.equal(untrained[name].cpu(), saved[name]) for name in saved if name in expected)


def test_the_notice_follows_from_run_to_run(npz: Path, tmp_path: Path) -> None:
    overrides = [*settings(tmp_path, npz), f"train.weights={npz}", 'model.heads=["masked_msa"]']
    config = RunConfig.load(RUN_FILE, overrides)
    task = build_task(config)
    first = load_initial_weights(task, config.train)
    assert first is not None
    assert sorted(first.fit.unused) == [
        "heads.experimentally_resolved.bias", "heads.experimentally_resolved.weight", "heads.tm.bias", "heads.tm.weight"
    ]  # fmt: skip
    expected = read_weights(npz).tensors
    assert all(torch.equal(tensor, expected[name]) for name, tensor in task.model.state_dict().items())

    run = tmp_path / "runs" / "first"
    folder = checkpoint.checkpoint_folder(run, 2)
    folder.mkdir(parents=True)
    (folder.parent / "best").write_text(folder.name)
    first.save(run)
    torch_weights = {name: tensor.contiguous() for name, tensor in task.model.state_dict().items()}
    from safetensors.torch import save_file

    save_file(torch_weights, folder / "model.safetensors")
    for weights in (run, folder / "model.safetensors"):
        config = RunConfig.load(RUN_FILE, [*overrides[:-2], f"train.weights={weights}", 'model.heads=["masked_msa"]'])
        second = load_initial_weights(build_task(config), config.train)
        assert second is not None
        assert "Jumper et al. 2021" in second.notice


def test_wrong_settings_are_refused(npz: Path, tmp_path: Path) -> None:
    arguments = ["--config", str(RUN_FILE), *settings(tmp_path, npz), f"train.weights={npz}", "train.name=wrong"]
    ended = rank_processes.run(1, arguments, tmp_path, code=2)
    assert "4 tensors of the model not in the file: heads.secondary.0.weight" in ended.output
    assert 'train.weights_new=["heads.secondary.*"]' in ended.output
    config = RunConfig.load(RUN_FILE, ["train.weights_new=['heads.*']"])
    model = type("Toy", (), {"model": FoldModel(Config.model_validate({"evoformer": {"blocks": 1}}))})()
    with pytest.raises(ValueError, match=r"need train\.weights: a run folder or a file"):
        load_initial_weights(model, config.train)
    config = RunConfig.load(RUN_FILE, ["train.weights=runs/nothing"])
    with pytest.raises(ValueError, match=r"train\.weights = 'runs/nothing': no such file or run folder"):
        load_initial_weights(model, config.train)
