"""U-Net: sizes, periodicity, residual start, independence of the batch, gradients."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from ds4sci.models import unet
from ds4sci.models.unet import Config, halve

SMALL = {"channels": 4, "levels": 3, "groups": 2}


def small(inputs: int = 2, outputs: int = 3, **settings: object) -> unet.UNet:
    return unet.build(Config.model_validate(SMALL | settings), inputs=inputs, outputs=outputs, seed=0).double()


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (17, 63), (37, 72), (64, 64)])
@pytest.mark.parametrize("periodic", [False, True])
def test_any_size_is_kept(size: tuple[int, int], periodic: bool) -> None:
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    out = small(periodic=periodic)(x)
    assert out.shape == (2, 3, *size)
    assert out.isfinite().all()


@torch.no_grad()
def test_a_shift_in_longitude_shifts_the_output() -> None:
    x = torch.randn(1, 2, 13, 24, dtype=torch.float64)
    round_the_globe, flat = small(periodic=True), small()
    shifted = round_the_globe(x.roll(4, -1))
    torch.testing.assert_close(shifted, round_the_globe(x).roll(4, -1), rtol=0, atol=1e-12)
    assert (flat(x.roll(4, -1)) - flat(x).roll(4, -1)).abs().max() > 1e-3, "the edges matter without periodicity"


@torch.no_grad()
def test_an_example_does_not_depend_on_its_batch() -> None:
    model, x = small(), torch.randn(3, 2, 9, 10, dtype=torch.float64)
    alone = torch.cat([model(one[None]) for one in x])
    torch.testing.assert_close(model(x), alone, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_residual_network_begins_as_the_identity() -> None:
    x = torch.randn(2, 3, 11, 12, dtype=torch.float64)
    assert torch.equal(small(inputs=3, outputs=1, residual=True)(x), x[:, :1])
    with pytest.raises(ValueError, match="at least 3 input channels, one per output; has 2"):
        small(inputs=2, outputs=3, residual=True)


def test_every_parameter_has_a_gradient_that_is_right() -> None:
    model = unet.build(Config(channels=2, levels=2, groups=1, periodic=True), inputs=1, outputs=2, seed=0).double()
    x = torch.randn(1, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: model(x), (x, *model.parameters()))
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_the_seed_determines_the_weights_and_leaves_the_generator() -> None:
    state = torch.get_rng_state()
    first, second, other = (
        unet.build(Config.model_validate(SMALL), inputs=1, outputs=1, seed=seed).state_dict() for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_odd_sizes_are_extended_at_the_end() -> None:
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    assert torch.equal(halve(x)[0, 0], torch.tensor([[2.0, 3.5], [6.5, 8.0]]))
    assert torch.equal(halve(x, periodic=True)[0, 0], torch.tensor([[2.0, 2.5], [6.5, 7.0]]))


def test_channels_that_the_groups_do_not_divide_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"level 1 has 9 channels; expected a multiple of groups = 2"):
        Config(channels=6, growth=1.5, groups=2)
