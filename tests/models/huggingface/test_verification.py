"""Verification of Hugging Face models at load time: call convention, limits, and refusals."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from ds4sci.data.language.batches import Document, collate
from ds4sci.data.language.targets import unlabelled_example
from ds4sci.models import language
from ds4sci.models.huggingface.call_convention import CallConvention
from ds4sci.parallel.groups import SequenceGroup
from ds4sci.tasks import masked_lm, token_classification
from tests.support import language_oracle as oracle

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
PLAIN = SMALL | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def build(kind: str, config: dict[str, Any], **more: Any) -> language.LanguageModel:
    return language.build(
        language.Config(config=config), kind, vocabulary=33, special=oracle.SPECIAL, **more  # type: ignore[arg-type]
    )  # fmt: skip


def rows_of(*lengths: int) -> Any:
    """One document per row."""
    made = []
    for number, one in enumerate(oracle.documents(list(lengths))):
        made.append([(replace(one, name=f"d{number}"), unlabelled_example(one.ids))])
    return collate(made, -(-max(lengths) // 8) * 8, oracle.PAD)


@pytest.mark.parametrize(
    "config",
    [
        oracle.ESM | {"position_embedding_type": "absolute", "token_dropout": False},
        {"model_type": "roberta"} | PLAIN,
        {"model_type": "camembert"} | PLAIN,
        {"model_type": "bert"} | PLAIN,
    ],
    ids=lambda config: config["model_type"],
)
def test_embeddings_equal_those_of_the_original_model(config: dict[str, Any]) -> None:
    """For models that count positions from padding_idx + 1, positions from 0 give cosine similarities of 0.37 to
    0.94."""
    model = build("masked_lm", config).eval()
    original = AutoModelForMaskedLM.from_config(AutoConfig.for_model(**config, vocab_size=33, **oracle.SPECIAL))
    original.load_state_dict(model.model.state_dict())
    body = getattr(original.eval(), original.base_model_prefix)
    batch = rows_of(17, 40)
    with torch.no_grad():
        found = model.hidden(batch).flatten(0, 1)
        for start, stop in batch.doc_spans.tolist():
            wanted = body(input_ids=batch.input_ids.flatten()[start:stop][None])[0][0]
            assert torch.allclose(found[start:stop], wanted, rtol=1e-4, atol=1e-5)


LFM2 = {"model_type": "lfm2", "layer_types": ["conv", "full_attention"], "num_key_value_heads": 2} | SMALL


def test_model_that_mixes_packed_documents_runs_unpacked() -> None:
    with pytest.raises(ValueError, match=r"Lfm2ForCausalLM: packed rows change.*a packed row.*data\.packing = false"):
        build("causal_lm", LFM2)
    model = build("causal_lm", LFM2, packing=False)
    assert model.convention.attention == "original"
    with pytest.raises(ValueError, match="one document per row"):
        model(oracle.batch("causal_lm", [[10, 12]], 24))
    with pytest.raises(ValueError, match=r"parallel\.sequence: Lfm2ForCausalLM mixes tokens outside"):
        model.group = SequenceGroup(0, 2)


BIG_BIRD = {"model_type": "big_bird", "block_size": 4, "max_position_embeddings": 512} | PLAIN


def test_sparse_big_bird_is_refused() -> None:
    with pytest.raises(ValueError, match="BigBirdForMaskedLM: packed and padded rows both change"):
        build("masked_lm", BIG_BIRD, packing=False)
    full = BIG_BIRD | {"attention_type": "original_full"}
    assert build("masked_lm", full, packing=False).convention.attention == "original"


def test_verification_restores_global_state() -> None:
    from ds4sci.models.huggingface.call_convention import ModelFactory
    from ds4sci.models.huggingface.verification import verify

    config = AutoConfig.for_model(**BIG_BIRD, vocab_size=50)
    before = config.to_dict()
    numpy_state: Any = np.random.get_state  # models may use the global generator
    states = torch.get_rng_state(), numpy_state()[1].copy(), random.getstate()
    made = []

    def wrap(model: Any, convention: Any) -> language.LanguageModel:
        made.append(model)
        return language.LanguageModel(model, language.Config(), "masked_lm", convention)

    with pytest.raises(ValueError, match="packed and padded rows both"):
        verify(ModelFactory(config, "masked_lm", AutoModelForMaskedLM.from_config, wrap), longest=None, packing=True)
    assert made
    assert config.to_dict() == before
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(numpy_state()[1], states[1])
    assert random.getstate() == states[2]


def test_verification_does_not_change_the_model(tmp_path) -> None:
    torch.manual_seed(0)
    own = AutoModelForCausalLM.from_config(AutoConfig.for_model(**oracle.LLAMA, vocab_size=40))
    own.save_pretrained(tmp_path)
    built = language.build(language.Config(path=str(tmp_path)), "causal_lm", vocabulary=33, special={})
    assert built.convention == CallConvention()
    assert not built.model.training
    for name, value in own.state_dict().items():
        assert torch.equal(built.model.state_dict()[name], value), name
    exported = built.to_pretrained(adapter=False, rope_factor=1.0, length=64)
    assert exported.config._attn_implementation == own.config._attn_implementation


MIXTRAL = {"model_type": "mixtral", "num_local_experts": 4, "num_key_value_heads": 2} | SMALL


def test_auxiliary_losses_are_refused() -> None:
    assert build("causal_lm", MIXTRAL).convention.shardable
    with pytest.raises(ValueError, match=r"its loss is not the cross entropy.*output_router_logits = True"):
        build("causal_lm", MIXTRAL | {"output_router_logits": True})


def test_model_that_is_not_causal_is_refused() -> None:
    config = {"model_type": "bert"} | PLAIN
    with pytest.raises(ValueError, match=r"attends to the tokens that it predicts.*is_decoder"):
        build("causal_lm", config)
    assert build("causal_lm", config | {"is_decoder": True}).convention.shardable


def test_documents_longer_than_the_positions_raise() -> None:
    config = {"model_type": "roberta", "max_position_embeddings": 66} | PLAIN
    with pytest.raises(ValueError, match=r"positions for 64 tokens \(max_position_embeddings\).*documents of 65"):
        build("masked_lm", config, longest=65)
    model = build("masked_lm", config, longest=64).eval()
    model(rows_of(64))
    with pytest.raises(ValueError, match=r"d1: 65 tokens; RobertaForMaskedLM takes at most 64 \(max_pos"):
        model(rows_of(10, 65))
    llama = build(
        "causal_lm", oracle.LLAMA | {"max_position_embeddings": 32}, longest=100
    )  # rotary embeddings have no limit
    assert llama.convention.max_tokens is None


def test_document_length_is_checked_before_data_is_opened() -> None:
    model = {"config": {"model_type": "roberta", "max_position_embeddings": 66} | PLAIN}
    data = {"path": "none.fasta", "tokenizer": {"kind": "esm"}}
    for phases in ([{"length": 65}], [{"length": 20}, {"from_progress": 0.5, "length": 65}]):
        config = masked_lm.Config.model_validate({"model": model, "data": data | {"phases": phases}})
        with pytest.raises(ValueError, match=r"positions for 64 tokens.*documents of 65"):
            masked_lm.build(config, seed=0, steps=10)
    labels = {"train": "none.npz", "valid": "none.npz", "tokenizer": {"kind": "esm"}, "length": 65}
    with pytest.raises(ValueError, match=r"RobertaForTokenClassification has positions for 64 tokens"):
        token_classification.build(
            token_classification.Config.model_validate({"model": model, "data": labels}), seed=0, steps=10
        )


def test_window_longer_than_all_documents_is_allowed() -> None:
    config = {"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 40} | SMALL
    with pytest.raises(ValueError, match=r"data\.packing = false.*no longer than its window \(sliding_window = 40\)"):
        build("causal_lm", config, longest=41)
    model = build("causal_lm", config, longest=40).eval()
    assert (model.convention.max_tokens, model.convention.limit_key) == (40, "sliding_window")
    batch = oracle.batch("causal_lm", [[40, 13], [25]], 56)
    own = float((model(batch).losses * batch.weights).sum() / batch.weights.sum())
    assert own == pytest.approx(float(oracle.plain_loss(model, batch)), rel=1e-5)
    with pytest.raises(ValueError, match=r"41 tokens; MistralForCausalLM takes at most 40 \(sliding_window\)"):
        model(rows_of(41))


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
          "max_position_embeddings": 50}, "max_position_embeddings"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
                              "long_factor": [2.0] * 4, "original_max_position_embeddings": 50, "factor": 2.0}},
         "original_max_position_embeddings"),
    ],
)  # fmt: skip
def test_rotary_embeddings_that_depend_on_the_longest_document(more, key) -> None:
    """In a packed row, a document beyond the limit would change the frequencies of the others."""
    with pytest.raises(ValueError, match="packed and padded rows both change"):
        build("causal_lm", oracle.LLAMA | more, longest=51)
    convention = build("causal_lm", oracle.LLAMA | more, longest=50).convention
    assert (convention.max_tokens, convention.limit_key) == (50, key)


def test_tokenizer_larger_than_the_vocabulary_raises() -> None:
    with pytest.raises(ValueError, match=r"tokenizer has 33 tokens, but LlamaForCausalLM has embeddings for 20"):
        build("causal_lm", oracle.LLAMA | {"vocab_size": 20})


def test_custom_code_is_not_run(tmp_path) -> None:
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**oracle.LLAMA, vocab_size=33)).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text()) | {"auto_map": {"AutoConfig": "code.Mine", "AutoModelForCausalLM": "code.M"}}
    (tmp_path / "code.py").write_text("raise SystemExit('this was run')")
    file.write_text(json.dumps(config))
    with pytest.warns(UserWarning, match=r"custom code \(auto_map\), which ds4sci does not run; LlamaConfig of"):
        language.build(language.Config(path=str(tmp_path)), "causal_lm", vocabulary=33, special={})
    file.write_text(json.dumps(config | {"model_type": "mine"}))
    with pytest.raises(ValueError, match=r"auto_map\), which ds4sci does not run, and transformers has no such model"):
        language.build(language.Config(path=str(tmp_path)), "causal_lm", vocabulary=33, special={})


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        ({"rope_theta": 2e5}, {"rope_theta": 2e5, "rope_type": "default"}),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}},
         {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0}),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0}},
         {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0}),
    ],
)  # fmt: skip
def test_legacy_rotary_settings(tmp_path, overrides, wanted) -> None:
    """A scaling without a base must keep the base of the model instead of the default of 10,000."""
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**oracle.LLAMA | rope, vocab_size=33)).save_pretrained(
        tmp_path
    )
    loaded = language.Config(path=str(tmp_path), overrides=overrides)
    built = language.build(loaded, "causal_lm", vocabulary=33, special={})
    assert {key: built.model.config.rope_parameters[key] for key in wanted} == wanted
    if "rope_parameters" not in overrides:  # it would replace the settings in the config of a new model
        new = build("causal_lm", oracle.LLAMA | rope | overrides).model.config.rope_parameters
        assert {key: new[key] for key in wanted} == wanted


def test_legacy_rotary_settings_with_several_layer_types_raise() -> None:
    config = {"model_type": "modernbert", "rope_theta": 1e4} | SMALL
    with pytest.raises(ValueError, match="ModernBertConfig has no single rope_theta: set rope_parameters, with"):
        build("masked_lm", config)


@pytest.fixture(scope="module")
def models() -> dict[str, language.LanguageModel]:
    absolute = oracle.ESM | {"position_embedding_type": "absolute"}
    return {
        "esm": oracle.model("masked_lm", oracle.ESM, torch.float64).eval(),
        "esm, absolute positions": oracle.model("masked_lm", absolute, torch.float64).eval(),
        "llama": oracle.model("causal_lm", oracle.LLAMA, torch.float64).eval(),
    }


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(3, 30), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_log_probabilities_do_not_depend_on_packing(models, lengths, order) -> None:
    read = oracle.documents(lengths)

    def rows(groups: list[list[Document]]) -> Any:
        none = [[(one, unlabelled_example(one.ids)) for one in group] for group in groups]
        return collate(none, max(sum(len(one.ids) for one in group) for group in groups) + 3, oracle.PAD)

    def by_name(model: language.LanguageModel, groups: list[list[Document]]) -> dict[str, torch.Tensor]:
        batch = rows(groups)
        with torch.no_grad():
            found = model.logits(batch).log_softmax(-1).flatten(0, 1)
        return {name: found[a:b] for name, (a, b) in zip(batch.ids, batch.doc_spans.tolist(), strict=True)}

    shuffled = list(read)
    order.shuffle(shuffled)
    cut = order.randrange(len(read) + 1)
    packed = [group for group in (shuffled[:cut], shuffled[cut:]) if group]
    for name, model in models.items():
        one, other = by_name(model, [[document] for document in read]), by_name(model, packed)
        for document in one:
            assert torch.allclose(one[document], other[document], rtol=1e-5, atol=1e-6), (name, document)


AUTOCAST = """
import json, sys, warnings
warnings.filterwarnings("ignore")
import deepspeed, torch
from ds4sci.train import extension_builds
from tests.support import language_oracle as oracle
extension_builds.build_required({}, log=lambda line: None)
found = {}
for name, config in json.loads(sys.argv[1]).items():
    model = oracle.model("causal_lm", config, activation_budget=0)
    batch = oracle.batch("causal_lm", [[17, 9], [25]], 32)
    with torch.no_grad():
        reference = float(oracle.plain_loss(model, batch))
        with torch.autocast("cpu", torch.bfloat16):
            half = float(oracle.plain_loss(model, batch))
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=list(model.parameters()), config={
            "train_micro_batch_size_per_gpu": 2, "optimizer": {"type": "AdamW", "params": {"torch_adam": True}},
            "torch_autocast": {"enabled": True, "dtype": "bfloat16"}, "zero_optimization": {"stage": 1},
        },
    )
    output = engine(batch)
    loss = (output.losses * output.weights).sum() / output.weights.sum()
    engine.backward(loss)
    engine.step()
    found[name] = [float(loss.detach()), half, reference]
print(json.dumps(found))
"""


@pytest.mark.nightly
def test_torch_autocast_in_the_deepspeed_config(tmp_path) -> None:
    """Rotary embeddings return q and k in fp32 while v is bf16; packed attention casts them as SDPA does."""
    from ds4sci.train.distributed import free_port

    configs = {
        "llama": oracle.LLAMA,
        "gpt_neox": {"model_type": "gpt_neox"} | SMALL,
        "qwen3": {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 8} | SMALL,
    }
    environment = dict(os.environ) | {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", AUTOCAST, json.dumps(configs)], env=environment, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert set(found) == set(configs)
    for name, (loss, half, reference) in found.items():
        assert abs(loss - reference) <= 3 * max(abs(half - reference), 2**-9 * reference), name
