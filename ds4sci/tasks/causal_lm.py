"""Task: predict the next token, with Llama-like models and any causal model of transformers that takes position_ids."""

from __future__ import annotations

from ds4sci.models.huggingface.loading import Kind
from ds4sci.tasks.language_modeling import Config, LanguageModelingTask
from ds4sci.tasks.language_task import asset_overrides, parallel_units

__all__ = ["CausalLMTask", "Config", "asset_overrides", "build", "parallel_units"]


class CausalLMTask(LanguageModelingTask):
    """Causal language modeling: each token is predicted from the tokens before it in its window."""

    kind: Kind = "causal_lm"

    @property
    def reports_nats_per_residue(self) -> bool:
        """True: each token is predicted only from the text before it, so the product is the probability of the text."""
        return True


def build(config: Config, *, seed: int, steps: int) -> CausalLMTask:
    """Return the task for a run of ``steps`` steps, with its model loaded or initialised from ``seed``."""
    return CausalLMTask(config, seed=seed, steps=steps)
