"""Recycling passes with their own samples of the alignment, in the model and in predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ds4sci.chemistry.residue_codes import MASK
from ds4sci.cli.main import main
from ds4sci.data.loader import make_pass_rng
from ds4sci.data.structures import features as features_module
from ds4sci.data.structures.batch import collate
from ds4sci.data.structures.features import FeatureConfig, featurize
from ds4sci.data.structures.parsers import mmcif
from ds4sci.data.structures.synthetic import synthetic_chain
from ds4sci.losses.fold import LossConfig, fold_loss
from ds4sci.models.fold import FoldModel, recycled_inputs
from ds4sci.models.msa_samples import batch_of_pass
from ds4sci.tasks.fold import Config, FoldTask
from ds4sci.types import Batch, ChainIds, Prediction, Record, in_double
from tests.support.complex_batch import MULTIMER
from tests.support.fold_run import make_fold_run
from tests.support.small_fold import SMALL

KINDS = {"monomer": SMALL, "multimer": MULTIMER.model_copy(update={"template": SMALL.template})}
PASSES = 2
SETTINGS = FeatureConfig(msa_input="msa", max_clusters=4, max_extra=6, resample_msa=True)


def chain(kind: str, depth: int = 20) -> Record:
    record = synthetic_chain(18, depth, np.random.default_rng(0))
    if kind == "monomer":
        return record
    number = np.repeat([1, 2, 3], 6).astype(np.int64)
    return replace(record, chain_ids=ChainIds(number, number, np.ones(18, np.int64)))


def make(record: Record, settings: FeatureConfig = SETTINGS) -> Batch:
    made = featurize(record, settings, np.random.default_rng(0), earlier_passes=PASSES, pass_rng=make_pass_rng(0))
    return in_double(collate([made], recycling=PASSES))


def disturbed(model: FoldModel) -> FoldModel:
    """Random values in the parameters that are 0 in a new model, so that every input matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(kind: str) -> FoldModel:
    return disturbed(FoldModel(KINDS[kind]).double())


def test_each_pass_reads_its_own_sample(kind: str, model: FoldModel) -> None:
    """Outputs and gradients equal those of passes that are called one by one."""
    batch = make(chain(kind))
    recycled = None
    for number in range(PASSES):
        given = batch_of_pass(batch, number)
        assert not torch.equal(given.extra_msa_feat, batch.extra_msa_feat)
        with torch.no_grad():
            recycled = recycled_inputs(given, model._pass(given, recycled))
    gradients = []
    for output in (model._pass(batch, recycled), model(batch)):
        model.zero_grad()
        loss, terms = fold_loss(output, batch, LossConfig())
        loss.backward()
        gradients.append([loss.detach(), *terms.values(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    with torch.no_grad():
        same = model(replace(batch, earlier_msa=None))
    assert (same.atom37 - output.atom37).abs().max() > 1e-6, "passes with one sample have other results"


def test_the_order_of_rows_changes_nothing(kind: str, model: FoldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without masking, an alignment that fits in the clusters gives the results without resampling: the same bits,
    and to rounding if its rows are in another order in each pass."""
    record = chain(kind, depth=7)
    settings = SETTINGS.model_copy(update={"max_clusters": 7, "masked_msa_probability": 0.0})
    plain = make(record, settings.model_copy(update={"resample_msa": False}))
    found = make(record, settings)
    assert plain.earlier_msa is found.earlier_msa is None
    assert torch.equal(plain.msa_feat, found.msa_feat)
    monkeypatch.setattr(features_module, "is_resampled", lambda record, settings: True)
    shuffled = make(record, settings)
    assert not torch.equal(batch_of_pass(shuffled, 0).msa_feat, shuffled.msa_feat)
    with torch.no_grad():
        expected, other = model.eval()(plain), model(shuffled)
    for name in ("pair", "atom37", "plddt_logits", "masked_msa_logits"):
        torch.testing.assert_close(getattr(other, name), getattr(expected, name), rtol=1e-9, atol=1e-9)


def make_task(kind: str, seed: int = 5, **data: Any) -> FoldTask:
    model = KINDS[kind].model_dump()
    made = {"train": "-", "valid": "-", "features": SETTINGS.model_dump(), "evaluation_recycling": PASSES} | data
    task = FoldTask(Config.model_validate({"model": model, "data": made}), seed=seed, steps=1)
    disturbed(task.fold_model)
    return task


def predict(task: FoldTask, record: Record) -> Prediction:
    (prediction,) = task.predict([task.featurize(record)], torch.device("cpu"))
    return prediction


def test_predictions_repeat_and_depend_on_the_samples(kind: str) -> None:
    record = chain(kind)
    task = make_task(kind)
    once = predict(task, record)
    np.testing.assert_array_equal(once.atom37, predict(make_task(kind), record).atom37)
    off = make_task(kind, features=SETTINGS.model_dump() | {"resample_msa": False})
    assert task.featurize(record).earlier_msa is not None
    assert off.featurize(record).earlier_msa is None
    assert np.abs(once.atom37 - predict(off, record).atom37).max() > 1e-3
    assert task.prediction_bytes(record) - off.prediction_bytes(record) == 4 * (49 * 4 + 25 * 6) * 18
    one_pass = [
        predict(make_task(kind, features=SETTINGS.model_dump() | {"resample_msa": on}, evaluation_recycling=0), record)
        for on in (True, False)
    ]
    np.testing.assert_array_equal(*(prediction.atom37 for prediction in one_pass))


def test_predictions_mask_the_alignment_by_the_seed(kind: str) -> None:
    """AlphaFold masks 15 % of the clustered alignment in prediction too, other residues in each pass."""
    record = chain(kind)
    settings = SETTINGS.model_dump() | {"prediction_masked_msa_probability": 0.5, "masked_msa_probability": 0.0}
    task = make_task(kind, features=settings)
    made, again = task.featurize(record), make_task(kind, features=settings).featurize(record)
    np.testing.assert_array_equal(made.msa_feat, again.msa_feat)
    assert made.earlier_msa is not None
    shown = [made.msa_feat[..., :23].argmax(-1), *(made.earlier_msa[number].letters for number in range(PASSES))]
    masked = [letters == MASK for letters in shown]
    assert all(0.2 < one.mean() < 0.5 for one in masked), "70 % of the half are shown as masked"
    assert all((one != other).any() for one, other in pairwise(masked))
    assert (masked[0] != (make_task(kind, 6, features=settings).featurize(record).msa_feat[..., 22] > 0)).any()
    plain = make_task(kind, features=settings | {"prediction_masked_msa_probability": 0.0}).featurize(record)
    assert not plain.msa_feat[..., 22].any()
    assert np.abs(predict(task, record).atom37 - predict(make_task(kind), record).atom37).max() > 1e-3


@pytest.fixture
def count_draws(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """The number of samples that have been drawn since the last call."""
    draws = [0]
    draw = features_module._clustered

    def counting(*arguments: Any) -> Any:
        draws[0] += 1
        return draw(*arguments)

    def count() -> int:
        found, draws[0] = draws[0], 0
        return found

    monkeypatch.setattr(features_module, "_clustered", counting)
    return count


def test_predictions_draw_a_sample_when_its_pass_begins(count_draws: Callable[[], int]) -> None:
    """A prediction of 20 passes holds one sample at a time, and draws none after recycling has ended."""
    record = chain("monomer")
    for tolerance, passes in ((0.0, 20), (1e3, 2)):
        task = make_task("monomer", evaluation_recycling=20, prediction_recycling_tolerance=tolerance)
        made = task.featurize(record)
        assert count_draws() == 1
        (prediction,) = task.predict([made], torch.device("cpu"))
        assert prediction.recycling == passes
        assert count_draws() == passes


def test_the_command_predicts_with_resampling(tmp_path: Path) -> None:
    data = Path(__file__).parents[1] / "fixtures"
    record = mmcif.read(data / "mmcif" / "2q2k.cif.gz", "A")
    (tmp_path / "in.fasta").write_text(f">x\n{record.sequence}\n")
    (tmp_path / "msa").mkdir()
    (tmp_path / "msa" / "x.a3m").write_bytes((data / "msa" / "bfd_uniclust_hits.a3m").read_bytes())
    overrides = ["data.features.msa_input=msa", "data.features.max_clusters=2", "data.evaluation_recycling=2"]
    found = []
    for name, setting in (("on", True), ("again", True), ("off", False)):
        folder = tmp_path / name
        folder.mkdir()
        run = make_fold_run(folder, overrides=[*overrides, f"data.features.resample_msa={str(setting).lower()}"])
        arguments = ["--run", run, "--fasta", tmp_path / "in.fasta", "--msa", tmp_path / "msa", "--out", folder / "out"]
        with pytest.raises(SystemExit) as end:
            main(["predict", *map(str, arguments)])
        assert end.value.code == 0
        found.append((folder / "out" / "x.cif").read_text())
    assert found[0] == found[1] != found[2]
