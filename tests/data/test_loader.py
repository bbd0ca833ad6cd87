"""Order of the examples: depends on (seed, step), not on ranks, micro-batches, workers or a resume."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ds4sci.data.delivery_ledger import Ledger
from ds4sci.data.loader import CropPhase, Plan, batches
from ds4sci.data.sample_order import Delivery, OrderConfig
from ds4sci.data.sequences import fasta_records
from ds4sci.data.structures.batch import collate
from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.data.structures.features import FeatureConfig, featurize
from ds4sci.types import Batch, Features

BUNDLED = Path(__file__).parents[2] / "examples" / "fold" / "data" / "chains_valid.npz"
PLAN = Plan(
    phases=(CropPhase(crops=(16, 24), weights=(2, 1)), CropPhase(from_progress=0.5, crops=(32,))), max_recycling=3
)
STEPS = 10


@pytest.fixture(scope="module")
def chains() -> ChainSet:
    return ChainSet.open(BUNDLED)


def stream(chains: Any, **changes: Any) -> Iterator[Batch]:
    arguments: dict[str, Any] = {
        "seed": 7, "start_step": 0, "steps": STEPS, "rank": 0, "world_size": 1, "micro_batch_size": 4,
        "accumulation_steps": 1, "plan": PLAN, "feature_config": FeatureConfig(resample_msa=True), "workers": 0,
    }  # fmt: skip
    return batches(chains, **(arguments | changes))


def samples(batch: Batch) -> list[tuple[str, dict[str, np.ndarray]]]:
    """The examples of a batch without padding."""
    out = []
    for row, name in enumerate(batch.ids):
        keep = batch.token_mask[row]
        arrays = {}
        for field in fields(Features):
            if field.name not in ("id", "earlier_msa") and getattr(batch, field.name) is not None:
                value = getattr(batch, field.name)[row]
                arrays[field.name] = (
                    value if value.ndim == 0 else value[:, keep] if "msa" in field.name else value[keep]
                ).numpy()
        for number, sample in enumerate((batch.earlier_msa or [()] * len(batch.ids))[row] or ()):
            arrays |= {f"{key} of pass {number}": value for key, value in vars(sample).items()}
        out.append((name, arrays))
    return out


def assert_same(one: list[tuple[str, dict[str, np.ndarray]]], other: list[tuple[str, dict[str, np.ndarray]]]) -> None:
    assert [name for name, _ in one] == [name for name, _ in other]
    for (_, a), (_, b) in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for key, array in a.items():
            np.testing.assert_array_equal(array, b[key], err_msg=key)


def step_samples(chains: ChainSet, world: int, accumulation: int, start: int = 0, workers: int = 0) -> list[list[Any]]:
    """The samples of four steps, collected from all ranks in the order of the global batch."""
    ranks = [
        stream(chains, rank=rank, world_size=world, micro_batch_size=8 // world // accumulation,
               accumulation_steps=accumulation, start_step=start, workers=workers)
        for rank in range(world)
    ]  # fmt: skip
    steps = []
    for step in range(start, start + 4):
        whole: list[Any] = []
        for _ in range(accumulation):
            parts = [next(rank) for rank in ranks]
            assert {part.step for part in parts} == {step}
            assert len({part.recycling for part in parts}) == 1
            whole += [sample for part in parts for sample in samples(part)]
        steps.append(whole)
    for rank in ranks:
        rank.close()  # type: ignore[attr-defined]
    return steps


@pytest.mark.parametrize(("world", "accumulation"), [(2, 1), (4, 1), (1, 4), (2, 2)])
def test_samples_do_not_depend_on_the_split_over_ranks(chains: ChainSet, world: int, accumulation: int) -> None:
    for one, other in zip(step_samples(chains, 1, 1), step_samples(chains, world, accumulation), strict=True):
        assert_same(one, other)


def test_a_resume_continues_the_same_sequence(chains: ChainSet) -> None:
    whole = [samples(batch) for batch in islice(stream(chains), 8)]
    resumed = [samples(batch) for batch in islice(stream(chains, start_step=5), 3)]
    for one, other in zip(whole[5:], resumed, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_batches_do_not_depend_on_workers(chains: ChainSet, workers: int) -> None:
    prefetched = stream(chains, workers=workers, accumulation_steps=2)
    for one, other in zip(islice(stream(chains, accumulation_steps=2), 12), islice(prefetched, 12), strict=True):
        assert (one.step, one.recycling, one.progress) == (other.step, other.recycling, other.progress)
        for field in fields(Batch):
            a, b = getattr(one, field.name), getattr(other, field.name)
            if field.name != "earlier_msa":
                assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name
        assert_same(samples(one), samples(other))
    prefetched.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ds4sci-loader")]


def test_seeds_and_epochs_differ(chains: ChainSet) -> None:
    def order(**changes: Any) -> list[str]:
        return [name for batch in islice(stream(chains, **changes), 80) for name in batch.ids]

    first = order()
    assert Counter(first[:160]) == Counter(chains.ids) == Counter(first[160:])  # each chain once per epoch
    assert first[:160] != first[160:]
    assert first != order(seed=8)
    assert first == order()


def test_an_epoch_may_end_within_a_batch(chains: ChainSet) -> None:
    few = chains[:3]
    names = [name for batch in islice(stream(few), 6) for name in batch.ids]
    assert Counter(names) == {record.id: 8 for record in few}


def test_plan_draws_follow_the_weights() -> None:
    draws = [PLAN.draw(3, step, 0.0) for step in range(3000)]
    share = sum(crop == 16 for crop, _ in draws) / 3000
    assert abs(share - 2 / 3) < 4.5 * np.sqrt(2 / 9 / 3000)  # 4.5 σ
    recycling = Counter(passes for _, passes in draws)
    assert set(recycling) == {0, 1, 2, 3}
    assert all(abs(count / 3000 - 0.25) < 4.5 * np.sqrt(0.1875 / 3000) for count in recycling.values())
    assert {PLAN.draw(3, step, 0.5)[0] for step in range(50)} == {32}


def test_each_pass_has_its_own_sample(chains: ChainSet) -> None:
    """As many as the step has recycling passes, different in every pass, example and step; the last pass has the
    features without resampling."""
    seen: set[bytes] = set()
    count = 0
    plain = stream(chains, feature_config=FeatureConfig())
    for batch, without in zip(islice(stream(chains), STEPS), plain, strict=False):
        assert torch.equal(batch.msa_feat, without.msa_feat)
        assert without.earlier_msa is None
        assert (batch.earlier_msa is None) == (batch.recycling == 0)
        for earlier in batch.earlier_msa or ():
            assert earlier is not None
            assert len(earlier) == batch.recycling
            seen |= {sample.letters.tobytes() for sample in earlier}
            count += len(earlier)
    assert len(seen) == count > 10


def test_phases_follow_progress_and_padding_follows_the_multiple(chains: ChainSet) -> None:
    plan = PLAN.model_copy(update={"pad_multiple": 20})
    for step, batch in enumerate(islice(stream(chains, plan=plan), 12)):
        assert batch.step == step
        assert batch.progress == min(step / STEPS, 1.0)
        crop = 32 if step >= 5 else batch.token_mask.sum(1).max()
        assert batch.token_mask.sum(1).tolist() == [crop] * 4  # every chain here is longer
        assert batch.aatype.shape[1] == -(-int(crop) // 20) * 20


def test_a_record_without_an_input_is_named(chains: ChainSet) -> None:
    for workers in (0, 2):
        broken = stream([fasta_records.make_record("lone", "ACDEF")], workers=workers)
        with pytest.raises(ValueError, match="lone"):
            next(broken)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"rank": 2}, "rank must be"), ({"micro_batch_size": 0}, "micro_batch_size"), ({"steps": 0}, "steps"),
     ({"seed": -1}, "seed"), ({"workers": -1}, "workers")],
)  # fmt: skip
def test_invalid_arguments_raise_at_the_call(chains: ChainSet, changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stream(chains, **changes)
    with pytest.raises(ValueError, match="empty"):
        stream([])


@pytest.mark.parametrize(
    "phases",
    [[], [{"crops": []}], [{"crops": [0]}], [{"crops": [8], "weights": [1, 2]}], [{"crops": [8], "from_progress": 0.1}],
     [{"crops": [8]}, {"crops": [9]}], [{"crops": [8], "weights": [0]}], [{"crop": 8}]],
)  # fmt: skip
def test_invalid_plans_are_rejected(phases: list[dict[str, Any]]) -> None:
    with pytest.raises(ValidationError):
        Plan(phases=phases)


def test_collate_pads_and_masks(chains: ChainSet) -> None:
    rng = np.random.default_rng(0)
    short, long = (featurize(chains[at], FeatureConfig(), rng, crop=crop) for at, crop in ((0, 10), (1, 13)))
    batch = collate([short, long], recycling=2, step=5, progress=0.25, multiple=8)
    assert (batch.recycling, batch.step, batch.progress) == (2, 5, 0.25)
    assert batch.aatype.shape == (2, 16)
    assert batch.token_mask.sum(1).tolist() == [10, 13]
    assert batch.msa_feat.shape == (2, 1, 16, 49)
    assert batch.extra_msa_feat.shape == (2, 0, 16, 25)
    assert set(batch.aatype[0, 10:].tolist()) == {20}
    assert set(batch.secondary[0, 10:].tolist()) == {-1}
    for padded in (batch.msa_feat[0, :, 10:], batch.msa_mask[0, :, 10:], batch.masked_msa[0, :, 10:],
                   batch.atom_mask[0, 10:], batch.atom_positions[0, 10:]):  # fmt: skip
        assert not padded.any()
    assert_same(samples(batch)[:1], samples(collate([short])))
    with pytest.raises(ValueError, match="at least one example"):
        collate([])


@pytest.mark.parametrize("worker_type", ["thread", "process"])
def test_ready_order_changes_no_example(chains: ChainSet, tmp_path: Path, worker_type: str) -> None:
    """Contents by position are those of the strict order, crop length included; only their step differs."""
    ledger = Ledger(tmp_path)
    ready = stream(
        chains, order=OrderConfig(order="ready", window=20), delivery=Delivery(ledger, STEPS),
        workers=2, worker_type=worker_type,
    )  # fmt: skip
    batches = list(islice(ready, STEPS))
    ready.close()  # type: ignore[attr-defined]
    most = PLAN.max_recycling
    for batch in batches:  # the number of passes of an example's step is not known when it is made
        assert batch.earlier_msa is not None
        assert [len(earlier or ()) for earlier in batch.earlier_msa] == [most] * 4
    found = [sample for batch in batches for sample in samples(replace(batch, earlier_msa=None))]
    strict = list(islice(stream(chains), STEPS))
    expected = [sample for batch in strict for sample in samples(replace(batch, earlier_msa=None))]
    positions = [position for entry in ledger.steps() for position in entry.positions]
    assert sorted(positions) == list(range(4 * STEPS))
    assert_same(found, [expected[position] for position in positions])
    earlier = [one for batch in strict for one in batch.earlier_msa or [()] * 4]
    for position, one in zip(positions, (one for batch in batches for one in batch.earlier_msa or ()), strict=True):
        for a, b in zip(one or (), earlier[position] or (), strict=False):
            np.testing.assert_equal(vars(a), vars(b))
    assert [batch.recycling for batch in batches] == [batch.recycling for batch in islice(stream(chains), STEPS)]
