"""Task ``image``: miniatures of the shipped run files, metrics by hand, and settings that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ds4sci import __version__
from ds4sci.config import run_version
from ds4sci.config.run_file import RunConfig
from ds4sci.config.task_module import import_task
from ds4sci.tasks.build import build_task
from tests.support import image_tasks

CONFIGS = Path(__file__).parents[2] / "configs/image"


@pytest.mark.parametrize("name", ["brain_segmentation", "brain_pretraining", "long_patches"])
def test_run_files_have_miniatures_without_their_data(name: str, tmp_path: Path) -> None:
    config = RunConfig.load(CONFIGS / f"{name}.toml")
    module = import_task(config.task.name)
    tree = {
        "deepspeed": str(config.deepspeed), "task": {"name": "image"}, "train": {"steps": 1},
        run_version.KEY: __version__,
    } | module.miniature(config.settings, tmp_path)  # fmt: skip
    (tmp_path / "miniature.json").write_text(json.dumps(tree))
    made = build_task(RunConfig.load(tmp_path / "miniature.json"))
    assert sum(p.numel() for p in made.model.parameters()) < 20_000
    assert made.model.vit.num_attention_heads == 3
    batch = next(made.batches(start_step=0, rank=0, world_size=1, micro_batch_size=2, accumulation_steps=1))
    assert made.loss(made.model(batch), batch)[0].isfinite()
    rows = made.evaluate(made.model, rank=0, world_size=1, device=torch.device("cpu"))
    assert made.target in made.summarize(rows)
    assert [unit.count for unit in module.parallel_units(config.settings)] == [3]


def test_points_of_the_padding_have_no_weight(tmp_path: Path) -> None:
    made = image_tasks.make_task("segmentation", 2, image_tasks.write_data("segmentation", 2, tmp_path))
    batch = image_tasks.batch(made)
    labelled = batch.targets >= 0
    assert made.weight(batch) == float(labelled.sum()) < batch.targets.numel()
    rows = made.evaluate(made.model, rank=0, world_size=1, device=torch.device("cpu"))
    truth = np.stack([made.example("valid", i)[1] for i in range(3)])
    assert np.sum([row["confusion"] for row in rows]) == (truth >= 0).sum()
    predicted = made.logits(np.stack([made.example("valid", i)[0] for i in range(3)]), torch.device("cpu")).argmax(1)
    for row, labels, own in zip(rows, truth, predicted, strict=True):
        expected = [[int(((labels == i) & (own == j)).sum()) for j in range(3)] for i in range(3)]
        assert row["confusion"] == expected


def test_data_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    masks = image_tasks.write_data("segmentation", 2, tmp_path)
    labels = image_tasks.write_data("classification", 2, tmp_path)
    with pytest.raises(ValueError, match=r"targets of shape \[8, 12\], uint8; model\.head = 'classification' needs"):
        image_tasks.make_task("classification", 2, masks)
    with pytest.raises(ValueError, match=r"needs integers of shape \[8, 12\]: make the dataset with --masks"):
        image_tasks.make_task("segmentation", 2, labels)
    made = image_tasks.make_task("masked_autoencoder", 2, labels)
    with pytest.raises(ValueError, match="has no classes to predict; fine-tune it first"):
        made.logits(np.zeros((1, 2, 8, 12), np.float32), torch.device("cpu"))
