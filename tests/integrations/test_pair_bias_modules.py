"""Patched global and template attention, pair-weighted averaging and attention with pair bias of OpenFold, OpenFold3,
Boltz and Protenix: error, options, memory without gradients. Nightly also of the originals (``original_models``).
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from ds4sci.integrations import module_forwards, patch
from tests.support import pair_bias_modules as own
from tests.support.original_models import original
from tests.support.patched_model import BIG, WideTorch, check_accuracy, check_autocast_dtypes, randomize

N, ROWS, TEMPLATES, C, C_Z, C_T, HEADS = 9, 4, 3, 24, 32, 16, 3


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


REAL = torch.ones(2, N)
REAL[:, -2:] = 0
PAIR_MASK = REAL[:, :, None] * REAL[:, None]
MSA_MASK = (torch.rand(2, ROWS, N, generator=torch.Generator().manual_seed(3)) > 0.3).float() * REAL[:, None]
SAMPLES_MASK = REAL.repeat_interleave(2, 0)
S, S_SAMPLES, A_SAMPLES = normal(2, N, C), normal(4, N, C, seed=1), normal(2, 3, N, C, seed=2)
Z, M, T = normal(2, N, N, C_Z, seed=3), normal(2, ROWS, N, C, seed=4), normal(2, TEMPLATES, N, N, C_T, seed=5)
TEMPLATE_MASK = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])

CALLS: dict[str, tuple[str, str, tuple[Any, ...], dict[str, Any], dict[str, Any]]] = {
    "OpenFold global": (
        "MSAColumnGlobalAttention", "openfold.model.msa.MSAColumnGlobalAttention", (C, 8, HEADS),
        {"m": M, "mask": MSA_MASK}, {"chunk_size": 4},
    ),
    "OpenFold3 global": (
        "MSAColumnGlobalAttention", "openfold3.core.model.layers.msa.MSAColumnGlobalAttention", (C, 8, HEADS),
        {"m": M}, {"chunk_size": 4},
    ),
    "OpenFold template": (
        "TemplatePointwiseAttention", "openfold.model.template.TemplatePointwiseAttention", (C_T, C_Z, 8, 4, 1e9),
        {"t": T, "z": Z, "template_mask": TEMPLATE_MASK}, {"chunk_size": 16},
    ),
    "OpenFold3 averaging": (
        "OpenFold3PairWeightedAveraging", "openfold3.core.model.layers.msa.MSAPairWeightedAveraging",
        (C, 8, C_Z, HEADS), {"m": M, "z": Z, "mask": PAIR_MASK}, {"chunk_size": 4},
    ),
    "Boltz averaging": (
        "BoltzPairWeightedAveraging", "boltz.model.layers.pair_averaging.PairWeightedAveraging", (C, C_Z, 8, HEADS),
        {"m": M, "z": Z, "mask": PAIR_MASK}, {"chunk_heads": True},
    ),
    "Protenix averaging": (
        "ProtenixPairWeightedAveraging", "protenix.model.modules.pairformer.MSAPairWeightedAveraging",
        (C, 8, C_Z, HEADS), {"m": M[0], "z": Z[0]}, {},
    ),
    "OpenFold3 attention": (
        "OpenFold3AttentionPairBias", "openfold3.core.model.layers.attention_pair_bias.AttentionPairBias",
        (C, C, C, 20, C_Z, 8, HEADS), {"a": S, "z": Z, "mask": REAL}, {"use_high_precision_attention": True},
    ),
    "OpenFold3 diffusion": (
        "OpenFold3AttentionPairBias", "openfold3.core.model.layers.attention_pair_bias.AttentionPairBias",
        (C, C, C, C, C_Z, 8, HEADS, True),
        {"a": A_SAMPLES, "z": Z[:, None], "s": S[:, None], "mask": REAL[:, None]},
        {"use_deepspeed_evo_attention": False},
    ),
    "Boltz-1 attention": (
        "BoltzAttentionPairBias1", "boltz.model.layers.attention.AttentionPairBias", (C, C_Z, HEADS),
        {"s": S, "z": Z, "mask": REAL}, {},
    ),
    "Boltz-1 diffusion": (
        "BoltzAttentionPairBias1", "boltz.model.layers.attention.AttentionPairBias", (C, C_Z, HEADS, 1e6, False),
        {"s": S_SAMPLES, "z": Z[..., : N - 2, :], "mask": SAMPLES_MASK, "multiplicity": 2,
         "to_keys": lambda x: x[:, 1:-1].flip(1)}, {},
    ),
    "Boltz-2 attention": (
        "BoltzAttentionPairBias2", "boltz.model.layers.attentionv2.AttentionPairBias", (C, C_Z, HEADS),
        {"s": S, "z": Z, "mask": REAL, "k_in": S}, {},
    ),
    "Boltz-2 diffusion": (
        "BoltzAttentionPairBias2", "boltz.model.layers.attentionv2.AttentionPairBias", (C, 1, HEADS, 1e6, False),
        {"s": S_SAMPLES, "z": Z[..., :HEADS], "mask": SAMPLES_MASK, "k_in": S_SAMPLES + 1, "multiplicity": 2}, {},
    ),
    "Protenix attention": (
        "ProtenixAttentionPairBias", "protenix.model.modules.transformer.AttentionPairBias",
        (False, True, HEADS, C, 20, C_Z), {"a": S[0], "s": None, "z": Z[0]}, {"inplace_safe": True, "chunk_size": 4},
    ),
    "Protenix diffusion": (
        "ProtenixAttentionPairBias", "protenix.model.modules.transformer.AttentionPairBias",
        (True, False, HEADS, C, C, C_Z), {"a": S_SAMPLES, "s": S_SAMPLES + 1, "z": Z[:1]},
        {"inplace_safe": True, "n_queries": None},
    ),
}  # fmt: skip
"""Stand-in, original, arguments of its constructor, of a call, and of a call in evaluation."""

ORIGINAL = pytest.param(
    True, marks=[pytest.mark.nightly, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")],
    id="original",
)  # fmt: skip
SOURCES = pytest.mark.parametrize("is_original", [pytest.param(False, id="stand-in"), ORIGINAL])


def make(name: str, is_original: bool) -> nn.Module:
    stand_in, path, arguments, *_ = CALLS[name]
    module, _, class_name = path.rpartition(".")
    if is_original and arguments[1:] == (1, HEADS, 1e6, False):
        arguments = (C, None, *arguments[2:])
    made: nn.Module = getattr(original(module) if is_original else own, class_name if is_original else stand_in)(
        *arguments
    )
    return made


@contextlib.contextmanager
def widen(model: nn.Module) -> Iterator[None]:
    """The model in fp64 throughout: a mask value for fp64, and no casts to fp32."""
    for module in model.modules():
        if hasattr(module, "inf"):
            module.inf = BIG
    with contextlib.ExitStack() as stack:
        if "protenix.model.modules.primitives" in sys.modules:
            stack.enter_context(
                mock.patch.object(sys.modules["protenix.model.modules.primitives"], "torch", WideTorch())
            )
        stack.enter_context(mock.patch.object(torch.Tensor, "float", torch.Tensor.double))
        yield


def call(name: str, **options: Any) -> Callable[[nn.Module, Callable[[Tensor], Tensor]], list[Tensor]]:
    given = CALLS[name][3] | options

    def run(model: nn.Module, leaf: Callable[[Tensor], Tensor]) -> list[Tensor]:
        dtype = leaf(torch.zeros(1)).dtype
        inputs = {
            key: (x.to(dtype) if "mask" in key else leaf(x)) if isinstance(x, Tensor) else x for key, x in given.items()
        }
        return [model(**inputs)]

    return run


@SOURCES
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["fp32", "autocast"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", CALLS)
def test_error_against_fp64(name: str, training: bool, autocast: torch.dtype | None, is_original: bool) -> None:
    """Outputs and all gradients; in evaluation with the options that select chunks and operations in place."""
    options = {} if training else CALLS[name][4]
    check_accuracy(
        make(name, is_original).train(training),
        call(name, **options),
        widen=widen,
        autocast=autocast,
        draws=4 if is_original else 2,
    )


@SOURCES
@pytest.mark.parametrize("name", CALLS)
def test_evaluation_in_parts(name: str, is_original: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients the result is the same, on the kernels, for parts that do not divide the rows."""
    monkeypatch.setattr(module_forwards, "part_slices", lambda x, dim: _slices(x.shape[dim]))
    model, run = randomize(make(name, is_original)).eval(), call(name, **CALLS[name][4])
    with torch.no_grad():
        (want,) = run(model, lambda x: x.clone())
        report = patch(model, verbose=False)
        (got,) = run(model, lambda x: x.clone())
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    ((_, calls),) = report.modules.values()
    assert (calls.on_kernels, calls.fallbacks.total()) == (1, 0), report


def _slices(length: int) -> list[slice]:
    return [slice(first, min(first + 2, length)) for first in range(0, length, 2)]


@SOURCES
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_dtypes_under_autocast(training: bool, is_original: bool) -> None:
    modules = nn.ModuleList([make(name, is_original) for name in CALLS]).train(training)
    assert len(check_autocast_dtypes(modules)) == 8


BF16 = [name for name in CALLS if name.startswith("OpenFold") and "global" not in name]
"""Modules whose layers cast fp32 weights to bf16 activations outside autocast."""


@SOURCES
@pytest.mark.parametrize("name", BF16)
def test_fp32_weights_with_bf16_activations(name: str, is_original: bool) -> None:
    model, inputs = randomize(make(name, is_original)).eval(), CALLS[name][3]
    given = {key: x.bfloat16() if isinstance(x, Tensor) else x for key, x in inputs.items()}
    with torch.no_grad():
        exact, want = model(**inputs), model(**given)
        report = patch(model, verbose=False)
        got = model(**given)
    ((_, calls),) = report.modules.values()
    assert (calls.on_kernels, calls.fallbacks.total()) == (1, 0), report
    assert got.dtype == want.dtype
    assert (got - exact).norm() <= 3 * (want - exact).norm()


@SOURCES
def test_boltz_keeps_its_bias_in_the_cache(is_original: bool) -> None:
    model = randomize(make("Boltz-1 diffusion", is_original)).eval()
    inputs = CALLS["Boltz-1 diffusion"][3]
    caches: list[dict[str, Tensor]] = [{}, {}]
    with torch.no_grad():
        want = [model(**inputs, model_cache=caches[0]) for _ in range(2)]
        patch(model, verbose=False)
        got = [model(**inputs, model_cache=caches[1]) for _ in range(2)]
    torch.testing.assert_close(caches[1]["z"], caches[0]["z"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@SOURCES
def test_protenix_efficient_fusion(is_original: bool) -> None:
    """z is then normalized already, without weights, with its channels first."""
    model = randomize(make("Protenix diffusion", is_original)).eval()
    z = nn.functional.layer_norm(Z[:1], (C_Z,)).movedim(-1, -3).contiguous()
    given = {"a": S_SAMPLES, "s": S_SAMPLES + 1, "z": z, "enable_efficient_fusion": True, "inplace_safe": True}
    with torch.no_grad():
        want = model(**given)
        report = patch(model, verbose=False)
        torch.testing.assert_close(model(**given), want, rtol=1e-4, atol=1e-4)
    assert report.calls["AttentionPairBias" if is_original else "ProtenixAttentionPairBias"].on_kernels == 1


def test_attention_within_blocks_of_atoms_falls_back_or_is_skipped() -> None:
    model = randomize(make("Protenix diffusion", False)).eval()
    crossed = own.ProtenixAttentionPairBias(True, False, HEADS, C, C, C_Z, cross_attention_mode=True)
    report = patch(nn.ModuleList([model, crossed]), verbose=False)
    reason = "attention within blocks of atoms has no kernel"
    assert report.skipped == {("ProtenixAttentionPairBias", reason): 1}
    with pytest.warns(RuntimeWarning, match=reason):
        assert not model(S, S, Z, n_queries=4, n_keys=8).any()


def test_unusual_shapes_fall_back() -> None:
    boltz, protenix = (randomize(make(name, False)) for name in ("Boltz-2 attention", "Protenix attention"))
    for module in (boltz, protenix):
        patch(module, verbose=False)
    with (
        pytest.warns(RuntimeWarning, match=r"s has 2 examples, z has 2, and multiplicity is 3"),
        pytest.raises(RuntimeError),
    ):
        boltz(S, Z, REAL, S, multiplicity=3)
    with (
        pytest.warns(RuntimeWarning, match=r"its mask does not have the shape \[b, k\]"),
        contextlib.suppress(RuntimeError),
    ):
        boltz(S, Z, PAIR_MASK, S)
    with pytest.warns(RuntimeWarning, match="a has 3 dimensions and z 3"):
        protenix(S, None, Z[0])


class SoftmaxOverQueries(own.OpenFold3PairWeightedAveraging):
    """Averages with weights that are normalized along the wrong axis."""

    def forward(
        self, m: Tensor, z: Tensor | None = None, mask: Tensor | None = None, chunk_size: int | None = None, **_: Any
    ) -> Tensor:
        assert z is not None
        return super().forward(m, z.transpose(-2, -3), mask)


class GatedTemplates(own.TemplatePointwiseAttention):
    def __init__(self) -> None:
        super().__init__(C_T, C_Z, 8, 4, 1e9)
        self.mha = own.Attention(C_Z, C_T, C_T, 8, 4)


class UnmaskedMean(own.MSAColumnGlobalAttention):
    """Global attention whose queries are the mean over all rows."""

    def forward(
        self, m: Tensor, mask: Tensor | None = None, chunk_size: int | None = None, use_lma: bool = False
    ) -> Tensor:
        return super().forward(m, None)


class BiasAfterMask(own.BoltzAttentionPairBias2):
    """Attention whose pair bias is scaled like the products of queries and keys."""

    def forward(self, s: Tensor, z: Tensor, mask: Tensor, k_in: Tensor, multiplicity: int = 1) -> Tensor:
        return self.attend(s, k_in, self.proj_z(z).repeat_interleave(multiplicity, 0) * 0.5, mask)


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (SoftmaxOverQueries(C, 8, C_Z, HEADS), "its output differs from that of the published algorithm"),
        (GatedTemplates(), "its attention has a gate"),
        (UnmaskedMean(C, 8, HEADS), "its output differs from that of the published algorithm"),
        (BiasAfterMask(C, C_Z, HEADS), "its output differs from that of the published algorithm"),
    ],
)
def test_modules_that_look_alike_are_skipped_with_the_reason(module: nn.Module, why: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=f"no module to patch .1 {type(module).__name__}: {why}"):
            patch(module, verbose=False)
