"""The surrogate task: units, loss, freezing, miniature, export, and refusal of bad data by file and reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ds4sci.data.array_shards import write_shard
from ds4sci.data.surrogate_variables import FILE, Variables
from ds4sci.tasks import Exportable, ParameterPredictor
from ds4sci.tasks import surrogate as module
from tests.support import image_step


def task(folder: Path, source: str = "experiment", **model: Any) -> module.Surrogate:
    sections = {"data": {"path": str(folder), "source": source}, "model": {"hidden": [8, 6]} | model}
    return module.build(module.Config.model_validate(sections), seed=1, steps=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return image_step.write_data("surrogate", tmp_path)


def test_every_source_has_the_units_of_the_first(folder: Path) -> None:
    simulation, experiment = task(folder, "simulation"), task(folder)
    np.testing.assert_array_equal(simulation.units.mean, experiment.units.mean)
    x, y = (np.stack(arrays) for arrays in zip(*simulation.train[:], strict=True))
    assert np.abs(x).max() <= 1
    np.testing.assert_allclose(y.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(y[:, :2].std(axis=0), 1, rtol=1e-6)
    assert np.sqrt(np.square(y[:, 2:]).mean()) == pytest.approx(1, rel=1e-6), "one unit for all cells"
    biased = np.stack([targets for _, targets in experiment.train[:]])
    assert abs(biased[:, 2:].mean()) > 0.2


def test_loss_is_the_weighted_mean_of_both_errors(folder: Path) -> None:
    one = task(folder)
    batch = next(one.batches(start_step=0, rank=0, world_size=1, micro_batch_size=4, accumulation_steps=1))
    output = one.model(batch).detach()
    loss, terms = one.loss(output, batch)
    squares = (output - batch.targets).square()
    assert float(terms["mse_scalars"]) == pytest.approx(float(squares[:, :2].mean()), rel=1e-6)
    assert float(loss) == pytest.approx(float(0.5 * squares[:, :2].mean() + 0.5 * squares[:, 2:].mean()), rel=1e-6)
    rows = one.evaluate(one.model.eval(), rank=0, world_size=1, device=torch.device("cpu"))
    found = one.summarize(rows)
    parameters, true = one.held_out_examples()
    predicted = one.predict_outputs(parameters, torch.device("cpu"))
    error = (predicted - true)[:, 0]
    assert found["mae_mean"] == pytest.approx(np.abs(error).mean(), rel=1e-4)
    normalized = np.square(one.units.normalized(predicted) - one.units.normalized(true))
    assert found["nrmse"] == pytest.approx(np.sqrt((normalized[:, :2].mean() + normalized[:, 2:].mean()) / 2), rel=1e-4)
    assert found["score"] == -found["nrmse"]


def test_frozen_layers_are_not_trained(folder: Path) -> None:
    one = task(folder, freeze=["trunk.*"])
    trained = {name for name, p in one.model.named_parameters() if p.requires_grad}
    assert trained == {"scalars.weight", "scalars.bias", "field.weight", "field.bias"}
    with pytest.raises(ValueError, match=r"model.freeze: 'decoder.\*' matches no parameter; names are "):
        task(folder, freeze=["decoder.*"])
    with pytest.raises(ValueError, match="leaves nothing to train"):
        task(folder, freeze=["*"])


def test_the_miniature_needs_no_data(tmp_path: Path) -> None:
    sections = {"data": {"path": "absent-1", "source": "experiment"}, "model": {"freeze": ["trunk.0.*"]}}
    config = module.Config.model_validate(sections)
    made = module.build(module.Config.model_validate(module.miniature(config, tmp_path)), seed=0, steps=1)
    assert made.config.model.freeze == ("trunk.0.*",)
    assert made.variables.field_shape == (3, 4)
    assert isinstance(made, Exportable)
    assert isinstance(made, ParameterPredictor)


def test_an_export_predicts_the_same_in_physical_units(folder: Path, tmp_path: Path) -> None:
    one = task(folder)
    out = tmp_path / "out"
    out.mkdir()
    one.export(out, adapter=False, started_with={})
    assert Variables.read(out).scalars == ("mean", "peak")
    weights = load_file(out / "model.safetensors")
    assert weights["network.trunk.0.weight"].shape == (8, 2)
    parameters, _ = one.held_out_examples()
    expected = one.predict_outputs(parameters, torch.device("cpu"))
    loaded = torch.export.load(out / "surrogate.pt2").module()
    found = loaded(torch.from_numpy(parameters.astype(np.float32))).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="no adapter weights"):
        one.export(out, adapter=True, started_with={})


def rewrite(folder: Path, inputs: np.ndarray, targets: np.ndarray) -> None:
    write_shard(folder / "experiment", "train", 0, inputs.astype(np.float32), targets.astype(np.float32))


def test_bad_data_are_refused_by_file_and_reason(folder: Path) -> None:
    file = folder / "experiment/train-00000.safetensors"
    good = file.read_bytes()
    targets = np.zeros((2, 14))
    targets[1, 9] = np.nan
    rewrite(folder, np.full((2, 2), 0.5), targets)
    with pytest.raises(ValueError, match=r"train-00000.safetensors: example 1: u\[1, 3\] is nan; expected finite"):
        task(folder)
    rewrite(folder, np.array([[0.5, np.inf]]), np.zeros((1, 14)))
    with pytest.raises(ValueError, match="example 0: b is inf"):
        task(folder)
    rewrite(folder, np.zeros((2, 3)), np.zeros((2, 14)))
    with pytest.raises(ValueError, match=r"parameters of the shape \[3\]; variables.json names 2 parameters"):
        task(folder)
    rewrite(folder, np.zeros((2, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"outputs of the shape \[2\]; variables.json names 14 outputs"):
        task(folder)
    file.write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match=r"train-00000\.safetensors: not a readable safetensors file"):
        task(folder)
    with pytest.raises(ValueError, match="no source 'reality'; it has simulation, experiment"):
        task(folder, "reality")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {}}, "expected at least one parameter"),
        ({"parameters": {"a": [1.0, 1.0]}}, r"parameters.a: expected \[low, high\] with low < high"),
        ({"parameters": {"a": [1.0]}}, "malformed"),
        ({"field": {"name": "u"}}, r"malformed \(KeyError: 'shape'\)"),
        ({"field": {"name": "u", "shape": [0, 4]}}, "sizes above 0"),
        ({"scalars": None}, "malformed"),
    ],
)
def test_malformed_variables_are_refused(changes: dict[str, Any], message: str, folder: Path) -> None:
    file = folder / FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError, match=message) as caught:
        task(folder)
    assert str(file) in str(caught.value)


def test_missing_or_damaged_variables_are_refused(folder: Path) -> None:
    (folder / FILE).write_text("{")
    with pytest.raises(ValueError, match=r"variables.json: unreadable"):
        task(folder)
    (folder / FILE).unlink()
    with pytest.raises(ValueError, match=r"variables.json: missing; a dataset of a surrogate names its parameters"):
        task(folder)
