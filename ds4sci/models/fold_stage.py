"""Pipeline stages of the structure model: some Evoformer blocks, with the embedders or with the structure module.

The states between stages are m and z, packed into one tensor. The templates and the extra MSA stack belong to the first
stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ds4sci.models.fold import FoldModel, pair_mask, recycled_inputs
from ds4sci.models.msa_samples import batch_of_pass
from ds4sci.parallel.pipeline import PipelineStage, StageParts, split_evenly
from ds4sci.types import Batch, Output

_INPUTS = (
    "input_embedder", "recycling_embedder", "stem", "template_embedder", "extra_msa_embedder", "extra_msa_stack",
)  # fmt: skip
"""Modules of the first stage; all others except the blocks belong to the last one."""


def partition(model: FoldModel, stages: int) -> tuple[StageParts, ...]:
    """Return the parts of each stage, with about the same number of blocks.

    A block of the extra MSA stack, and the structure module with the heads, count as one block each. Raises ValueError
    if there are more stages than Evoformer blocks.
    """
    costs = [1] * len(model.evoformer.blocks)
    costs[0] += model.config.extra_msa.blocks
    costs[-1] += 1
    runs = split_evenly(costs, stages)
    names: list[list[str]] = [[] for _ in runs]
    for name, _ in model.named_parameters():
        module, _, rest = name.partition(".")
        if module == "evoformer":
            block = int(rest.split(".")[1])
            stage = next(i for i, run in enumerate(runs) if block in run)
        else:
            stage = 0 if module in _INPUTS else stages - 1
        names[stage].append(name)
    return tuple(StageParts(run, tuple(own)) for run, own in zip(runs, names, strict=True))


class FoldStage(PipelineStage):
    """One stage of ``model``, whose other modules are removed from it."""

    model: FoldModel

    def __init__(self, model: FoldModel, stage: int, stages: int) -> None:
        """Raises ValueError if there are more stages than Evoformer blocks."""
        super().__init__()
        self.parts = partition(model, stages)
        self.is_first, self.is_last = stage == 0, stage == stages - 1
        blocks = model.evoformer.blocks
        for index in range(len(blocks)):
            if index not in self.parts[stage].blocks:
                blocks[index] = _OtherStage()
        for name, _ in list(model.named_children()):
            if name != "evoformer" and not (self.is_first if name in _INPUTS else self.is_last):
                delattr(model, name)
        self.model = model

    def stage_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    def passes(self, batch: Batch) -> int:
        return 0 if self.model.trains_stem_only(batch) else batch.recycling

    def batch_of_pass(self, batch: Batch, number: int) -> Batch:
        return batch_of_pass(batch, number) if self.is_first else batch  # other stages do not read the features

    def forward(self, batch: Batch, states: Tensor | None, recycled: Tensor | None) -> Any:
        model = self.model
        b, s, n = batch.msa_feat.shape[:3]
        c_m, c_z = model.config.c_m, model.config.c_z
        if model.trains_stem_only(batch):
            m = model.embed_by_stem(batch) if self.is_first else _unpack(states, [(b, s, n, c_m)])[0]
            return model.predict_by_stem(batch, m) if self.is_last else _pack([m])
        msa_mask = model.msa_mask(batch)
        if self.is_first:
            m, z = model.embed(batch, None if recycled is None else self._unpack_recycled(batch, recycled))
        else:
            m, z = _unpack(states, [(b, msa_mask.shape[1], n, c_m), (b, n, n, c_z)])
        m, z = model.evoformer(m, z, msa_mask, pair_mask(batch))
        return model.predict(batch, m, z) if self.is_last else _pack([m, z])

    def recycle(self, output: Output, batch: Batch) -> Tensor:
        return _pack(recycled_inputs(batch, output))

    def _unpack_recycled(self, batch: Batch, recycled: Tensor) -> list[Tensor]:
        (b, n), config = batch.aatype.shape, self.model.config
        m0, z, beta = _unpack(recycled, [(b, n, config.c_m), (b, n, n, config.c_z), (b, n, 3)])
        dtype = self.model.recycling_embedder.layer_norm_m.weight.dtype
        return [m0.to(dtype), z.to(dtype), beta]  # coordinates are fp32 or fp64 for any dtype of weights


class _OtherStage(nn.Module):
    """Stand-in for a block of another stage."""

    def forward(self, m: Tensor, z: Tensor, *masks: Any, in_place: bool = False) -> tuple[Tensor, Tensor]:
        return m, z


def _pack(tensors: Sequence[Tensor]) -> Tensor:
    """The elements of ``tensors`` in one tensor, in their widest dtype."""
    return torch.cat([x.flatten() for x in tensors])


def _unpack(packed: Tensor | None, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The tensors of these shapes that were packed by ``_pack``."""
    assert packed is not None
    sizes = [torch.Size(shape).numel() for shape in shapes]
    return [x.view(shape) for x, shape in zip(packed.split(sizes), shapes, strict=True)]
