"""Science language models: any masked or causal model of Hugging Face's transformers, on packed and shared rows.

A model is not edited. Its attention is asked for by name (``hf_attention``), its layers are recomputed, its MLPs and
norms cut into tiles by what transformers and torch offer, and its head is applied to the hidden states piece by piece,
so that logits of all tokens never exist (``ds4sci.nn.token_loss``).
"""

from __future__ import annotations

import fnmatch
import functools
import json
import warnings
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ds4sci.models import hf_attention, hf_parts, hf_rope
from ds4sci.models.hf_attention import Layout, using
from ds4sci.models.hf_verification import PACKED, CallConvention, Subject, verify
from ds4sci.nn import heap
from ds4sci.nn.token_loss import token_losses
from ds4sci.parallel.groups import ALONE, SequenceGroup
from ds4sci.types import LanguageBatch, LanguageOutput

Kind = Literal["masked_lm", "causal_lm", "token_labels"]
"""Which of transformers' heads: the last is its token classification, a class for every residue."""


class LoraConfig(BaseModel):
    """Low-rank adapters, by peft."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    rank: int = Field(8, ge=1)
    """Columns of A and rows of B in W + (alpha / rank) B A."""
    alpha: float = Field(16.0, gt=0)
    """Scale of what the adapters add, times 1 / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of the adapters' inputs."""
    target_modules: tuple[str, ...] = ()
    """Names of the linear layers that get one, by their last part (``query``, ``q_proj``); by default all but the
    head."""


class Config(BaseModel):
    """``[model]``: where the weights come from, and what of them is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    path: str | None = None
    """A hub name, or a folder with config.json and safetensors; without it a new model is made of ``config``."""
    load_weights: bool = True
    """Whether ``path``'s weights are loaded too, and not only its architecture."""
    config: dict[str, Any] = {}
    """For a new model: ``model_type`` (``esm``, ``llama``, ``bert``, …) and the keys of its Hugging Face config."""
    overrides: dict[str, Any] = {}
    """Keys of a loaded model's config that are to differ, such as ``rope_parameters`` or ``attention_dropout``."""
    lora: LoraConfig | None = None
    """Adapters; then nothing else is trained."""
    freeze: tuple[str, ...] = ()
    """Parameters that stay as they are: patterns such as ``*embeddings*``; each must match at least one."""
    checkpoint_min_tokens: int = Field(8192, ge=0)
    """Layers keep only their inputs, and are computed again in the backward pass, where a rank has more tokens of a
    micro-batch than this."""
    offload: bool = False
    """What recomputed layers keep waits in pinned host memory where the model is on a GPU: one tensor of hidden states
    a layer goes over the bus twice a step. On a CPU it is there already."""
    tile_size: int = Field(2048, ge=16)
    """Tokens that MLPs and RMSNorms take at a time in recomputed layers."""


class LanguageModel(nn.Module):
    """A Hugging Face model that takes ``LanguageBatch`` and gives ``LanguageOutput``.

    model       as transformers (or peft) made it: what is saved, exported and sharded
    convention  how it is called (``hf_verification.verify``)
    group       the ranks that share each row; set before the first call (``Task.set_parallel_groups``)
    """

    def __init__(self, model: nn.Module, config: Config, kind: Kind, convention: CallConvention = PACKED) -> None:
        """Raises ValueError for a model without body and head, and one that cannot be called by ``convention``."""
        super().__init__()
        hf_attention.register()
        self.model, self.config, self.kind, self.convention = model, config, kind, convention
        self._group: SequenceGroup = ALONE
        inner = unwrapped(model)
        self._own_attention = inner.config._attn_implementation
        packs = convention.attention == "ds4sci"
        if packs:
            _let_attention_through(inner)
        self._parts = [hf_parts.take_apart(inner)]  # in a list, so that nn.Module does not register it twice
        if packs and not self._parts[0].takes_positions:
            raise ValueError(f"{type(inner).__name__}: it takes no position_ids, so documents cannot be packed")
        text = inner.config.get_text_config()
        self.classes = int(inner.config.num_labels if kind == "token_labels" else text.vocab_size)
        inner.config.use_cache = False
        hf_parts.tile_parts(inner, self._tile)
        self._embeddings = hf_parts.TokenDropout.of(inner) if packs else hf_parts.TokenDropout(None)
        self._width = int(inner.config.get_text_config().hidden_size)
        self._recomputes = False

    @property
    def group(self) -> SequenceGroup:
        """The ranks that share each row. Setting it raises ValueError where rows of this model cannot be spread."""
        return self._group

    @group.setter
    def group(self, group: SequenceGroup) -> None:
        if group.size > 1:
            inner = unwrapped(self.model)
            if not self.convention.shardable:
                raise ValueError(
                    f"parallel.sequence: {type(inner).__name__} mixes tokens outside of attention, or has an "
                    "attention or positions of its own, so that its rows cannot be spread over ranks"
                )
            for key, value in inner.config.to_dict().items():
                if "layerdrop" in key and value:
                    raise ValueError(
                        f"parallel.sequence: ranks would drop different layers; set model.overrides.{key}=0"
                    )
        self._group = group

    def _tile(self) -> int | None:
        return self.config.tile_size if self._recomputes else None

    def forward(self, batch: LanguageBatch) -> LanguageOutput:
        hidden = self.hidden(batch)
        shard = self.group.shard
        labels = shard(batch.labels)
        losses, right = token_losses(hidden, labels, self._parts[0].head, self.classes)
        return LanguageOutput(losses, right, labels, shard(batch.weights), shard(batch.soft_masked))

    def hidden(self, batch: LanguageBatch) -> Tensor:
        """Last hidden states ``[b, s, c]`` of this rank's part of the rows."""
        parts = self._parts[0]
        shard = self.group.shard
        tokens = shard(batch.input_ids)
        self.check_lengths(batch)
        self._recomputes = (
            self.training and torch.is_grad_enabled() and tokens.numel() > self.config.checkpoint_min_tokens
        )
        whole = tokens.numel() * self.group.size * self._width * 4
        if self._recomputes and tokens.device.type == "cpu" and whole >= heap.WORTHWHILE:
            heap.give_back_large_tensors()
        recompute = functools.partial(hf_attention.recompute, on_host=self.config.offload)
        if self._recomputes and not parts.layers:
            raise ValueError(
                f"{type(unwrapped(self.model)).__name__}: its layers cannot be recomputed; set "
                f"model.checkpoint_min_tokens to more than the {tokens.numel()} tokens of a rank's micro-batch"
            )
        for layer in parts.layers:
            layer.gradient_checkpointing = self._recomputes
            layer._gradient_checkpointing_func = recompute
        if self.convention.attention == "own":
            # what a causal model makes of a token depends on none after it, and so on no padding
            mask = {} if self.kind == "causal_lm" else {"attention_mask": hf_parts.real_tokens(batch)}
            return parts.body(input_ids=tokens, **mask, **parts.arguments)[0]
        positions = shard(batch.position_ids) + self.convention.first_position
        if batch.rope_factor != 1.0:
            positions = positions / batch.rope_factor
        with using(Layout(batch.doc_spans, self.group)), self._embeddings.scaled(batch, shard):
            out = parts.body(input_ids=tokens, position_ids=positions, **parts.arguments)
        return out[0]

    def check_lengths(self, batch: LanguageBatch) -> None:
        """Raises ValueError for a document longer than what the model has positions, or whole windows, for; and for
        rows of several documents where the model must have one a row."""
        convention = self.convention
        name = type(unwrapped(self.model)).__name__
        lengths = (batch.doc_spans[:, 1] - batch.doc_spans[:, 0]).tolist()
        if convention.longest is not None and max(lengths, default=0) > convention.longest:
            document, n = max(zip(batch.ids, lengths, strict=False), key=lambda one: one[1])
            raise ValueError(
                f"{document}: {n} tokens; {name} takes {convention.longest} ({convention.limit}): cut the sequence, or "
                "make data.phases.length (data.length) that short"
            )
        if convention.attention == "own":
            rows = batch.input_ids.shape[1]
            if len(lengths) > len(batch.input_ids) or bool((batch.doc_spans[:, 0] % rows).any()):
                raise ValueError(f"{name} takes one document a row: set data.packing = false")
            if batch.rope_factor != 1.0:
                raise ValueError(f"data.phases: rope_factor needs positions from outside; {name} counts its own")

    def logits(self, batch: LanguageBatch) -> Tensor:
        """``[b, s, classes]``, for short rows."""
        return self._parts[0].head(self.hidden(batch))

    def log_probabilities(self, batch: LanguageBatch) -> Tensor:
        """fp32 ``[b, s, classes]``, nats: for short rows, in evaluation."""
        return self.logits(batch).float().log_softmax(-1)

    def save_assets(self, folder: Path) -> None:
        """Write the model's config into ``folder``."""
        unwrapped(self.model).config.save_pretrained(folder)

    def pretrained(self, *, adapter: bool, rope_factor: float, length: int) -> nn.Module:
        """The model as transformers (``adapter``: peft) saves it; this object is of no use afterwards.

        rope_factor, length  that it was trained for last; they go into the config
        """
        model: Any = self.model
        if adapter:
            if self.config.lora is None:
                raise ValueError("there are no adapters: the run has no model.lora")
            return model
        inner = model.merge_and_unload() if self.config.lora is not None else model
        own = inner.config
        inner.set_attn_implementation(self._own_attention)
        if hasattr(own, "use_cache"):
            own.use_cache = self.kind == "causal_lm"
        if rope_factor != 1.0:
            own.rope_parameters = dict(own.rope_parameters) | {"rope_type": "linear", "factor": rope_factor}
        if self.kind == "causal_lm" and getattr(own, "max_position_embeddings", length) < length:
            own.max_position_embeddings = length
        return inner

    def check_rope(self, factors: list[float]) -> None:
        """Raises ValueError where positions cannot be interpolated, or not by these factors in the end."""
        inner = unwrapped(self.model)
        if all(factor == 1.0 for factor in factors):
            return
        rope = getattr(inner.config, "rope_parameters", None) or {}
        layers = [name for name, one in rope.items() if isinstance(one, dict)]
        kind = rope.get("rope_type", "default") if rope else "no rope_parameters"
        if layers:
            kind = f"rope_parameters of their own for {', '.join(layers)}"
        if kind != "default":
            raise ValueError(
                f"data.phases: rope_factor needs a model with plain rotary embeddings, whose config can "
                f"say so when it is exported; {type(inner.config).__name__} has {kind}"
            )

    def flops(self, doc_spans: Tensor) -> float:
        """Of one training step on these documents, recomputation not counted.

        6 N T + Σ 12 L h d n² (half of that where attention is causal): N weights of matrices without embeddings that
        are looked up, T tokens, L layers, h heads of d channels, n tokens of a document (Kaplan et al. 2020, PaLM
        appendix B).
        """
        parts = self._parts[0]
        lengths = (doc_spans[:, 1] - doc_spans[:, 0]).double()
        square = 12.0 * parts.attention_width * float(lengths.square().sum())
        return 6.0 * parts.weights * float(lengths.sum()) + square / (2 if self.kind == "causal_lm" else 1)


def _let_attention_through(model: Any) -> None:
    """Raises ValueError where transformers cannot be told which attention ``model`` has."""
    name = type(model).__name__
    refused = ValueError(
        f"{name} has attention of its own, which cannot be replaced by one that knows packed documents"
    )
    try:
        model.set_attn_implementation(hf_attention.NAME)
    except (ValueError, AttributeError):
        raise refused from None
    if model.config._attn_implementation != hf_attention.NAME:
        raise refused


def unwrapped(model: Any) -> Any:
    """transformers' model, without peft around it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def build(
    config: Config, kind: Kind, *, vocabulary: int, special: dict[str, int], labels: tuple[str, ...] = (),
    longest: int | None = None, packing: bool = True,
) -> LanguageModel:  # fmt: skip
    """The model that ``config`` describes, on the CPU, verified against the untouched one (``hf_verification``).

    vocabulary, special  tokens and ids of special ones (``pad_token_id``, …) of the tokenizer
    labels               names of the classes of ``token_labels``, whose head is new where ``path`` has none
    longest              the most tokens of a document that are planned; None: any number
    packing              whether rows hold several documents

    Raises ValueError: no such model, no head of this kind, unknown keys, a pattern of ``freeze`` that matches nothing,
    fewer tokens than the tokenizer has, and a model that gives other numbers here than on its own.
    """
    model = _load(config, kind, labels) if config.path else _new(config, kind, vocabulary, special, labels)
    table = cast(Any, model).get_input_embeddings()
    if isinstance(table, nn.Embedding) and table.num_embeddings < vocabulary:
        raise ValueError(
            f"the tokenizer has {vocabulary} tokens, and {type(model).__name__} embeddings for {table.num_embeddings}"
            f" (vocab_size): take the tokenizer that the model was made with"
        )
    lora = config.lora.model_dump() if config.lora is not None else {}
    adapt = functools.partial(hf_parts.with_lora, settings=lora, trains_head=kind == "token_labels")
    subject = Subject(
        model.config, kind, _auto(kind).from_config,
        lambda small, convention: LanguageModel(small, config, kind, convention), adapt if lora else None,
    )  # fmt: skip
    convention = verify(subject, longest=longest, packing=packing, key=str(lora))
    if lora:
        model = adapt(model)
    names = [name for name, _ in model.named_parameters()]
    for pattern in config.freeze:
        if not fnmatch.filter(names, pattern):
            some = ", ".join(names[:4])
            raise ValueError(f"model.freeze: {pattern!r} matches no parameter; their names are such as {some}, …")
    for name, parameter in model.named_parameters():
        if any(fnmatch.fnmatch(name, pattern) for pattern in config.freeze):
            parameter.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"model.freeze = {list(config.freeze)} leaves nothing to train")
    return LanguageModel(model, config, kind, convention)


def _auto(kind: Kind) -> Any:
    import transformers

    name = {"masked_lm": "MaskedLM", "causal_lm": "CausalLM", "token_labels": "TokenClassification"}[kind]
    return getattr(transformers, f"AutoModelFor{name}")


def _named(own: Any, labels: tuple[str, ...]) -> None:
    if labels:
        own.id2label = dict(enumerate(labels))
        own.label2id = {label: i for i, label in enumerate(labels)}


def _load(config: Config, kind: Kind, labels: tuple[str, ...]) -> nn.Module:
    from transformers import AutoConfig

    assert config.path
    if config.config:
        raise ValueError("[model] has path and config; config is for a new model, overrides changes a loaded one")
    code = _code_in(config.path)
    try:
        own = AutoConfig.from_pretrained(config.path, trust_remote_code=False)
        if code:
            warnings.warn(
                f"model.path = {config.path!r}: {code}; {type(own).__name__} is transformers' own", stacklevel=2
            )
        _change(own, hf_rope.renamed(own, config.overrides), "model.overrides")
        _named(own, labels)
        if not config.load_weights:
            return _auto(kind).from_config(own)
        model, report = _auto(kind).from_pretrained(
            config.path, config=own, dtype=torch.float32, output_loading_info=True, weights_only=True,
            trust_remote_code=False,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        where = "folder" if Path(config.path).exists() else "hub model, or folder,"
        if code:
            raise ValueError(f"model.path = {config.path!r}: {code}, and transformers has no such model") from None
        raise ValueError(f"model.path = {config.path!r}: the {where} cannot be loaded for {kind}: {error}") from None
    body = hf_parts.body_name(model) + "."
    new_head = kind == "token_labels"
    missing = sorted(
        k for k in report["missing_keys"] if "position_ids" not in k and (k.startswith(body) or not new_head)
    )
    if missing:
        raise ValueError(
            f"model.path = {config.path!r}: it has no weights for {', '.join(missing[:4])}: it was made for another "
            f"task than {kind}; take a model that has this head, or task.name of its own"
        )
    return model


def _code_in(path: str) -> str:
    """What to say of a model folder that brings Python code of its own, which is not run; nothing of others."""
    file = Path(path) / "config.json"
    if not file.is_file():
        return ""
    try:
        names = json.loads(file.read_text(encoding="utf-8")).get("auto_map")
    except (ValueError, AttributeError):
        return ""  # transformers says what is wrong with it
    return f"{file} names code of its own (auto_map), which ds4sci does not run" if names else ""


def _new(config: Config, kind: Kind, vocabulary: int, special: dict[str, int], labels: tuple[str, ...]) -> nn.Module:
    from transformers import AutoConfig

    given = dict(config.config)
    if "model_type" not in given:
        raise ValueError('model: give path (a hub name or folder), or config, such as config = {model_type = "esm", …}')
    kind_of = given.pop("model_type")
    try:
        default = AutoConfig.for_model(kind_of)
    except ValueError:
        raise ValueError(f"model.config.model_type = {kind_of!r}: transformers knows no such model") from None
    values = {"vocab_size": vocabulary} | hf_rope.renamed(default, given | config.overrides)
    _change(default, values, "model.config")
    values = {key: value for key, value in special.items() if hasattr(default, key)} | values
    own = AutoConfig.for_model(kind_of, **values)  # anew: a config derives some values from others
    _named(own, labels)
    try:
        return _auto(kind).from_config(own)
    except ValueError as error:
        raise ValueError(f"model.config: {kind_of!r} cannot be made for {kind}: {error}") from None


def _change(own: Any, values: dict[str, Any], what: str) -> None:
    import difflib

    known = own.to_dict()
    for key, value in values.items():
        if key not in known and not hasattr(own, key):
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            if "rope" in key or "rotary" in key:
                hint = f"; rotary embeddings are set by rope_parameters, now {getattr(own, 'rope_parameters', None)}"
            raise ValueError(f"{what}: {type(own).__name__} has no key {key!r}{hint}")
        setattr(own, key, value)
