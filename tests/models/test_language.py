"""``LanguageModel`` on packed rows against the forward pass of transformers, one document at a time."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from ds4sci.models import language
from ds4sci.models.huggingface import parts
from ds4sci.nn import token_loss
from tests.support import language_oracle as oracle

SIZES = {"masked_lm": oracle.ESM, "causal_lm": oracle.LLAMA}
ROWS = {"packed": ([[17, 9, 30], [25, 31]], 64), "padded": ([[40], [23]], 48)}


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def mean(output: Any) -> torch.Tensor:
    return (output.losses * output.weights).sum() / output.weights.sum()


@pytest.mark.parametrize("activation_budget", [0, None])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", SIZES)
def test_loss_and_gradients_equal_those_of_transformers(kind, rows, activation_budget) -> None:
    """In fp64, to fp32 precision, since transformers computes rotary embeddings and RMSNorm in fp32."""
    model = oracle.model(kind, SIZES[kind], torch.float64, activation_budget=activation_budget, tile_size=16).train()
    batch = oracle.batch(kind, *ROWS[rows])
    own = mean(model(batch))
    found = gradients(model, own)
    theirs = oracle.plain_loss(model, batch)
    wanted = gradients(model, theirs)
    assert float(own.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)
    assert set(found) == set(wanted)
    for name, grad in wanted.items():
        assert (found[name] - grad).norm() <= 1e-5 * grad.norm(), name


def test_bert_with_position_table() -> None:
    sizes = {
        "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    model = oracle.model("masked_lm", sizes, torch.float64).eval()
    batch = oracle.batch("masked_lm", [[17, 9, 30]], 64)
    assert float(mean(model(batch))) == pytest.approx(float(oracle.plain_loss(model, batch)), rel=1e-6)


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "esmc": ("masked_lm", SMALL),
    "gpt_neox": ("causal_lm", SMALL | {"intermediate_size": 64}),
    "qwen3": ("causal_lm", SMALL | {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64}),
    "mistral": ("causal_lm", SMALL | {"num_key_value_heads": 2, "intermediate_size": 64, "sliding_window": None}),
    "gpt2": (
        "causal_lm",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0},
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families(family) -> None:
    kind, sizes = FAMILIES[family]
    model = oracle.model(kind, {"model_type": family} | sizes, torch.float64).eval()
    batch = oracle.batch(kind, [[17, 9, 30]], 64)
    own, theirs = mean(model(batch)), oracle.plain_loss(model, batch)
    assert float(own.detach()) == pytest.approx(float(theirs.detach()), rel=1e-6)


def test_sliding_window_raises() -> None:
    sizes = SMALL | {"model_type": "modernbert", "num_hidden_layers": 3, "intermediate_size": 64}
    with pytest.raises(ValueError, match=r"uses a sliding window \(sliding_window\) shorter than a document"):
        oracle.model("masked_lm", sizes)


def test_documents_do_not_attend_to_each_other() -> None:
    for kind, sizes in SIZES.items():
        model = oracle.model(kind, sizes).eval()
        batch = oracle.batch(kind, [[20, 30]], 56)
        changed = batch.input_ids.clone()
        changed[0, 25:40] = 7
        one, other = model(batch).losses, model(replace(batch, input_ids=changed)).losses
        assert torch.equal(one[0, :20], other[0, :20])
        assert not torch.equal(one[0, 20:50], other[0, 20:50])


def test_logits_in_chunks(monkeypatch) -> None:
    model = oracle.model("masked_lm", oracle.ESM).train()
    batch = oracle.batch("masked_lm", [[50], [60]], 64)
    whole = model(batch)
    wanted = gradients(model, mean(whole))
    monkeypatch.setattr(token_loss, "LOGITS_PER_CHUNK", 33 * 10)
    pieces = model(batch)
    assert torch.allclose(pieces.losses, whole.losses, rtol=1e-5)
    assert torch.equal(pieces.correct, whole.correct)
    for name, grad in gradients(model, mean(pieces)).items():
        assert torch.allclose(grad, wanted[name], rtol=1e-4, atol=1e-6), name


def test_loss_without_labels_is_zero_with_a_gradient() -> None:
    """ZeRO-3 deadlocks if the graphs of the ranks differ."""
    model = oracle.model("masked_lm", oracle.ESM).train()
    batch = oracle.batch("masked_lm", [[20]], 24)
    batch = replace(batch, labels=torch.full_like(batch.labels, -100), weights=torch.zeros_like(batch.weights))
    found = gradients(model, model(batch).losses.sum())
    assert all(float(grad.abs().sum()) == 0 for grad in found.values())
    assert len(found) == len([p for p in model.parameters() if p.requires_grad]) - 2  # the contact head


def test_embedding_scale_equals_esm_for_each_document() -> None:
    batch = oracle.batch("masked_lm", [[17, 9], [25]], 32)
    scale = parts.embedding_scale(batch.input_ids, batch.doc_spans, oracle.MASK).flatten()
    for start, stop in batch.doc_spans.tolist():
        tokens = batch.input_ids.flatten()[start:stop]
        masked = tokens == oracle.MASK
        expected = (1 - 0.15 * 0.8) / (1 - float(masked.float().mean()))
        assert torch.allclose(scale[start:stop][~masked], torch.tensor(expected).double())
        assert (scale[start:stop][masked] == 0).all()


def test_only_adapters_are_trained() -> None:
    pytest.importorskip("peft")
    model = oracle.model("masked_lm", oracle.ESM, lora=language.LoraConfig(rank=2)).train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert any(".query." in name for name in trained)
    assert not any("lm_head" in name for name in trained)
    batch = oracle.batch("masked_lm", [[20, 10]], 32)
    assert set(gradients(model, mean(model(batch)))) == trained


def test_frozen_parameters() -> None:
    model = oracle.model("causal_lm", oracle.LLAMA, freeze=("*embed_tokens*", "*layers.0.*"))
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen
    assert all("embed_tokens" in name or "layers.0." in name for name in frozen)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"freeze": ("*nothing*",)}, r"'\*nothing\*' matches no parameter"),
        ({"freeze": ("*",)}, "leaves nothing to train"),
        ({"config": {"hidden_size": 32}}, "give path"),
        ({"config": {"model_type": "no_such"}}, "transformers has no such model type"),
        ({"config": oracle.LLAMA | {"hiden_size": 8}}, "has no key 'hiden_size'; did you mean hidden_size"),
        ({"path": "/no/such/folder", "config": {}}, "cannot be loaded for causal_lm"),
    ],
)
def test_invalid_configs_raise(changes, words) -> None:
    with pytest.raises(ValueError, match=words):
        language.build(
            language.Config(**({"config": oracle.LLAMA} | changes)), "causal_lm", vocabulary=33, special=oracle.SPECIAL
        )


def test_attention_dropout_raises_with_advice() -> None:
    with pytest.raises(ValueError, match=r"attention_probs_dropout_prob=0\.0.*data\.packing = false"):
        oracle.model("masked_lm", oracle.ESM | {"attention_probs_dropout_prob": 0.1})


def test_pretrained_model_without_the_requested_head(tmp_path) -> None:
    from transformers import AutoConfig, EsmModel

    sizes = {key: value for key, value in oracle.ESM.items() if key != "model_type"}
    EsmModel(AutoConfig.for_model("esm", vocab_size=33, **oracle.SPECIAL, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no weights for .*lm_head"):
        language.build(language.Config(path=str(tmp_path)), "masked_lm", vocabulary=33, special={})
    labelled = language.build(
        language.Config(path=str(tmp_path)), "token_labels", vocabulary=33, special={}, labels=("a", "b", "c")
    )
    assert labelled.num_classes == 3


def test_position_interpolation() -> None:
    """Positions divided by the factor equal linear rope scaling in transformers."""
    model = oracle.model("causal_lm", oracle.LLAMA, torch.float64).eval()
    batch = replace(oracle.batch("causal_lm", [[40]], 40), rope_factor=4.0)
    own = model(batch).losses
    scaled = oracle.LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}
    theirs = oracle.model("causal_lm", scaled, torch.float64).eval()
    assert torch.allclose(own, theirs(replace(batch, rope_factor=1.0)).losses, rtol=1e-6)
    model.check_rope([1.0, 4.0])
    with pytest.raises(ValueError, match="plain rotary"):
        theirs.check_rope([2.0])
    with pytest.raises(ValueError, match="plain rotary"):
        oracle.model("masked_lm", oracle.ESM).check_rope([2.0])


def test_position_interpolation_needs_a_single_rotary_embedding() -> None:
    """Rotary embeddings with a different base per layer type cannot be exported with a single factor."""
    sizes = {"model_type": "gemma3_text", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64, "layer_types": ["full_attention"] * 2}
    model = oracle.model("causal_lm", sizes)
    model.check_rope([1.0])
    with pytest.raises(ValueError, match="has separate rope_parameters for sliding_attention, full_attention"):
        model.check_rope([1.0, 4.0])


def test_flops_per_document() -> None:
    model = oracle.model("causal_lm", oracle.LLAMA)
    h, layers, d = 6, 2, 8
    matrices = layers * (48 * 48 * 2 + 2 * 48 * 16 + 3 * 48 * 64) + 33 * 48
    doc_spans = torch.tensor([[0, 10], [10, 40]])
    assert model.flops(doc_spans) == 6 * matrices * 40 + 12 * layers * h * d * (100 + 900) / 2


@pytest.mark.parametrize(("kind", "config"), [("causal_lm", oracle.LLAMA), ("masked_lm", oracle.ESM)])
def test_a_copy_computes_with_its_own_weights(kind, config) -> None:
    """Every weight of the copy is doubled, one at a time: the copy changes as a new model does, the original never."""
    model = oracle.model(kind, config, torch.float64, tile_size=16).eval()
    batch = oracle.batch(kind, [[20, 10]], 32)
    with torch.no_grad():
        before = model(batch).losses.clone()
        for name, _ in model.named_parameters():
            copied, other = copy.deepcopy(model), oracle.model(kind, config, torch.float64, tile_size=16).eval()
            for one in (copied, other):
                one.get_parameter(name).mul_(2)
            assert torch.equal(copied(batch).losses, other(batch).losses), name
            assert torch.equal(model(batch).losses, before)
