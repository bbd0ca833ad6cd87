"""Predict the next token: Llama-like models, and any causal model of transformers that takes position_ids."""

from __future__ import annotations

from ds4sci.tasks import language_modeling

Config = language_modeling.Config
asset_overrides = language_modeling.asset_overrides


def build(config: language_modeling.Config, *, seed: int, steps: int) -> language_modeling.LanguageTask:
    """The task with its model, loaded or freshly initialised from ``seed``, for a run of ``steps`` steps."""
    return language_modeling.LanguageTask(config, seed, steps, 0.0)
