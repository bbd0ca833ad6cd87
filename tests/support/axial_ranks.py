"""Programs of one rank in the tests of axial parallelism."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ds4sci.parallel import axial
from ds4sci.parallel.axial import AxialShards
from ds4sci.parallel.collectives import record_sent_bytes
from ds4sci.parallel.groups import SequenceGroup

LENGTHS = ((1, 13), (5, 17), (2, 3), (4, 8))
"""(MSA rows, residues); some are fewer than the ranks."""


def join() -> SequenceGroup:
    """Initialise gloo; return the group of all ranks."""
    dist.init_process_group("gloo")
    return SequenceGroup(dist.get_rank(), dist.get_world_size(), 0, 1, dist.group.WORLD)


def check_primitives() -> None:
    """Values, gradients and bytes of every exchange, against one process, in fp64 and bf16."""
    group = join()
    for (s, n), b, dtype in product(LENGTHS, (1, 2), (torch.float64, torch.bfloat16)):
        shards = AxialShards.divide(group, s, n)
        generator = torch.Generator().manual_seed(n)
        whole = torch.randn(b, s, n, 3, generator=generator).to(dtype)
        # integers: exact in bf16, so that sums over ranks can be compared bit for bit
        weights = torch.randint(-4, 5, (group.size, b, s, n, 3), generator=generator).to(dtype)
        rows, columns = shards.own_msa(whole, 1), shards.own_residues(whole, 2)
        row_weight, column_weight = shards.own_msa(weights[0], 1), shards.own_residues(weights[0], 2)
        f, t = len(shards.msa[group.rank]), len(shards.residues[group.rank])
        summed = weights.sum(0)
        cases: list[tuple[Callable[[Tensor], Tensor], Tensor, Tensor, Tensor, Tensor, int]] = [
            (shards.msa_to_columns, rows, columns, column_weight, row_weight, f * (n - t)),
            (shards.msa_to_rows, columns, rows, row_weight, column_weight, t * (s - f)),
            (partial(shards.gather_msa, dim=1), rows, whole, weights[group.rank], shards.own_msa(summed, 1),
             f * n * (group.size - 1)),
            (partial(shards.gather_residues, dim=2), columns, whole, weights[group.rank],
             shards.own_residues(summed, 2), t * s * (group.size - 1)),
            (partial(axial.group_sum, group=group), weights[group.rank], summed, weights[group.rank], summed,
             s * n * (group.size - 1)),
        ]  # fmt: skip
        for number, (function, mine, wanted, weight, wanted_grad, elements) in enumerate(cases):
            x = mine.clone().requires_grad_()
            with record_sent_bytes() as sent:
                out = function(x)
            assert sent.total() == elements * b * 3 * dtype.itemsize, number
            assert torch.equal(out, wanted), number
            out.backward(weight)
            assert torch.equal(x.grad, wanted_grad), number
            with torch.no_grad():
                assert torch.equal(function(mine.transpose(0, 1).contiguous().transpose(0, 1)), wanted), number
            x.grad = None
            checkpoint(lambda x, f=function: f(x * 1) * 1, x, use_reentrant=False).backward(weight)
            assert torch.equal(x.grad, wanted_grad), number
