"""3-D convolutional network: shapes, invariances, band powers, whitening, and independence of the examples."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from ds4sci.models import cnn3d
from ds4sci.models.cnn3d import Config, Whitening, build, log_energy


def network(**config: object) -> cnn3d.VolumeNet:
    """A network for volumes of two channels and 8³ cells with three outputs."""
    return build(Config(**({"channels": (4, 6, 8)} | config)), channels=2, outputs=3, size=8, seed=1)


@pytest.mark.parametrize("features", ["energy", "flatten"])
@pytest.mark.parametrize(
    "more",
    [{}, {"channel_filters": "shared"}, {"convolutions": 2, "norm_groups": 2, "padding": "zeros"}, {"hidden": ()}],
)
def test_shapes_and_gradients(features: str, more: dict) -> None:
    model = network(features=features, **more)
    x = torch.randn(5, 2, 8, 8, 8)
    out = model(x)
    assert out.shape == (5, 3)
    out.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        if not (features == "energy" and name.endswith("convolutions.0.bias")):  # a variance does not see a bias
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("more", [{}, {"norm_groups": 2}, {"features": "flatten"}])
def test_examples_do_not_depend_on_each_other(more: dict) -> None:
    model = network(**more).double()
    x = torch.randn(4, 2, 8, 8, 8, dtype=torch.float64)
    together = model(x)
    for number in range(4):
        torch.testing.assert_close(model(x[number : number + 1])[0], together[number], rtol=1e-10, atol=1e-12)


def test_periodic_energies_do_not_change_under_shifts() -> None:
    x = torch.randn(2, 2, 8, 8, 8, dtype=torch.float64)
    shifted = torch.roll(x, (4, 0, 4), dims=(2, 3, 4))
    model = network().double()
    torch.testing.assert_close(model(shifted), model(x), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(network(padding="zeros").double()(shifted), network(padding="zeros").double()(x))


def test_shared_filters_measure_each_channel_alike() -> None:
    """Equal channels have equal features, and a factor between them only shifts the energies of the first stage."""
    model = network(channel_filters="shared", channels=(3,)).double()
    volume = torch.randn(2, 1, 8, 8, 8, dtype=torch.float64)
    energies = model.features(torch.cat([volume, 3 * volume], dim=1)).unflatten(1, (2, 2, 3))[:, :, 0]
    torch.testing.assert_close(
        energies[:, 1] - energies[:, 0], torch.full((2, 3), 9.0).double().log(), rtol=0, atol=1e-4
    )


def test_log_energy_is_the_band_power_of_the_filter() -> None:
    """Var(w ⋆ x) = Σ |ŵ(k)|² |x̂(k)|² / n⁶ over k ≠ 0, by the full Fourier transform."""
    n = 6
    conv = torch.nn.Conv3d(1, 1, 3, padding=1, padding_mode="circular").double()
    x = torch.randn(1, 1, n, n, n, dtype=torch.float64)
    kernel = torch.zeros(n, n, n, dtype=torch.float64)
    kernel[:3, :3, :3] = conv.weight.detach()[0, 0]
    product = (torch.fft.fftn(kernel) * torch.fft.fftn(x[0, 0]).conj()).abs().square() / n**6
    product[0, 0, 0] = 0
    expected = (product.sum() + cnn3d.EPSILON).log()
    torch.testing.assert_close(log_energy(conv(x)).detach().squeeze(), expected, rtol=1e-10, atol=1e-10)


def test_whitening_removes_correlations() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 5, generator=generator) @ torch.randn(5, 5, generator=generator) + 7
    layer = Whitening(5)
    layer.fit(x)
    y = layer(x).detach()
    torch.testing.assert_close(y.mean(dim=0), torch.zeros(5), atol=1e-3, rtol=0)
    values = torch.linalg.eigvalsh(y.T @ y / len(y))  # λ / (λ + shrinkage) of the eigenvalues λ of the correlations
    expected = torch.linalg.eigvalsh(torch.corrcoef(x.T))
    torch.testing.assert_close(values, expected / (expected + cnn3d.SHRINKAGE), atol=1e-2, rtol=0)
    again = Whitening(5)
    again.fit(x[:, [1, 0, 2, 3, 4]])
    torch.testing.assert_close(again.weight[[1, 0, 2, 3, 4]][:, [1, 0, 2, 3, 4]], layer.weight, rtol=1e-3, atol=1e-4)


def test_constant_features_stay_finite() -> None:
    layer = Whitening(3)
    layer.fit(torch.tensor([[1.0, 2.0, 0.0], [1.0, 3.0, 0.0], [1.0, 5.0, 0.0]]))
    assert torch.isfinite(layer.weight).all()


def test_features_in_16_bits_are_close_to_fp32() -> None:
    """Energies are sums of squares in fp32, so that bf16 rounds only the responses."""
    x = torch.randn(16, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.7
    exact, low = network(), network().bfloat16()
    exact.whiten([x])
    assert low(x).dtype == torch.bfloat16
    found = low.features(x)
    assert found.dtype == torch.float32
    assert (found - exact.features(x)).abs().median(dim=0).values.max() < 0.1
    low.load_state_dict(exact.state_dict())
    low(x).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in low.parameters())


def test_inputs_are_shifted_and_scaled_and_batches_accepted() -> None:
    @dataclass
    class Batch:
        inputs: torch.Tensor

    plain, scaled = network(), network(input_shift=(1.0, 2.0), input_scale=(3.0, 4.0))
    x = torch.randn(2, 2, 8, 8, 8)
    by_hand = (x - torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)) * torch.tensor([3.0, 4.0]).view(2, 1, 1, 1)
    torch.testing.assert_close(scaled(Batch(x)), plain(by_hand))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"input_scale": (1.0,)}, "model.input_scale has 1 numbers; expected 2"),
        ({"channels": (4,) * 5}, "model.channels has 5 stages: volumes of 8³ cells cannot be halved 4 times"),
        ({"kernel": 4}, "expected an odd number"),
        ({"norm_groups": 4}, "norm_groups = 4 does not divide 6 channels"),
    ],
)
def test_wrong_settings_are_named(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(**config)
