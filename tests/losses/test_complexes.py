"""Losses of complexes: assignment of equal chains, pairs within and between chains, no bonds between chains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ds4sci.geometry import rotation_from_6d
from ds4sci.losses.complexes import align_chains, align_record, assign_chains, chain_centers, chain_positions, superpose
from ds4sci.losses.fold import LossConfig, fold_loss
from ds4sci.types import ChainIds, Record
from tests.support.complex_batch import complex_batch, complex_model

G = torch.Generator().manual_seed(0)
SIZES = (9, 9, 12, 12, 12)
"""Residues of the chains A A B B B."""
ASYM = torch.repeat_interleave(torch.arange(1, 6), torch.tensor(SIZES))
ENTITY = torch.repeat_interleave(torch.tensor([1, 1, 2, 2, 2]), torch.tensor(SIZES))
INDEX = torch.cat([torch.arange(n) for n in SIZES])
ALL = torch.ones(len(ASYM), dtype=torch.bool)


def coordinates() -> Tensor:
    """Chains at random places, with equal shapes for equal entities."""
    shapes = {n: 4 * torch.randn(n, 3, generator=G, dtype=torch.float64) for n in set(SIZES)}
    return torch.cat([moved(shapes[n], 30 * torch.randn(3, generator=G, dtype=torch.float64)) for n in SIZES])


def moved(x: Tensor, by: Tensor) -> Tensor:
    rotation = rotation_from_6d(torch.randn(6, generator=G, dtype=torch.float64))
    return x @ rotation.T + by


def permuted(x: Tensor, order: list[int]) -> Tensor:
    """The rows of chain ``order[k]`` in the place of chain k."""
    parts = x.split(SIZES)
    return torch.cat([parts[k] for k in order])


def test_superposition_recovers_a_rotation_and_never_reflects() -> None:
    x = torch.randn(7, 3, generator=G, dtype=torch.float64)
    y = moved(x, torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    rotation, translation = superpose(x, y)
    torch.testing.assert_close(x @ rotation.T + translation, y)
    rotation, _ = superpose(x, -x)
    assert float(torch.linalg.det(rotation)) == pytest.approx(1.0)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [1, 0, 2, 3, 4], [0, 1, 3, 4, 2], [1, 0, 4, 3, 2]])
def test_any_permutation_of_equal_chains_is_found(order: list[int]) -> None:
    true = coordinates()
    predicted = moved(permuted(true, order), torch.zeros(3, dtype=torch.float64))
    predicted = predicted + 0.3 * torch.randn(predicted.shape, generator=G, dtype=torch.float64)
    source = assign_chains(predicted, true, ALL, INDEX, ASYM, ENTITY)
    if order == sorted(order):
        assert source is None
    else:
        assert source is not None
        assert torch.equal(ASYM[source] - 1, torch.repeat_interleave(torch.tensor(order), torch.tensor(SIZES)))
        assert torch.equal(INDEX[source], INDEX)


def test_metrics_are_of_the_assigned_coordinates() -> None:
    """Atoms of the record follow the predicted chains; a record of a chain stays as it is."""
    true = coordinates()
    atoms = np.zeros((len(ASYM), 37, 3), np.float32)
    atoms[:, 1] = true.numpy()
    mask = np.zeros((len(ASYM), 37), bool)
    mask[:, 1] = True
    ids = ChainIds(ASYM.numpy(), ENTITY.numpy(), torch.ones_like(ASYM).numpy())
    record = Record("1XYZ", "A" * len(ASYM), atoms, mask, INDEX.numpy(), chain_ids=ids)
    predicted = permuted(true, [1, 0, 2, 4, 3]).numpy()
    aligned = align_record(record, predicted)
    np.testing.assert_allclose(aligned.atom_positions[:, 1], predicted, rtol=1e-6)
    assert aligned.atom_mask.sum() == len(ASYM)
    single = replace(record, chain_ids=None)
    assert align_record(single, predicted) is single


def test_other_crops_of_equal_chains_share_what_they_have() -> None:
    """Chain B begins two residues later than A: these have no true coordinates, and atoms A has not are left out."""
    n = 10
    index = torch.cat([torch.arange(n), torch.arange(2, n + 2)])
    asym = torch.repeat_interleave(torch.tensor([1, 2]), n)
    whole = [30 * torch.randn(3, generator=G) + 4 * torch.randn(n + 2, 3, generator=G) for _ in range(2)]
    true = torch.cat([whole[0][:n], whole[1][2:]])
    predicted = torch.cat([whole[1][:n], whole[0][2:]])
    source = assign_chains(predicted, true, torch.ones(2 * n, dtype=torch.bool), index, asym, torch.ones_like(asym))
    assert source is not None
    assert source.tolist() == [-1, -1, *range(n, 2 * n - 2), *range(2, n), -1, -1]
    far = torch.where(asym == 2, index + 6, index)  # too few residues in common
    assert assign_chains(predicted, true, torch.ones(2 * n, dtype=torch.bool), far, asym, torch.ones_like(asym)) is None


def test_the_loss_is_that_of_the_assigned_coordinates() -> None:
    """Exchanging the true coordinates of two equal chains does not change the loss."""
    batch = complex_batch()
    output = complex_model().eval()(batch)
    config = LossConfig(interface_fape=0.5, chain_centers=0.05, violation=1.0, aligned_error=0.1)
    size = int((batch.asym_id[0] == 1).sum())
    assert torch.equal(batch.aatype[0, :size], batch.aatype[0, size : 2 * size])
    order = torch.arange(batch.aatype.shape[1])
    order[: 2 * size] = torch.cat([order[size : 2 * size], order[:size]])
    exchanged = replace(batch, atom_positions=batch.atom_positions[:, order], atom_mask=batch.atom_mask[:, order])
    target = output.translations[-1]
    assert (align_chains(batch, target) is batch) != (align_chains(exchanged, target) is exchanged)
    first, second = (fold_loss(output, given, config)[1] for given in (batch, exchanged))
    assert first.keys() == second.keys()
    for name in first.keys() - {"experimentally_resolved"}:
        torch.testing.assert_close(first[name], second[name], msg=name)


def test_chain_centers_equal_their_definition() -> None:
    asym = torch.tensor([[1, 1, 2, 2, 3, 0]])
    mask = torch.tensor([[True, True, True, False, True, False]])
    true, predicted = (torch.randn(1, 6, 3, generator=G, dtype=torch.float64) * scale for scale in (30, 3))
    want = []
    for k, rows in enumerate(([0, 1], [2], [4])):
        for j, others in enumerate(([0, 1], [2], [4])):
            if j != k:
                near, far = ((x[0, rows].mean(0) - x[0, others].mean(0)).norm() for x in (predicted, true))
                want.append((min(float(near - far) + 4, 0.0) / 20) ** 2)
    assert float(chain_centers(predicted, true, mask, asym)) == pytest.approx(sum(want) / 6)
    assert float(chain_centers(true, true, mask, asym)) == 0
    one = torch.ones_like(asym)
    assert float(chain_centers(predicted, true, mask, one)) == 0


def test_backbone_fape_is_divided_into_chains_and_interfaces() -> None:
    """Both terms together have the pairs of the whole; a far chain costs 30 Å / 20 Å at most."""
    batch = complex_batch()
    output = complex_model().eval()(batch)
    config = LossConfig(interface_fape=0.5, unclamped_fraction=0.0)
    terms = fold_loss(output, batch, config)[1]
    whole = replace(batch, asym_id=None, entity_id=None, sym_id=None)
    assert float(fold_loss(output, whole, config)[1]["interface_fape"]) == 0
    far = replace(output, translations=output.translations + 1e4 * batch.asym_id.unsqueeze(-1))
    moved_terms = fold_loss(far, batch, config)[1]
    assert float(moved_terms["backbone_fape"]) == pytest.approx(float(terms["backbone_fape"]), rel=1e-6)
    assert float(moved_terms["interface_fape"]) == pytest.approx(1.5, rel=1e-6)


def test_chains_are_not_bonded() -> None:
    batch = complex_batch()
    steps = chain_positions(batch).diff(dim=1)
    same = batch.asym_id[:, 1:] == batch.asym_id[:, :-1]
    assert torch.equal(steps == 1, same & (batch.residue_index.diff(dim=1) == 1))
    monomer = replace(batch, asym_id=None)
    assert chain_positions(monomer) is batch.residue_index


def test_pairs_in_the_same_chain() -> None:
    """The owner of the pairs, ``Batch.same_chain``, with and without numbers of chains."""
    batch = complex_batch()
    assert batch.asym_id is not None
    pairs = batch.same_chain()
    for row, one in enumerate(batch.asym_id.tolist()):
        assert pairs[row].tolist() == [[first == second for second in one] for first in one]
    single = replace(batch, asym_id=None)
    assert torch.equal(single.chain_numbers > 0, batch.token_mask)
    real = batch.token_mask.unsqueeze(-1) & batch.token_mask.unsqueeze(-2)
    assert single.same_chain()[real].all()
