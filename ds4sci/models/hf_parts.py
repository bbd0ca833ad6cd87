"""What a Hugging Face language model consists of, found by its structure rather than by its name."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ds4sci.nn.token_loss import tiled
from ds4sci.types import LanguageBatch


@dataclass(frozen=True)
class Parts:
    """body: tokens → hidden states; head: hidden states → logits; layers that can be recomputed.

    arguments        for every call of the body
    weights          numbers in matrices that multiply each token
    attention_width  Σ over the layers of heads × channels per head
    takes_positions  whether the body has position_ids
    """

    body: nn.Module
    head: Callable[[Tensor], Tensor]
    layers: list[Any]
    arguments: dict[str, Any] = field(default_factory=dict)
    weights: int = 0
    attention_width: int = 0
    takes_positions: bool = True


def take_apart(model: Any) -> Parts:
    """The parts of a transformers model with a head.

    Raises ValueError where it has no body of its own name, whose last hidden states the head could be applied to.
    """
    prefix = body_name(model)
    body = getattr(model, prefix, None)
    if not isinstance(body, nn.Module):
        names = ", ".join(name for name, _ in model.named_children())
        raise ValueError(
            f"{type(model).__name__}: expected a body {prefix!r} and a head beside it, found {names}; "
            "ds4sci trains models of transformers with a head for each token"
        )
    layers = [m for m in body.modules() if is_layer(m)]
    accepted = inspect.signature(body.forward).parameters
    arguments = {"use_cache": False} if "use_cache" in accepted else {}
    config = model.config.get_text_config()
    attention_heads = getattr(config, "num_attention_heads", None) or 0
    width = getattr(config, "head_dim", None) or (config.hidden_size // attention_heads if attention_heads else 0)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    output = model.get_output_embeddings()
    if output is not None:
        tables.discard(id(output.weight))  # tied: it multiplies every token at the end
    weights = sum(p.numel() for p in model.parameters() if p.ndim > 1 and id(p) not in tables)
    return Parts(
        body, functools.partial(logits_of, model), layers, arguments, weights, len(layers) * attention_heads * width,
        "position_ids" in accepted,
    )  # fmt: skip


def body_name(model: Any) -> str:
    """Name of the module that makes hidden states; a few classes do not have it where their base class says."""
    prefix: str = model.base_model_prefix
    return "model" if not isinstance(getattr(model, prefix, None), nn.Module) and hasattr(model, "model") else prefix


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """What the model's own ``forward`` makes of last hidden states ``[…, c]``, scaled and capped logits included.

    A shallow copy of the model has, in the place of its body, one whose hidden states are given.
    """
    view = copy.copy(model)
    prefix = body_name(model)
    states = hidden if hidden.ndim == 3 else hidden.unsqueeze(0)
    view._modules = dict(model._modules) | {prefix: _GivenBody(getattr(model, prefix), states)}
    tokens = torch.zeros(states.shape[:2], dtype=torch.long, device=states.device)
    logits = type(model).forward(view, input_ids=tokens).logits
    return logits if hidden.ndim == 3 else logits.squeeze(0)


class _GivenBody:
    """In the place of a model's body, or of the decoder in it: calls return ``states``."""

    def __init__(self, body: nn.Module, states: Tensor) -> None:
        self.body, self.states = body, states

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _GivenOutput((self.states,))

    def __getattr__(self, name: str) -> Any:
        return self if name in ("decoder", "encoder") else getattr(self.body, name)


class _GivenOutput(tuple[Tensor, ...]):
    """As transformers' outputs, with last hidden states and nothing else."""

    def __getattr__(self, name: str) -> Any:
        return self[0] if name == "last_hidden_state" else None


def is_layer(module: nn.Module) -> bool:
    """Whether transformers can compute ``module`` again in the backward pass: the layers of a model."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return isinstance(module, GradientCheckpointingLayer)


def tile_parts(model: nn.Module, tile: Callable[[], int | None]) -> None:
    """Let what ``model`` does to each token alone take ``tile()`` tokens at a time, or all where that is None.

    Known are modules whose class is called …MLP, BERT-like layers with ``feed_forward_chunk``, and …RMSNorm, whose
    torch code keeps two tensors of hidden states and makes three more in its backward.
    """
    module: Any
    for module in model.modules():
        if type(module).__name__.endswith(("MLP", "RMSNorm")):
            module.forward = _tiled(module.forward, tile)
        elif hasattr(module, "feed_forward_chunk"):
            module.feed_forward_chunk = _tiled(module.feed_forward_chunk, tile)


def _tiled(function: Callable[[Tensor], Tensor], tile: Callable[[], int | None]) -> Callable[..., Any]:
    @functools.wraps(function)  # transformers counts the arguments of what it is given
    def run(x: Tensor, *rest: Any, **named: Any) -> Any:
        tokens = tile()
        if tokens is None or rest or named or x.ndim != 3:
            return function(x, *rest, **named)
        return tiled(function, x, tokens)

    return run


class TokenDropout:
    """ESM's rescaling of embeddings by the share of masked tokens, for each document instead of each row.

    ESM zeroes the embedding of mask tokens and multiplies the others by (1 − .15 · .8) / (1 − masked / length). Its own
    code counts over a row, which is wrong where a row has several documents or is spread over ranks.
    """

    def __init__(self, embeddings: Any | None) -> None:
        self._scale: Tensor | None = None
        if embeddings is not None:
            self.mask_token = int(embeddings.mask_token_id)
            embeddings.token_dropout = False  # of this module; the config, which is exported, keeps it
            embeddings.word_embeddings.register_forward_hook(self._apply)
        self._active = embeddings is not None

    @classmethod
    def of(cls, model: nn.Module) -> TokenDropout:
        """For the one module of ``model`` that has ``token_dropout`` switched on, if any."""
        found = [m for m in model.modules() if getattr(m, "token_dropout", False) is True]
        return cls(found[0] if found else None)

    @contextlib.contextmanager
    def scaled(self, batch: LanguageBatch, shard: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Inside, embeddings are looked up for ``batch``."""
        if self._active:
            self._scale = shard(embedding_scale(batch.input_ids, batch.doc_spans, self.mask_token))
        try:
            yield
        finally:
            self._scale = None

    def _apply(self, module: nn.Module, arguments: Any, out: Tensor) -> Tensor:
        return out if self._scale is None else out * self._scale.unsqueeze(-1).to(out.dtype)


def embedding_scale(tokens: Tensor, doc_spans: Tensor, mask_token: int) -> Tensor:
    """What ESM multiplies the embeddings of tokens ``[b, n]`` by: 0 for masked ones, one factor a document; 0
    outside."""
    masked = (tokens == mask_token).flatten()
    counts = torch.nn.functional.pad(masked.double().cumsum(0), (1, 0))
    first, last = doc_spans.to(tokens.device).unbind(1)
    length = (last - first).double()
    factor = (1 - 0.15 * 0.8) / (1 - (counts[last] - counts[first]) / length)
    scale = torch.zeros(masked.numel(), dtype=torch.double, device=tokens.device)
    scale[inside(doc_spans.to(tokens.device))] = factor.repeat_interleave(last - first)
    return scale.masked_fill(masked, 0.0).view(tokens.shape)


def real_tokens(batch: LanguageBatch) -> Tensor:
    """int64 [b, n], 1 in documents and 0 in padding: transformers' attention mask."""
    mask = torch.zeros(batch.input_ids.numel(), dtype=torch.int64, device=batch.input_ids.device)
    mask[inside(batch.doc_spans.to(mask.device))] = 1
    return mask.view(batch.input_ids.shape)


def inside(doc_spans: Tensor) -> Tensor:
    """Places of all tokens of the documents ``doc_spans``, one document after the other."""
    first, last = doc_spans.unbind(1)
    length = last - first
    before = length.cumsum(0) - length
    return torch.arange(int(length.sum()), device=doc_spans.device) + (first - before).repeat_interleave(length)


def with_lora(model: Any, settings: dict[str, Any], *, trains_head: bool) -> nn.Module:
    """``model`` with peft's adapters on its linear layers, everything else frozen but, ``trains_head``, a new head.

    Raises ValueError without peft, and for layers that are not there."""
    try:
        import peft
    except ImportError:
        raise ValueError("model.lora needs peft: pip install 'ds4sci[lora]'") from None
    targets = list(settings["target_modules"]) or "all-linear"
    heads = [
        name
        for name, child in model.named_children()
        if name != body_name(model) and next(child.parameters(), None) is not None
    ]
    layers = tuple(f"{name}." for name, module in model.named_modules() if is_layer(module))
    layers = layers or (f"{body_name(model)}.",)
    outside = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and not n.startswith(layers)]
    config = peft.LoraConfig(
        r=settings["rank"], lora_alpha=settings["alpha"], lora_dropout=settings["dropout"], target_modules=targets,
        modules_to_save=heads if trains_head else None, exclude_modules=outside or None,
    )  # fmt: skip
    try:
        return peft.get_peft_model(model, config)
    except ValueError as error:
        raise ValueError(f"model.lora.target_modules = {targets}: {error}") from None
