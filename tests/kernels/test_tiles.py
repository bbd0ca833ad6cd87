"""Tiles and cascade sums of the fused operations."""

from __future__ import annotations

import torch

from ds4sci.kernels import tiles
from ds4sci.kernels.tiles import tile_slices


def test_a_cascade_is_as_accurate_as_torch_sum() -> None:
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


def test_slices_cover_everything_once_and_evenly() -> None:
    for length, each in ((1, 1), (7, 2**20), (1000, 2**14), (1001, 2**14), (5, 2**30)):
        slices = list(tile_slices(length, each, torch.device("cpu")))
        assert [i for p in slices for i in range(p.start, p.stop)] == list(range(length))
        sizes = {p.stop - p.start for p in slices}
        assert max(sizes) - min(sizes) <= 1
