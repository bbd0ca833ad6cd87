"""Contract tests that every kernel shares: accuracy, gradients, memory, shapes, growth of errors.

``tests/kernels/test_OP.py`` subclasses ``KernelContract`` or ``FusedContract`` with its kernel. Tests are parametrized
over the implementations that can run on this machine, and over the kernel's cases.
"""

from __future__ import annotations

import contextlib
import functools
import math
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ds4sci import kernels
from ds4sci.bench.memory import peak_memory_mb
from ds4sci.kernels import tiles
from ds4sci.kernels.evoformer_attention import tiled
from ds4sci.kernels.spec import Case, Implementation, Kernel, SizeSweep

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CPU = torch.device("cpu")
GPU_ONLY = ("triton", "flash", "flex")
"""Implementations whose inputs are made on a GPU where there is one."""
CONSTANT = {"outer_product_mean": ("mask",), "triangle_multiplication": ("mask",)}
"""Floating-point inputs without a gradient, by kernel."""
SAME_BITS = {"evoformer_attention": ("triton", "native", "tiled"), "varlen_attention": ("native",)}
"""Implementations whose results do not depend on the number of threads. Not sdpa: the last bit of torch's backward
differs on 257 tokens."""
SAVES_OUTPUT = {"evoformer_attention": ("triton", "native", "tiled"), "varlen_attention": ("flash", "native")}
"""Implementations that save their output for backward: modifying it in place is an error, as in torch's SDPA."""
UNCHECKED_DIMENSIONS = {("pair_bias", "weight", 0), ("varlen_attention", "doc_spans", 0)}
"""Dimensions that no other input determines: the number of heads, of documents."""
FEW_ELEMENTS = 100
"""Results with fewer elements are compared over four draws of the inputs: one draw says little about the errors."""


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers that depend on the shape and the seed."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def make_inputs(case: Case, dtype: torch.dtype, implementation: Implementation, seed: int = 0) -> dict[str, Any]:
    """Inputs of ``case`` on the device of ``implementation``."""
    on_gpu = implementation.name in GPU_ONLY and torch.cuda.is_available()
    return case.make(torch.Generator().manual_seed(seed), dtype, torch.device("cuda" if on_gpu else "cpu"))


def named_tensors(inputs: dict[str, Any]) -> dict[str, Tensor]:
    """Tensors by name; those within tuples as ``weights.3.0``."""
    found: dict[str, Tensor] = {}

    def visit(name: str, x: Any) -> None:
        if isinstance(x, Tensor):
            found[name] = x
        elif isinstance(x, tuple):
            for i, part in enumerate(x):
                visit(f"{name}.{i}", part)

    for name, x in inputs.items():
        visit(name, x)
    return found


def floats(inputs: dict[str, Any]) -> dict[str, Tensor]:
    """The floating-point tensors of ``named_tensors``."""
    return {name: x for name, x in named_tensors(inputs).items() if x.is_floating_point()}


def differentiable(kernel: Kernel, inputs: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of ``floats`` that have a gradient."""
    return {name: x for name, x in floats(inputs).items() if name not in CONSTANT.get(kernel.name, ())}


def replaced(inputs: dict[str, Any], by: dict[str, Tensor]) -> dict[str, Any]:
    """``inputs`` with other tensors under these names."""

    def visit(name: str, x: Any) -> Any:
        if isinstance(x, tuple):
            parts = [visit(f"{name}.{i}", part) for i, part in enumerate(x)]
            return type(x)(*parts) if hasattr(x, "_fields") else tuple(parts)
        return by.get(name, x)

    return {name: visit(name, x) for name, x in inputs.items()}


def to_fp64(inputs: dict[str, Any]) -> dict[str, Any]:
    return replaced(inputs, {name: x.double() for name, x in floats(inputs).items()})


def run(
    kernel: Kernel, function: Any, inputs: dict[str, Any], needs_grad: set[str] | None = None
) -> dict[str, torch.Tensor]:
    """Output and gradients of a weighted sum of the output, as fp64. ``needs_grad``: names; all by default."""
    leaves = {
        name: x.detach().requires_grad_(needs_grad is None or name in needs_grad)
        for name, x in differentiable(kernel, inputs).items()
    }
    out = function(**replaced(inputs, leaves))
    if not out.requires_grad:
        return {"out": out.detach().double()}
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(out)
    variables = {name: x for name, x in leaves.items() if x.requires_grad}
    grads = torch.autograd.grad(out, list(variables.values()), weight)
    return {"out": out.detach().double()} | {
        f"grad {name}": grad.double() for name, grad in zip(variables, grads, strict=True)
    }


@contextlib.contextmanager
def uninitialized_memory_is_nan() -> Iterator[None]:
    """Within the block, uninitialized memory holds NaN, so that elements that are not written are detected."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@functools.cache
def _refusals(kernel_name: str, case_name: str) -> dict[str, str | None]:
    kernel = kernels.KERNELS[kernel_name]
    case = next(one for one in kernel.cases if one.name == case_name)
    return {one.name: one.why_not(**make_inputs(case, torch.float32, one)) for one in kernel.implementations}


def runnable(kernel: Kernel, cases: tuple[Case, ...] | None = None) -> list[tuple[Implementation, Case]]:
    """Every implementation of ``kernel`` with every case that it can run on this machine."""
    return [
        (one, case)
        for one in kernel.implementations
        for case in (kernel.cases if cases is None else cases)
        if _refusals(kernel.name, case.name)[one.name] is None
    ]


def runnable_names(kernel: Kernel, names: tuple[str, ...] | None = None) -> list[str]:
    """Names of the implementations that can run the kernel's first case on this machine; only those in ``names``."""
    found = [one.name for one, _ in runnable(kernel, kernel.cases[:1])]
    return [name for name in found if names is None or name in names]


def cpu_names(kernel: Kernel) -> list[str]:
    """Runnable implementations that compute on the CPU."""
    return [name for name in runnable_names(kernel) if name not in GPU_ONLY]


def errors_over_draws(
    kernel: Kernel, implementation: Implementation, case: Case, dtype: torch.dtype, name: str
) -> tuple[Tensor, Tensor]:
    """Errors of the implementation and of plain torch: root mean squares over four draws of the inputs."""
    errors = []
    for seed in range(4):
        inputs = make_inputs(case, dtype, implementation, seed)
        expected = run(kernel, kernel.reference, to_fp64(inputs))[name]
        errors += [(run(kernel, x, inputs)[name] - expected).norm() for x in (implementation.run, kernel.reference)]
    ours, plain = (torch.stack(errors[i::2]).square().mean().sqrt() for i in range(2))
    return ours, plain


class RelativeErrors(NamedTuple):
    """Errors of an implementation divided by those of plain torch, on ``samples`` elements.

    typical  root mean square, then the geometric mean over draws, since a few large elements would dominate one draw
    largest  largest element
    """

    typical: float
    largest: float
    samples: int


GROWTH_SAMPLES = 256
"""Elements on which a ratio of errors is measured, over as many draws as that takes, up to GROWTH_DRAWS."""
GROWTH_DRAWS = {False: 16, True: 4}
"""Draws for up to 10,000 terms, and for more."""


def relative_errors(kernel: Kernel, sweep: SizeSweep, size: int, dtype: torch.dtype) -> dict[str, RelativeErrors]:
    """Errors by implementation and result. Plain torch's error counts at least as the rounding of the result."""
    case, draws, draw = sweep.case(size), 1, 0
    eps = torch.finfo(dtype).eps
    ratios: dict[str, list[tuple[float, float, int]]] = {}
    while draw < draws:
        inputs = make_inputs(case, dtype, kernel.implementations[-1], draw)
        expected, plain = run(kernel, kernel.reference, to_fp64(inputs)), run(kernel, kernel.reference, inputs)
        draws = min(GROWTH_DRAWS[size > 10_000], math.ceil(GROWTH_SAMPLES / min(x.numel() for x in expected.values())))
        for one in kernel.implementations:
            if one.run is kernel.reference or one.why_not(**inputs):
                continue
            for name, x in run(kernel, one.run, inputs).items():
                ours, theirs, rounding = x - expected[name], plain[name] - expected[name], eps * expected[name]
                typical = ours.norm() / max(theirs.norm(), 0.3 * rounding.norm())
                largest = ours.abs().max() / max(theirs.abs().max(), rounding.abs().max())
                ratios.setdefault(f"{one.name}: {name}", []).append((float(typical), float(largest), x.numel()))
        draw += 1
    return {
        key: RelativeErrors(
            math.exp(statistics.fmean(math.log(max(typical, 1e-9)) for typical, _, _ in found)),
            statistics.median(largest for _, largest, _ in found),
            sum(samples for _, _, samples in found),
        )
        for key, found in ratios.items()
    }


def assert_no_growth(kernel: Kernel, sweep: SizeSweep, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    """Errors are at most 3 times plain torch's at every size, and 1.3 times the ratio at the smallest size.

    A ratio below 1 counts as 1: an implementation need not be better than plain torch. The uncertainty of a ratio
    falls with the square root of the number of elements it is measured on.
    """
    found = {size: relative_errors(kernel, sweep, size, dtype) for size in sizes}
    assert found[sizes[0]], "no implementation except the reference runs here"
    for size, by_result in found.items():
        for key, ratio in by_result.items():
            smallest = found[sizes[0]][key]
            assert ratio.typical <= 3, f"{key} at {size}: {ratio}"
            assert ratio.largest <= 6, f"{key} at {size}: {ratio}"  # one element among thousands is noisier
            uncertainty = 1 + 2 / math.sqrt(min(ratio.samples, smallest.samples))
            limit = 1.3 * max(smallest.typical, 1.0) * uncertainty
            assert ratio.typical <= limit, f"{key} at {size}: {ratio} after {smallest}"


def peak_in_outputs(call: Callable[[], torch.Tensor]) -> float:
    """Peak memory of forward and backward over the inputs, as a multiple of the output."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from Linux's /proc")
    out = call()
    weight = torch.ones_like(out)
    out.backward(weight)
    peak = peak_memory_mb(lambda: call().backward(weight), torch.device("cpu"))
    assert peak is not None
    return peak / (weight.nbytes / 1e6)


def _pair_params(pairs: list[tuple[Implementation, Case]]) -> list[Any]:
    return [pytest.param(one, case, id=f"{one.name}-{case.name}") for one, case in pairs]


class KernelContract:
    """Tests of one kernel. Subclasses set ``kernel`` and ``empty_inputs``."""

    kernel: ClassVar[Kernel]

    @staticmethod
    def empty_inputs() -> list[dict[str, Any]]:
        """Inputs with dimensions of size 0."""
        raise NotImplementedError

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        kernel, names = metafunc.cls.kernel, metafunc.fixturenames
        if "implementation" in names:
            first_two = "in_place" in metafunc.function.__name__ or "owns" in metafunc.function.__name__
            pairs = runnable(kernel, kernel.cases[:2] if first_two else None)
            if "threads" in metafunc.function.__name__:
                pairs = [pair for pair in pairs if pair[0].name in SAME_BITS.get(kernel.name, ())]
            metafunc.parametrize(("implementation", "case"), _pair_params(pairs))
        if "dtype" in names and "sweep" not in names:
            metafunc.parametrize("dtype", DTYPES, ids=lambda x: str(x).removeprefix("torch."))
        if "sweep" in names:
            metafunc.parametrize("sweep", kernel.size_sweeps, ids=lambda sweep: sweep.name)
        if "cpu_name" in names:
            metafunc.parametrize("cpu_name", cpu_names(kernel))
        if "fused_name" in names:
            metafunc.parametrize("fused_name", [name for name in cpu_names(kernel) if name != "reference"])

    def test_accuracy(self, implementation: Implementation, case: Case, dtype: torch.dtype) -> None:
        """At most 3 times as wrong against fp64 as plain torch in the same dtype; inputs unchanged; the same bits."""
        kernel = self.kernel
        inputs = make_inputs(case, dtype, implementation)
        assert implementation.why_not(**inputs) is None
        tensors = named_tensors(inputs)
        untouched = {name: x.clone() for name, x in tensors.items()}
        oracle, plain = run(kernel, kernel.reference, to_fp64(inputs)), run(kernel, kernel.reference, inputs)
        with uninitialized_memory_is_nan():
            got = run(kernel, implementation.run, inputs)
        again = run(kernel, implementation.run, inputs)
        assert got.keys() == oracle.keys()
        scale = max(want.norm() for want in oracle.values())
        for name, want in oracle.items():
            assert got[name].isfinite().all(), name
            assert torch.equal(got[name], again[name]), f"{name} differs from run to run"
            # plain torch's error, or that of rounding the result only: eps / sqrt(12) of the largest in each binade
            # (a gradient that is 0 for all inputs, as over a single key, is compared with the size of the others)
            honest = max((plain[name] - want).norm(), 0.3 * torch.finfo(dtype).eps * (want.norm() or scale))
            furthest = max((plain[name] - want).abs().max(), torch.finfo(dtype).eps * (want.abs().max() or scale))
            error = (got[name] - want).norm()
            if error > 3 * honest and want.numel() < FEW_ELEMENTS:
                error, plain_error = errors_over_draws(kernel, implementation, case, dtype, name)
                honest = max(honest, plain_error)
                furthest = max(furthest, honest)
            assert error <= 3 * honest, f"{name}: error {error:.3g}, plain torch's {honest:.3g}, size {want.norm():.3g}"
            assert (got[name] - want).abs().max() <= 6 * furthest, name  # one element among thousands is noisier
        for name, x in untouched.items():
            assert torch.equal(tensors[name], x), f"{name} was changed"

    def test_separate_gradients_equal_joint_gradients(self, implementation: Implementation, case: Case) -> None:
        inputs = make_inputs(case, torch.float32, implementation)
        joint = run(self.kernel, implementation.run, inputs)
        for key in joint.keys() - {"out"}:
            name = key.removeprefix("grad ")
            separate = run(self.kernel, implementation.run, inputs, {name})
            assert separate.keys() == {"out", key}
            torch.testing.assert_close(separate[key], joint[key], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(run(self.kernel, implementation.run, inputs, set())["out"], joint["out"])

    def test_output_owns_its_memory(self, implementation: Implementation, case: Case) -> None:
        inputs = make_inputs(case, torch.float32, implementation)
        leaves = {name: x.detach().requires_grad_() for name, x in differentiable(self.kernel, inputs).items()}
        self._assert_owns(implementation.run(**replaced(inputs, leaves)), leaves, implementation)

    @staticmethod
    def _assert_owns(out: Tensor, leaves: dict[str, Tensor], implementation: Implementation) -> None:
        if implementation.name != "reference":  # the reference returns torch's views, which autograd tracks
            assert out._base is None
        storage = out.untyped_storage().data_ptr()
        assert all(x.untyped_storage().data_ptr() != storage for x in leaves.values())

    def test_output_modified_in_place_has_the_right_gradient(self, implementation: Implementation, case: Case) -> None:
        """Callers multiply a dropout mask into the output in place."""
        kernel = self.kernel
        inputs = make_inputs(case, torch.float32, implementation)
        leaves = {name: x.detach().requires_grad_() for name, x in differentiable(kernel, inputs).items()}
        inputs = replaced(inputs, leaves)
        generator = torch.Generator().manual_seed(2)

        def gradients(function: Any, in_place: bool) -> tuple[Tensor, ...]:
            out = function(**inputs)
            generator.manual_seed(2)
            mask, other, weight = (torch.rand(out.shape, generator=generator).to(out) for _ in range(3))
            if in_place:
                out *= mask
                out += other
                out.sub_(0.5 * other)
            else:
                out = out * mask + other - 0.5 * other
            return torch.autograd.grad((out * weight).sum(), list(leaves.values()))

        if implementation.name in SAVES_OUTPUT.get(kernel.name, ()):
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                gradients(implementation.run, True)
            return
        got, want = gradients(implementation.run, True), gradients(implementation.run, False)
        plain = gradients(kernel.reference, False)
        for name, one, other, reference in zip(leaves, got, want, plain, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=0, msg=name)
            scale = max(float(reference.abs().max()), 1e-3)
            torch.testing.assert_close(one, reference, rtol=1e-3, atol=1e-4 * scale, msg=name)

    def test_wrong_sizes_are_refused_by_name_and_shape(self) -> None:
        """Every dimension that follows from another input, one too long and one too short."""
        public: Callable[..., Any] = getattr(kernels, self.kernel.name)
        for case in self.kernel.cases:
            inputs = case.make(torch.Generator().manual_seed(0), torch.float32, CPU)
            first = next(iter(inputs))
            for name, x in named_tensors(inputs).items():
                argument = name.split(".")[0]
                for dim, size in enumerate(x.shape):
                    follows = argument != first and (self.kernel.name, argument, dim) not in UNCHECKED_DIMENSIONS
                    if self.kernel.name == "outer_product_mean" and name == "weight" and inputs["bias"] is None:
                        follows = follows and dim != 0
                    if not follows or size == 1:
                        continue
                    longer = torch.cat([x, x.narrow(dim, 0, 1)], dim)
                    for wrong in (longer, *([x.narrow(dim, 0, size - 1)] if size > 2 else [])):
                        with pytest.raises(ValueError, match=r"got|must divide") as refusal:
                            public(**replaced(inputs, {name: wrong}))
                        text = str(refusal.value)
                        named = str(tuple(wrong.shape)) in text
                        assert named or argument in ("weights", "weight_2", "k", "weight"), text

    def test_empty_dimensions_give_what_the_reference_gives(self, cpu_name: str) -> None:
        public: Callable[..., Tensor] = getattr(kernels, self.kernel.name)
        for inputs in self.empty_inputs():
            leaves = {name: x.detach().clone().requires_grad_(name != "mask") for name, x in floats(inputs).items()}
            inputs = replaced(inputs, leaves)
            out, expected = public(**inputs, implementation=cpu_name), public(**inputs, implementation="reference")
            torch.testing.assert_close(out, expected)
            variables = [x for x in leaves.values() if x.requires_grad]
            grads = [
                torch.autograd.grad(o.sum(), variables, allow_unused=True, materialize_grads=True)
                for o in (out, expected)
            ]
            torch.testing.assert_close(*grads)


class ThreadContract(KernelContract):
    """``KernelContract`` for kernels with implementations in ``SAME_BITS``."""

    def test_results_do_not_depend_on_the_number_of_threads(self, implementation: Implementation, case: Case) -> None:
        inputs = make_inputs(case, torch.float32, implementation)
        before = torch.get_num_threads()
        try:
            results = []
            for threads in (1, 2, 4):
                torch.set_num_threads(threads)
                results.append(run(self.kernel, implementation.run, inputs))
        finally:
            torch.set_num_threads(before)
        for other in results[1:]:
            for name, x in results[0].items():
                assert torch.equal(x, other[name]), name


class GrowthContract(KernelContract):
    """``KernelContract`` for kernels that compute sums over rows, tokens, keys or channels."""

    def test_errors_do_not_grow(self, sweep: SizeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
        """With small tiles, so that sums over tiles have as many terms as those of far larger inputs."""
        monkeypatch.setattr(tiles, "CPU_BYTES", 2**14)
        monkeypatch.setattr(tiled, "TILE_SCORES", 2**16)
        assert_no_growth(self.kernel, sweep, sweep.sizes[:2], torch.float32)

    @pytest.mark.nightly
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_errors_do_not_grow_up_to_a_million(self, sweep: SizeSweep, dtype: torch.dtype) -> None:
        assert sweep.sizes[-1] >= 1_024
        assert_no_growth(self.kernel, sweep, sweep.sizes, dtype)


class FusedContract(GrowthContract):
    """``GrowthContract`` for operations defined by ``define_custom_op`` in ``fused.py``.

    ``small_case`` names a small case with every optional input.
    """

    small_case: ClassVar[str]

    def example(self, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        case = next(case for case in self.kernel.cases if case.name == self.small_case)
        return case.make(torch.Generator().manual_seed(0), dtype, CPU)

    def leaves(self, inputs: dict[str, Any]) -> dict[str, Tensor]:
        return {name: x.detach().clone().requires_grad_() for name, x in differentiable(self.kernel, inputs).items()}

    def test_compiles_without_graph_breaks(self, fused_name: str) -> None:
        inputs = self.example()
        function = self.kernel.get_implementation(fused_name).run
        torch.compiler.reset()
        got = run(self.kernel, torch.compile(function, fullgraph=True, backend="aot_eager"), inputs)
        for key, x in run(self.kernel, function, inputs).items():
            torch.testing.assert_close(got[key], x, rtol=1e-4, atol=1e-5)

    def test_opcheck(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With the arguments that the public function passes to the custom operator, recorded by a spy."""
        module = sys.modules[f"ds4sci.kernels.{self.kernel.name}"].fused
        op, calls = module.CUSTOM_OP, []
        monkeypatch.setattr(module, "CUSTOM_OP", lambda *arguments: calls.append(arguments) or op(*arguments))
        inputs = self.example()
        self.kernel.get_implementation("tiled").run(**replaced(inputs, self.leaves(inputs)))
        utilities = ("test_schema", "test_faketensor", "test_autograd_registration")
        torch.library.opcheck(op, calls[0], test_utils=utilities)

    def test_gradcheck(self) -> None:
        inputs = to_fp64(self.example())
        leaves = self.leaves(inputs)

        def function(*values: Tensor) -> Tensor:
            named = dict(zip(leaves, values, strict=True))
            return self.kernel.get_implementation("tiled").run(**replaced(inputs, named))

        torch.autograd.gradcheck(function, tuple(leaves.values()), fast_mode=True, nondet_tol=0.0)

    def test_second_derivatives_are_refused_by_name(self) -> None:
        inputs = self.example()
        leaves = self.leaves(inputs)
        out = self.kernel.get_implementation("tiled").run(**replaced(inputs, leaves))
        first = torch.autograd.grad(out.square().sum(), list(leaves.values()), create_graph=True)
        message = f"{self.kernel.name}: second derivatives need implementation='reference'"
        with pytest.raises(NotImplementedError, match=message):
            torch.autograd.grad(first[0].sum(), next(iter(leaves.values())))

    def test_activation_checkpointing(self, fused_name: str) -> None:
        inputs = self.example()
        function = self.kernel.get_implementation(fused_name).run
        want = run(self.kernel, function, inputs)
        got = run(self.kernel, lambda **x: checkpoint(lambda: function(**x), use_reentrant=False), inputs)
        for key, x in want.items():
            assert torch.equal(got[key], x), key

    def test_nothing_is_saved_without_gradients(self) -> None:
        inputs = self.example()
        function = self.kernel.get_implementation("tiled").run
        assert not function(**inputs).requires_grad
        with torch.no_grad():
            assert not function(**replaced(inputs, self.leaves(inputs))).requires_grad


class BroadcastMaskContract(FusedContract):
    """``FusedContract`` for operations whose mask may broadcast. ``mask_shapes`` are additional shapes."""

    @staticmethod
    def mask_shapes(sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
        return []

    @pytest.mark.parametrize("kind", [torch.float32, torch.bool], ids=["float", "bool"])
    def test_a_broadcast_mask_equals_the_expanded_mask(self, kind: torch.dtype) -> None:
        public: Callable[..., Tensor] = getattr(kernels, self.kernel.name)
        inputs = self.kernel.cases[0].make(torch.Generator().manual_seed(0), torch.float32, CPU)
        sizes = next(iter(inputs.values())).shape[:3]
        generator = torch.Generator().manual_seed(1)
        for shape in [(1, 1, sizes[2]), (1, sizes[1], 1), (1, 1, 1), *self.mask_shapes(sizes)]:
            mask = torch.rand(shape, generator=generator).add(0.5 if kind == torch.bool else 0.1).floor().to(kind)
            expanded = {**inputs, "mask": mask.expand(sizes).contiguous()}
            for name in cpu_names(self.kernel):
                expected = public(**expanded, implementation=name)
                found = public(**{**inputs, "mask": mask}, implementation=name)
                torch.testing.assert_close(found, expected, rtol=0, atol=0)
            torch.testing.assert_close(found, public(**expanded, implementation="tiled"), rtol=1e-4, atol=1e-4)
