"""A sample of the fuzz tests of every parser (``python -m tests.fuzz``), and tests of the runner."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ds4sci.data.alignments import msa
from ds4sci.data.sequences.fasta_records import read_fasta
from tests.fuzz import reading, runner

MODULES = runner.modules()
SAMPLE = 300


def sample(name: str, count: int, seed: int) -> None:
    number = max(10, round(count * getattr(MODULES[name], "SHARE", 1.0)))
    failures = [runner.attempt(name, MODULES[name], seed, at) for at in range(number)]
    messages = [f"input {one.number}: {one.data!r}\n{one.message}" for one in failures if one is not None]
    assert not messages, "\n".join(messages[:3])


@pytest.mark.parametrize("name", MODULES)
def test_a_sample_of_inputs(name: str) -> None:
    sample(name, SAMPLE, seed=0)


@pytest.mark.nightly
@pytest.mark.parametrize("name", MODULES)
def test_many_inputs(name: str) -> None:
    """The seed, and so the inputs, change every night."""
    sample(name, 20_000, seed=int(time.time()) // 86_400)


def test_the_runner_finds_errors_and_hangs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def check(data: bytes) -> None:
        if data == b"\1":
            raise IndexError("list index out of range")
        while data == b"\2":
            pass

    monkeypatch.setattr(runner, "LIMIT", 0.1)
    module = SimpleNamespace(inputs=lambda rng: bytes([int(rng.integers(3))]), check=check)
    found = {at: runner.attempt("x", module, 0, at) for at in range(12)}
    assert {one.data for one in found.values() if one is not None} == {b"\1", b"\2"}
    for at, failure in found.items():
        again = runner.attempt("x", module, 0, at)
        assert (failure is None) == (again is None)
        if failure is not None and again is not None:
            assert again.data == failure.data == module.inputs(runner.rng("x", 0, at))
            words = "IndexError" if failure.data == b"\1" else "TimeoutError: took over 0.1 s"
            assert words in failure.message
            assert failure.save(tmp_path).read_bytes() == failure.data
            assert f"--only x --seed 0 --first {at} --inputs 1" in (tmp_path / f"x-0-{at}.txt").read_text()
    with pytest.raises(ValueError, match="no fuzz module nothing; expected one of a3m"):
        runner.modules(["nothing"])


READERS = {
    "a3m": ("x.a3m", msa.read_all),
    "stockholm": ("x.sto", msa.read_all),
    "fasta": ("x.fa", read_fasta),
}


@pytest.mark.parametrize("name", READERS)
def test_inputs_differ_and_many_are_read(name: str) -> None:
    """Inputs must not be all alike, nor all rejected at the first byte."""
    made = [MODULES[name].inputs(runner.rng(name, 0, at)) for at in range(100)]
    assert len(set(made)) > 80
    assert 20 < sum(reading.read(one, *READERS[name]) is not None for one in made) < 90
