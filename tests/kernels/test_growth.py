"""Errors beside plain torch's do not grow with the inputs' size: every kernel's ``size_sweeps`` cases, against fp64."""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple

import pytest
import torch

from ds4sci.kernels import KERNELS, tiles
from ds4sci.kernels.evoformer_attention import tiled
from ds4sci.kernels.spec import Kernel, SizeSweep
from tests.kernels.test_contract import inputs, run, widened

NO_SUMS = {"shared_dropout"}
"""Kernels whose results are functions of single elements."""
FAMILIES = [
    pytest.param(kernel, size_sweeps, id=f"{kernel.name}-{size_sweeps.name}")
    for kernel in KERNELS.values()
    for size_sweeps in kernel.size_sweeps
]
SAMPLES = 256
"""Elements that a factor is measured on, from as many draws of the inputs as it takes, up to DRAWS."""
DRAWS = {False: 16, True: 4}
"""Up to 10,000 summands, and beyond."""


class Errors(NamedTuple):
    """An implementation's error in units of plain torch's: root mean square (geometric mean over draws, as one draw's
    few large elements would decide), and largest element. On so many ``samples``."""

    typical: float
    largest: float
    samples: int


def errors(kernel: Kernel, size_sweeps: SizeSweep, size: int, dtype: torch.dtype) -> dict[str, Errors]:
    """By implementation and result. Plain torch's error counts at least as the rounding of the result does."""
    case, draws, draw = size_sweeps.case(size), 1, 0
    eps = torch.finfo(dtype).eps
    ratios: dict[str, list[tuple[float, float, int]]] = {}
    while draw < draws:
        given = inputs(case, dtype, kernel.implementations[-1], draw)
        want, plain = run(kernel, kernel.reference, widened(given)), run(kernel, kernel.reference, given)
        draws = min(DRAWS[size > 10_000], math.ceil(SAMPLES / min(x.numel() for x in want.values())))
        for one in kernel.implementations:
            if one.run is kernel.reference or one.why_not(**given):
                continue
            for name, x in run(kernel, one.run, given).items():
                ours, theirs, rounding = x - want[name], plain[name] - want[name], eps * want[name]
                typical = ours.norm() / max(theirs.norm(), 0.3 * rounding.norm())
                largest = ours.abs().max() / max(theirs.abs().max(), rounding.abs().max())
                ratios.setdefault(f"{one.name}: {name}", []).append((float(typical), float(largest), x.numel()))
        draw += 1
    return {
        key: Errors(
            math.exp(statistics.fmean(math.log(max(typical, 1e-9)) for typical, _, _ in found)),
            statistics.median(largest for _, largest, _ in found),
            sum(samples for _, _, samples in found),
        )
        for key, found in ratios.items()
    }


def assert_no_growth(kernel: Kernel, size_sweeps: SizeSweep, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    """At most 3 times plain torch's error at every size, and at the largest 1.3 times the factor at the smallest.

    A factor below 1 counts as 1: an implementation need not be better than plain torch at any size. A factor that is
    measured on few elements is uncertain by the root of their number.
    """
    found = {size: errors(kernel, size_sweeps, size, dtype) for size in sizes}
    assert found[sizes[0]], "no implementation but the reference runs here"
    for size, by_result in found.items():
        for key, factor in by_result.items():
            smallest = found[sizes[0]][key]
            assert factor.typical <= 3, f"{key} at {size}: {factor}"
            assert factor.largest <= 6, f"{key} at {size}: {factor}"  # one element among thousands: noisier
            uncertain = 1 + 2 / math.sqrt(min(factor.samples, smallest.samples))
            limit = 1.3 * max(smallest.typical, 1.0) * uncertain
            assert factor.typical <= limit, f"{key} at {size}: {factor} after {smallest}"


@pytest.fixture
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tiles as far larger inputs have: sums over tiles are sums like others."""
    monkeypatch.setattr(tiles, "CPU_BYTES", 2**14)
    monkeypatch.setattr(tiled, "PIECE", 2**16)


def test_every_kernel_has_cases_that_grow() -> None:
    assert {kernel.name for kernel in KERNELS.values() if not kernel.size_sweeps} == NO_SUMS


def test_a_cascade_loses_no_more_than_torchs_own_sum() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(5_000, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
        cascade, product = tiles.CascadeSum(), tiles.CascadeSum(4)
        for row in x:
            cascade.add(row.clone())
            product.add_matmul(row[:, None], row[None, :2])
        total, outer = cascade.result(), product.result()
        assert total is not None
        assert outer is not None
        assert total.dtype == outer.dtype == torch.float32
        want = x.double().sum(0)
        errors = [(found.double() - want).norm() for found in (total, x.float().sum(0))]
        assert errors[0] <= 1.3 * errors[1]
        torch.testing.assert_close(outer.double(), x.double().t() @ x[:, :2].double(), rtol=1e-2, atol=0.2)
    assert tiles.CascadeSum().result() is None


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize(("kernel", "size_sweeps"), FAMILIES)
def test_errors_do_not_grow(kernel: Kernel, size_sweeps: SizeSweep) -> None:
    assert_no_growth(kernel, size_sweeps, size_sweeps.sizes[:2], torch.float32)


@pytest.mark.nightly
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kernel", "size_sweeps"), FAMILIES)
def test_errors_do_not_grow_up_to_a_million(kernel: Kernel, size_sweeps: SizeSweep, dtype: torch.dtype) -> None:
    assert size_sweeps.sizes[-1] >= 1_024
    assert_no_growth(kernel, size_sweeps, size_sweeps.sizes, dtype)
