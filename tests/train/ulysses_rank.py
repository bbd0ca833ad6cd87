"""What one rank does in the test of attention across ranks."""

from __future__ import annotations

import torch
import torch.distributed as dist

from ds4sci.kernels import attention
from ds4sci.parallel.groups import SequenceGroup
from ds4sci.parallel.ulysses import attend_across

HEADS = [(5, 5), (6, 2), (1, 1), (7, 1), (8, 4)]
"""(query heads, key heads), some of them fewer than ranks."""


def check() -> None:
    """Output and gradients of each rank's part are those of one process, for every pair of ``HEADS``."""
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    group = SequenceGroup(rank, size, 0, 1, dist.group.WORLD)
    spans = torch.tensor([[0, 9], [9, 22], [24, 40], [40, 48]])
    for causal in (False, True):
        for heads, keys in HEADS:
            generator = torch.Generator().manual_seed(heads)
            whole = [torch.randn(2, 24, n, 4, generator=generator, dtype=torch.float64) for n in (heads, keys, keys)]
            weight = torch.randn(2, 24, heads, 4, generator=generator, dtype=torch.float64)

            def attend(q, k, v, causal=causal):
                b, n = q.shape[:2]
                out = attention(*(x.flatten(0, 1) for x in (q, k, v)), spans, causal=causal)
                return out.unflatten(0, (b, n))

            exact = [x.clone().requires_grad_() for x in whole]
            out = attend(*exact)
            (out * weight).sum().backward()
            mine = [group.shard(x).clone().requires_grad_() for x in whole]
            part = attend_across(attend, *mine, group)
            (part * group.shard(weight)).sum().backward()
            assert torch.allclose(part, group.shard(out), rtol=1e-12, atol=1e-12), (heads, keys)
            for x, y in zip(mine, exact, strict=True):
                assert torch.allclose(x.grad, group.shard(y.grad), rtol=1e-10, atol=1e-12), (heads, keys)
