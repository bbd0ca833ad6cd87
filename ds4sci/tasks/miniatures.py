"""Miniatures of tasks for ``ds4sci selftest``: the settings of a run with few channels, layers and tokens.

Architecture, flags, updates, heads of the loss and tokenizer stay those of the run; sizes keep their parity, so that
uneven parts stay uneven. Dropout is off: its masks depend on the size of a micro-batch, and the selftest compares
micro-batches of different sizes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.data.array_shards import ArrayShards, write_shard
from ds4sci.data.language.tokenizer_adapter import open_tokenizer
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.text_files import resolve_data_path
from ds4sci.models.huggingface import loading
from ds4sci.models.huggingface import miniature as hf_miniature
from ds4sci.models.huggingface.loading import Kind

CHAINS, SEQUENCES = 16, 48
"""Records or volumes of the data sets that are written."""
LENGTH, ROW_LENGTH = 48, 64
"""Most tokens of a document and of a row."""
OWN_SAMPLES = (
    "order",
    "window",
    "replay",
    "selection",
    "weights",
    "pruning",
    "record_scores",
    "sampling",
    "distillation",
)
"""Keys of ``[data]`` that choose, order or weigh samples of the run's own data set."""
LETTERS = {"protein": "ACDEFGHIKLMNPQRSTVWY", "dna": "ACGT"}


def fold_miniature(config: Any, folder: Path) -> dict[str, Any]:
    """Return the sections of a structure model's run file with small sizes; its shortest chains go to ``folder``."""
    tree = sections_of(config)
    model, data = tree["model"], tree["data"]
    model |= {"c_m": 12, "c_z": 8, "c_s": 12, "c_plddt": 8}
    # patterns with numbers mean blocks that the miniature may not have
    model["freeze"] = [pattern for pattern in model["freeze"] if not any(letter.isdigit() for letter in pattern)]
    model["evoformer"] = _smaller(
        model["evoformer"], blocks=2, heads_msa=4, d_msa=4, heads_pair=4, d_pair=4, c_outer=4, c_multiplication=6,
        transition_factor=2, convolution_width=5,
    ) | {"dropout_msa": 0.0, "dropout_pair": 0.0}  # fmt: skip
    model["extra_msa"] = _smaller(model["extra_msa"], blocks=1, c_e=8, d_msa=4)
    model["structure"] = _smaller(
        model["structure"], iterations=2, d_ipa=4, heads=3, qk_points=2, v_points=3, c_angle=8
    ) | {"dropout": 0.0}
    model["stem"] = _smaller(model["stem"], blocks=1, convolution_width=5) | {"stem_only_fraction": 0.0}
    plan = data["plan"]
    chains = _copy_chains(data, folder)
    return tree | {
        "data": data | chains | {
            "workers": 0, "evaluation_chains": 1, "evaluation_batch": 1, "evaluation_recycling": 0,
            "evaluation_refinement": 0, "evaluation_relaxation": 0,
            "features": _smaller(data["features"], max_clusters=5, max_extra=7),
            "plan": {"phases": [{"crops": [17, 13]}], "max_recycling": min(1, plan["max_recycling"])},
        },
    }  # fmt: skip


def language_miniature(kind: Kind, config: Any, folder: Path) -> dict[str, Any]:
    """Return the sections of a language model's run file with a miniature of its class and random sequences."""
    tree = sections_of(config)
    data, last = tree["data"], config.data.phases[-1]
    tokenizer = _save_model(kind, config, max(phase.length for phase in config.data.phases), folder / "model")
    alphabet = data["alphabet"] if data["alphabet"] != "auto" else tokenizer.alphabet or "protein"
    for name, count in (("path", SEQUENCES), ("valid", 4)):
        _write_sequences(folder / f"{name}.fa", LETTERS[alphabet], count)
    phase = {"length": LENGTH, "rope_factor": last.rope_factor}
    return {
        "model": _model(tree["model"], folder / "model"),
        "data": data | {
            "path": str(folder / "path.fa"), "valid": str(folder / "valid.fa"), "alphabet": alphabet, "tokenizer": {},
            "phases": [phase | ({"row_length": ROW_LENGTH} if data["packing"] else {})], "workers": 0,
            "evaluation_tokens": ROW_LENGTH,
        },
    }  # fmt: skip


def token_classification_miniature(config: Any, folder: Path) -> dict[str, Any]:
    """Return the sections of a token classifier's run file with a miniature of its class and its shortest chains."""
    tree = sections_of(config)
    _save_model("token_labels", config, config.data.length, folder / "model")
    sizes = {"length": LENGTH, "row_length": ROW_LENGTH, "workers": 0, "tokenizer": {}}
    return {
        "model": _model(tree["model"], folder / "model"),
        "data": tree["data"] | _copy_chains(tree["data"], folder) | sizes,
    }


def operator_miniature(config: Any, folder: Path) -> dict[str, Any]:
    """Return the sections of a neural operator's run file with a narrow network and few points."""
    tree = sections_of(config)
    model = tree["model"]
    model |= {name: [min(8, width) for width in model[name]] for name in ("branch", "trunk")}
    data = _smaller(tree["data"], points=24, boundary_points=6, valid_functions=2, train_functions=64)
    return tree | {"model": _smaller(model, latent=6, num_fourier_features=4), "data": data}


def volume_miniature(config: Any, folder: Path) -> dict[str, Any]:
    """Return the sections of a volume regression's run file with few filters and random volumes of few cells.

    The number of stages, up to four, and of channels and targets stays; the data need not exist if the run file names
    channels and targets.
    """
    tree = sections_of(config)
    if config.data.channels and config.data.targets:
        channels, outputs = len(config.data.channels), len(config.data.targets)
    else:
        inputs, targets = ArrayShards.find(config.data.folder(), "train")[0]
        channels, outputs = len(inputs), len(targets)
    model = tree["model"]
    model["channels"] = [min(4, width) for width in model["channels"][:4]]
    model["hidden"] = [min(8, width) for width in model["hidden"]]
    model |= {"dropout": 0.0, "norm_groups": min(2, model["norm_groups"]), "kernel": min(3, model["kernel"])}
    model["whitening_examples"] = min(8, model["whitening_examples"])
    rng = np.random.default_rng(0)
    size = 1 << len(model["channels"])
    for split, count in (("train", SEQUENCES), ("valid", 2)):
        volumes = rng.normal(size=(count, channels, size, size, size)).astype(np.float32)
        write_shard(folder, split, 0, volumes, rng.uniform(-1, 1, (count, outputs)).astype(np.float32))
    return tree | {"model": model, "data": tree["data"] | {"path": str(folder), "valid_examples": 2}}


def sections_of(config: Any) -> dict[str, Any]:
    """Return the sections of a run file as plain values, without the keys that speak of samples of its own data."""
    tree: dict[str, Any] = config.model_dump(mode="json", exclude_none=True)
    for key in OWN_SAMPLES:
        tree["data"].pop(key, None)
    return tree


def _smaller(section: dict[str, Any], **most: int) -> dict[str, Any]:
    """Return ``section`` with its keys in ``most`` limited to these values, even where they were even."""
    found = dict(section)
    for key, limit in most.items():
        value = found.get(key)
        if isinstance(value, int) and value > limit:
            found[key] = limit if (value - limit) % 2 == 0 or limit == 1 else limit - 1
    return found


def _copy_chains(data: dict[str, Any], folder: Path) -> dict[str, str]:
    """Write the shortest chains of ``data.train`` into ``folder``, and return the keys that name them."""
    chains = ChainSet.open(resolve_data_path(Path(data["train"])))
    shortest = np.sort(np.argsort(chains.lengths, kind="stable")[:CHAINS])
    ChainSet.write(folder / "train.npz", [chains[int(i)] for i in shortest])
    ChainSet.write(folder / "valid.npz", [chains[int(shortest[0])]])
    return {"train": str(folder / "train.npz"), "valid": str(folder / "valid.npz")}


def _write_sequences(file: Path, letters: str, count: int) -> None:
    """Write random sequences, a part of each soft-masked, from a few letters to several windows long."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(count):
        text = "".join(rng.choice(list(letters), rng.integers(12, 3 * LENGTH)))
        third = len(text) // 3
        lines.append(f">s{number}\n{text[:third].lower()}{text[third:]}\n")
    file.write_text("".join(lines), encoding="utf-8")


def _save_model(kind: Kind, config: Any, longest: int, folder: Path) -> Any:
    """Write the config of a miniature and the tokenizer into ``folder``, and return the tokenizer."""
    model = config.model
    tokenizer = open_tokenizer(model.path, config.data.tokenizer, causal=kind != "masked_lm")
    if model.path:
        full = loading.read_config(model.path, model.overrides)
    else:
        full = loading.new_config(
            model.config, vocabulary=tokenizer.vocab_size, special=tokenizer.special_ids, overrides=model.overrides
        )
    small = hf_miniature.shrink(full, longest)
    settings = small.to_dict()
    tokens = {key: value for key, value in full.to_dict().items() if key.endswith(("_token_id", "_token_index"))}
    rates = {key: 0.0 for key, value in settings.items() if "drop" in key and isinstance(value, float)}
    settings |= tokens | rates | {"vocab_size": max(tokenizer.vocab_size, 1)}
    if _has_odd_heads(full):
        settings = _with_odd_heads(settings)
    folder.mkdir()
    tokenizer.hf_tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(settings, indent=1, default=str), encoding="utf-8")
    return tokenizer


def _has_odd_heads(config: Any) -> bool:
    """Whether the number of attention heads is odd, and every query head has its own key head."""
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    return isinstance(heads, int) and heads % 2 == 1 and getattr(text, "num_key_value_heads", heads) in (None, heads)


def _with_odd_heads(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a miniature with one head less, so that two ranks divide its heads unevenly."""
    heads, width = hf_miniature.HEADS - 1, hf_miniature.WIDTH - hf_miniature.HEAD_DIM
    smaller = {"num_attention_heads": heads, "num_key_value_heads": heads, "hidden_size": width}
    return settings | {key: value for key, value in smaller.items() if isinstance(settings.get(key), int)}


def _model(section: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return ``[model]`` for the miniature in ``folder``, with new weights."""
    lora = section.get("lora")
    adapters = {"lora": lora | {"rank": min(4, lora["rank"]), "dropout": 0.0}} if lora else {}
    # a pattern with a number names a layer, and the miniature may not have it
    freeze = [pattern for pattern in section["freeze"] if not any(letter.isdigit() for letter in pattern)]
    new = {"path": str(folder), "load_weights": False, "config": {}, "overrides": {}, "freeze": freeze}
    return section | new | adapters
