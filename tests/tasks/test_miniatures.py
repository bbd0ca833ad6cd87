"""Miniatures of run files: sizes are small, and uneven parts stay uneven."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds4sci.config.run_file import RunConfig
from ds4sci.tasks import fold, masked_lm

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(("heads", "small"), [(6, 4), (5, 3)])
def test_heads_keep_their_parity(heads: int, small: int, tmp_path: Path) -> None:
    config = RunConfig.load(CONFIGS / "lm/protein_tiny.toml", [f"model.config.num_attention_heads={heads}"])
    sections = masked_lm.miniature(config.settings, tmp_path)
    assert json.loads((tmp_path / "model/config.json").read_text())["num_attention_heads"] == small
    assert masked_lm.Config.model_validate(sections).data.path == tmp_path / "path.fa"


@pytest.mark.parametrize(("channels", "small"), [(64, 6), (33, 5)])
def test_channels_keep_their_parity(channels: int, small: int, tmp_path: Path) -> None:
    overrides = [f"model.evoformer.c_multiplication={channels}", "data.plan.max_recycling=3"]
    config = RunConfig.load(CONFIGS / "fold/small.toml", overrides)
    made = fold.Config.model_validate(fold.miniature(config.settings, tmp_path))
    assert made.model.evoformer.c_multiplication == small
    assert made.model.heads == config.settings.model.heads
    assert made.data.plan.max_recycling == 1


def test_what_speaks_of_samples_of_the_own_data_is_left_out(tmp_path: Path) -> None:
    """Scores, weights and orders are those of the run's data set, and a miniature has another one."""
    chosen = ['data.selection={keep = "lowest", fraction = 0.5, scores = "x.npz"}']
    more = ['data.weights={scores = "x.npz"}', "data.pruning={ratio = 0.5}", "data.record_scores=true"]
    config = RunConfig.load(CONFIGS / "lm/protein_tiny.toml", [*chosen, *more])
    made = masked_lm.Config.model_validate(masked_lm.miniature(config.settings, tmp_path)).data
    assert (made.selection, made.weights, made.pruning, made.record_scores) == (None, None, None, False)
    (tmp_path / "fold").mkdir()
    config = RunConfig.load(CONFIGS / "fold/small.toml", [*chosen, 'data.order="replay"', 'data.replay="runs/x"'])
    made = fold.Config.model_validate(fold.miniature(config.settings, tmp_path / "fold")).data
    assert (made.selection, made.order, made.replay) == (None, "strict", None)
