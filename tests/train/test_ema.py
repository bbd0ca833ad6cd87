"""Exponential moving average of the weights."""

from __future__ import annotations

import torch
from torch import nn

from ds4sci.train.ema import Ema


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


def test_the_mean_is_the_recurrence_with_its_warm_up() -> None:
    net = model()
    ema = Ema(net.named_parameters(), decay=0.6)
    expected = {n: p.detach().double().clone() for n, p in net.named_parameters()}
    for t in range(20):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p))
        ema.update()
        d = min(0.6, (1 + t) / (10 + t))
        expected = {n: d * expected[n] + (1 - d) * p.detach().double() for n, p in net.named_parameters()}
    assert ema.names == list(expected)
    for name in ema.names:
        tensor, start = ema.local_slice(name)
        assert start == 0
        # twenty fp32 lerps, each off by half a unit in the last place of numbers up to about 10
        assert (tensor.double() - expected[name]).abs().max() < 20 * 10 * torch.finfo(torch.float32).eps


def test_swapped_shows_the_mean_and_restores_the_weights_exactly() -> None:
    net = model().to(torch.bfloat16)
    ema = Ema(net.named_parameters(), decay=0.9)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)
    ema.update()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    with ema.swapped():
        for name, p in net.named_parameters():
            assert torch.equal(p, ema.local_slice(name)[0].to(torch.bfloat16))
            assert not torch.equal(p, before[name])
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())


def test_swapped_restores_the_weights_after_an_error() -> None:
    net = model()
    ema = Ema(net.named_parameters(), decay=0.9)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    try:
        with ema.swapped():
            raise KeyError
    except KeyError:
        pass
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())


def test_frozen_parameters_are_not_averaged() -> None:
    net = model()
    net[0].weight.requires_grad_(False)
    assert Ema(net.named_parameters(), decay=0.5).names == ["0.bias", "1.weight", "1.bias", "2.weight", "2.bias"]
