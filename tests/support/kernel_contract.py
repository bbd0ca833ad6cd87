"""Contract tests that every kernel shares: accuracy, gradients, memory, shapes, growth of errors.

``tests/kernels/test_OP.py`` subclasses ``KernelContract`` or ``FusedContract`` with its kernel. Tests are parametrized
over the implementations that can run on this machine, and over the kernel's cases.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ds4sci import kernels
from ds4sci.kernels import tiles
from ds4sci.kernels.evoformer_attention import tiled
from ds4sci.kernels.spec import Case, Implementation, Kernel, SizeSweep
from tests.support.kernel_runs import (
    CPU,
    DTYPES,
    FEW_ELEMENTS,
    SAME_BITS,
    SAVES_OUTPUT,
    UNCHECKED_DIMENSIONS,
    assert_no_growth,
    cpu_names,
    differentiable,
    errors_over_draws,
    floats,
    is_interpreted,
    make_inputs,
    named_tensors,
    replaced,
    run,
    runnable,
    to_fp64,
    uninitialized_memory_is_nan,
)


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
        # the interpreter runs one program after the other: there, a second run can differ only by what the first left
        twice = dtype == torch.float32 or not is_interpreted(implementation)
        again = run(kernel, implementation.run, inputs) if twice else got
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
            # a sharp softmax weighs few keys: few products decide the errors of plain torch, whatever the size
            if error > 3 * honest and (want.numel() < FEW_ELEMENTS or "sharp" in case.name):
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
            leaves = {
                name: x.detach().clone().requires_grad_(name not in ("mask", "mask_b"))
                for name, x in floats(inputs).items()
            }
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
