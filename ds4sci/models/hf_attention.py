"""Attention of Hugging Face models through ds4sci: packed documents, long rows, rows spread over ranks.

transformers looks attention up by name (``config._attn_implementation``) and hands over q, k and v after rotary
embedding. Under the name ``ds4sci`` it finds ``attend`` here, which needs no mask: the documents of the batch at hand
are in the ``Layout`` that ``using`` has put in place.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ds4sci.kernels import varlen_attention
from ds4sci.kernels.varlen_attention import forward_backward
from ds4sci.nn import offload
from ds4sci.parallel.groups import SequenceGroup
from ds4sci.parallel.ulysses import attend_across

NAME = "ds4sci"
"""For ``from_pretrained(attn_implementation=…)``, after ``register``."""

_UNSERVED = {
    "softcap": "capped scores",
    "s_aux": "attention sinks",
    "position_bias": "a position bias",
}
"""Arguments that change what attention is."""


@dataclass(frozen=True)
class Layout:
    """The documents of a batch (``LanguageBatch.doc_spans``) and the ranks that share its rows."""

    doc_spans: Tensor
    group: SequenceGroup


_current: Layout | None = None


@contextlib.contextmanager
def using(layout: Layout) -> Iterator[None]:
    """Inside the block attention is that of ``layout``."""
    global _current
    before, _current = _current, layout
    try:
        yield
    finally:
        _current = before


def recompute(function: Callable[..., Any], *args: Any, on_host: bool = False) -> Any:
    """``torch.utils.checkpoint`` for Hugging Face's layers: the recomputation has the layout of its forward.

    on_host  whether the layers' inputs wait in host memory
    """
    layout = _current

    def run(*given: Any) -> Any:
        with using(layout) if layout is not None else contextlib.nullcontext():
            return function(*given)

    with offload.on_host() if on_host else contextlib.nullcontext():
        return checkpoint(run, *args, use_reentrant=False)


def register() -> None:
    """Make ``attend`` known to transformers."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)


def attend(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None,
    dropout: float = 0.0, scaling: float | None = None, is_causal: bool | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """What transformers calls: query ``[b, h, s, d]``, key and value ``[b, g, s, d]`` → ``[b, s, h, d]``.

    Raises ValueError for what the kernels do not do: dropout of attention weights, windows that a document exceeds,
    capped scores, masks or biases that the model makes itself.
    """
    if _current is None:
        raise RuntimeError(
            "attention 'ds4sci' was called outside ds4sci.models.language.LanguageModel; "
            "model.set_attn_implementation('sdpa') gives the model back its own"
        )
    kind = type(module).__name__
    for name, what in _UNSERVED.items():
        if kwargs.get(name) is not None:
            raise ValueError(f"{kind} asks for {what} ({name}), which ds4sci's attention does not do")
    if attention_mask is not None:
        raise ValueError(f"{kind} hands a mask or bias of its own to attention, which ds4sci's attention does not take")
    doc_spans = _current.doc_spans
    window = kwargs.get("sliding_window")
    longest = int((doc_spans[:, 1] - doc_spans[:, 0]).max()) if len(doc_spans) else 0
    if window is not None and window < longest:
        raise ValueError(
            f"{kind} asks for a sliding window (sliding_window) shorter than a document, which ds4sci's attention "
            "does not do"
        )
    if dropout:
        raise ValueError(
            f"{kind} drops attention weights out ({dropout}), which ds4sci's attention does not do; set the model's "
            "attention dropout to 0, such as model.overrides.attention_probs_dropout_prob=0.0 (BERT, ESM) or "
            "model.overrides.attention_dropout=0.0"
        )
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)

    def whole(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, n, _, _ = q.shape
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        return varlen_attention(q, k, v, doc_spans, causal=causal, scale=scaling).unflatten(0, (b, n))

    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if torch.is_autocast_enabled(q.device.type):  # rotary embeddings leave q and k in fp32; torch's own attention casts
        q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
    wide, channels = q.shape[-1], v.shape[-1]
    if wide != channels:  # zeros add nothing to scores, and are cut off the output
        scaling = wide**-0.5 if scaling is None else scaling
        q, k, v = (F.pad(x, (0, max(wide, channels) - x.shape[-1])) for x in (q, k, v))
    out = attend_across(whole, q, k, v, _current.group, forward_backward(q, doc_spans, causal=causal, scale=scaling))
    return out[..., :channels], None
