"""Derivatives of networks with normalization layers, against the same formula written by hand, in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ds4sci.physics import METHODS, differentiate

ORDERS = ("", "x", "xx", "xt", "xxt", "xxxx")


class Trunk(nn.Module):
    """Two layers, with the normalization of torch or by hand, on points [n, 2] or [m, n, 2]."""

    def __init__(self, kind: str, by_hand: bool) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last = nn.Linear(2, 6), nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.rand(6) + 0.5)
        self.shift = nn.Parameter(torch.randn(6))
        self.kind, self.by_hand = kind, by_hand

    def forward(self, functions: Tensor, points: Tensor) -> Tensor:
        x = self.first(points).sin()
        if self.by_hand:
            centred = x - x.mean(-1, keepdim=True)
            x = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        elif self.kind == "layer":
            x = torch.layer_norm(x, (6,))
        elif self.kind == "layer, module":
            x = nn.LayerNorm(6, elementwise_affine=False)(x)
        else:  # every point is an instance with one channel
            x = nn.functional.instance_norm(x.reshape(-1, 1, 6)).reshape(x.shape)
        basis = self.last((x * self.scale + self.shift).tanh())
        return functions @ basis.T if points.dim() == 2 else torch.einsum("mk,mnk->mn", functions, basis)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["layer", "layer, module", "instance"])
def test_high_derivatives_and_gradients(kind: str, method: str) -> None:
    """torch's layer_norm gives a third derivative that is wrong by a factor, here and in the parameters' gradient."""
    functions, points = torch.rand(3, 4).double(), torch.rand(5, 2).double()
    found = []
    for network in (Trunk(kind, False).double(), Trunk(kind, True).double()):
        u = differentiate(network, functions, points, names="xt", orders=ORDERS, method=method)
        fields = [u(order) for order in ORDERS]
        loss = u.linear({"xx": 1.0, "t": -1.0}).square().mean() + u.value.square().mean()
        found.append([*fields, *torch.autograd.grad(loss, list(network.parameters()))])
    for ours, by_hand in zip(*found, strict=True):
        torch.testing.assert_close(ours, by_hand, rtol=1e-9, atol=1e-9)


def test_instance_norm_that_records_statistics() -> None:
    layer = nn.InstanceNorm1d(1, track_running_stats=True).double()

    def network(f: Tensor, p: Tensor) -> Tensor:
        return f @ layer(torch.stack([p.sin(), p.cos()], -1).reshape(-1, 1, 4)).reshape(-1, 4).T

    functions, points = torch.rand(3, 4).double(), torch.rand(5, 2).double()
    with pytest.raises(ValueError, match="track_running_stats=False"):
        differentiate(network, functions, points, names="xt", orders=("xx",), check=False)
    layer.eval()
    assert differentiate(network, functions, points, names="xt", orders=("xx",))("xx").isfinite().all()
