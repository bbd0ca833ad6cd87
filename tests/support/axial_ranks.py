"""Programs of one rank in the tests of axial parallelism."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ds4sci.data.loader import make_pass_rng, make_rng
from ds4sci.data.structures.batch import collate
from ds4sci.data.structures.features import FeatureConfig, featurize
from ds4sci.data.structures.parsers import mmcif
from ds4sci.losses.fold import LossConfig
from ds4sci.models.fold import EXTRA_MSA_UPDATES, EvoformerConfig
from ds4sci.nn import pair
from ds4sci.nn.evoformer import BlockConfig, EvoformerBlock
from ds4sci.parallel import axial
from ds4sci.parallel.axial import AxialShards
from ds4sci.parallel.collectives import record_sent_bytes
from ds4sci.parallel.groups import SequenceGroup
from ds4sci.tasks.fold import Config, FoldTask
from ds4sci.types import MSA_ALPHABET, Batch, Msa
from tests.support.complex_batch import as_complex
from tests.support.template_batches import with_templates

LENGTHS = ((1, 13), (5, 17), (2, 3), (4, 8))
"""(MSA rows, residues); some are fewer than the ranks."""


def join() -> SequenceGroup:
    """Initialise gloo, once; return the group of all ranks."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return SequenceGroup(dist.get_rank(), dist.get_world_size(), 0, 1, dist.group.WORLD)


def check(blocks: str, shapes: str, models: str) -> None:
    """Check the exchanges, then ``check_blocks`` and ``check_model``."""
    check_primitives()
    check_blocks(blocks, shapes)
    check_model(models)


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


SIZES = {
    "c_m": 12, "c_z": 8, "heads_msa": 2, "d_msa": 4, "heads_pair": 2, "d_pair": 4, "c_outer": 3,
    "c_multiplication": 5, "transition_factor": 2, "convolution_width": 5, "dropout_msa": 0.3, "dropout_pair": 0.4,
}  # fmt: skip
PAIR_UPDATES = EvoformerConfig().pair_updates
BLOCKS = {
    "main": (EvoformerConfig().msa_updates, PAIR_UPDATES),
    "extra": (EXTRA_MSA_UPDATES, PAIR_UPDATES),
    "rows only": (("convolution", "transition"), PAIR_UPDATES),
    "other order": (
        ("column_attention", "convolution", "column_global_attention", "transition", "row_attention"),
        ("attention_ending", "multiplication_incoming", "transition", "outer_product_mean", "attention_starting"),
    ),
}
"""Updates of the blocks that are tested."""
TOLERANCE = 1e-12
"""Of the largest value: fp64 rounding."""


def difference(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    assert found.shape == wanted.shape
    if not wanted.numel():
        return 0.0
    return float((found - wanted).detach().abs().max() / wanted.abs().max().clamp(min=1e-30))


def perturbed(module: nn.Module) -> nn.Module:
    """The module in fp64 with noise on its weights: layers initialised to zero would hide errors in earlier layers."""
    noise = torch.Generator().manual_seed(1)
    for p in module.double().parameters():
        p.data += 0.3 * torch.randn(p.shape, generator=noise, dtype=torch.float64)
    return module


def compare_gradients(name: str, module: nn.Module, whole: dict[str, Tensor], group: SequenceGroup) -> None:
    """Compare the sum over the ranks of the gradients of ``module``, and clear them, with ``whole``."""
    for key, error in gradient_errors(module, whole, group).items():
        assert error < TOLERANCE, (name, key, error)


def gradient_errors(module: nn.Module, whole: dict[str, Tensor], group: SequenceGroup) -> dict[str, float]:
    """Difference of the sum over the ranks of the gradients of ``module``, which are cleared, from ``whole``.

    Relative to the largest gradient: that of a bias in front of a softmax is 0 but for rounding.
    """
    largest = max(float(grad.abs().max()) for grad in whole.values())
    found = gradients(module)
    assert found.keys() == whole.keys()
    flat = torch.cat([grad.flatten() for grad in found.values()])
    dist.all_reduce(flat, group=group.handle)
    parts = flat.split([grad.numel() for grad in found.values()])
    return {
        key: float((grad.view(wanted.shape) - wanted).abs().max()) / largest
        for (key, wanted), grad in zip(whole.items(), parts, strict=True)
    }


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Gradients of the parameters, which are cleared."""
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    for p in module.parameters():
        p.grad = None
    return found


def masks(b: int, s: int, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """MSA and pair mask with padding at the end of an example and gaps."""
    tokens = torch.arange(n) < torch.tensor([n, max(1, n - 3)])[:b, None]
    return (torch.rand(b, s, n, generator=generator) > 0.2) & tokens[:, None], tokens[:, :, None] & tokens[:, None]


def block_elements(block: EvoformerBlock, shards: AxialShards) -> tuple[int, int]:
    """Elements that this rank sends to others in forward and in backward, for one example, by the formulas."""
    rank, others = shards.group.rank, shards.group.size - 1
    f, t = len(shards.msa[rank]), len(shards.residues[rank])
    s, n = shards.msa[-1].stop, shards.residues[-1].stop
    c, c_o = SIZES["c_multiplication"], SIZES["c_outer"]
    own_c = len(axial.even_ranges(c, shards.group.size)[rank])
    to_columns, to_rows = f * (n - t), t * (s - f)
    total, by_columns = np.zeros(2, int), False
    for name in block.msa:
        if ("column" in name) != by_columns and name != "transition":
            total += SIZES["c_m"] * np.array([to_columns, to_rows])[:: -1 if by_columns else 1]
            by_columns = not by_columns
        if name == "row_attention":
            total += SIZES["heads_msa"] * n * np.array([t * others, n - t])
    for name in block.pair:
        if name == "outer_product_mean" and by_columns:
            total += c_o * s * np.array([t * others, t * others + n - t])
        elif name == "outer_product_mean":
            total += c_o * n * np.array([f * others, f * others + s - f]) + c_o * np.array([to_columns, to_rows])
        elif "multiplication" in name:
            to_channels, back = (c - own_c) * t * n, own_c * n * (n - t)
            total += np.array([2 * to_channels + back, 3 * to_channels + 2 * back])
        elif "attention" in name:
            total += SIZES["heads_pair"] * n * np.array([t * others, n - t])
            total += 2 * SIZES["c_z"] * t * (n - t) if name == "attention_ending" else 0
    if by_columns:
        total += SIZES["c_m"] * np.array([to_rows, to_columns])
    return int(total[0]), int(total[1])


def check_blocks(kinds: str, shapes: str) -> None:
    """Outputs, gradients and bytes of blocks with masks and dropout, also recomputed, against one process in fp64.

    kinds, shapes  JSON lists: names of ``BLOCKS``; [b, s, n]
    """
    group = join()
    for kind, shape in product(json.loads(kinds), json.loads(shapes)):
        for recompute in (False, True):
            errors = block_errors(kind, *shape, group, recompute=recompute)
            assert max(errors.values()) < TOLERANCE, (kind, shape, recompute, errors)


def check_faults() -> None:
    """Faults in the code change the result of a block by more than rounding."""
    group = join()
    assert max(block_errors("main", 1, 5, 13, group).values()) < TOLERANCE
    drop, gathered, scattered = pair.SharedDropout.forward, axial.all_gather, axial.reduce_scatter

    def dropout_by_place_in_the_part(self, x, first_row=0):
        return drop(self, x)

    def gradients_not_summed(x, dim, ranges, group):
        scattered(x, dim, ranges, group)
        return x.narrow(dim, ranges[group.rank].start, len(ranges[group.rank]))

    def ranks_in_reverse_order(x, dim, ranges, group):
        return gathered(x, dim, ranges, group).flip(dim)

    def mask_of_the_first_rank(self, x, dim):
        return x if self.group.size == 1 else x.narrow(dim, 0, len(self.residues[self.group.rank]))

    for owner, attribute, fault in (
        (pair.SharedDropout, "forward", dropout_by_place_in_the_part),
        (axial, "reduce_scatter", gradients_not_summed),
        (axial, "all_gather", ranks_in_reverse_order),
        (AxialShards, "own_residues", mask_of_the_first_rank),
    ):
        with mock.patch.object(owner, attribute, fault):
            errors = block_errors("main", 1, 5, 13, group)
        assert max(errors.values()) > 1e-6, (fault, errors)


def block_errors(
    kind: str, b: int, s: int, n: int, group: SequenceGroup, *, recompute: bool = False
) -> dict[str, float]:
    """Largest relative differences over all ranks between a sharded block and one process; checks the bytes sent."""
    msa_updates, pair_updates = BLOCKS[kind]
    block = perturbed(EvoformerBlock(BlockConfig(msa_updates=msa_updates, pair_updates=pair_updates, **SIZES)))
    shards = AxialShards.divide(group, s, n)
    generator = torch.Generator().manual_seed(n)
    m, z, grad_m, grad_z = (
        torch.randn(b, *size, generator=generator, dtype=torch.float64)
        for size in ((s, n, SIZES["c_m"]), (n, n, SIZES["c_z"])) * 2
    )
    both = masks(b, s, n, generator)
    whole = [x.clone().requires_grad_() for x in (m, z)]
    torch.manual_seed(5)
    wanted = block(*whole, *both)
    torch.autograd.backward(wanted, (grad_m, grad_z))
    wanted_grads = gradients(block)
    own_m, own_z = shards.msa[group.rank], shards.residues[group.rank]
    cut = lambda pair: (pair[0][:, own_m.start : own_m.stop], pair[1][:, own_z.start : own_z.stop])  # noqa: E731
    mine = [x.clone().requires_grad_() for x in cut((m, z))]
    forward, backward = block_elements(block, shards)
    torch.manual_seed(5)
    with record_sent_bytes() as sent:
        out = checkpoint(block, *mine, *both, shards, use_reentrant=False) if recompute else block(*mine, *both, shards)
    assert sent.total() == 8 * b * forward, (kind, sent)
    with record_sent_bytes() as sent:
        torch.autograd.backward(out, cut((grad_m, grad_z)))
    assert recompute or sent.total() == 8 * b * backward, (kind, sent)
    errors = {
        name: difference(found, want)
        for name, found, want in zip(
            ("m", "z", "gradient of m", "gradient of z"), (*out, *(x.grad for x in mine)),
            (*cut(wanted), *cut([x.grad for x in whole])), strict=True,
        )
    }  # fmt: skip
    errors |= gradient_errors(block, wanted_grads, group)
    largest = torch.tensor(list(errors.values()), dtype=torch.float64)
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group.handle)
    return dict(zip(errors, largest.tolist(), strict=True))


TINY = {
    "c_m": 12, "c_z": 8, "c_s": 10, "c_plddt": 8, "heads": ["masked_msa", "experimentally_resolved", "secondary", "tm"],
    "stem": {"blocks": 1, "convolution_width": 3},
    "evoformer": {"blocks": 2, "heads_msa": 2, "d_msa": 4, "heads_pair": 2, "d_pair": 4, "c_outer": 3,
                  "c_multiplication": 5, "dropout_msa": 0.3, "dropout_pair": 0.4},
    "extra_msa": {"blocks": 1, "c_e": 6, "d_msa": 3},
    "structure": {"iterations": 2, "heads": 2, "d_ipa": 4, "c_angle": 8, "dropout": 0.2, "initial_frames": "chain"},
}  # fmt: skip
TEMPLATES = {
    "blocks": 2, "c_t": 6, "heads_pair": 2, "d_pair": 4, "c_multiplication": 5, "d_attention": 3, "unit_vectors": True,
}  # fmt: skip
TERMS = {name: 0.5 for name, field in LossConfig.model_fields.items() if field.annotation is float} | {
    "initial_clamp": 10.0, "unclamped_fraction": 0.5, "geometry_from_progress": 0.0,
}  # fmt: skip
DATA = Path(__file__).parents[1] / "fixtures"


def fold_batch(crops: list[int], s: int, recycling: int, templates: int = 0) -> Batch:
    """Crops of an entry with a random alignment, of s MSA rows and 3 extra rows, with coordinates in fp64.

    templates  number of them; one is absent
    """
    record = mmcif.read(DATA / "mmcif" / "2q2k.cif.gz", "A")
    dssp = "H" * (len(record.sequence) // 2)
    rng = np.random.default_rng(3)
    alignment = np.array([MSA_ALPHABET.index(letter) for letter in record.sequence], np.uint8)
    rows = np.where(rng.random((s + 3, len(alignment))) < 0.5, alignment, rng.integers(0, 22, len(alignment)))
    rows[0] = alignment
    given = Msa(rows.astype(np.uint8), np.zeros(rows.shape, np.int32), tuple(map(str, range(s + 3))))
    record = replace(record, dssp=dssp.ljust(len(record.sequence), "E"), msa=given)
    if templates:
        record = with_templates(record, templates - 1)
    features = FeatureConfig(
        msa_input="msa", max_clusters=s, max_extra=3, max_templates=templates, subsample_templates=False,
        resample_msa=True,
    )  # fmt: skip
    examples = [
        featurize(record, features, make_rng(0, 2, i), crop=n, earlier_passes=recycling, pass_rng=make_pass_rng(0, i))
        for i, n in enumerate(crops)
    ]
    made = collate(examples, recycling=recycling)
    assert (made.earlier_msa is None) == (recycling == 0)
    assert made.msa_mask.shape[1] == s
    if templates:
        assert made.template_positions is not None
        made = replace(made, template_positions=made.template_positions.double())
    return replace(made, atom_positions=made.atom_positions.double())


def fold_task(recompute: bool, **more: Any) -> FoldTask:
    """A task with every part of the model and every term of the loss."""
    config = Config.model_validate(
        {"model": TINY | {"checkpoint_blocks": recompute} | more, "data": {"train": "-", "valid": "-"}, "loss": TERMS}
    )
    task = FoldTask(config, seed=0, steps=10)
    perturbed(task.model).train()
    return task


def check_model(cases: str) -> None:
    """Loss, outputs and gradients of the whole model against one process in fp64.

    cases  JSON list of (crops, MSA rows, recycling, recompute, whether only the stem is trained, templates[,
           "multimer"])
    """
    group = join()
    for crops, s, recycling, recompute, stem_only, templates, *kind in json.loads(cases):
        name = f"{crops} s {s} recycling {recycling} recompute {recompute} stem only {stem_only} t {templates} {kind}"
        batch = fold_batch(crops, s, recycling, templates)
        if kind:
            batch = as_complex(batch)
        more: dict[str, Any] = {"template": TEMPLATES} if templates else {}
        more["kind"] = kind[0] if kind else "monomer"
        task = fold_task(recompute, stem=TINY["stem"] | {"stem_only_fraction": 0.5 * stem_only}, **more)
        torch.manual_seed(7)
        wanted = task.model(batch)
        loss, terms = task.loss(wanted, batch)
        loss.backward()
        whole = gradients(task.model)
        task.set_parallel_groups(group)
        torch.manual_seed(7)
        found = task.model(batch)
        part, part_terms = task.loss(found, batch)
        part.backward()
        sums = torch.stack([part.detach(), *part_terms.values()]).double()
        dist.all_reduce(sums, group=group.handle)
        assert difference(sums, torch.stack([loss.detach(), *terms.values()]).double()) < TOLERANCE, name
        compare_outputs(name, found, wanted, task.fold_model.shards(batch))
        compare_gradients(name, task.model, whole, group)


def compare_outputs(name: str, found: Any, wanted: Any, shards: AxialShards) -> None:
    """Compare every field of the output: this rank's rows of pairs and of the MSA, all of the others."""
    for field in fields(wanted):
        ours, theirs = getattr(found, field.name), getattr(wanted, field.name)
        if isinstance(theirs, int):
            assert ours == theirs, (name, field.name)
            continue
        if isinstance(theirs, Tensor):
            ours, theirs = (ours,), (theirs,)
        for a, b in zip(ours or (), theirs or (), strict=True):
            if field.name in ("pair", "distogram_logits", "aligned_error_logits"):
                b = shards.own_residues(b, 1)
            elif field.name == "masked_msa_logits":
                b = shards.own_msa(b, 1)
            error = difference(a, b)
            assert error < TOLERANCE, (name, field.name, error)
