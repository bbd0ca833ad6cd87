"""Comparison of every masked and causal architecture of transformers with itself: ``docs/language_models.md``.

    python -m tests.support.model_zoo                 # all architectures, written to the table (minutes)
    python -m tests.support.model_zoo esm llama …     # some architectures, printed

A miniature with random weights is saved and loaded by ds4sci. It is either refused with a reason, or compared with the
original model, called one document at a time, without position ids, with its own attention.
"""

from __future__ import annotations

import copy
import json
import os
import re
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ds4sci.data.language.batches import Document, MaskingPolicy, collate
from ds4sci.models import language
from ds4sci.models.huggingface import loading, miniature, parts
from ds4sci.models.huggingface.comparison import check_size, randomize_weights
from ds4sci.types import IGNORE_INDEX, LanguageBatch

TABLE = Path(__file__).resolve().parents[2] / "docs" / "language_models.md"
KINDS = {"masked": "masked_lm", "causal": "causal_lm"}
WINDOW = 64
"""Windows of the miniatures: shorter than a long document, longer than the short ones."""
SHORT, LONG = 50, 150
DOCUMENTS = {LONG: (17, 150, 40), SHORT: (17, 50, 40)}

GIVEN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [2]},
    "bert": {},
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_group": 1, "n_group": 1, "n_routed_experts": 4},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "esm": {"vocab_size": 33, "pad_token_id": 1, "mask_token_id": 32, "position_embedding_type": "rotary",
            "token_dropout": True},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 16},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 8},
    "reformer": {"axial_pos_embds": False, "is_decoder": False},
    "xlstm": {"qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
}  # fmt: skip
"""Settings of architectures whose default config creates no model, or not the published one."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "esm, absolute positions": ("esm", GIVEN["esm"] | {"position_embedding_type": "absolute", "token_dropout": False}),
    "big_bird, original_full": ("big_bird", {"attention_type": "original_full"}),
    "mixtral, output_router_logits": ("mixtral", {"output_router_logits": True}),
}
"""Further rows: (architecture, settings)."""

DECODERS = (
    "bert", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "rembert", "roberta",
    "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod", "bert-generation",
    "reformer",
)  # fmt: skip
"""Encoders that are causal only with ``is_decoder``."""


@dataclass
class Row:
    """Result of one architecture.

    verdict                                     ``correct``, ``correct unpacked``, ``refused`` or ``not tested``
    packed, padded, accumulated, lora, sharded  largest relative difference of the loss and of the gradient of each
                                                parameter to the original model, or ``refused``
    correct                                     whether all differences are within rounding
    """

    name: str
    kind: str
    verdict: str = ""
    packed: str = "–"
    padded: str = "–"
    accumulated: str = "–"
    lora: str = "–"
    sharded: str = "–"
    folder: str = ""
    correct: bool = True


def architectures() -> list[tuple[str, str, str, dict[str, Any]]]:
    """(row, masked or causal, architecture, settings) of all rows."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    found = [(name, "masked", name, GIVEN.get(name, {})) for name in MODEL_FOR_MASKED_LM_MAPPING_NAMES]
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        given = GIVEN.get(name, {}) | ({"is_decoder": True} if name in DECODERS else {})
        found.append((name, "causal", name, given))
    for row, (name, given) in VARIANTS.items():
        kind = "masked" if name in MODEL_FOR_MASKED_LM_MAPPING_NAMES else "causal"
        found.append((row, kind, name, given))
    return sorted(found, key=lambda one: (one[1] == "causal", one[0]))


def tiny_config(name: str, given: dict[str, Any]) -> Any:
    """A miniature config of the architecture, without dropout."""
    from transformers import AutoConfig

    config = miniature.shrink(AutoConfig.for_model(name, **given), 2**60, window=WINDOW)
    miniature.set_positions(config, miniature.LONG_WINDOW)
    for part in miniature.nested_configs(config):
        for key, value in vars(part).items():
            if ("drop" in key or "jitter" in key) and type(value) is float:
                vars(part)[key] = 0.0
    return config


def make(name: str, kind: str, given: dict[str, Any], folder: Path) -> None:
    """Save a miniature with random weights."""
    torch.manual_seed(0)
    config, new = tiny_config(name, given), loading.auto_class(KINDS[kind]).from_config  # type: ignore[arg-type]
    check_size(new, config)
    model = new(config)
    randomize_weights(model).save_pretrained(folder)


def original(kind: str, folder: Path) -> Any:
    """The original model, without the generation cache, which has no gradient."""
    model = loading.auto_class(KINDS[kind]).from_pretrained(folder).eval()  # type: ignore[arg-type]
    model.config.use_cache = False
    return model


def padding(model: Any) -> int:
    """Padding token."""
    return getattr(model.config.get_text_config(), "pad_token_id", None) or 0


def documents(config: Any, kind: str, lengths: tuple[int, ...]) -> list[Any]:
    """Documents and their masked-out or next-token targets."""
    rng = np.random.default_rng(0)
    text = config.get_text_config()
    special = {
        v for part in (config, text) for k, v in vars(part).items() if k.endswith("_token_id") and type(v) is int
    }
    plain = np.array([i for i in range(min(100, text.vocab_size)) if i not in special])
    mask = getattr(text, "mask_token_id", None)
    target = MaskingPolicy(0.3 if kind == "masked" else 0.0, int(plain[0]) if mask is None else mask, plain)
    made = []
    for number, n in enumerate(lengths):
        weights = np.where(rng.random(n) < 0.2, 0.5, 1.0).astype(np.float32)
        ids, size, no = rng.choice(plain, n), np.ones(n, np.int64), np.zeros(n, bool)
        one = Document(ids, weights, no, size.cumsum() - size, size, no, f"d{number}")
        made.append((one, target.apply(one, rng)))
    return made


def original_loss(model: Any, batch: LanguageBatch) -> Tensor:
    """Σ weight · nats / Σ weight by the original model, one document at a time."""
    total, count = [], 0.0
    for start, stop in batch.doc_spans.tolist():
        tokens, labels, weights = (x.flatten()[start:stop] for x in (batch.input_ids, batch.labels, batch.weights))
        fresh = copy.deepcopy(model, {id(p): p for p in model.parameters()})  # some models keep state between calls
        logits = fresh(input_ids=tokens[None]).logits[0]
        nats = nn.functional.cross_entropy(logits.double(), labels, reduction="none", ignore_index=IGNORE_INDEX)
        total.append((nats * weights).sum())
        count += float(weights.sum())
    return torch.stack(total).sum() / count


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    """Gradients by parameter name, without those of parameters that the loss does not depend on."""
    inner = model.model if isinstance(model, language.LanguageModel) else model
    named = {name: p for name, p in inner.named_parameters() if p.requires_grad}
    if not loss.requires_grad:
        return {}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


def distance(loss: Tensor, found: dict[str, Tensor], reference: Tensor, expected: dict[str, Tensor]) -> float:
    """The largest relative difference of the loss and of the gradient of each parameter.

    A gradient is measured relative to its norm plus a thousandth of the norm of all gradients.
    """
    if not expected:
        return float("inf")
    whole = float(torch.stack([g.double().norm() for g in expected.values()]).norm())
    worst = abs(float(loss.detach()) - float(reference.detach())) / abs(float(reference.detach()))
    for name, gradient in expected.items():
        other = found.get(name)
        off = float((gradient if other is None else gradient.double() - other.double()).norm())
        worst = max(worst, off / (float(gradient.norm()) + 1e-3 * whole))
    return worst


def packed_loss(model: language.LanguageModel, batch: LanguageBatch, count: float) -> Tensor:
    output = model(batch)
    return (output.losses * output.weights).sum() / count


def examine(row: Row, folder: Path, settings: dict[str, Any] | None = None) -> Row:
    """Compare the model in ``folder`` in every mode that ds4sci accepts for it."""
    kind = KINDS[row.kind]
    refusals: dict[str, str] = {}
    longest, packing, built = 0, True, None
    for longest, packing in ((LONG, True), (SHORT, True), (LONG, False), (SHORT, False)):
        config = language.Config(path=str(folder))
        try:
            built = language.build(config, kind, vocabulary=8, special={}, longest=longest, packing=packing)  # type: ignore[arg-type]
            break
        except ValueError as error:
            refusals[f"{longest} {packing}"] = str(error)
    if built is None:
        row.verdict = "refused: " + short_reason(list(refusals.values())[-1])
        return row
    row.verdict = "correct" if packing else "correct unpacked"
    if not packing:
        row.verdict += ": " + short_reason(refusals[f"{SHORT} True"])
        row.packed = "refused"
    if longest == SHORT:
        row.verdict += f"; up to `{built.convention.limit_key}` tokens"
    own = original(row.kind, folder)
    try:
        own, built = own.double().train(), built.double().train()
        original_loss(own, collate([documents(own.config, row.kind, (9,))], 16, 0))
        bound = 1e-5
    except Exception:
        own, built = original(row.kind, folder).train(), built.float().train()
        bound = 2e-3
    examples = documents(own.config, row.kind, DOCUMENTS[longest])
    pad = padding(own)
    width = -(-sum(DOCUMENTS[longest]) // 8) * 8 + 8
    high = -(-max(DOCUMENTS[longest]) // 8) * 8 + 8
    count = float(sum(collate([[one]], len(one[0].ids), 0).weights.sum() for one in examples))
    packed, padded = collate([examples], width, pad), collate([[one] for one in examples], high, pad)
    reference = original_loss(own, packed)
    expected = gradients(own, reference)

    def measured(
        model: Any, batches: list[LanguageBatch], reference: Tensor, expected: dict[str, Tensor], rounding: float = 0.0
    ) -> str:
        total, sums = torch.zeros((), dtype=torch.double), dict[str, Tensor]()
        for batch in batches:
            loss = packed_loss(model, batch, count)
            for name, gradient in gradients(model, loss).items():
                sums[name] = sums[name] + gradient if name in sums else gradient
            total += loss.detach()
        off = distance(total, sums, reference, expected)
        row.correct &= off <= max(bound, 3 * rounding)
        return f"{off:.0e}"

    micro_batches = [examples[:1], examples[1:]] if packing else [examples[:1], examples[1:2], examples[2:]]
    row.padded = measured(built, [padded], reference, expected)
    if packing:
        row.packed = measured(built, [packed], reference, expected)
    row.accumulated = measured(built, [collate([one], width, pad) for one in micro_batches], reference, expected)
    row.lora = _lora(row, folder, kind, longest, packing, own, packed if packing else padded, measured)
    row.folder = str(folder) if packing and built.convention.shardable else ""
    if packing and not built.convention.shardable:
        row.sharded = "refused"
    return row


def _lora(row: Row, folder: Path, kind: str, longest: int, packing: bool, own: Any, batch: Any, measured: Any) -> str:
    config = language.Config(path=str(folder), lora=language.LoraConfig(rank=2))
    try:
        adapted = language.build(config, kind, vocabulary=8, special={}, longest=longest, packing=packing)  # type: ignore[arg-type]
    except ValueError as error:
        row.verdict += f"; no LoRA: {short_reason(str(error))}"
        return "refused"
    assert config.lora is not None
    plain = parts.add_lora(copy.deepcopy(own), config.lora.model_dump(), trains_head=False)
    torch.manual_seed(1)
    randomize_weights(plain, only="lora_").to(next(own.parameters()).dtype)
    adapted = adapted.to(next(own.parameters()).dtype).train()
    values = {name: p.detach() for name, p in plain.named_parameters()}
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            parameter.copy_(values[name])
    reference = original_loss(plain, batch)
    expected = gradients(plain, reference)
    # some models compute in fp32 for any dtype: the bound is then three times the difference of fp32 and fp64
    narrow = copy.deepcopy(plain).float()
    loss = original_loss(narrow, batch)
    rounding = distance(loss, gradients(narrow, loss), reference, expected)
    return str(measured(adapted, [batch], reference, expected, rounding))


def row_of(name: str, kind: str, architecture: str, given: dict[str, Any], folder: Path) -> Row:
    """The row of one architecture, except for the comparison on two ranks."""
    row = Row(name, kind)
    try:
        make(architecture, kind, given, folder)
        original(kind, folder)
    except (Exception, SystemExit) as error:
        row.verdict = f"not tested: {short_reason(f'{type(error).__name__}: {error}')}"
        return row
    try:
        return examine(row, folder)
    except Exception as error:
        row.verdict, row.correct = f"fails: {type(error).__name__}: {error}".split("\n")[0], False
        return row


def compare_sharded(rank: int, port: int, folders: list[tuple[str, str]], out: str) -> None:
    """Worker of two ranks: losses and summed gradients of packed rows that are sharded across both, for each model."""
    import torch.distributed as dist

    from ds4sci.parallel.groups import SequenceGroup

    quiet()
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    group = SequenceGroup(rank, 2, 0, 1, dist.group.WORLD)
    found = {}
    for folder, kind in folders:
        own = original(kind, Path(folder)).train()
        longest = LONG
        try:
            built = language.build(language.Config(path=folder), KINDS[kind], vocabulary=8, special={}, longest=LONG)  # type: ignore[arg-type]
        except ValueError:
            longest = SHORT
            built = language.build(language.Config(path=folder), KINDS[kind], vocabulary=8, special={}, longest=SHORT)  # type: ignore[arg-type]
        examples = documents(own.config, kind, DOCUMENTS[longest])
        width = -(-sum(DOCUMENTS[longest]) // 16) * 16
        packed = collate([examples], width, padding(own))
        count = float(packed.weights.sum())
        reference = original_loss(own, packed)
        expected = gradients(own, reference)
        built.train().group = group
        loss = packed_loss(built, packed, count)
        sums = gradients(built, loss)
        for name in expected:
            sums[name] = group.all_reduce_sum(sums.get(name, torch.zeros_like(expected[name])))
        found[folder] = distance(group.all_reduce_sum(loss), sums, reference, expected)
    if rank == 0:
        Path(out).write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def sharded(rows: list[Row]) -> None:
    """Fill in the comparison on two ranks, for all models in one pair of processes."""
    from torch.multiprocessing import spawn

    from ds4sci.train.distributed import free_port

    chosen = [(row.folder, row.kind) for row in rows if row.folder and row.correct]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        spawn(compare_sharded, (free_port(), chosen, str(out)), nprocs=2)
        found = json.loads(out.read_text(encoding="utf-8"))
    for row in rows:
        if row.folder in found:
            row.sharded = f"{found[row.folder]:.0e}"
            row.correct &= found[row.folder] <= 2e-3  # fp32


def quiet() -> None:
    """Silence transformers' warnings and progress bars."""
    import transformers

    transformers.logging.set_verbosity(50)
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore")


def examine_all(names: list[str], folder: Path) -> list[Row]:
    """Rows of the architectures ``names``, or of all if empty."""
    quiet()
    rows = []
    for number, (name, kind, architecture, given) in enumerate(architectures()):
        if names and name not in names:
            continue
        rows.append(row_of(name, kind, architecture, given, folder / f"{number}"))
        print(rows[-1].name, rows[-1].kind, rows[-1].packed, rows[-1].padded, rows[-1].accumulated, rows[-1].lora,
              "" if rows[-1].correct else "WRONG", rows[-1].verdict[:200], file=sys.stderr, flush=True)  # fmt: skip
    sharded(rows)
    return rows


REASONS = (
    (r"has its own attention code", "own attention code"),
    (r"takes no position_ids", "no position_ids"),
    (r"uses attention sinks", "attention sinks"),
    (r"uses capped attention logits", "capped attention logits"),
    (r"uses a position bias", "position bias"),
    (r"uses a sliding window", "sliding window"),
    (r"passes a mask or bias", "own mask or bias"),
    (r"LoRA adapters .* differ from merged weights", "reads weights of layers without calling them"),
    (r"LoRA adapters .* do not change the logits", "no effect on the logits"),
    (r"LoRA adapters .* 'tuple' object has no attribute", "the router returns a tuple, which peft does not support"),
    (r"LoRA adapters .* do not work", "peft does not support all of its linear layers"),
    (r"No modules were targeted", "no linear layers"),
    (r"is incompatible with Mamba", "peft does not support Mamba layers"),
    (r"logits in a packed row differ", "packed rows change the logits"),
    (r"logits in a padded row differ", "padded rows change the logits"),
    (r"attends to the tokens that it predicts", "attention is not causal"),
    (r"its loss is not the cross entropy", "loss is not the cross entropy of the labels"),
    (r"does not compute logits for each token", "no logits per token"),
    (r"computes no loss", "computes no loss"),
    (r"no miniature of it runs", "no miniature runs"),
    (r"different settings per layer", "settings per layer"),
    (r"Unrecognized configuration class", "transformers has no model with this head"),
    (r"ValidationError", "its default config is invalid"),
    (r"parameters, more than", "its miniature is too large"),
    (r"fails with (\w+)", r"raises \1"),
)
"""Patterns of error messages, and short reasons for the table."""


def short_reason(message: str) -> str:
    """The reason of an error message in a few words."""
    both = re.search(r"Packed: (.*)\. Padded, with its own attention: (.*)", message, re.DOTALL)
    if both:
        reasons = [short_reason(part) for part in both.groups()]
        if reasons == ["packed rows change the logits", "padded rows change the logits"]:
            return "packed and padded rows change the logits"
        return "; ".join(dict.fromkeys(reasons))
    for pattern, reason in REASONS:
        found = re.search(pattern, message, re.DOTALL)
        if found:
            return found.expand(reason)
    return f"raises {message.split(':')[0]}"


def markdown(rows: list[Row]) -> str:
    """The page ``docs/language_models.md``."""
    import transformers

    correct = sum(row.verdict.startswith("correct") and row.correct for row in rows)
    lines = [
        "# Supported language models",
        "",
        f"Every masked and causal architecture of transformers {transformers.__version__}, as a miniature with random "
        "weights, compared with the original model called one document at a time. Numbers are the largest relative "
        "difference of the loss and of the gradient of any parameter, in fp64 if the model supports it (two ranks: "
        "fp32). Generated by `python -m tests.support.model_zoo`.",
        "",
        "| verdict | meaning |",
        "|---|---|",
        "| correct | packed rows, padded rows, gradient accumulation and LoRA give the loss and gradients of the "
        "original model |",
        "| correct unpacked | correct with `data.packing = false`: one document per row, the model's own attention; "
        "packed rows are refused for the reason given |",
        "| up to `key` tokens | correct for documents no longer than this value of the model's config |",
        "| no LoRA | adapters on all linear layers are refused for the reason given; other `model.lora.target_modules` "
        "may work |",
        "| refused | loading the model raises an error with the reason |",
        "| not tested | no miniature could be created; loading the model raises an error |",
        "",
        f"{correct} of {len(rows)} rows are correct.",
        "",
        "| architecture | head | packed | padded | accumulated | LoRA | two ranks | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        verdict = row.verdict.replace("|", "/").replace("\n", " ")
        cells = (row.name, row.kind, row.packed, row.padded, row.accumulated, row.lora, row.sharded, verdict)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = examine_all(names, Path(folder))
    if names:
        print(markdown(rows))
    else:
        TABLE.write_text(markdown(rows), encoding="utf-8")
    wrong = [row.name for row in rows if not row.correct]
    if wrong:
        raise SystemExit(f"silently wrong: {', '.join(wrong)}")


if __name__ == "__main__":
    main(sys.argv[1:])
