"""Loading of Hugging Face models from a hub name or a folder, and new models from a config."""

from __future__ import annotations

import difflib
import json
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ds4sci.models.huggingface.parts import backbone_name

Kind = Literal["masked_lm", "causal_lm", "token_labels"]
"""Head of the model: masked or causal language modeling, or token classification (a class for every residue)."""


def auto_class(kind: Kind) -> Any:
    """The ``AutoModelFor…`` class of transformers for a head."""
    import transformers

    name = {"masked_lm": "MaskedLM", "causal_lm": "CausalLM", "token_labels": "TokenClassification"}[kind]
    return getattr(transformers, f"AutoModelFor{name}")


def load_pretrained(
    path: str, kind: Kind, *, weights: bool, overrides: dict[str, Any], labels: tuple[str, ...]
) -> nn.Module:
    """The model at ``path``, a hub name or a folder with config.json and safetensors, in fp32. No code in it is run.

    weights    load the weights; if False, the weights are new
    overrides  keys of the config that get other values
    labels     class names of ``token_labels``, whose head may be new

    Raises ValueError if there is no such model, for an unknown key, and for missing weights.
    """
    custom_code = _custom_code_note(path)
    try:
        config = read_config(path, overrides)
        if custom_code:
            warnings.warn(
                f"model.path = {path!r}: {custom_code}; {type(config).__name__} of transformers is used", stacklevel=2
            )
        _set_labels(config, labels)
        if not weights:
            return auto_class(kind).from_config(config)
        model, report = auto_class(kind).from_pretrained(
            path, config=config, dtype=torch.float32, output_loading_info=True, weights_only=True,
            trust_remote_code=False,
        )  # fmt: skip
    except (OSError, ValueError) as error:
        where = "folder" if Path(path).exists() else "hub model or folder"
        if custom_code:
            raise ValueError(f"model.path = {path!r}: {custom_code}, and transformers has no such model") from None
        raise ValueError(f"model.path = {path!r}: the {where} cannot be loaded for {kind}: {error}") from None
    backbone = backbone_name(model) + "."
    new_head = kind == "token_labels"
    missing = sorted(
        k for k in report["missing_keys"] if "position_ids" not in k and (k.startswith(backbone) or not new_head)
    )
    if missing:
        raise ValueError(
            f"model.path = {path!r}: it has no weights for {', '.join(missing[:4])}: it was trained for another task "
            f"than {kind}; use a model that has this head, or the task.name that it was trained for"
        )
    return model


def new_model(
    settings: dict[str, Any], kind: Kind, *, vocabulary: int, special: dict[str, int], overrides: dict[str, Any],
    labels: tuple[str, ...],
) -> nn.Module:  # fmt: skip
    """A model with new weights from ``settings``: ``model_type`` and keys of its Hugging Face config.

    vocabulary, special  number of tokens, and ids of the special tokens (``pad_token_id``, …), of the tokenizer

    Raises ValueError for a missing or unknown ``model_type``, an unknown key, and a model without this head.
    """
    config = new_config(settings, vocabulary=vocabulary, special=special, overrides=overrides)
    _set_labels(config, labels)
    try:
        return auto_class(kind).from_config(config)
    except ValueError as error:
        raise ValueError(f"model.config: {config.model_type!r} has no model for {kind}: {error}") from None


def read_config(path: str, overrides: dict[str, Any], *, local: bool = False) -> Any:
    """The Hugging Face config at ``path``, a hub name or a folder, with ``overrides``. No code in it is run.

    local  use files of this machine only

    Raises OSError or ValueError if there is no such config, and ValueError for an unknown key.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=local)
    _set_keys(config, move_rope_settings(config, overrides), "model.overrides")
    return config


def new_config(settings: dict[str, Any], *, vocabulary: int, special: dict[str, int], overrides: dict[str, Any]) -> Any:
    """The Hugging Face config of ``new_model``, which describes the arguments and errors."""
    from transformers import AutoConfig

    given = dict(settings)
    if "model_type" not in given:
        raise ValueError('model: give path (a hub name or folder), or config, such as config = {model_type = "esm", …}')
    model_type = given.pop("model_type")
    try:
        default = AutoConfig.for_model(model_type)
    except ValueError:
        raise ValueError(f"model.config.model_type = {model_type!r}: transformers has no such model type") from None
    values = {"vocab_size": vocabulary} | move_rope_settings(default, given | overrides)
    _set_keys(default, values, "model.config")
    values = {key: value for key, value in special.items() if hasattr(default, key)} | values
    return AutoConfig.for_model(model_type, **values)  # a new object: a config derives some values from others


def _custom_code_note(path: str) -> str:
    """A note for messages if the model folder contains Python code, which ds4sci does not run; else empty."""
    file = Path(path) / "config.json"
    if not file.is_file():
        return ""
    try:
        names = json.loads(file.read_text(encoding="utf-8")).get("auto_map")
    except (ValueError, AttributeError):
        return ""  # transformers reports the invalid file
    return f"{file} refers to custom code (auto_map), which ds4sci does not run" if names else ""


def _set_labels(config: Any, labels: tuple[str, ...]) -> None:
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}


def _set_keys(config: Any, values: dict[str, Any], section: str) -> None:
    known = config.to_dict()
    for key, value in values.items():
        if key not in known and not hasattr(config, key):
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            if "rope" in key or "rotary" in key:
                rope = getattr(config, "rope_parameters", None)
                hint = f"; rotary embeddings are set by rope_parameters, now {rope}"
            raise ValueError(f"{section}: {type(config).__name__} has no key {key!r}{hint}")
        setattr(config, key, value)


_LEGACY_ROPE_KEYS = {
    "rope_theta": "rope_theta",
    "rotary_emb_base": "rope_theta",
    "partial_rotary_factor": "partial_rotary_factor",
    "rotary_pct": "partial_rotary_factor",
}
"""Keys of earlier configs → keys of ``rope_parameters``, where transformers 5 keeps all rotary settings."""


def move_rope_settings(config: Any, values: dict[str, Any]) -> dict[str, Any]:
    """``values`` with all settings of rotary embeddings moved into ``rope_parameters``.

    The base and the fraction of rotary channels come from ``config`` unless ``values`` sets them. Otherwise a base
    without its scaling, or a scaling without its base, would silently fall back to defaults.

    Raises ValueError if ``config`` has one set of rotary settings per layer type and ``values`` does not say which.
    """
    rope = getattr(config, "rope_parameters", None)
    named = [key for key in values if key in _LEGACY_ROPE_KEYS or key in ("rope_scaling", "rope_parameters")]
    if not isinstance(rope, dict) or not named:
        return dict(values)
    if any(isinstance(one, dict) for one in rope.values()):
        legacy = [key for key in named if key != "rope_parameters"]
        if legacy:
            raise ValueError(
                f"{type(config).__name__} has no single {legacy[0]}: set rope_parameters, with one entry per layer "
                f"type, now {rope}"
            )
        return dict(values)
    merged = dict(rope)
    for key in named:  # in the given order: later settings override earlier ones
        if key in _LEGACY_ROPE_KEYS:
            merged[_LEGACY_ROPE_KEYS[key]] = values[key]
            continue
        base = {name: merged[name] for name in ("rope_theta", "partial_rotary_factor") if name in merged}
        scaling = {"rope_type" if name == "type" else name: one for name, one in (values[key] or {}).items()}
        merged = base | {"rope_type": "default"} | scaling
    return {key: value for key, value in values.items() if key not in named} | {"rope_parameters": merged}
