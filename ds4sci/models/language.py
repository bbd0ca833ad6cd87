"""Science language models: masked or causal models of Hugging Face's transformers, on packed and sharded rows.

The code of a model is not edited. Its attention is selected by name (``huggingface.attention``); transformers' and
torch's own hooks recompute its layers and tile its MLPs and norms; and its head is applied to chunks of the hidden
states, so that the logits of all tokens never exist at once (``ds4sci.nn.token_loss``).
"""

from __future__ import annotations

import copy
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from ds4sci.models.huggingface import attention, loading, parts
from ds4sci.models.huggingface.call_convention import PACKED, CallConvention, ModelFactory
from ds4sci.models.huggingface.loading import Kind
from ds4sci.models.huggingface.parts import unwrap_peft
from ds4sci.models.huggingface.verification import verify
from ds4sci.nn import activation_memory
from ds4sci.nn.activation_budget import CHECKPOINT_MIN_TOKENS, LayerStack
from ds4sci.nn.name_patterns import freeze_parameters
from ds4sci.nn.quantized_weights import Format, quantize_weights
from ds4sci.nn.token_loss import token_losses
from ds4sci.parallel.groups import SINGLE_RANK, SequenceGroup
from ds4sci.types import LanguageBatch, LanguageOutput


class LoraConfig(BaseModel):
    """Low-rank adapters of peft: W + (alpha / rank) B A."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    rank: int = Field(8, ge=1)
    """Rank of the update: columns of B and rows of A."""
    alpha: float = Field(16.0, gt=0)
    """Scale of the update; it is multiplied by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of the adapters' inputs."""
    target_modules: tuple[str, ...] = ()
    """Linear layers with an adapter, by the last part of their name (``query``, ``q_proj``). By default all linear
    layers except the head."""


class Config(BaseModel):
    """``[model]``: source of the weights, and the part of them that is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    path: str | None = None
    """A hub name, or a folder with config.json and safetensors. Without it a new model is created from ``config``."""
    load_weights: bool = True
    """Load the weights at ``path``. If false, only its architecture is used."""
    config: dict[str, Any] = {}
    """For a new model: ``model_type`` (``esm``, ``llama``, ``bert``, …) and the keys of its Hugging Face config."""
    overrides: dict[str, Any] = {}
    """Keys of a loaded model's config that get other values, such as ``rope_parameters`` or ``attention_dropout``."""
    lora: LoraConfig | None = None
    """LoRA adapters. All other weights are then frozen."""
    freeze: tuple[str, ...] = ()
    """Frozen parameters: patterns such as ``*embeddings*``. Each must match at least one parameter."""
    offload: bool = False
    """Keep the saved inputs of recomputed layers in pinned host memory. One tensor of hidden states per layer is
    transferred twice per step. No effect on a CPU."""
    chunk_tokens: int | None = Field(None, ge=16)
    """Run each layer on this number of tokens at a time in training, forward and backward: of a whole row exist only
    the layers' inputs, and the keys and values of one layer. For the longest rows; it takes the place of
    ``train.activation_budget``. Not with ZeRO 3."""
    tile_size: int = Field(2048, ge=16)
    """Tokens that MLPs and RMSNorms process at a time in recomputed layers."""


def attention_heads(config: Config) -> tuple[int, int, int] | None:
    """Layers, query heads and key heads of a model, from its config alone; None if the config does not say.

    Raises OSError or ValueError if ``config.path`` is not on this machine.
    """
    if config.path:
        hf_config = loading.read_config(config.path, config.overrides, local=True)
    else:
        hf_config = loading.new_config(config.config, vocabulary=1, special={}, overrides=config.overrides)
    text = hf_config.get_text_config()
    layers, heads = (getattr(text, key, None) for key in ("num_hidden_layers", "num_attention_heads"))
    if not isinstance(layers, int) or not isinstance(heads, int):
        return None
    keys = getattr(text, "num_key_value_heads", None)
    return layers, heads, keys if isinstance(keys, int) else heads


class LanguageModel(nn.Module):
    """A Hugging Face model that maps ``LanguageBatch`` to ``LanguageOutput``.

    model       the transformers (or peft) model: what is saved, exported and sharded
    convention  how the model is called (``huggingface.verification.verify``)
    group       ranks that rows are sharded across; set before the first call (``Task.set_parallel_groups``)
    factory     builds miniatures of the model; None if it was not made by ``build``
    """

    factory: ModelFactory | None = None
    measures_errors: bool = False
    """Whether the output has ``errors``."""

    def __init__(self, model: nn.Module, config: Config, kind: Kind, convention: CallConvention = PACKED) -> None:
        """Raises ValueError for a model without backbone and head, or one that ``convention`` does not apply to."""
        super().__init__()
        attention.register()
        self.model, self.config, self.kind, self.convention = model, config, kind, convention
        self._group: SequenceGroup = SINGLE_RANK
        inner = unwrap_peft(model)
        self._original_attention = inner.config._attn_implementation
        packed = convention.attention == "packed"
        if packed:
            _set_packed_attention(inner)
        # in a list, so that nn.Module does not register the backbone twice
        self._parts = [parts.split_backbone_and_head(inner)]
        if packed and not self._parts[0].takes_positions:
            raise ValueError(f"{type(inner).__name__}: it takes no position_ids, so documents cannot be packed")
        text = inner.config.get_text_config()
        self.num_classes = int(inner.config.num_labels if kind == "token_labels" else text.vocab_size)
        if config.chunk_tokens is not None and not (packed and convention.shardable):
            raise ValueError(
                f"model.chunk_tokens: {type(inner).__name__} mixes tokens outside attention, or has its own attention "
                "or positions, so its layers cannot run on a part of the tokens"
            )
        inner.config.use_cache = False
        parts.tile_tokenwise_modules(inner, self._tile)
        self._token_dropout = parts.TokenDropout.from_model(inner) if packed else parts.TokenDropout(None)
        self._width = int(inner.config.get_text_config().hidden_size)
        self.activations = LayerStack("layers", len(self.layers))
        self._recomputes = False

    @property
    def group(self) -> SequenceGroup:
        """Ranks that rows are sharded across. Setting it raises ValueError if the model does not support sharding."""
        return self._group

    @group.setter
    def group(self, group: SequenceGroup) -> None:
        if group.size > 1:
            inner = unwrap_peft(self.model)
            if not self.convention.shardable:
                raise ValueError(
                    f"parallel.sequence: {type(inner).__name__} mixes tokens outside attention, or has its own "
                    "attention or positions, so its rows cannot be sharded across ranks"
                )
            for key, value in inner.config.to_dict().items():
                if "layerdrop" in key and value:
                    raise ValueError(
                        f"parallel.sequence: ranks would drop different layers; set model.overrides.{key}=0"
                    )
        self._group = self.activations.group = group

    @property
    def layers(self) -> list[Any]:
        """The layers that are computed here and support activation checkpointing; a pipeline stage sets its own."""
        return self._parts[0].layers

    @layers.setter
    def layers(self, layers: list[Any]) -> None:
        self._parts[0] = replace(self._parts[0], layers=layers)

    @property
    def matmul_parameters(self) -> int:
        """Number of weights in matrices that multiply each token, in the whole model."""
        return self._parts[0].matmul_parameters

    @property
    def why_not_zero3(self) -> str | None:
        """Why ZeRO stage 3 cannot train this model, or None."""
        chunks = self.config.chunk_tokens is not None
        return "layers with model.chunk_tokens, whose weights are used many times in a step" if chunks else None

    def _tile(self) -> int | None:
        return self.config.tile_size if self._recomputes else None

    def forward(self, batch: LanguageBatch) -> LanguageOutput:
        hidden = self.hidden(batch)
        shard = self.group.shard
        labels = shard(batch.labels)
        head, measures_errors = self._parts[0].head, self.measures_errors
        losses, correct, errors = token_losses(hidden, labels, head, self.num_classes, with_errors=measures_errors)
        return LanguageOutput(losses, correct, labels, shard(batch.weights), shard(batch.soft_masked), errors)

    def hidden(self, batch: LanguageBatch) -> Tensor:
        """Last hidden states ``[b, s, c]`` of this rank's shard of the rows."""
        model = self._parts[0]
        shard = self.group.shard
        tokens = shard(batch.input_ids)
        self.check_lengths(batch)
        chunk_tokens = self.config.chunk_tokens
        chunks = chunk_tokens is not None and tokens.shape[1] > chunk_tokens and torch.is_grad_enabled()
        self._recomputes = self.training and (chunks or self.activations.recomputes(tokens.numel()))
        row_bytes = tokens.numel() * self.group.size * self._width * 4
        if self._recomputes and tokens.device.type == "cpu" and row_bytes >= activation_memory.MIN_TENSOR_BYTES:
            activation_memory.return_freed_tensors()
        if self._recomputes and not model.layers:
            raise ValueError(
                f"{type(unwrap_peft(self.model)).__name__}: its layers do not support activation checkpointing, which "
                f"begins above {CHECKPOINT_MIN_TOKENS:,} tokens of a rank's micro-batch and with "
                f"train.activation_budget; it has {tokens.numel():,} tokens: shorten the rows, and remove the key"
            )
        if chunks and self.training:
            assert chunk_tokens is not None
            again = functools.partial(self._first_input, batch, (torch.get_rng_state(), *get_device_states(tokens)))
            attention.set_chunks(model.layers, chunk_tokens, offload=self.config.offload, first_input=again)
        else:
            plan = None
            if self._recomputes:
                size = tokens.numel() * self._width * next(model.backbone.parameters()).element_size()
                plan = self.activations.plan(tuple(tokens.shape), model.layers, size)
            attention.set_checkpointing(model.layers, plan, offload=self.config.offload)
        if self.convention.attention == "original":
            # a token of a causal model depends on no later token, hence on no padding
            mask = {} if self.kind == "causal_lm" else {"attention_mask": parts.attention_mask(batch)}
            return model.backbone(input_ids=tokens, **mask, **model.backbone_arguments)[0]
        return self._call_backbone(batch)[0]

    def _call_backbone(self, batch: LanguageBatch) -> Any:
        """Call the backbone on this rank's shard of packed rows."""
        model, shard = self._parts[0], self.group.shard
        positions = shard(batch.position_ids)
        if self.convention.first_position:
            positions = positions + self.convention.first_position
        if batch.rope_factor != 1.0:
            positions = positions / batch.rope_factor
        layout = attention.Layout(batch.doc_spans, self.group)
        with attention.use_layout(layout), self._token_dropout.scaled(batch, shard):
            return model.backbone(input_ids=shard(batch.input_ids), position_ids=positions, **model.backbone_arguments)

    def _first_input(self, batch: LanguageBatch, rng_states: tuple[Tensor, list[int], list[Tensor]]) -> Tensor:
        """The input of the first layer, computed again with the random numbers of the forward pass."""
        on_cpu, devices, on_devices = rng_states
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(on_cpu)
            set_device_states(devices, on_devices)
            return attention.input_of_layer(self.layers[0], functools.partial(self._call_backbone, batch))

    def check_lengths(self, batch: LanguageBatch) -> None:
        """Raises ValueError for a document longer than the model's positions or windows allow, and for rows of several
        documents if the convention requires one document per row."""
        convention = self.convention
        name = type(unwrap_peft(self.model)).__name__
        lengths = (batch.doc_spans[:, 1] - batch.doc_spans[:, 0]).tolist()
        if convention.max_tokens is not None and max(lengths, default=0) > convention.max_tokens:
            document, n = max(zip(batch.ids, lengths, strict=False), key=lambda one: one[1])
            raise ValueError(
                f"{document}: {n} tokens; {name} takes at most {convention.max_tokens} ({convention.limit_key}): "
                "shorten the sequence, or reduce data.phases.length (data.length)"
            )
        if convention.attention == "original":
            row_length = batch.input_ids.shape[1]
            if len(lengths) > len(batch.input_ids) or bool((batch.doc_spans[:, 0] % row_length).any()):
                raise ValueError(f"{name} takes one document per row: set data.packing = false")
            if batch.rope_factor != 1.0:
                raise ValueError(f"data.phases: rope_factor needs explicit position ids; {name} counts its own")

    def logits(self, batch: LanguageBatch) -> Tensor:
        """Logits ``[b, s, num_classes]`` of all tokens at once, for short rows."""
        return self._parts[0].head(self.hidden(batch))

    def log_probabilities(self, batch: LanguageBatch) -> Tensor:
        """Log-probabilities in nats, fp32 ``[b, s, num_classes]``, of all tokens at once, for short rows."""
        return self.logits(batch).float().log_softmax(-1)

    @torch.no_grad()
    def attention_maps(self, tokens: Tensor, *, rope_factor: float) -> np.ndarray:
        """Attention weights, float32 [layers · heads, n, n], of tokens int64 [1, n], by transformers' eager attention.

        Fused kernels do not compute these maps. Positions are divided by ``rope_factor``. Memory grows as n².
        """
        inner = unwrap_peft(self.model)
        self.eval()
        before = inner.config._attn_implementation
        inner.set_attn_implementation("eager")
        dropout = {m: m.token_dropout for m in inner.modules() if hasattr(m, "token_dropout")}
        try:
            for module in dropout:
                module.token_dropout = bool(inner.config.token_dropout)
            backbone = getattr(inner, parts.backbone_name(inner))
            positions: dict[str, Tensor] = {}
            if rope_factor != 1.0:
                counted = torch.arange(tokens.shape[1], device=tokens.device) + self.convention.first_position
                positions["position_ids"] = counted[None] / rope_factor
            maps = backbone(
                input_ids=tokens, attention_mask=torch.ones_like(tokens), output_attentions=True, **positions
            ).attentions
        finally:
            for module, enabled in dropout.items():
                module.token_dropout = enabled
            inner.set_attn_implementation(before)
        return torch.cat(maps, 1)[0].float().cpu().numpy()

    def save_assets(self, folder: Path) -> None:
        """Write the model's config into ``folder``."""
        unwrap_peft(self.model).config.save_pretrained(folder)

    def to_pretrained(self, *, adapter: bool, rope_factor: float, length: int) -> nn.Module:
        """The transformers model, ready for ``save_pretrained``. This object must not be used afterwards.

        adapter              return the peft model with its adapters instead of the merged weights
        rope_factor, length  values of the last training phase, for the config
        """
        model: Any = self.model
        if adapter:
            if self.config.lora is None:
                raise ValueError("there are no adapters to export: the run has no model.lora")
            return model
        inner = model.merge_and_unload() if self.config.lora is not None else model
        config = inner.config
        inner.set_attn_implementation(self._original_attention)
        if hasattr(config, "use_cache"):
            config.use_cache = self.kind == "causal_lm"
        if rope_factor != 1.0:
            config.rope_parameters = dict(config.rope_parameters) | {"rope_type": "linear", "factor": rope_factor}
        if self.kind == "causal_lm" and getattr(config, "max_position_embeddings", length) < length:
            config.max_position_embeddings = length
        return inner

    def quantize(self, format: Format) -> None:
        """Compress the weights of the backbone's linear layers, for inference; adapters are merged first."""
        model: Any = self.model
        if self.config.lora is not None:
            model.merge_adapter()
        quantize_weights(unwrap_peft(model), format)

    def check_rope(self, factors: list[float]) -> None:
        """Raises ValueError if position interpolation by ``factors`` cannot be expressed in the exported config."""
        inner = unwrap_peft(self.model)
        if all(factor == 1.0 for factor in factors):
            return
        rope = getattr(inner.config, "rope_parameters", None) or {}
        layers = [name for name, one in rope.items() if isinstance(one, dict)]
        kind = rope.get("rope_type", "default") if rope else "no rope_parameters"
        if layers:
            kind = f"separate rope_parameters for {', '.join(layers)}"
        if kind != "default":
            raise ValueError(
                f"data.phases: rope_factor needs a model with plain rotary embeddings, so that the exported config can "
                f"express it; {type(inner.config).__name__} has {kind}"
            )

    def flops(self, doc_spans: Tensor) -> float:
        """Floating-point operations of one training step on these documents, without recomputation.

        6 N T + Σ 12 L h d n², the sum halved for causal attention: N weights in matrices (embedding look-ups excluded),
        T tokens, L layers, h heads of d channels, n tokens per document (Kaplan et al. 2020; PaLM, appendix B).
        """
        model = self._parts[0]
        lengths = (doc_spans[:, 1] - doc_spans[:, 0]).double()
        square = 12.0 * model.attention_width * float(lengths.square().sum())
        return 6.0 * model.matmul_parameters * float(lengths.sum()) + square / (2 if self.kind == "causal_lm" else 1)


def _set_packed_attention(model: Any) -> None:
    """Raises ValueError if transformers cannot replace the attention of ``model``."""
    unsupported = ValueError(
        f"{type(model).__name__} has its own attention code, which cannot be replaced by packed attention"
    )
    try:
        model.set_attn_implementation(attention.NAME)
    except (ValueError, AttributeError):
        raise unsupported from None
    if model.config._attn_implementation != attention.NAME:
        raise unsupported


def _verified_config(config: Config) -> Config:
    """The settings of a miniature: chunks so short that its rows have several."""
    return config if config.chunk_tokens is None else config.model_copy(update={"chunk_tokens": 16})


def build(
    config: Config, kind: Kind, *, vocabulary: int, special: dict[str, int], labels: tuple[str, ...] = (),
    longest: int | None = None, packing: bool = True,
) -> LanguageModel:  # fmt: skip
    """The model of ``config``, on the CPU, verified against the original model (``huggingface.verification``).

    vocabulary, special  number of tokens, and ids of the special tokens (``pad_token_id``, …), of the tokenizer
    labels               class names of ``token_labels``, whose head is new if ``path`` has none
    longest              tokens of the longest document; None = any length
    packing              whether rows hold several documents

    Raises ValueError for an unknown model or config key, a model without this head, a pattern of ``freeze`` that
    matches nothing, fewer embeddings than the tokenizer has tokens, and a model that fails verification.
    """
    if config.path and config.config:
        raise ValueError("[model] has both path and config: config is for a new model, overrides changes a loaded one")
    if config.path:
        model = loading.load_pretrained(
            config.path, kind, weights=config.load_weights, overrides=config.overrides, labels=labels
        )
    else:
        model = loading.new_model(
            config.config, kind, vocabulary=vocabulary, special=special, overrides=config.overrides, labels=labels
        )
    table = cast(Any, model).get_input_embeddings()
    if isinstance(table, nn.Embedding) and table.num_embeddings < vocabulary:
        raise ValueError(
            f"the tokenizer has {vocabulary} tokens, but {type(model).__name__} has embeddings for "
            f"{table.num_embeddings} (vocab_size): use the tokenizer of the model"
        )
    lora = config.lora.model_dump() if config.lora is not None else {}
    add_adapters = functools.partial(parts.add_lora, settings=lora, trains_head=kind == "token_labels")
    factory = ModelFactory(
        copy.deepcopy(model.config), kind,  # LanguageModel changes the config of its model
        loading.auto_class(kind).from_config,
        lambda small, convention: LanguageModel(small, _verified_config(config), kind, convention),
        add_adapters if lora else None,
    )  # fmt: skip
    convention = verify(factory, longest=longest, packing=packing, key=f"{lora} {config.chunk_tokens is not None}")
    if lora:
        model = add_adapters(model)
    freeze_parameters(model, config.freeze)
    made = LanguageModel(model, config, kind, convention)
    made.factory = factory
    return made
