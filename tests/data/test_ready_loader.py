"""Loader that takes what is ready: every sample exactly once, bounded reordering, faults of workers and of the job."""

from __future__ import annotations

import contextlib
import operator
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds4sci.data.delivery_ledger import Ledger
from ds4sci.data.ready_loader import ReorderBuffer, in_background, ready_samples
from ds4sci.data.sample_order import Delivery, OrderConfig, Share, ordered_batches
from ds4sci.data.sample_pools import SampleError
from tests.support import slow_samples
from tests.support.slow_samples import Samples, collate, name

ROOT = Path(__file__).parents[2]
KINDS = ("thread", "process")


def workers_of(pid: int) -> list[psutil.Process]:
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # zombies included
            if any("sample_worker" in word for word in child.cmdline()):
                found.append(child)
    return found


def most_overtaken(order: list[int]) -> int:
    """Largest number of samples delivered before one that was asked for earlier."""
    return max(sum(other > position for other in order[:at]) for at, position in enumerate(order))


@pytest.fixture(autouse=True)
def no_leftovers() -> Iterator[None]:
    """No process, thread or open file is left by a test."""
    folder = Path("/proc/self/fd")
    files, threads = len([*folder.iterdir()]), threading.active_count()
    yield
    assert workers_of(os.getpid()) == []
    assert threading.active_count() == threads
    assert len([*folder.iterdir()]) == files


@given(data=st.data(), window=st.integers(0, 9), capacity=st.integers(1, 12), barrier=st.none() | st.integers(0, 20))
@settings(max_examples=30)
def test_reordering_is_bounded_for_any_order_of_completion(data, window: int, capacity: int, barrier) -> None:
    buffer, order, making, size = ReorderBuffer(window, barrier), [], [], 20
    positions = iter(range(size))
    while len(order) < size:
        while buffer.outstanding < capacity and (position := next(positions, None)) is not None:
            buffer.admit(position)
            making.append(position)
        assert buffer.outstanding <= capacity
        while (item := buffer.pop()) is not None:
            assert item[1] == -item[0]
            order.append(item[0])
        if making:
            done = making.pop(data.draw(st.integers(0, len(making) - 1)))
            buffer.add(done, -done)
    assert sorted(order) == list(range(size))
    assert most_overtaken(order) <= window
    if barrier is not None:
        assert sorted(order[:barrier]) == list(range(min(barrier, size)))


def test_a_slow_sample_is_overtaken_by_exactly_the_window() -> None:
    """Seven others pass; then the loader waits."""
    finish = threading.Event()
    samples = ready_samples(
        lambda p: finish.wait() if p == 3 else None, iter(range(30)), workers=2, window=7, capacity=20
    )
    first = [position for position, _ in islice(samples, 10)]
    assert sorted(first) == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]
    threading.Timer(0.1, finish.set).start()
    assert next(samples)[0] == 3
    assert sorted(position for position, _ in samples) == list(range(11, 30))


def test_memory_is_bounded() -> None:
    """No more samples than ``capacity`` are made ahead of a consumer that takes none."""
    made: list[int] = []
    samples = ready_samples(lambda p: made.append(p), count(), workers=2, window=5, capacity=6)
    next(samples)
    time.sleep(0.2)
    assert len(made) <= 6
    samples.close()


@pytest.mark.parametrize("kind", KINDS)
def test_contents_do_not_depend_on_order_or_worker(kind) -> None:
    make = Samples(seconds=0.002)
    found = dict(ready_samples(make, iter(range(80)), workers=3, kind=kind, window=10))
    assert len(found) == 80
    for position in range(80):
        for one, other in zip(found[position][1:], make(position)[1:], strict=True):
            np.testing.assert_array_equal(one, other)
            one[:1] = 0  # the arrays belong to the consumer


def test_samples_of_killed_workers_are_made_again(tmp_path: Path) -> None:
    """Workers are killed from outside, idle or busy, and by their own samples."""
    make = Samples(seconds=0.004, deadly=(20, 21, 90), once=tmp_path)
    samples = ready_samples(make, iter(range(120)), workers=3, kind="process", window=12)
    rng, order, killed = random.Random(1), [], 0
    for position, sample in samples:
        assert sample[0] == position
        order.append(position)
        if len(order) % 24 == 0:
            for worker in rng.sample(workers_of(os.getpid()), 3 if len(order) == 72 else 1):
                worker.kill()
                killed += 1
    assert sorted(order) == list(range(120))
    assert most_overtaken(order) <= 12
    assert killed == 7


def test_a_sample_that_kills_every_worker_is_named() -> None:
    samples = ready_samples(Samples(deadly=(5,)), iter(range(40)), workers=2, kind="process", window=50, name=name)
    with pytest.raises(SampleError, match=r"sample item5 \(position 5\) ended 3 worker processes.*SIGKILL"):
        list(samples)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_names_the_sample(kind, workers: int) -> None:
    samples = ready_samples(Samples(wrong=(13,)), iter(range(40)), workers=workers, kind=kind, window=3, name=name)
    with pytest.raises(SampleError, match=r"sample item3 \(position 13\): KeyError: 'no atoms'"):
        list(samples)


def test_functions_that_workers_cannot_load_are_refused() -> None:
    make = Samples()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slow_samples.Samples, "__module__", "__main__")
        with pytest.raises(ValueError, match="defined in __main__"):
            list(ready_samples(make, count(), workers=1, kind="process"))
    with pytest.raises(SampleError, match="cannot load their function"):
        list(ready_samples(_Unloadable(), count(), workers=1, kind="process"))


def test_a_sample_that_cannot_be_sent_is_named() -> None:
    samples = ready_samples(operator.methodcaller("__add__", 1), count(), workers=1, kind="process")
    assert next(samples) == (0, 1)
    samples.close()
    unsendable = ready_samples(slow_samples.without_pickle, count(), workers=1, kind="process", name=name)
    with pytest.raises(SampleError, match=r"sample item0 \(position 0\): .*pickle"):
        next(unsendable)


class _Unloadable:
    def __call__(self, position: int) -> int:
        return position

    def __reduce__(self):
        return int, ("no number",)


def test_background_passes_items_and_errors_and_ends() -> None:
    def numbers() -> Iterator[int]:
        yield from range(5)
        raise OSError("the disk is gone")

    broken = in_background(numbers(), threading.Event(), depth=2)
    assert list(islice(broken, 5)) == list(range(5))
    with pytest.raises(OSError, match="the disk is gone"):
        next(broken)
    endless = in_background(count(), threading.Event())
    assert list(islice(endless, 3)) == [0, 1, 2]
    endless.close()


def batches(config: OrderConfig, share: Share, delivery: Delivery, workers: int = 3, **changes):
    return ordered_batches(
        Samples(seconds=0.002, **changes), collate, name, config=config, share=share, delivery=delivery, workers=workers
    )


def positions(batches: Iterator[slow_samples.Collected], number: int) -> list[list[int]]:
    found = [[position for position, *_ in batch.samples] for batch in islice(batches, number)]
    batches.close()
    return found


def test_window_0_is_the_strict_order() -> None:
    share = Share(4, rank=1, world_size=2, micro_batch_size=2, accumulation_steps=3)
    strict = positions(batches(OrderConfig(), share, Delivery(), workers=0), 6)
    assert strict[:3] == [[50, 51], [54, 55], [58, 59]]
    assert positions(batches(OrderConfig(order="ready", window=0), share, Delivery()), 6) == strict


def test_a_run_uses_the_samples_of_the_strict_order() -> None:
    """At the last step no slow sample is left over; after it the stream continues."""
    share = Share(0, 0, 1, 3, 1)
    found = positions(batches(OrderConfig(order="ready"), share, Delivery(steps=8), slow=(22, 23), delay=0.1), 12)
    used = [position for batch in found for position in batch]
    assert sorted(used[:24]) == list(range(24))
    assert len(set(used)) == 36


def test_resume_on_another_number_of_ranks_is_exactly_once(tmp_path: Path) -> None:
    """1 → 2 → 1 ranks: the steps of a checkpoint that was not reached are delivered again, nothing else."""
    config, ledger, used = OrderConfig(order="ready", window=5), Ledger(tmp_path / "ledger"), []
    start, total = 0, 30
    for ranks, done, kept in ((1, 9, 7), (2, 10, 8), (1, 15, 15)):
        for rank in range(ranks):
            share = Share(start, rank, ranks, 4 // ranks, 1)
            positions(batches(config, share, Delivery(ledger, total)), done)
        start += kept
        ledger.truncate(start)
    used = [position for entry in ledger.steps() for position in entry.positions]
    assert sorted(used) == list(range(120))
    assert used != sorted(used)
    epochs = Counter(item for entry in ledger.steps() for item in entry.ids)
    assert set(epochs.values()) == {12}  # 10 items, 12 epochs


def test_replay_repeats_the_order_on_any_number_of_ranks(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "run" / "ledger")
    for rank in range(2):
        share = Share(0, rank, 2, 2, 2)
        positions(batches(OrderConfig(order="ready"), share, Delivery(ledger, 6)), 12)
    recorded = [list(entry.positions) for entry in ledger.steps()]
    replay = OrderConfig(order="replay", replay=tmp_path / "run")
    for workers in (0, 3):
        found = positions(batches(replay, Share(0, 0, 1, 8, 1), Delivery(steps=6), workers), 6)
        assert found == recorded
    assert positions(batches(replay, Share(4, 0, 1, 8, 1), Delivery(steps=6)), 2) == recorded[4:]
    with pytest.raises(ValueError, match="ends before step 6"):
        positions(batches(replay, Share(4, 0, 1, 8, 1), Delivery(steps=9)), 3)
    with pytest.raises(ValueError, match="step 0 has 8 samples, and a step of this run 9"):
        positions(batches(replay, Share(0, 0, 1, 9, 1), Delivery()), 1)
    with pytest.raises(ValueError, match="cannot replay its own ledger"):
        positions(batches(replay, Share(0, 0, 1, 8, 1), Delivery(ledger)), 1)
    other = ordered_batches(
        Samples(), collate, str, config=replay, share=Share(0, 0, 1, 8, 1), delivery=Delivery(), workers=1
    )
    with pytest.raises(ValueError, match=r"is item\d, but \d+ in this run"):
        next(other)
    other.close()


def test_orders_are_validated(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs the run folder"):
        OrderConfig(order="replay")
    with pytest.raises(ValueError, match="other orders have none"):
        OrderConfig(replay=tmp_path)
    with pytest.raises(ValueError, match="no ledger in"):
        positions(batches(OrderConfig(order="replay", replay=tmp_path), Share(0, 0, 1, 8, 1), Delivery()), 1)


@pytest.mark.nightly
def test_a_killed_job_resumes_exactly(tmp_path: Path) -> None:
    """kill -9 of the job at random times, on one rank and on two; its worker processes end by themselves."""
    steps, rng, kills, ranks = 60, random.Random(3), 0, 1
    checkpoint = tmp_path / "checkpoint"
    for attempt in range(40):
        start = int(checkpoint.read_text()) if checkpoint.exists() else 0
        Ledger(tmp_path / "ledger").truncate(start)
        if start == steps:
            break
        # ranks that are not killed take as many steps as there are until the next checkpoint
        end = steps if attempt > 3 else start + 14
        if ranks == 2:
            run_program(tmp_path, 1, 2, end)
        process = start_program(tmp_path, 0, ranks, end)
        if attempt <= 3:
            for _ in range(rng.randrange(3, 12)):
                process.stdout.readline()
            time.sleep(rng.random() * 0.02)
            workers = workers_of(process.pid)
            assert len(workers) == 2
            process.kill()
            kills += 1
            _, alive = psutil.wait_procs(workers, timeout=60)
            assert not alive
        else:
            process.stdout.read()
        process.stdout.close()
        process.wait()
        ranks = 3 - ranks
    assert kills == 4
    used = [position for entry in Ledger(tmp_path / "ledger").steps() for position in entry.positions]
    assert sorted(used) == list(range(steps * 4))


def start_program(folder: Path, rank: int, ranks: int, steps: int) -> subprocess.Popen:
    arguments = [str(folder), str(rank), str(ranks), str(4 // ranks), "1", str(steps)]
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    program = "import sys; from tests.support.slow_samples import main; main(*sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], cwd=folder, env=variables, stdout=subprocess.PIPE
    )


def run_program(folder: Path, rank: int, ranks: int, steps: int) -> None:
    """Run a rank to the end without its checkpoints."""
    checkpoint = folder / "checkpoint"
    before = checkpoint.read_text() if checkpoint.exists() else None
    process = start_program(folder, rank, ranks, steps)
    process.stdout.read()
    process.stdout.close()
    assert process.wait() == 0
    if before is None:
        checkpoint.unlink()
    else:
        checkpoint.write_text(before)
