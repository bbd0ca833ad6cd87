"""Aligned errors: loss and confidence against their definitions and against the code of OpenFold and ESMFold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ds4sci.geometry import Rigid, rotation_from_6d
from ds4sci.losses.fold import LossConfig, fold_loss
from ds4sci.losses.heads import aligned_error
from ds4sci.models.fold import FoldModel
from ds4sci.nn.heads import PART_ROWS, aligned_errors
from tests.support.original_models import original
from tests.support.small_fold import SMALL
from tests.support.structure_batch import crops


def frames(b: int, n: int, seed: int, spread: float = 8.0) -> Rigid:
    """Random frames in fp64, whose errors fall in all bins."""
    g = torch.Generator().manual_seed(seed)
    six, shift = (torch.randn(b, n, size, generator=g, dtype=torch.float64) for size in (6, 3))
    return Rigid(rotation_from_6d(six), spread * shift)


def logits_of(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_loss_equals_its_definition() -> None:
    """Pair by pair, with AlphaFold's bins: the first is an error of 0, the last one of more than 31 Å."""
    n, predicted, true, logits = 9, frames(2, 9, 0), frames(2, 9, 1), logits_of(2, 9, 9)
    mask = torch.rand(2, n, generator=torch.Generator().manual_seed(3)) > 0.3
    bins = set()
    for row, found in enumerate(aligned_error(logits, predicted, true, mask)):
        terms = []
        for i in mask[row].nonzero().flatten():
            for j in mask[row].nonzero().flatten():
                here, there = (
                    f.rotation[row, i].T @ (f.translation[row, j] - f.translation[row, i]) for f in (predicted, true)
                )
                error = float((here - there).norm())
                number = sum(error > edge / 2 for edge in range(63))
                assert (number == 0) == bool(i == j)
                bins.add(number)
                terms.append(-logits[row, i, j].log_softmax(-1)[number])
        assert float(found) == pytest.approx(float(torch.stack(terms).mean()), rel=1e-12)
    assert {0, 63} <= bins
    assert len(bins) > 20


def test_frames_get_no_gradient_and_masked_residues_no_weight() -> None:
    predicted, true, logits = frames(1, 6, 0), frames(1, 6, 1), logits_of(1, 6, 6).requires_grad_()
    moved = Rigid(predicted.rotation.requires_grad_(), predicted.translation.requires_grad_())
    mask = torch.tensor([[1, 1, 0, 1, 0, 1]], dtype=torch.bool)
    aligned_error(logits, moved, true, mask).backward()
    assert moved.rotation.grad is None
    assert moved.translation.grad is None
    assert logits.grad is not None
    used = logits.grad.abs().sum(-1) > 0
    assert torch.equal(used, mask[:, :, None] & mask[:, None])
    nothing = aligned_error(logits, predicted, true, torch.zeros_like(mask))
    assert nothing.tolist() == [0]


def test_structures_out_of_the_range_of_resolution_have_no_loss() -> None:
    batch, config = crops(24, 17), LossConfig(aligned_error=0.1)
    torch.manual_seed(0)
    model = FoldModel(SMALL).eval()
    with torch.no_grad():
        output = model(batch)
        both = fold_loss(output, replace(batch, resolution=torch.tensor([2.0, 3.0])), config)[1]["aligned_error"]
        first = fold_loss(output, replace(batch, resolution=torch.tensor([2.0, 3.1])), config)[1]["aligned_error"]
    # an untrained head gives all bins the same probability
    assert float(both) == pytest.approx(float(torch.tensor(64.0).log()), rel=1e-6)
    assert float(first) == pytest.approx(float(both) / 2, rel=1e-6)


@pytest.mark.parametrize("n", [3, 19, 2 * PART_ROWS + 5])
def test_confidence_equals_that_of_esmfold(n: int) -> None:
    from transformers.models.esm.openfold_utils.loss import compute_predicted_aligned_error, compute_tm

    logits = logits_of(n, n, seed=n)
    error, tm, _ = aligned_errors(logits)
    theirs = compute_predicted_aligned_error(logits)["predicted_aligned_error"]
    torch.testing.assert_close(error, theirs, rtol=1e-12, atol=0)
    assert float(tm.max()) == pytest.approx(float(compute_tm(logits)), rel=1e-7)  # their scores of bins are fp32
    assert 0 < float(tm.max()) < 1


def test_probabilities_exist_for_some_rows_at_a_time() -> None:
    n = 4 * PART_ROWS

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            for x in tree_leaves(out):
                if isinstance(x, Tensor) and not x._is_view():
                    self.elements = max(self.elements, x.numel())
            return out

    logits = logits_of(n, n).bfloat16()
    with Largest() as largest:
        error, tm, _ = aligned_errors(logits)
    assert error.dtype == tm.dtype == torch.float32
    assert largest.elements == PART_ROWS * n * 64
    assert error.shape == (n, n)
    rows = aligned_errors(logits[5:9])  # those of a rank
    torch.testing.assert_close(rows[:2], (error[5:9], tm[5:9]))


def test_interface_score_equals_its_definition() -> None:
    """ipTM as in AlphaFold's ``confidence.predicted_tm_score``: residues of other chains only, d₀ of all residues."""
    n = 41
    logits, chains = logits_of(n, n, seed=1), torch.tensor([1] * 17 + [2] * 10 + [3] * 14)
    _, tm, interface = aligned_errors(logits, chains, chains)
    assert interface is not None
    d0 = 1.24 * (n - 15) ** (1 / 3) - 1.8
    scores = (logits.softmax(-1) / (1 + ((torch.arange(64).double() * 0.5 + 0.25) / d0) ** 2)).sum(-1)
    for row in (0, 20, 40):
        assert float(interface[row]) == pytest.approx(float(scores[row, chains != chains[row]].mean()), rel=1e-12)
    assert torch.equal(tm, aligned_errors(logits).tm)
    assert aligned_errors(logits, torch.ones(n), torch.ones(n)).interface_tm is None
    own = aligned_errors(logits[30:], chains, chains[30:]).interface_tm  # those of a rank
    assert own is not None
    torch.testing.assert_close(own, interface[30:])


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
def test_loss_and_confidence_equal_those_of_openfold() -> None:
    theirs = original("openfold.utils.loss")
    b, n = 3, 40
    predicted, true, logits = frames(b, n, 0, 4.0), frames(b, n, 1, 4.0), logits_of(b, n, n)
    mask = torch.rand(b, n, generator=torch.Generator().manual_seed(3)) > 0.3

    def matrix(rigid: Rigid) -> Tensor:
        upper = torch.cat([rigid.rotation, rigid.translation.unsqueeze(-1)], -1)
        return torch.cat([upper, upper.new_tensor([0, 0, 0, 1]).expand(b, n, 1, 4)], -2)

    resolution = torch.full((b,), 2.0)
    wanted = theirs.tm_loss(logits, matrix(predicted), matrix(true), mask.double(), resolution)
    assert float(aligned_error(logits, predicted, true, mask).mean()) == pytest.approx(float(wanted), rel=1e-10)
    error, tm, _ = aligned_errors(logits[0])
    wanted = theirs.compute_predicted_aligned_error(logits[0])["predicted_aligned_error"]
    torch.testing.assert_close(error, wanted, rtol=1e-12, atol=0)
    assert float(tm.max()) == pytest.approx(float(theirs.compute_tm(logits[0])), rel=1e-7)
