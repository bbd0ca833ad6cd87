"""Parts of a Hugging Face language model, found by structure: backbone, head, layers, linear layers."""

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
class ModelParts:
    """Backbone (tokens → hidden states), head (hidden states → logits) and the layers that support checkpointing.

    backbone_arguments  keyword arguments of every call of the backbone
    matmul_parameters   number of weights in matrices that multiply each token
    attention_width     Σ over the layers of heads × channels per head
    takes_positions     whether the backbone accepts ``position_ids``
    """

    backbone: nn.Module
    head: Callable[[Tensor], Tensor]
    layers: list[Any]
    backbone_arguments: dict[str, Any] = field(default_factory=dict)
    matmul_parameters: int = 0
    attention_width: int = 0
    takes_positions: bool = True


def split_backbone_and_head(model: Any) -> ModelParts:
    """Split a transformers model with a token head into its parts. The modules are shared, not copied.

    Raises ValueError if the model has no submodule that computes the hidden states.
    """
    prefix = backbone_name(model)
    backbone = getattr(model, prefix, None)
    if not isinstance(backbone, nn.Module):
        names = ", ".join(name for name, _ in model.named_children())
        raise ValueError(
            f"{type(model).__name__}: expected a backbone {prefix!r} and a head, found {names}; ds4sci trains "
            "transformers models with a head for each token"
        )
    layers = [m for m in backbone.modules() if supports_checkpointing(m)]
    accepted = inspect.signature(backbone.forward).parameters
    arguments = {"use_cache": False} if "use_cache" in accepted else {}
    config = model.config.get_text_config()
    attention_heads = getattr(config, "num_attention_heads", None) or 0
    width = getattr(config, "head_dim", None) or (config.hidden_size // attention_heads if attention_heads else 0)
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    output = model.get_output_embeddings()
    if output is not None:
        tables.discard(id(output.weight))  # tied weights: the head multiplies every token by them
    parameters = sum(p.numel() for p in model.parameters() if p.ndim > 1 and id(p) not in tables)
    return ModelParts(
        backbone, functools.partial(apply_head, model), layers, arguments, parameters,
        len(layers) * attention_heads * width, "position_ids" in accepted,
    )  # fmt: skip


def unwrap_peft(model: Any) -> Any:
    """The transformers model inside a peft model; any other model unchanged."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def backbone_name(model: Any) -> str:
    """Attribute name of the submodule that computes the hidden states.

    It is ``base_model_prefix``, except in a few classes that call it ``model`` instead.
    """
    prefix: str = model.base_model_prefix
    return "model" if not isinstance(getattr(model, prefix, None), nn.Module) and hasattr(model, "model") else prefix


def apply_head(model: Any, hidden: Tensor) -> Tensor:
    """Logits of last hidden states ``[…, c]`` by the model's own ``forward``, including its scaling and capping.

    Calls a shallow copy of the model whose backbone returns ``hidden``.
    """
    view = copy.copy(model)
    prefix = backbone_name(model)
    states = hidden if hidden.ndim == 3 else hidden.unsqueeze(0)
    view._modules = dict(model._modules) | {prefix: _FixedBackbone(getattr(model, prefix), states)}
    tokens = torch.zeros(states.shape[:2], dtype=torch.long, device=states.device)
    logits = type(model).forward(view, input_ids=tokens).logits
    return logits if hidden.ndim == 3 else logits.squeeze(0)


class _FixedBackbone:
    """Stand-in for a backbone, or for the encoder or decoder inside it, whose calls return ``states``."""

    def __init__(self, backbone: nn.Module, states: Tensor) -> None:
        self.backbone, self.states = backbone, states

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return _FixedOutput((self.states,))

    def __getattr__(self, name: str) -> Any:
        return self if name in ("decoder", "encoder") else getattr(self.backbone, name)


class _FixedOutput(tuple[Tensor, ...]):
    """A transformers model output that holds the last hidden states only."""

    def __getattr__(self, name: str) -> Any:
        return self[0] if name == "last_hidden_state" else None


def supports_checkpointing(module: nn.Module) -> bool:
    """Whether transformers can recompute ``module`` in the backward pass. This holds for the layers of a model."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return isinstance(module, GradientCheckpointingLayer)


def tile_tokenwise_modules(model: nn.Module, tile: Callable[[], int | None]) -> None:
    """Make the modules of ``model`` that act on each token separately process ``tile()`` tokens at a time.

    If ``tile()`` is None, they process all tokens at once. Applies to modules whose class name ends in MLP or RMSNorm
    (whose torch code saves two tensors of hidden states and allocates three more in its backward pass), and to
    BERT-like layers with ``feed_forward_chunk``.
    """
    module: Any
    for module in model.modules():
        if type(module).__name__.endswith(("MLP", "RMSNorm")):
            module.forward = _Tiled(module.forward, tile)
        elif hasattr(module, "feed_forward_chunk"):
            module.feed_forward_chunk = _Tiled(module.feed_forward_chunk, tile)


class _Tiled:
    """A method that processes some tokens at a time.

    An object, not a closure: ``copy.deepcopy`` of the model then copies it with the methods of the copied modules.
    """

    def __init__(self, method: Callable[[Tensor], Tensor], tile: Callable[[], int | None]) -> None:
        functools.update_wrapper(self, method)  # transformers inspects the signature
        self.method, self.tile = method, tile

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        tokens = self.tile()
        if tokens is None or args or kwargs or x.ndim != 3:
            return self.method(x, *args, **kwargs)
        return tiled(self.method, x, tokens)


class TokenDropout:
    """ESM's rescaling of embeddings by the fraction of masked tokens, per document instead of per row.

    ESM sets the embedding of mask tokens to zero and multiplies the others by (1 − 0.15 · 0.8) / (1 − masked / length).
    Its own code counts over a row, which is incorrect for rows of several documents and for rows sharded across ranks.
    """

    def __init__(self, embeddings: Any | None) -> None:
        self._scale: Tensor | None = None
        if embeddings is not None:
            self.mask_token = int(embeddings.mask_token_id)
            embeddings.token_dropout = False  # in the module only; the exported config keeps its value
            embeddings.word_embeddings.register_forward_hook(self._apply)
        self._active = embeddings is not None

    @classmethod
    def from_model(cls, model: nn.Module) -> TokenDropout:
        """Takes over from the submodule of ``model`` whose ``token_dropout`` is True, if there is one."""
        found = [m for m in model.modules() if getattr(m, "token_dropout", False) is True]
        return cls(found[0] if found else None)

    @contextlib.contextmanager
    def scaled(self, batch: LanguageBatch, shard: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Context manager in which the embedding layer is called on the tokens of ``batch``."""
        if self._active:
            self._scale = shard(embedding_scale(batch.input_ids, batch.doc_spans, self.mask_token))
        try:
            yield
        finally:
            self._scale = None

    def _apply(self, module: nn.Module, arguments: Any, out: Tensor) -> Tensor:
        return out if self._scale is None else out * self._scale.unsqueeze(-1).to(out.dtype)


def embedding_scale(tokens: Tensor, doc_spans: Tensor, mask_token: int) -> Tensor:
    """ESM's factor of the embeddings of tokens ``[b, n]``: 0 for mask tokens, one value for the other tokens of a
    document, and 0 in padding."""
    masked = (tokens == mask_token).flatten()
    counts = torch.nn.functional.pad(masked.double().cumsum(0), (1, 0))
    first, last = doc_spans.to(tokens.device).unbind(1)
    length = (last - first).double()
    factor = (1 - 0.15 * 0.8) / (1 - (counts[last] - counts[first]) / length)
    scale = torch.zeros(masked.numel(), dtype=torch.double, device=tokens.device)
    scale[token_indices(doc_spans.to(tokens.device))] = factor.repeat_interleave(last - first)
    return scale.masked_fill(masked, 0.0).view(tokens.shape)


def attention_mask(batch: LanguageBatch) -> Tensor:
    """transformers' attention mask: int64 [b, n], 1 in documents and 0 in padding."""
    mask = torch.zeros(batch.input_ids.numel(), dtype=torch.int64, device=batch.input_ids.device)
    mask[token_indices(batch.doc_spans.to(mask.device))] = 1
    return mask.view(batch.input_ids.shape)


def token_indices(doc_spans: Tensor) -> Tensor:
    """Indices of all tokens in the documents ``doc_spans`` of flattened rows, one document after the other."""
    first, last = doc_spans.unbind(1)
    length = last - first
    before = length.cumsum(0) - length
    return torch.arange(int(length.sum()), device=doc_spans.device) + (first - before).repeat_interleave(length)


def add_lora(model: Any, settings: dict[str, Any], *, trains_head: bool) -> nn.Module:
    """Wrap ``model`` in peft's LoRA adapters on the linear layers of its backbone; all other weights are frozen.

    trains_head  train the weights of the head too, for a head that is new

    Raises ValueError if peft is not installed, or if no layer matches the target names."""
    try:
        import peft
    except ImportError:
        raise ValueError("model.lora needs peft: pip install 'ds4sci[lora]'") from None
    targets = list(settings["target_modules"]) or "all-linear"
    heads = [
        name
        for name, child in model.named_children()
        if name != backbone_name(model) and next(child.parameters(), None) is not None
    ]
    layers = tuple(f"{name}." for name, module in model.named_modules() if supports_checkpointing(module))
    layers = layers or (f"{backbone_name(model)}.",)
    outside = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and not n.startswith(layers)]
    config = peft.LoraConfig(
        r=settings["rank"], lora_alpha=settings["alpha"], lora_dropout=settings["dropout"], target_modules=targets,
        modules_to_save=heads if trains_head else None, exclude_modules=outside or None,
    )  # fmt: skip
    try:
        return peft.get_peft_model(model, config)
    except ValueError as error:
        raise ValueError(f"model.lora.target_modules = {targets}: {error}") from None
