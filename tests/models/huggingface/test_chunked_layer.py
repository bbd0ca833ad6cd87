"""Layers on a part of the tokens at a time: losses and gradients of the whole rows, and what cannot be divided."""

from __future__ import annotations

import contextlib
import functools
import re
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from ds4sci.kernels.varlen_attention.chunks import Queries
from ds4sci.models import language
from ds4sci.models.huggingface.attention import Layout, chunk_layer, packed_attention, use_layout
from ds4sci.models.huggingface.chunked_layer import run_chunked
from ds4sci.parallel.groups import SINGLE_RANK
from ds4sci.planner.trace import Recorder
from tests.support import language_oracle as oracle

KINDS = {"causal_lm": oracle.LLAMA, "masked_lm": oracle.ESM}
ROWS = {"packed": [[17, 9, 30]], "padded": [[40]], "two rows": [[33, 20], [64]]}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("causal_lm", {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64}),
    "mistral": ("causal_lm", {"num_key_value_heads": 2, "intermediate_size": 64, "sliding_window": None}),
    "gpt_neox": ("causal_lm", {"intermediate_size": 64}),
    "esmc": ("masked_lm", {}),
}


def step(kind: str, config: dict[str, Any], chunk_tokens: int | None, rows: list[list[int]], **more: Any) -> Any:
    """Loss and gradients of a step in fp64."""
    model = oracle.model(kind, config, torch.float64, chunk_tokens=chunk_tokens, **more).train()
    batch = oracle.batch(kind, rows, 64)
    torch.manual_seed(7)
    calls, attend = [], Queries.attend
    with mock.patch.object(Queries, "attend", lambda own, *given: calls.append(own.first) or attend(own, *given)):
        out = model(batch)
    assert len(set(calls)) == (0 if chunk_tokens is None else len(rows) * -(-64 // chunk_tokens))
    loss = (out.losses * out.weights).sum() / out.weights.sum()
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def compare(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(found[0], wanted[0], rtol=1e-6, atol=0)  # transformers' rotary embeddings are fp32
    assert found[1].keys() == wanted[1].keys()
    for name, grad in wanted[1].items():
        assert (found[1][name] - grad).norm() <= 1e-6 * grad.norm() + 1e-12, name


@pytest.mark.parametrize("size", [16, 23])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_those_of_whole_rows(kind: str, rows: str, size: int) -> None:
    compare(step(kind, KINDS[kind], size, ROWS[rows]), step(kind, KINDS[kind], None, ROWS[rows]))


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families(family: str) -> None:
    kind, sizes = FAMILIES[family]
    config = {"model_type": family, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4} | sizes
    compare(step(kind, config, 20, ROWS["packed"]), step(kind, config, None, ROWS["packed"]))


@pytest.mark.parametrize("kind", KINDS)
def test_lora(kind: str) -> None:
    lora = language.LoraConfig(rank=3)
    found = step(kind, KINDS[kind], 16, ROWS["packed"], lora=lora)
    compare(found, step(kind, KINDS[kind], None, ROWS["packed"], lora=lora))
    assert all("lora" in name for name in found[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_own_precision_on_the_native_kernel(kind: str, dtype: torch.dtype) -> None:
    """As right as whole rows in the same precision, and the same bits in every step."""
    batch = oracle.batch(kind, [[170, 61, 25]], 256)
    found = []
    for chunk_tokens, precision in ((None, torch.float64), (None, dtype), (48, dtype), (48, dtype)):
        model = oracle.model(kind, KINDS[kind], precision, chunk_tokens=chunk_tokens).train()
        model(batch).losses.double().mean().backward()
        found.append({name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None})
    exact, plain, own, again = found
    allowed = 3 * max(float((plain[name] - g).norm() / g.norm()) for name, g in exact.items())
    for name, grad in exact.items():
        assert float((own[name] - grad).norm() / grad.norm()) <= allowed, name
        assert torch.equal(own[name], again[name])


OPT = {
    "model_type": "opt", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 64,
    "word_embed_proj_dim": 32, "attention_dropout": 0.0, "dropout": 0.3,
}  # fmt: skip
"""Its layers call ``nn.functional.dropout``."""
BERT = {
    "model_type": "bert", "hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 5, "intermediate_size": 64,
    "hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
"""Its embeddings have dropout."""
DROPOUT = {
    "masked_lm": (oracle.ESM | {"hidden_dropout_prob": 0.3}, "model.esm.encoder.layer.0.attention.self.value.weight"),
    "causal_lm": (OPT, "model.model.decoder.layers.0.self_attn.v_proj.weight"),
}


@pytest.mark.parametrize("kind", DROPOUT)
def test_dropout_is_the_same_in_every_pass(kind: str) -> None:
    """Numerical derivative of the loss along the gradient: masks that differed between passes would change it."""
    config, name = DROPOUT[kind]
    model = oracle.model(kind, config, torch.float64, chunk_tokens=16).train()
    batch = oracle.batch(kind, ROWS["packed"], 64)

    def loss() -> torch.Tensor:
        torch.manual_seed(5)
        return model(batch).losses.mean()

    loss().backward()
    weight = model.get_parameter(name)
    direction = weight.grad / weight.grad.norm()
    values = []
    for step in (1e-4, -1e-4):
        with torch.no_grad():
            weight += step * direction
        values.append(float(loss().detach()))
        with torch.no_grad():
            weight -= step * direction
    assert (values[0] - values[1]) / 2e-4 == pytest.approx(float(weight.grad.norm()), rel=1e-3)  # OPT has ReLU


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_second_backward_pass_gives_the_same_gradients(kind: str, offload: bool) -> None:
    """Of the first layer's input too, which is computed again with the same random numbers."""
    config = BERT if kind == "masked_lm" else OPT
    model = oracle.model(kind, config, torch.float64, chunk_tokens=16, offload=offload).train()
    loss = model(oracle.batch(kind, ROWS["two rows"], 64)).losses.mean()
    weights = [p for p in model.parameters() if p.requires_grad]
    first = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
    torch.rand(3)
    with torch.no_grad():
        model(oracle.batch(kind, [[9]], 16, seed=1))  # a short row sets the layers back
    for one, again in zip(first, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
        assert one is again is None or torch.equal(one, again)


def test_gradients_that_others_hold_are_not_overwritten() -> None:
    model = oracle.model("causal_lm", oracle.LLAMA, torch.float64, chunk_tokens=16).train()
    batch = oracle.batch("causal_lm", ROWS["packed"], 64)
    seen: list[torch.Tensor] = []
    model.layers[0].register_full_backward_hook(lambda module, given, out: seen.extend((out[0], out[0].clone())))
    model(batch).losses.mean().backward()
    assert torch.equal(seen[0], seen[1])
    x = torch.randn(1, 64, 4, requires_grad=True)
    attention = functools.partial(lambda x: packed_attention(nn.Identity(), *[x[:, None]] * 3)[0][:, :, 0])
    for shares in (True, False):
        with use_layout(Layout(batch.doc_spans, SINGLE_RANK)):
            layer = functools.partial(chunk_layer, nn.Identity(), attention, chunk_tokens=16, recompute_x=iter(()))
            out = layer(x, overwrites=True)
        grad = torch.randn(out.shape)
        before = grad.clone()
        ((out + out.detach()) if shares else out).backward(grad)
        assert torch.equal(grad, before)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_of_a_token(kind: str) -> None:
    """Of a whole row exist at most: all inputs of layers but the first, one gradient of hidden states, keys and values
    with their gradients (or what the last norm needs: its input, output, and their gradients, one twice), and cosines
    and sines."""
    layers, spare = 4, 48
    config = KINDS[kind] | {"num_hidden_layers": layers}
    hidden = 4 * config["hidden_size"]
    keys = 4 * 8 * config.get("num_key_value_heads", config["num_attention_heads"])
    last_norm = 5 * hidden if kind == "causal_lm" else 0

    def peak(n: int) -> int:
        model = oracle.model(kind, config, chunk_tokens=16, tile_size=16).train()
        batch = oracle.batch(kind, [[n]], n)
        recorder = Recorder()
        recorder.ignore(list(model.parameters()))
        with recorder:
            model(batch).losses.sum().backward()
        return recorder.peak

    per_token = (peak(768) - peak(512)) / 256
    assert per_token <= (layers - 1) * hidden + max(hidden + 4 * keys, last_norm) + 2 * 4 * 8 + spare


def test_short_rows_and_evaluation_run_as_before() -> None:
    model = oracle.model("causal_lm", oracle.LLAMA, chunk_tokens=64).train()
    model(oracle.batch("causal_lm", ROWS["packed"], 64)).losses.mean().backward()
    assert not any(layer.gradient_checkpointing for layer in model.layers)
    with torch.no_grad():
        model.eval()(oracle.batch("causal_lm", [[100]], 128))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        (torch.zeros(1, 4, 10, 10), "shape (1, 4, 10, 10), which cannot be divided by tokens"),
        (torch.zeros(3, requires_grad=True), "an argument with a gradient besides its input"),
    ],
)
def test_arguments_that_cannot_be_divided_are_refused(argument: torch.Tensor, message: str) -> None:
    function = functools.partial(lambda x, bias: x, bias=argument)
    with pytest.raises(ValueError, match=re.escape(message)):
        run_chunked(
            function, torch.zeros(1, 10, 4), chunk_tokens=5, layer=nn.Identity(),
            use_chunk=lambda chunk: contextlib.nullcontext(),
        )  # fmt: skip


def test_a_layer_without_attention_is_refused() -> None:
    with pytest.raises(ValueError, match="the layer does not call attention"):
        run_chunked(
            functools.partial(lambda x: x), torch.zeros(1, 10, 4), chunk_tokens=5, layer=nn.Identity(),
            use_chunk=lambda chunk: contextlib.nullcontext(),
        )  # fmt: skip


def test_what_is_not_supported_is_refused() -> None:
    model = oracle.model("causal_lm", oracle.LLAMA, chunk_tokens=16)
    assert model.why_not_zero3
    assert oracle.model("causal_lm", oracle.LLAMA).why_not_zero3 is None
    config = {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}
    with pytest.raises(ValueError, match=r"model\.chunk_tokens: MambaForCausalLM mixes tokens"):
        oracle.model("causal_lm", config, chunk_tokens=16)
