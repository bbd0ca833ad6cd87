"""Attention maps of a Hugging Face model, which fused kernels never make."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ds4sci.models import hf_parts
from ds4sci.models.language import LanguageModel, unwrapped


@torch.no_grad()
def attention_maps(model: LanguageModel, tokens: Tensor, *, rope_factor: float) -> np.ndarray:
    """float32 [layers · heads, n, n] of tokens int64 [1, n], by transformers' own eager attention, positions divided
    by ``rope_factor``; memory grows as n²."""
    inner = unwrapped(model.model)
    model.eval()
    before = inner.config._attn_implementation
    inner.set_attn_implementation("eager")
    dropout = {m: m.token_dropout for m in inner.modules() if hasattr(m, "token_dropout")}
    try:
        for module in dropout:
            module.token_dropout = bool(inner.config.token_dropout)
        body = getattr(inner, hf_parts.body_name(inner))
        places: dict[str, Tensor] = {}
        if rope_factor != 1.0:
            counted = torch.arange(tokens.shape[1], device=tokens.device) + model.convention.first_position
            places["position_ids"] = counted[None] / rope_factor
        found = body(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), output_attentions=True, **places
        ).attentions
    finally:
        for module, switched in dropout.items():
            module.token_dropout = switched
        inner.set_attn_implementation(before)
    return torch.cat(found, 1)[0].float().cpu().numpy()
