"""Predict the next token: Llama-like models, and any causal model of transformers that takes position_ids."""

from __future__ import annotations

from ds4sci.tasks import _language

Config = _language.Config
kept_by = _language.kept_by


def build(config: _language.Config, *, seed: int, steps: int) -> _language.LanguageTask:
    """The task with its model, loaded or freshly initialised from ``seed``, for a run of ``steps`` steps."""
    return _language.LanguageTask(config, seed, steps, 0.0)
