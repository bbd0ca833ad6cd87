"""Axial parallelism: two-dimensional representations sharded by rows or by columns over the ranks of a group.

The MSA representation m ``[b, s, n, c]`` and the pair representation z ``[b, n, n, c]`` are sharded along dimension 1
(rows). Rank r of P holds the contiguous rows ``even_ranges(length, P)[r]``: sizes differ by at most one, nothing is
padded, and a rank holds no row where there are fewer rows than ranks. An operation along the columns exchanges rows for
columns, and an operation that reads everything gathers.

Every function is collective: all ranks of the group call it in the same order with the same arguments except the data.
The loss of a group is the sum of the losses of its ranks; the gradients are exact for that sum. Elements sent by rank
r, with its part of f_r of f rows and t_r of t columns of b · c elements:

    rows_to_columns, columns_to_rows   b · c · f_r · (t − t_r)     even parts: b·c·f·t/P · (P − 1)/P
    gather                             b · c · t · f_r · (P − 1)   even parts: b·c·f·t · (P − 1)/P
    gather, backward (reduce-scatter)  b · c · t · (f − f_r)       the same

``rows_to_columns`` backward is ``columns_to_rows`` and conversely. With one rank, every function returns its argument.

Source: dynamic axial parallelism of FastFold (arXiv 2203.00854). The uneven parts are an addition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ds4sci.parallel.collectives import all_to_all
from ds4sci.parallel.groups import SINGLE_RANK, SequenceGroup

Ranges = tuple[range, ...]
"""Contiguous indices of each rank, in rank order."""


def even_ranges(length: int, size: int) -> Ranges:
    """Return the indices 0 … ``length`` − 1 of each of ``size`` ranks: contiguous, in order, as even as possible."""
    return tuple(range(length * r // size, length * (r + 1) // size) for r in range(size))


def exchange(
    x: Tensor, source: int, target: int, source_ranges: Ranges, target_ranges: Ranges, group: SequenceGroup
) -> Tensor:
    """Return x, sharded along dimension ``source``, sharded along dimension ``target`` instead. Without gradient.

    x has this rank's indices of ``source`` and all of ``target``; the result has all of ``source`` and this rank's of
    ``target``. Dense, whatever the strides of x.
    """
    own = group.rank
    parts = [x.narrow(target, r.start, len(r)) for r in target_ranges]
    shape = list(parts[own].shape)
    per_row = math.prod(shape[:source] + shape[source + 1 :])
    sent = [part.numel() for part in parts]
    received = [per_row * len(r) for r in source_ranges]
    flat = all_to_all(torch.cat([part.reshape(-1) for part in parts]), sent, received, group)
    return _concat(flat, received, shape, source, source_ranges)


def all_gather(x: Tensor, dim: int, ranges: Ranges, group: SequenceGroup) -> Tensor:
    """Return the concatenation along ``dim`` of the x of all ranks, of ``ranges`` indices each. Without gradient."""
    shape = list(x.shape)
    per_row = math.prod(shape[:dim] + shape[dim + 1 :])
    received = [per_row * len(r) for r in ranges]
    flat = all_to_all(x.reshape(-1).repeat(group.size), [x.numel()] * group.size, received, group, name="all_gather")
    return _concat(flat, received, shape, dim, ranges)


def reduce_scatter(x: Tensor, dim: int, ranges: Ranges, group: SequenceGroup) -> Tensor:
    """Return this rank's indices along ``dim`` of the sum of the x of all ranks. Without gradient.

    The ranks are summed in order, so that the result does not depend on their timing.
    """
    parts = [x.narrow(dim, r.start, len(r)) for r in ranges]
    own = parts[group.rank]
    flat = torch.cat([part.reshape(-1) for part in parts])
    sent = [part.numel() for part in parts]
    got = all_to_all(flat, sent, [own.numel()] * group.size, group, name="reduce_scatter")
    return got.view(group.size, *own.shape).sum(0)


def _concat(flat: Tensor, sizes: Sequence[int], shape: list[int], dim: int, ranges: Ranges) -> Tensor:
    """Concatenate along ``dim`` the parts that were received from each rank; ``shape`` is that of any part."""
    whole = [*shape[:dim], ranges[-1].stop, *shape[dim + 1 :]]
    if math.prod(shape[:dim]) == 1:
        return flat.view(whole)
    parts = [
        part.view([*shape[:dim], len(r), *shape[dim + 1 :]])
        for part, r in zip(flat.split(list(sizes)), ranges, strict=True)
    ]
    return torch.cat(parts, dim)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        source: int,
        target: int,
        source_ranges: Ranges,
        target_ranges: Ranges,
        group: SequenceGroup,
    ) -> Tensor:
        ctx.back = target, source, target_ranges, source_ranges, group
        return exchange(x, source, target, source_ranges, target_ranges, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return exchange(grad, *ctx.back), None, None, None, None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, ranges: Ranges, group: SequenceGroup) -> Tensor:
        ctx.of = dim, ranges, group
        return all_gather(x, dim, ranges, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return reduce_scatter(grad, *ctx.of), None, None, None


def gather(x: Tensor, dim: int, ranges: Ranges, group: SequenceGroup) -> Tensor:
    """Return the concatenation along ``dim`` of the x of all ranks, which have ``ranges`` indices each.

    The gradient of x is the sum of the gradients of its part on all ranks (a reduce-scatter).
    """
    return x if group.size == 1 else _Gather.apply(x, dim, ranges, group)


def group_sum(x: Tensor, group: SequenceGroup) -> Tensor:
    """Return the sum of x over the ranks, in rank order: the same bits on all ranks.

    The gradient of x is the sum of the gradients on all ranks. Gathers x: for small tensors.
    """
    if group.size == 1:
        return x
    return gather(x.unsqueeze(0), 0, even_ranges(group.size, group.size), group).sum(0)


@dataclass(frozen=True)
class AxialShards:
    """Division of the MSA and pair representations of one batch among the ranks of a group.

    group     the ranks that share the examples
    msa       MSA rows of each rank
    residues  residues of each rank: rows of the pair representation, and columns of both representations
    """

    group: SequenceGroup = SINGLE_RANK
    msa: Ranges = ()
    residues: Ranges = ()

    @staticmethod
    def divide(group: SequenceGroup, s: int, n: int) -> AxialShards:
        """Divide s MSA rows and n residues among the ranks of ``group``."""
        return AxialShards(group, even_ranges(s, group.size), even_ranges(n, group.size))

    @property
    def first_row(self) -> int:
        """Index of this rank's first row of the pair representation."""
        return self.residues[self.group.rank].start if self.group.size > 1 else 0

    def own_msa(self, x: Tensor, dim: int) -> Tensor:
        """Return this rank's MSA rows of a tensor with all of them along ``dim``, as a view."""
        return self._own(x, dim, self.msa)

    def own_residues(self, x: Tensor, dim: int) -> Tensor:
        """Return this rank's residues of a tensor with all of them along ``dim``, as a view."""
        return self._own(x, dim, self.residues)

    def _own(self, x: Tensor, dim: int, ranges: Ranges) -> Tensor:
        if self.group.size == 1:
            return x
        own = ranges[self.group.rank]
        return x.narrow(dim, own.start, len(own))

    def gather_msa(self, x: Tensor, dim: int) -> Tensor:
        """Return x with all MSA rows along ``dim``; x has this rank's."""
        return gather(x, dim, self.msa, self.group)

    def gather_residues(self, x: Tensor, dim: int) -> Tensor:
        """Return x with all residues along ``dim``; x has this rank's."""
        return gather(x, dim, self.residues, self.group)

    @property
    def first_msa_rows(self) -> int:
        """1 if this rank has the first MSA row, else 0."""
        return int(self.group.size == 1 or self._first_row_owner == self.group.rank)

    @property
    def _first_row_owner(self) -> int:
        return next(rank for rank, own in enumerate(self.msa) if own)

    def first_msa_row(self, m: Tensor) -> Tensor:
        """Return the first row [b, n, c] of the MSA, whose owner sends it to all ranks; m has this rank's rows."""
        if self.group.size == 1:
            return m[:, 0]
        owner = self._first_row_owner
        ranges = tuple(range(int(rank > owner), int(rank >= owner)) for rank in range(self.group.size))
        return gather(m[:, : self.first_msa_rows], 1, ranges, self.group).squeeze(1)

    def msa_to_columns(self, m: Tensor) -> Tensor:
        """This rank's rows of the MSA ``[b, s, n, c]`` → this rank's columns."""
        return self._exchange(m, 1, 2, self.msa, self.residues)

    def msa_to_rows(self, m: Tensor) -> Tensor:
        """This rank's columns of the MSA ``[b, s, n, c]`` → this rank's rows."""
        return self._exchange(m, 2, 1, self.residues, self.msa)

    def pair_to_columns(self, z: Tensor) -> Tensor:
        """This rank's rows of the pair representation ``[b, n, n, c]`` → this rank's columns."""
        return self._exchange(z, 1, 2, self.residues, self.residues)

    def pair_to_rows(self, z: Tensor) -> Tensor:
        """This rank's columns of the pair representation ``[b, n, n, c]`` → this rank's rows."""
        return self._exchange(z, 2, 1, self.residues, self.residues)

    def _exchange(self, x: Tensor, source: int, target: int, source_ranges: Ranges, target_ranges: Ranges) -> Tensor:
        if self.group.size == 1:
            return x
        return _Exchange.apply(x, source, target, source_ranges, target_ranges, self.group)


WHOLE = AxialShards()
"""One rank that holds everything."""
