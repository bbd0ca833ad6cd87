"""Ways to call a Hugging Face model that reproduce its own output, and what is needed to verify one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class CallConvention:
    """How ``LanguageModel`` calls a model so that its logits equal those of the original model.

    attention       ``packed``: rows of several documents, ds4sci's attention, explicit position ids. ``original``: one
                    document per row, the model's own attention with an attention mask, its own position ids
    first_position  position of the first token of a document: 0, or padding_idx + 1 (RoBERTa, ESM-1b)
    max_tokens      longest document, in tokens, for which the convention holds; None = any length
    limit_key       config key that sets ``max_tokens``
    shardable       whether rows can be sharded across ranks: tokens are mixed in attention only, and the model uses the
                    given position ids
    """

    attention: Literal["packed", "original"] = "packed"
    first_position: int = 0
    max_tokens: int | None = None
    limit_key: str = ""
    shardable: bool = True


PACKED = CallConvention()


@dataclass(frozen=True)
class ModelFactory:
    """Functions that build the model to verify.

    config        Hugging Face config of the model; never modified
    kind          ``masked_lm``, ``causal_lm`` or ``token_labels``
    create        config → new original model
    wrap          (model, convention) → ``LanguageModel``
    add_adapters  model → model with LoRA adapters; None without adapters
    """

    config: Any
    kind: str
    create: Callable[[Any], Any]
    wrap: Callable[[Any, CallConvention], Any]
    add_adapters: Callable[[Any], Any] | None = None
