"""Reference losses of language models by transformers, one document at a time, for tests of packing and sharding."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ds4sci.data.language.batches import Document, collate
from ds4sci.data.language.targets import MaskingPolicy
from ds4sci.models import language
from ds4sci.nn.activation_budget import set_budget
from ds4sci.types import IGNORE_INDEX, LanguageBatch

VOCABULARY = 33
MASK, PAD, CLS, EOS = 32, 1, 0, 2
SPECIAL = {"pad_token_id": PAD, "mask_token_id": MASK, "bos_token_id": CLS, "eos_token_id": EOS}

ESM: dict[str, Any] = {
    "model_type": "esm", "hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 5, "intermediate_size": 64,
    "position_embedding_type": "rotary", "token_dropout": True, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 1026,
}  # fmt: skip
"""Five heads, which groups of 2 or 4 ranks do not divide."""
LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64, "max_position_embeddings": 4096,
}  # fmt: skip
"""Grouped-query attention: three query heads per key head."""


def model(
    kind: str, config: dict[str, Any], dtype: torch.dtype = torch.float32, *, activation_budget: float | None = None,
    **more: Any,
) -> language.LanguageModel:  # fmt: skip
    """Return a new model, the same at every call, with weights large enough that no output is close to zero."""
    torch.manual_seed(0)
    settings = language.Config(config=config, **more)
    built = language.build(settings, kind, vocabulary=VOCABULARY, special=SPECIAL)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(0, 0.15) if parameter.ndim > 1 else parameter.add_(torch.randn_like(parameter) * 0.05)
    if activation_budget is not None:
        set_budget(built, activation_budget)
    return built.to(dtype)


def documents(lengths: list[int], seed: int = 0) -> list[Document]:
    """Return random proteins with <cls> and <eos>; some residues have weight 0.5."""
    rng = np.random.default_rng(seed)
    made = []
    for number, length in enumerate(lengths):
        ids = np.concatenate([[CLS], rng.integers(4, 24, length - 2), [EOS]])
        size = np.ones(length, np.int64)
        size[[0, -1]] = 0
        weights = np.where(rng.random(length) < 0.2, 0.5, 1.0).astype(np.float32)
        soft_masked, start = rng.random(length) < 0.3, size.cumsum() - size
        made.append(Document(ids, weights, soft_masked, start, size, size < 0, f"d{number}"))
    return made


def batch(kind: str, rows: list[list[int]], n: int, seed: int = 0, step: int = 0) -> LanguageBatch:
    """Return a batch of rows of n tokens, with documents of the given lengths."""
    rng = np.random.default_rng(seed + 1)
    policy = MaskingPolicy(0.3 if kind == "masked_lm" else 0.0, MASK, np.arange(4, 24))
    made = []
    for number, lengths in enumerate(rows):
        read = documents(lengths, seed * 100 + number)
        made.append([(one, policy.apply(one, rng)) for one in read])
    return collate(made, n, PAD, step=step)


def plain_loss(own: nn.Module, given: LanguageBatch) -> Tensor:
    """Return the weighted mean of nats by transformers' forward pass with eager attention, document by document."""
    inner: Any = own.model.get_base_model() if hasattr(own.model, "get_base_model") else own.model
    before = inner.config._attn_implementation
    inner.set_attn_implementation("eager")
    embeddings = [m for m in inner.modules() if hasattr(m, "token_dropout")]
    for module in embeddings:
        module.token_dropout = bool(inner.config.token_dropout)
    for module in inner.modules():
        if hasattr(module, "gradient_checkpointing"):
            module.gradient_checkpointing = False
    total, count = [], 0.0
    try:
        for start, stop in given.doc_spans.tolist():
            tokens, labels, weights = (x.flatten()[start:stop] for x in (given.input_ids, given.labels, given.weights))
            logits = inner(input_ids=tokens[None], attention_mask=torch.ones_like(tokens[None])).logits[0]
            nats = nn.functional.cross_entropy(logits.double(), labels, reduction="none", ignore_index=IGNORE_INDEX)
            total.append((nats * weights).sum())
            count += float(weights.double().sum())
    finally:
        inner.set_attn_implementation(before)
        for module in embeddings:
            module.token_dropout = False
    return torch.stack(total).sum() / count
