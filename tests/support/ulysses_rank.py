"""Program of one rank in the test of Ulysses attention."""

from __future__ import annotations

import functools
from itertools import product

import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint

from ds4sci.kernels import varlen_attention
from ds4sci.kernels.varlen_attention import forward_backward
from ds4sci.parallel.groups import SINGLE_RANK, SequenceGroup
from ds4sci.parallel.ulysses import ulysses_attention
from tests.support import language_oracle

CHUNKED = [
    ("causal_lm", language_oracle.LLAMA),
    ("causal_lm", language_oracle.LLAMA | {"num_key_value_heads": 6}),
    ("causal_lm", language_oracle.LLAMA | {"num_attention_heads": 3, "num_key_value_heads": 1}),
    ("masked_lm", language_oracle.ESM),
]  # fmt: skip
"""Models whose layers run on a part of the tokens; some have fewer key heads than ranks."""
HEADS = [(5, 5), (6, 2), (1, 1), (7, 1), (8, 4)]
"""(query heads, key heads); some are fewer than the ranks."""


def doubled(function, *x):
    return function(*(one * 2 / 2 for one in x))


def check() -> None:
    """Output and gradients of each rank's part equal those of one process, for every pair in ``HEADS``.

    In fp64, and in fp32 by the C++ with separate forward and backward functions, also in a checkpointed layer.
    """
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    group = SequenceGroup(rank, size, 0, 1, dist.group.WORLD)
    doc_spans = torch.tensor([[0, 9], [9, 22], [24, 40], [40, 48]])
    for causal, in_cpp in product((False, True), repeat=2):
        for heads, keys in HEADS:
            generator = torch.Generator().manual_seed(heads)
            dtype = torch.float32 if in_cpp else torch.float64
            near = {"rtol": 1e-4, "atol": 1e-5} if in_cpp else {"rtol": 1e-10, "atol": 1e-12}
            whole = [torch.randn(2, 24, n, 4, generator=generator, dtype=dtype) for n in (heads, keys, keys)]
            weight = torch.randn(2, 24, heads, 4, generator=generator, dtype=dtype)

            def attend(q, k, v, causal=causal):
                b, n = q.shape[:2]
                out = varlen_attention(*(x.flatten(0, 1) for x in (q, k, v)), doc_spans, causal=causal)
                return out.unflatten(0, (b, n))

            exact = [x.clone().requires_grad_() for x in whole]
            out = attend(*exact)
            (out * weight).sum().backward()
            mine = [group.shard(x).clone().requires_grad_() for x in whole]
            separate = forward_backward(whole[0], doc_spans, causal=causal)
            assert (separate is not None) == in_cpp  # the C++ implementation has no fp64
            run = functools.partial(ulysses_attention, attend, group=group, forward_backward=separate)
            calls = {"plain": run}
            if in_cpp:
                for donated in (False, True):
                    layer = functools.partial(doubled, functools.partial(run, donated=donated))
                    calls[f"recomputed, donated {donated}"] = functools.partial(checkpoint, layer, use_reentrant=False)
            for name, call in calls.items():
                for x in mine:
                    x.grad = None
                part = call(*mine)
                (part * group.shard(weight)).sum().backward()
                assert torch.allclose(part, group.shard(out), **near), (heads, keys, name)
                for x, y in zip(mine, exact, strict=True):
                    assert torch.allclose(x.grad, group.shard(y.grad), **near), (heads, keys, name)


def check_chunks() -> None:
    """Losses and gradients of layers on a part of each rank's tokens equal those of whole rows in one process."""
    dist.init_process_group("gloo")
    group = SequenceGroup(dist.get_rank(), dist.get_world_size(), 0, 1, dist.group.WORLD)
    for kind, config in CHUNKED:
        batch = language_oracle.batch(kind, [[57, 9, 30], [90]], 48 * group.size)
        found = []
        for chunk_tokens, ranks in ((None, SINGLE_RANK), (20, group)):
            model = language_oracle.model(kind, config, torch.float64, chunk_tokens=chunk_tokens).train()
            model.group = ranks
            out = model(batch)
            (out.losses * out.weights).sum().backward()
            grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            found.append((out.losses.detach(), grads))
        (whole, exact), (part, grads) = found
        assert torch.allclose(part, group.shard(whole), rtol=1e-6)  # the rotary embeddings are fp32
        assert grads.keys() == exact.keys()
        for name, grad in exact.items():
            off = group.all_reduce_sum(grads[name]) - grad
            assert off.norm() <= 1e-6 * grad.norm() + 1e-12, (kind, name)
