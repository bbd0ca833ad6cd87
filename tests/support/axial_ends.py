"""Program of one rank: structure module, heads and every loss term by rows, against one process."""

from __future__ import annotations

import dataclasses
import json
from itertools import product
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ds4sci.data.loader import make_rng
from ds4sci.data.structures.batch import collate
from ds4sci.data.structures.features import FeatureConfig, featurize
from ds4sci.data.structures.parsers import mmcif
from ds4sci.losses.fold import LossConfig, fold_loss
from ds4sci.models.fold import Config, FoldModel
from ds4sci.parallel.axial import AxialShards
from ds4sci.parallel.collectives import record_sent_bytes
from ds4sci.parallel.groups import SINGLE_RANK, SequenceGroup
from ds4sci.types import Batch, Output
from tests.support.axial_ranks import compare_outputs, join

DATA = Path(__file__).parents[1] / "fixtures"
TERMS = (
    "experimentally_resolved", "violation", "secondary", "smooth_lddt", "relative_distance", "local_fape",
    "initial_frames_fape", "chirality", "chain_bonds", "ca_clashes",
)  # fmt: skip
LOSS = LossConfig.model_validate(dict.fromkeys(TERMS, 0.5) | {"unclamped_fraction": 0.5})
TOLERANCE = 1e-12
"""Largest error, relative to the largest element."""


def config(initial_frames: str = "identity", dropout: float = 0.0) -> Config:
    """A structure model with every head and small, unequal sizes."""
    return Config.model_validate({
        "c_m": 12, "c_z": 10, "c_s": 14, "c_plddt": 9,
        "heads": ["masked_msa", "experimentally_resolved", "secondary"],
        "evoformer": {"blocks": 1, "heads_msa": 2, "d_msa": 4, "heads_pair": 2, "d_pair": 4, "c_outer": 3,
                      "c_multiplication": 6, "dropout_msa": dropout, "dropout_pair": dropout},
        "extra_msa": {"blocks": 0},
        "structure": {"iterations": 2, "heads": 3, "d_ipa": 5, "c_angle": 8, "dropout": dropout,
                      "initial_frames": initial_frames},
    })  # fmt: skip


def make_batch(s: int, n: int) -> Batch:
    """Two crops of a real chain with side chains, n and n − 2 residues, in fp64; the alignment is random."""
    record = mmcif.read(DATA / "mmcif" / "2q2k.cif.gz", "A")
    record = dataclasses.replace(record, dssp=("HE?" * 99)[: len(record.sequence)])
    crops = [
        featurize(record, FeatureConfig(msa_input="sequence"), make_rng(0, 2, i), crop=k)
        for i, k in enumerate((n, n - 2))
    ]
    batch = collate(crops)
    generator = torch.Generator().manual_seed(n)
    shape, mask = (2, s, n), batch.token_mask.unsqueeze(1)
    return dataclasses.replace(
        batch,
        atom_positions=batch.atom_positions.double(),
        msa_feat=torch.randn(*shape, 49, generator=generator, dtype=torch.float64),
        msa_mask=(torch.rand(shape, generator=generator) > 0.2) & mask,
        true_msa=torch.randint(0, 22, shape, generator=generator),
        masked_msa=(torch.rand(shape, generator=generator) > 0.6) & mask,
    )


def make_model(model_config: Config) -> FoldModel:
    """A model in fp64 with noise in every weight, since layers that begin as zero would hide errors before them."""
    torch.manual_seed(1)
    model = FoldModel(model_config)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * torch.randn(p.shape)
    return model.double().train()


def assert_equal(name: str, got: Tensor, want: Tensor) -> None:
    """Fails unless ``got`` equals ``want`` within ``TOLERANCE`` of its largest element."""
    assert got.shape == want.shape, f"{name}: {tuple(got.shape)} instead of {tuple(want.shape)}"
    if want.numel():
        error = float((got.detach() - want.detach()).abs().max())
        assert error <= TOLERANCE * max(float(want.detach().abs().max()), 1.0), f"{name}: error {error}"


def bytes_of_predict(model_config: Config, shards: AxialShards, b: int, n: int) -> int:
    """Bytes that this rank sends in the forward pass of ``FoldModel.predict``, in fp64."""
    c, own, others = model_config.structure, len(shards.residues[shards.group.rank]), shards.group.size - 1
    iteration = c.heads * (2 * c.d_ipa + 3 * (c.qk_points + c.v_points)) + 9 + 3 + 14 + 14
    gathered = c.iterations * iteration + 50 + 37 + 9 * (c.initial_frames == "chain")
    elements = own * gathered * others + own * (n - own) * 64
    return 8 * b * (elements + 2 * shards.first_msa_rows * n * model_config.c_m * others)


def check_case(group: SequenceGroup, model_config: Config, batch: Batch) -> None:
    """Outputs, terms, gradients and bytes of one case."""
    model = make_model(model_config)
    b, s, n = batch.msa_feat.shape[:3]
    shards = AxialShards.divide(group, s, n)
    generator = torch.Generator().manual_seed(3)
    m, z = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((b, s, n, model_config.c_m), (b, n, n, model_config.c_z))
    )

    def run(m: Tensor, z: Tensor, group: SequenceGroup) -> tuple[Output, Tensor, dict[str, Tensor], list[Tensor], int]:
        model.set_parallel_group(group)
        m, z = m.clone().requires_grad_(), z.clone().requires_grad_()
        parameters = [p for name, p in model.named_parameters() if not name.startswith(("evoformer", "input", "rec"))]
        torch.manual_seed(7)
        with record_sent_bytes() as sent:
            output = model.predict(batch, m, z)
        loss, terms = fold_loss(output, batch, LOSS, model.shards(batch))
        grads = torch.autograd.grad(loss, [*parameters, m, z])
        return output, loss, terms, list(grads), sent.total()

    whole, loss, terms, grads, _ = run(m, z, SINGLE_RANK)
    part, own_loss, own_terms, own_grads, sent = run(shards.own_msa(m, 1), shards.own_residues(z, 1), group)
    assert sent == bytes_of_predict(model_config, shards, b, n), (sent, bytes_of_predict(model_config, shards, b, n))
    compare_outputs("predict", part, whole, shards)
    sums = [own_loss.detach(), *own_terms.values(), *own_grads[:-2]]
    for x in sums:
        dist.all_reduce(x)
    assert list(own_terms) == list(terms)
    for name, got, want in zip(["loss", *terms], sums, [loss, *terms.values()], strict=False):
        assert_equal(name, got, want)
    largest = max(float(g.abs().max()) for g in grads)
    wanted = [*grads[:-2], shards.own_msa(grads[-2], 1), shards.own_residues(grads[-1], 1)]
    for got, want in zip([*sums[1 + len(terms) :], *own_grads[-2:]], wanted, strict=True):
        assert_equal("gradient", got / largest, want / largest)


def check_ends(cases: str) -> None:
    """Check every (MSA rows, residues, initial frames, dropout) of the JSON list ``cases``."""
    group = join()
    for s, n, initial_frames, dropout in json.loads(cases):
        batch = make_batch(s, n)
        check_case(group, config(initial_frames, dropout), batch)


def grid() -> list[tuple[int, int, str, float]]:
    """Every case of the full grid; with four ranks and three residues one rank has none."""
    return list(product((1, 5), (3, 13, 17), ("identity", "chain"), (0.0, 0.25)))
