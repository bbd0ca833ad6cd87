"""Attention function for Hugging Face models: packed documents, long rows, rows sharded across ranks.

transformers looks up its attention by name (``config._attn_implementation``) and passes q, k and v after the rotary
embedding. The name ``ds4sci`` maps to ``packed_attention``, which needs no mask: the documents of the current batch are
in the ``Layout`` that ``use_layout`` sets.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ds4sci.kernels import varlen_attention
from ds4sci.kernels.varlen_attention import forward_backward
from ds4sci.models.huggingface.chunked_layer import Chunk, run_chunked
from ds4sci.nn.activation_budget import RunLayer, keep_input, keep_operators
from ds4sci.nn.activation_memory import save_on_host
from ds4sci.parallel.groups import SequenceGroup
from ds4sci.parallel.ulysses import ulysses_attention

NAME = "ds4sci"
"""Value of ``attn_implementation`` in ``from_pretrained``, after ``register``."""

_UNSUPPORTED_ARGUMENTS = {
    "softcap": "capped attention logits",
    "s_aux": "attention sinks",
    "position_bias": "a position bias",
}
"""Arguments of an attention function that change the formula, and what they stand for."""


@dataclass(frozen=True)
class Layout:
    """The documents of a batch (``LanguageBatch.doc_spans``) and the ranks that its rows are sharded across.

    checkpointed  the running layer is recomputed in the backward pass (``checkpoint_layer``)
    chunk         the running layer runs on this part of the tokens (``chunk_layer``)
    """

    doc_spans: Tensor
    group: SequenceGroup
    checkpointed: bool = False
    chunk: Chunk | None = None


_current: Layout | None = None


@contextlib.contextmanager
def use_layout(layout: Layout) -> Iterator[None]:
    """Context manager that makes ``packed_attention`` use ``layout``."""
    global _current
    before, _current = _current, layout
    try:
        yield
    finally:
        _current = before


def checkpoint_layer(
    function: Callable[..., Any], *args: Any, run_layer: RunLayer = keep_input, offload: bool = False
) -> Any:
    """Activation checkpointing of Hugging Face layers; the recomputation uses the layout of the forward pass.

    run_layer  as returned by ``LayerStack.plan``: what is kept
    offload    keep the layer's inputs in host memory until the backward pass
    """
    recomputed = run_layer in (keep_input, keep_operators)
    layout = None if _current is None else replace(_current, checkpointed=recomputed)

    def run(*inputs: Any) -> Any:
        with use_layout(layout) if layout is not None else contextlib.nullcontext():
            return function(*inputs)

    with save_on_host() if offload and recomputed else contextlib.nullcontext():  # a layer that keeps all stays
        return run_layer(run, *args)


def chunk_layer(
    layer: Any, function: functools.partial[Any], *args: Any, chunk_tokens: int, overwrites: bool = False,
    offload: bool = False, recompute_x: Iterator[Callable[[], Tensor]],
) -> Any:  # fmt: skip
    """Call a Hugging Face layer on ``chunk_tokens`` tokens at a time (``chunked_layer``).

    offload      keep the layer's inputs in host memory until the backward pass
    recompute_x  for each call of the layer, a function that returns its input again; kept are the inputs of calls
                 beyond the last function
    """
    layout = _current
    assert layout is not None

    def use_chunk(chunk: Chunk) -> contextlib.AbstractContextManager[None]:
        return use_layout(replace(layout, chunk=chunk))

    with save_on_host() if offload else contextlib.nullcontext():
        return run_chunked(
            function,
            *args,
            chunk_tokens=chunk_tokens,
            layer=layer,
            use_chunk=use_chunk,
            overwrites=overwrites,
            group=layout.group,
            recompute_x=next(recompute_x, None),
        )


def set_chunks(
    layers: Sequence[Any], chunk_tokens: int, *, offload: bool = False,
    first_input: Callable[[], Tensor] | None = None,
) -> None:  # fmt: skip
    """Have each of ``layers``, of transformers' ``GradientCheckpointingLayer``, called by ``chunk_layer``.

    first_input  function that computes the input of the first layer again in the backward pass, instead of keeping it
    """
    has_hooks = any(
        getattr(layer, kind)
        for layer in layers
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    )
    first = iter([] if first_input is None else [first_input])  # ALBERT calls one layer many times
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = functools.partial(
            chunk_layer, layer, chunk_tokens=chunk_tokens, offload=offload, overwrites=not has_hooks,
            recompute_x=first if layer is layers[0] else iter(()),
        )  # fmt: skip


class _LayerReached(Exception):
    """A layer is called with the input ``x``."""

    def __init__(self, x: Tensor) -> None:
        self.x = x


@torch.no_grad()
def input_of_layer(layer: Any, call_backbone: Callable[[], Any]) -> Tensor:
    """Return the input of the first call of ``layer`` in ``call_backbone``, which ends there."""

    def stop(module: Any, args: tuple[Any, ...]) -> None:
        raise _LayerReached(args[0])

    handle = layer.register_forward_pre_hook(stop)
    try:
        call_backbone()
    except _LayerReached as reached:
        return reached.x
    finally:
        handle.remove()
    raise AssertionError("unreachable: the backbone called the layer in the forward pass")


def set_checkpointing(layers: Sequence[Any], runs: Sequence[RunLayer | None] | None, *, offload: bool = False) -> None:
    """Have each of ``layers``, of transformers' ``GradientCheckpointingLayer``, called by its element of ``runs``.

    runs     of ``LayerStack.plan``; None for all layers that are called as they are
    offload  keep the layers' inputs in host memory until the backward pass
    """
    for layer, run in zip(layers, runs or [None] * len(layers), strict=True):
        layer.gradient_checkpointing = run is not None
        layer._gradient_checkpointing_func = functools.partial(
            checkpoint_layer, run_layer=run or keep_input, offload=offload
        )


def register() -> None:
    """Register ``packed_attention`` with transformers under ``NAME``."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)


def packed_attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None,
    dropout: float = 0.0, scaling: float | None = None, is_causal: bool | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attention within each document, with the signature of transformers' attention functions.

    query ``[b, h, s, d]``, key and value ``[b, g, s, d]`` → ``[b, s, h, d]``.

    Raises RuntimeError outside ``use_layout``, and ValueError for what the kernels do not support: dropout of attention
    weights, a sliding window shorter than a document, capped logits, and masks or biases that the model computes.
    """
    if _current is None:
        raise RuntimeError(
            "attention 'ds4sci' was called outside ds4sci.models.language.LanguageModel; call "
            "model.set_attn_implementation('sdpa') to use the model on its own"
        )
    module_name = type(module).__name__
    for name, meaning in _UNSUPPORTED_ARGUMENTS.items():
        if kwargs.get(name) is not None:
            raise ValueError(f"{module_name} uses {meaning} ({name}), which ds4sci's attention does not support")
    if attention_mask is not None:
        raise ValueError(
            f"{module_name} passes a mask or bias of its own to attention, which ds4sci's attention does not support"
        )
    doc_spans = _current.doc_spans
    window = kwargs.get("sliding_window")
    longest = int((doc_spans[:, 1] - doc_spans[:, 0]).max()) if len(doc_spans) else 0
    if window is not None and window < longest:
        raise ValueError(
            f"{module_name} uses a sliding window (sliding_window) shorter than a document, which ds4sci's attention "
            "does not support"
        )
    if dropout:
        raise ValueError(
            f"{module_name} uses dropout of attention weights ({dropout}), which ds4sci's attention does not support; "
            "set the model's attention dropout to 0, for example model.overrides.attention_probs_dropout_prob=0.0 "
            "(BERT, ESM) or model.overrides.attention_dropout=0.0"
        )
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        b, n, _, _ = q.shape
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        return varlen_attention(q, k, v, doc_spans, causal=causal, scale=scaling, donated=donated).unflatten(0, (b, n))

    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if torch.is_autocast_enabled(q.device.type):  # rotary embeddings return fp32; SDPA casts its inputs, so do we
        q, k, v = (x.to(torch.get_autocast_dtype(q.device.type)) for x in (q, k, v))
    d_qk, d_v = q.shape[-1], v.shape[-1]
    if d_qk != d_v:  # zero padding adds nothing to the logits and is cut off the output
        scaling = d_qk**-0.5 if scaling is None else scaling
        q, k, v = (F.pad(x, (0, max(d_qk, d_v) - x.shape[-1])) for x in (q, k, v))
    if _current.chunk is not None:
        scale = d_qk**-0.5 if scaling is None else scaling
        chunk_out = _current.chunk.attend(q[0], k[0], v[0], doc_spans, causal, scale)
        return chunk_out[None, ..., :d_v], None
    separate = forward_backward(q, doc_spans, causal=causal, scale=scaling)
    # in a checkpointed layer the saved q, k and v are recomputed, and their gradients may overwrite them; the layer may
    # still read the tensors that it passed, so attention donates copies; between ranks, those that it has received
    donated = _current.checkpointed and separate is not None
    if donated and _current.group.size == 1:
        q, k, v = (x.clone(memory_format=torch.contiguous_format) for x in (q, k, v))
    out = ulysses_attention(attend, q, k, v, _current.group, separate, donated=donated)
    return out[..., :d_v], None
