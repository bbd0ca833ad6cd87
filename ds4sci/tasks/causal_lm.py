"""Task: predict the next token, with Llama-like models and any causal model of transformers that takes position_ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ds4sci.models.huggingface.loading import Kind
from ds4sci.tasks.language_modeling import Config, LanguageModelingTask
from ds4sci.tasks.language_task import asset_overrides, parallel_units
from ds4sci.tasks.miniatures import language_miniature

__all__ = ["CausalLMTask", "Config", "asset_overrides", "build", "miniature", "parallel_units"]


class CausalLMTask(LanguageModelingTask):
    """Causal language modeling: each token is predicted from the tokens before it in its window."""

    kind: Kind = "causal_lm"

    @property
    def reports_nats_per_residue(self) -> bool:
        """True: each token is predicted only from the text before it, so the product is the probability of the text."""
        return True


def miniature(config: Config, folder: Path) -> dict[str, Any]:
    """Return the sections of a tiny run file. See ``ds4sci.tasks.miniatures``."""
    return language_miniature("causal_lm", config, folder)


def build(config: Config, *, seed: int, steps: int) -> CausalLMTask:
    """Return the task for a run of ``steps`` steps, with its model loaded or initialised from ``seed``."""
    return CausalLMTask(config, seed=seed, steps=steps)
