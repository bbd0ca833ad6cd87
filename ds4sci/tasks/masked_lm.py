"""Task: predict masked tokens from both sides, with ESM-2, ESM-C, BERT and similar models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from ds4sci.models.huggingface.loading import Kind
from ds4sci.tasks import language_modeling
from ds4sci.tasks.language_modeling import LanguageModelingTask
from ds4sci.tasks.language_task import asset_overrides, parallel_units
from ds4sci.tasks.miniatures import language_miniature

__all__ = ["Config", "DataConfig", "MaskedLMTask", "asset_overrides", "build", "miniature", "parallel_units"]


class DataConfig(language_modeling.DataConfig):
    """``[data]``: sequences, rows and masking."""

    mlm_probability: float = Field(0.15, gt=0, lt=1)
    """Fraction of the residues that is predicted: of these 80 % are masked, 10 % replaced by a random residue and 10 %
    unchanged (BERT, ESM-2). Of overlapping k-mers, all that contain a predicted base are hidden with it."""
    evaluate_every_token: bool = False
    """Whether evaluations during training predict every held-out token once, in 1 / ``mlm_probability`` passes, instead
    of a random part of them in one pass."""


class Config(language_modeling.Config):
    """Sections of the run file that this task owns."""

    data: DataConfig
    """Sequences, rows and masking."""


class MaskedLMTask(LanguageModelingTask):
    """Masked language modeling: hidden tokens are predicted from the visible ones on both sides."""

    kind: Kind = "masked_lm"

    def __init__(self, config: Config, *, seed: int, steps: int) -> None:
        self.mlm_probability = config.data.mlm_probability
        self.evaluates_every_token = config.data.evaluate_every_token
        super().__init__(config, seed=seed, steps=steps)

    @property
    def reports_nats_per_residue(self) -> bool:
        """False for tokenizers whose token boundaries depend on the letters (BPE, unigram, WordPiece).

        The visible tokens then reveal how long a masked token is and, because it was not merged with them, what it is
        not: on random bases the best model would get 1 to 2 % below ln 4 per base.
        """
        return not self.tokenizer.encoder.boundaries_depend_on_residues


def miniature(config: Config, folder: Path) -> dict[str, Any]:
    """Return the sections of a tiny run file. See ``ds4sci.tasks.miniatures``."""
    return language_miniature("masked_lm", config, folder)


def build(config: Config, *, seed: int, steps: int) -> MaskedLMTask:
    """Return the task for a run of ``steps`` steps, with its model loaded or initialised from ``seed``."""
    return MaskedLMTask(config, seed=seed, steps=steps)
