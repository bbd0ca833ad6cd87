"""Estimated memory of a prediction against the peak resident memory that the system reports."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ds4sci.machine import memory

MEASURE = """
import ctypes, gc, json, sys
import torch
from ds4sci.config.run_file import RunConfig
from ds4sci.config.task_module import import_task
from ds4sci.data.alignments.profile import with_msa_input
from ds4sci.data.sequences import fasta_records
from ds4sci.machine.memory import from_proc
torch.set_num_threads(1)
n, overrides = int(sys.argv[1]), sys.argv[2:]
off = ["data.evaluation_relaxation=0", "data.evaluation_refinement=0", "model.structure.iterations=1"]
config = RunConfig.load("configs/fold/tiny_cpu.toml", [*off, "model.evoformer.blocks=1", *overrides])
task = import_task("fold").build(config.settings, seed=0, steps=1)
record = lambda n: with_msa_input(fasta_records.make_record("x", "ACDEFGHIKLMNPQRSTVWY" * (n // 20)), "profile")
predict = lambda one: task.predict([task.featurize(one)], torch.device("cpu"))
predict(record(20))  # memory that the first prediction allocates permanently
gc.collect()
ctypes.CDLL("libc.so.6").malloc_trim(0)
open("/proc/self/clear_refs", "w").write("5")
before = from_proc("self/status", "VmRSS")
predict(record(n))
print(json.dumps([task.prediction_bytes(record(n)), from_proc("self/status", "VmHWM") - before]))
"""
SIZES = {
    "small pairs": ["model.c_z=8"],
    "wide pairs": ["model.c_z=96", "model.evoformer.c_multiplication=48"],
    "recycling": ["model.c_z=16", "data.evaluation_recycling=1"],
}


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the system does not report the peak memory of a process"
)
@pytest.mark.parametrize(
    "what",
    [
        pytest.param("small pairs", marks=pytest.mark.slow),
        pytest.param("wide pairs", marks=pytest.mark.nightly),
        pytest.param("recycling", marks=pytest.mark.nightly),
    ],
)
def test_memory_estimate_against_measurement(what: str) -> None:
    """The ratio is between 0.7 and 1.5, accurate enough to refuse predictions that would run out of memory."""
    root = Path(__file__).parents[2]
    arguments = [sys.executable, "-c", MEASURE, "500", *SIZES[what]]
    done = subprocess.run(arguments, cwd=root, capture_output=True, text=True, check=True)
    estimate, measured = json.loads(done.stdout.splitlines()[-1])
    assert 0.7 < estimate / measured < 1.5


def test_available_memory() -> None:
    there = memory.available_bytes("cpu")
    total = memory.from_proc("meminfo", "MemTotal")
    assert there is not None
    assert total is not None
    assert 0 < there <= total
