"""Predict masked tokens from both sides: ESM-2, ESM-C, BERT and their kin."""

from __future__ import annotations

from pydantic import Field

from ds4sci.tasks import language_modeling


class DataConfig(language_modeling.DataConfig):
    """``[data]``: sequences, rows, and what of them is masked."""

    mlm_probability: float = Field(0.15, gt=0, lt=1)
    """Share of the residues that is predicted: of these 80 % are masked, 10 % replaced, 10 % left (BERT, ESM-2). Of
    overlapping k-mers all that hold a predicted base are hidden with it."""


class Config(language_modeling.Config):
    """The run file's sections that this task owns."""

    data: DataConfig
    """Sequences, rows and masks."""


asset_overrides = language_modeling.asset_overrides


def build(config: Config, *, seed: int, steps: int) -> language_modeling.LanguageTask:
    """The task with its model, loaded or freshly initialised from ``seed``, for a run of ``steps`` steps."""
    return language_modeling.LanguageTask(config, seed, steps, config.data.mlm_probability)
