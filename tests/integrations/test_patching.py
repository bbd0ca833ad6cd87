"""Effects of patch() on a model: weights, names, classes, copies, pickles, hooks and unsupported modules."""

from __future__ import annotations

import copy
import gc
import io
import json
import os
import subprocess
import sys
import threading
import warnings
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ds4sci import kernels
from ds4sci.integrations import patch, patching, unpatch, verification
from ds4sci.integrations.attention_map import LazyAttentionMap
from tests.support import openfold_modules as openfold
from tests.support.openfold_modules import PairModel
from tests.support.patched_model import randomize

C_Z, N = 16, 6


@pytest.fixture
def model() -> nn.Module:
    return randomize(PairModel(C_Z))


Z = torch.randn(2, N, N, C_Z, generator=torch.Generator().manual_seed(0))


def patched(model: nn.Module) -> set[str]:
    """Names of the patched modules. Checks that each method refers to its own module."""
    found = {name: m.__dict__["forward"] for name, m in model.named_modules() if "forward" in m.__dict__}
    for name, forward in found.items():
        assert forward.module() is model.get_submodule(name)
    return set(found)


KNOWN = {"start", "end", "transition"}


def test_report(model: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    report = patch(model)
    assert capsys.readouterr().out == (
        "ds4sci: 3 modules of PairModel are patched\n"
        "  TriangleAttention     2  pair_bias, gated_self_attention  no calls yet\n"
        "  PairTransition        1  transition                       no calls yet\n"
    )
    assert report.replaced["PairTransition"] == (1, ("transition",))
    patch(model, verbose=False)
    assert capsys.readouterr().out == ""


def test_patch_and_unpatch(model: nn.Module) -> None:
    before, classes = model(Z), [type(m) for m in model.modules()]
    keys, attributes = list(model.state_dict()), [set(m.__dict__) for m in model.modules()]
    patch(model, verbose=False)
    assert patched(model) == KNOWN
    assert list(model.state_dict()) == keys
    assert [type(m) for m in model.modules()] == classes
    torch.testing.assert_close(model(Z), before)
    patch(model, verbose=False)
    assert patched(model) == KNOWN
    torch.testing.assert_close(model(Z), before)
    unpatch(model)
    assert [set(m.__dict__) for m in model.modules()] == attributes
    assert torch.equal(model(Z), before)
    unpatch(model)


def test_state_dict_is_unchanged(model: nn.Module) -> None:
    other = randomize(PairModel(C_Z), seed=1)
    patch(other, verbose=False)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(Z), model(Z))
    fresh = PairModel(C_Z)
    fresh.load_state_dict(other.state_dict())
    assert torch.equal(fresh(Z), model(Z))


def test_copy_is_patched_and_has_its_own_weights(model: nn.Module) -> None:
    patch(model, verbose=False)
    twin = copy.deepcopy(model)
    before = model(Z)
    assert patched(twin) == KNOWN
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert twin(Z).abs().max() == 0
    assert torch.equal(model(Z), before)
    unpatch(twin)
    assert patched(model) == KNOWN


def test_pickle_is_patched(model: nn.Module) -> None:
    patch(model, verbose=False)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert patched(loaded) == KNOWN
    assert torch.equal(loaded(Z), model(Z))


@pytest.mark.parametrize("copied", [False, True])
def test_deleted_model_is_freed_without_garbage_collection(copied: bool) -> None:
    own = randomize(PairModel(C_Z))
    patch(own, verbose=False)
    if copied:
        own = copy.deepcopy(own)
    own(Z).sum().backward()
    weight = weakref.ref(own.start.mha.linear_q.weight)
    gc.disable()
    try:
        del own
        assert weight() is None
    finally:
        gc.enable()


def test_model_without_supported_modules_raises() -> None:
    with pytest.raises(
        ValueError, match=r"Linear has no module to patch. Supported are ESMFold.*EsmFoldTriangleAttention"
    ):
        patch(nn.Linear(2, 2))


def test_unknown_implementation_raises_and_changes_nothing(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="has no implementation 'cutlass'; expected one of: "):
        patch(model, implementation="cutlass")
    assert patched(model) == set()


def test_implementation_is_passed_to_the_kernels(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    patch(model, implementation="reference", verbose=False)
    asked: list[tuple[str, str | None]] = []
    for name in ("pair_bias", "gated_self_attention", "transition"):
        kernel = getattr(kernels, name)

        def watched(*args: Any, name: str = name, kernel: Any = kernel, **kwargs: Any) -> Tensor:
            asked.append((name, kwargs["implementation"]))
            return kernel(*args, **kwargs)

        monkeypatch.setattr(kernels, name, watched)
    want = model(Z)
    attention = [("pair_bias", "reference"), ("gated_self_attention", "reference")]
    assert asked == [*attention, *attention, ("transition", "reference")]
    asked.clear()
    patch(model, verbose=False)
    torch.testing.assert_close(model(Z), want)
    assert asked[-1] == ("transition", None)


def test_forward_replaced_by_other_code_is_kept(model: nn.Module) -> None:
    foreign = model.start.forward = lambda z: torch.zeros_like(z)
    report = patch(model, verbose=False)
    assert report.skipped == {("TriangleAttention", "its forward is already replaced by other code"): 1}
    assert model.start.forward is foreign
    unpatch(model)
    assert model.start.forward is foreign


class Adapter(nn.Linear):
    """An adapter: a linear layer plus another one."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.load_state_dict(linear.state_dict())
        self.low = nn.Parameter(torch.ones(linear.out_features, linear.in_features))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + nn.functional.linear(x, self.low)


def test_adapters_cause_a_fallback(model: nn.Module) -> None:
    patch(model, verbose=False)
    model.start.mha.linear_v = Adapter(model.start.mha.linear_v)
    with pytest.warns(
        RuntimeWarning, match="TriangleAttention falls back to its original forward: its mha.linear_v was replaced"
    ):
        got = model(Z)
    report = patch(model, verbose=False)
    assert report.skipped == {("TriangleAttention", "its output differs from that of the published algorithm"): 1}
    assert patched(model) == {"end", "transition"}
    torch.testing.assert_close(model(Z), got)
    unpatch(model)
    torch.testing.assert_close(model(Z), got)


def test_hooks_are_called(model: nn.Module) -> None:
    seen = []
    model.start.register_forward_hook(lambda module, args, out: seen.append("start"))
    patch(model, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(Z)
    assert seen == ["start"]
    handle = model.transition.linear_1.register_forward_hook(lambda module, args, out: seen.append("linear_1"))
    with pytest.warns(
        RuntimeWarning, match="PairTransition falls back to its original forward: its linear_1 has hooks"
    ):
        model(Z)
    assert seen == ["start", "start", "linear_1"]
    handle.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(Z)


class TripledOutput(openfold.Attention):
    """A wrapper with the attributes of the attention."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return 3 * super().forward(*args, **kwargs)


@pytest.mark.parametrize("part", ["mha", "mha.sigmoid"])
def test_hooks_of_unread_submodules_cause_a_fallback(model: nn.Module, part: str) -> None:
    """The kernels neither call nor read the attention module around the projections and its sigmoid."""
    own = copy.deepcopy(model)
    patch(model, verbose=False)
    for one in (own, model):
        one.start.get_submodule(part).register_forward_hook(lambda module, args, out: 0 * out)
    with pytest.warns(
        RuntimeWarning, match=f"TriangleAttention falls back to its original forward: its {part} has hooks"
    ):
        assert torch.equal(model.start(Z), own.start(Z))


def test_replaced_attention_causes_a_fallback(model: nn.Module) -> None:
    patch(model, verbose=False)
    attention = TripledOutput(C_Z, C_Z, C_Z, 8, 2)
    attention.load_state_dict(model.start.mha.state_dict())
    want = 3 * model.start(Z)
    model.start.mha = attention
    with pytest.warns(RuntimeWarning, match="its mha was replaced by a TripledOutput"):
        torch.testing.assert_close(model.start(Z), want)


def test_verification_does_not_call_or_copy_hooks(model: nn.Module) -> None:
    lock = threading.Lock()  # cannot be copied
    model.start.linear.register_forward_hook(lambda module, args, out: pytest.fail("called"))
    model.end.mha.register_forward_pre_hook(partial(lambda held, module, args: pytest.fail("called"), lock))
    assert len(patch(model, verbose=False).replaced) == 2


class GpuOnly(openfold.PairTransition):
    """A module that fails on the CPU. The test simulates this: the first call fails."""

    calls = 0

    def forward(self, z: Tensor, mask: Tensor | None = None, chunk_size: int | None = None) -> Tensor:
        type(self).calls += 1
        if type(self).calls == 1:
            raise RuntimeError("no kernel for CPU tensors")
        return super().forward(z, mask)


def test_modules_that_do_not_run_on_a_cpu_are_verified_on_their_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verification._devices(GpuOnly(C_Z, 2)) == [torch.device("cpu")]
    with pytest.raises(
        ValueError, match="1 GpuOnly: a small call of its original forward fails: no kernel for CPU tensors"
    ):
        patch(GpuOnly(C_Z, 2), verbose=False)
    GpuOnly.calls = 0
    monkeypatch.setattr(verification, "_devices", lambda module: [torch.device("cpu")] * 2)
    assert list(patch(GpuOnly(C_Z, 2), verbose=False).replaced) == ["GpuOnly"]


def test_mixed_dtypes_fall_back(model: nn.Module) -> None:
    patch(model, verbose=False)
    model.transition.bfloat16()
    with (
        pytest.warns(RuntimeWarning, match="activations are float32 and the norm's weights bfloat16"),
        pytest.raises(RuntimeError),
    ):
        model(Z)


class EmptySubclass(openfold.TriangleAttention):
    """A subclass without changes, treated like its parent."""


def test_subclass_is_patched() -> None:
    assert list(patch(EmptySubclass(C_Z, 8, 2), verbose=False).replaced) == ["EmptySubclass"]


def test_modules_of_equal_configuration_are_verified_once(monkeypatch: pytest.MonkeyPatch) -> None:
    verified = []
    monkeypatch.setattr(patching, "verify", lambda replacement, module: verified.append(module.starting))
    patch(nn.ModuleList([openfold.TriangleAttention(C_Z, 8, 2, starting=i % 2 == 0) for i in range(6)]), verbose=False)
    assert verified == [True, False]


def test_patching_preserves_random_state_and_weights(model: nn.Module) -> None:
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    patch(model, verbose=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_torch_compile_without_graph_breaks(model: nn.Module) -> None:
    patch(model, verbose=False)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    weights = list(model.parameters())
    outputs = [run(Z) for run in (compiled, model)]
    torch.testing.assert_close(*outputs)
    gradients = [torch.autograd.grad(out.square().sum(), weights) for out in outputs]
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_attention_map_is_computed_on_access() -> None:
    made = []
    x = torch.rand(2, 3, requires_grad=True)
    lazy = LazyAttentionMap(lambda: made.append(1) or x * 2)
    assert made == []
    assert lazy.shape == (2, 3)
    assert torch.equal(lazy[0], 2 * x[0])
    assert torch.equal(torch.add(lazy, 1), 2 * x + 1)
    assert torch.equal(x + lazy, 3 * x)
    assert lazy.tensor() is lazy.tensor()
    assert made == [1]
    lazy.sum().backward()
    assert torch.equal(x.grad, torch.full((2, 3), 2.0))


ZERO_3 = """
import sys
from pathlib import Path
import torch
from ds4sci.config import deepspeed_json
from ds4sci.integrations import patch
from ds4sci.train.engine import Engine, init_distributed
from tests.support.openfold_modules import PairModel
from tests.support.patched_model import randomize

Z = torch.randn(2, 6, 6, 16, generator=torch.Generator().manual_seed(0))

json_file = Path(sys.argv[1])
context = init_distributed(deepspeed_json.read(json_file))
losses = []
for patched in (False, True):
    model = randomize(PairModel(16))
    if patched:
        patch(model, verbose=False)
    engine = Engine(model, json_file, context)
    assert engine.zero_stage == 3
    for _ in range(3):
        loss = engine.deepspeed(Z).square().mean()
        engine.backward(loss, 1.0)
        engine.step()
        losses.append(loss.item())
    assert model.start.linear.weight.numel() == 0, "ZeRO-3 partitions the weights between steps"
    engine.deepspeed.destroy()
print(*losses)
"""


@pytest.mark.slow
def test_zero3_gathers_weights_that_the_kernels_read(tmp_path: Path) -> None:
    """Three steps with and without patch on one rank; submodules whose weights are read are never called."""
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "optimizer": {"type": "AdamW", "params": {"lr": 0.01, "torch_adam": True}},
    }
    (tmp_path / "zero3.json").write_text(json.dumps(config), encoding="utf-8")
    environment = {
        **os.environ, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
        "PYTHONWARNINGS": "error::RuntimeWarning:torch.nn.modules.module",
    }  # fmt: skip
    command = [sys.executable, "-c", ZERO_3, str(tmp_path / "zero3.json")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    losses = [float(word) for word in done.stdout.splitlines()[-1].split()]
    assert losses[0] > losses[2]
    assert losses[3:] == pytest.approx(losses[:3], rel=1e-5)
