"""Saved tensors in host memory leave gradients unchanged, and freed large tensors return to the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from ds4sci.nn import activation_memory
from tests.support import language_oracle as oracle

SIZES = {"masked_lm": oracle.ESM, "causal_lm": oracle.LLAMA}


def gradients(kind: str, device: str = "cpu", **more: object) -> dict[str, Tensor]:
    model = oracle.model(kind, SIZES[kind], activation_budget=0, tile_size=16, **more).train().to(device)
    out = model(oracle.batch(kind, [[17, 9, 30]], 64).to(torch.device(device)))
    ((out.losses * out.weights).sum() / out.weights.sum()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", SIZES)
def test_offload_moves_only_layer_inputs(kind, monkeypatch) -> None:
    """``to_host`` returns CPU tensors unchanged, so the test replaces it by a copy, as for a tensor on a GPU."""
    moved: list[Tensor] = []

    def copied(x: Tensor) -> activation_memory.HostCopy:
        moved.append(x)
        return x.device, x.detach().clone()

    expected = gradients(kind, offload=True)
    monkeypatch.setattr(activation_memory, "to_host", copied)
    offloaded = gradients(kind, offload=True)
    width = SIZES[kind]["hidden_size"]
    assert [tuple(x.shape) for x in moved] == [(1, 64, width)] * SIZES[kind]["num_hidden_layers"]
    assert set(offloaded) == set(expected)
    for name, grad in offloaded.items():
        assert torch.equal(grad, expected[name]), name


def test_offload_is_off_by_default(monkeypatch) -> None:
    monkeypatch.setattr(activation_memory, "to_host", lambda x: pytest.fail("a tensor was moved"))
    gradients("causal_lm")


@pytest.mark.gpu
@pytest.mark.parametrize("kind", SIZES)
def test_offload_on_a_gpu_leaves_gradients_unchanged(kind) -> None:
    expected, offloaded = (gradients(kind, "cuda", offload=offload) for offload in (False, True))
    assert set(offloaded) == set(expected)
    for name, grad in offloaded.items():
        assert torch.equal(grad, expected[name]), name


@pytest.mark.gpu
def test_round_trip_through_pinned_memory() -> None:
    x = torch.randn(1000, 33, device="cuda", dtype=torch.bfloat16)
    saved = activation_memory.to_host(x)
    assert not isinstance(saved, Tensor)
    assert saved[1].is_pinned()
    assert torch.equal(activation_memory.from_host(saved), x)


FREED_TENSORS = """
import torch
from ds4sci.nn import activation_memory

def resident():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * 4096

assert activation_memory.return_freed_tensors()
before = resident()
small = []
for _ in range(20):  # each large tensor is freed between small ones that stay allocated
    large = torch.ones(6 << 20, dtype=torch.uint8)
    small.append(torch.ones(1 << 16, dtype=torch.uint8))
    del large
print((resident() - before) / (1 << 20))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is set for glibc only")
def test_freed_tensors_return_to_the_system() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FREED_TENSORS], capture_output=True, text=True, timeout=120, check=True
    )
    assert float(done.stdout) < 6


PAGE_FAULTS = """
import resource
import torch
from ds4sci.nn import activation_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(40):
        torch.ones(6 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with activation_memory.reuse_freed_tensors():
    pass  # without effect
activation_memory.return_freed_tensors()
returned = faults()
with activation_memory.reuse_freed_tensors():
    reused = faults()
print(returned, reused)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is set for glibc only")
def test_chunks_reuse_the_memory_of_freed_tensors() -> None:
    done = subprocess.run([sys.executable, "-c", PAGE_FAULTS], capture_output=True, text=True, timeout=120, check=True)
    returned, reused = map(int, done.stdout.split())
    assert reused < returned / 4
