"""Weights of linear layers in 8 and 4 bits: errors of rounding, layers that stay as they are, and use by kernels."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

from ds4sci.nn.attention import TriangleAttention
from ds4sci.nn.quantized_weights import FORMATS, quantizable_layers, quantize_weights, stored_bytes

HALF_GAP = {"int8": 0.5 / 127.5, "nf4": 0.5 * (1 - 0.6961928)}
"""Largest rounding error, relative to the largest magnitude of a block: half of the widest gap between two levels."""


@pytest.mark.parametrize("format", FORMATS)
def test_rounding_error_of_each_weight(format) -> None:
    layer = nn.Linear(192, 65)
    with torch.no_grad():
        layer.weight[3] *= 100
        layer.weight[4] = 0
    exact, blocks = layer.weight.detach().clone(), 192 if format == "int8" else 64
    quantize_weights(layer, format)
    largest = exact.view(-1, blocks).abs().amax(1, keepdim=True)
    error = (layer.weight - exact).view(-1, blocks).abs()
    assert (error <= HALF_GAP[format] * largest * (1 + 1e-3)).all()
    assert error.max() > 0
    assert layer.weight.dtype == torch.float32
    assert not layer.weight.requires_grad
    scales = exact.numel() / blocks * 4
    assert stored_bytes(layer) == exact.numel() * {"int8": 1.0, "nf4": 0.5}[format] + scales + 65 * 4


@pytest.mark.parametrize("format", FORMATS)
def test_a_kernel_reads_the_decompressed_weights(format) -> None:
    torch.manual_seed(0)
    module = TriangleAttention(64, 16, 4, "starting").eval()
    with torch.no_grad():  # gates and outputs start at zero
        for parameter in module.parameters():
            parameter.normal_(std=0.2)
    z, mask = torch.randn(1, 9, 9, 64), torch.ones(1, 9, 9, dtype=torch.bool)
    with torch.no_grad():
        exact = module(z, mask)
        plain = copy.deepcopy(module)
        quantize_weights(module, format)
        for name, layer in plain.named_modules():
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(module.get_submodule(name).weight)
        found = module(z, mask)
        assert torch.equal(found, plain(z, mask))
    error = (found - exact).norm() / exact.norm()
    assert 0 < error < {"int8": 0.02, "nf4": 0.3}[format]


def test_layers_that_stay_as_they_are() -> None:
    """Small layers, those that share a weight, and, in a transformers model, the head."""
    from transformers import BertConfig, BertForMaskedLM

    model = nn.ModuleDict({"large": nn.Linear(64, 64), "small": nn.Linear(63, 64), "tied": nn.Linear(64, 80)})
    model["embedding"] = nn.Embedding(80, 64)
    model["embedding"].weight = model["tied"].weight
    assert list(quantizable_layers(model)) == ["large"]
    bert = BertForMaskedLM(
        BertConfig(vocab_size=90, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=128)
    )
    names = quantizable_layers(bert)
    assert len(names) == 6
    assert all(name.startswith("bert.encoder.layer.0.") for name in names)


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="nothing to quantize"):
        quantize_weights(nn.Linear(4, 4), "int8")
    with pytest.raises(ValueError, match="quantize = 'int2': expected one of int8, nf4"):
        quantize_weights(nn.Linear(64, 64), "int2")  # type: ignore[arg-type]
    for format, package in (("int8", "torchao"), ("nf4", "bitsandbytes")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ValueError, match=rf"need {package}: pip install 'ds4sci\[quantize\]'"):
            quantize_weights(nn.Linear(64, 64), format)
