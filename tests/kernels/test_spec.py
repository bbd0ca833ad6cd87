"""Dispatch of kernels: refusals, defaults of a run, logging of choices, warnings on a GPU."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import warnings

import pytest
import torch

from ds4sci.kernels import KERNELS, spec
from ds4sci.kernels.spec import Implementation, Kernel, set_default_implementations

NO_SUMS = {"shared_dropout"}
"""Kernels whose results are functions of single elements."""


def doubling_kernel(name: str = "doubled") -> Kernel:
    """A fast implementation for fp32 and a reference for tensors that are not empty."""
    return Kernel(
        name,
        lambda x: 2 * x,
        (
            Implementation("fast", lambda x: x + x, lambda x: "it takes fp32" if x.dtype != torch.float32 else None),
            Implementation("reference", lambda x: 2 * x, lambda x: None if x.numel() else "x is empty"),
        ),
    )


def test_every_kernel_with_sums_has_a_size_sweep() -> None:
    assert {kernel.name for kernel in KERNELS.values() if not kernel.size_sweeps} == NO_SUMS


def test_the_first_runnable_implementation_runs_and_refusals_have_reasons() -> None:
    kernel = doubling_kernel()
    assert kernel(torch.ones(2)).tolist() == [2, 2]
    assert kernel(torch.ones(2).double()).tolist() == [2, 2]
    with pytest.raises(ValueError, match="'fast' cannot run here: it takes fp32"):
        kernel(torch.ones(2).double(), implementation="fast")
    with pytest.raises(ValueError, match="fast: it takes fp32 · reference: x is empty"):
        kernel(torch.ones(0).double())
    with pytest.raises(ValueError, match="expected one of: fast, reference"):
        kernel(torch.ones(2), implementation="cuda")


def test_defaults_hold_within_the_block_and_on_all_threads() -> None:
    kernel = doubling_kernel()
    known = {"doubled": kernel}
    reasons: list[str] = []

    def call() -> None:
        try:
            kernel(torch.ones(2).double())
        except ValueError as error:
            reasons.append(str(error))

    with set_default_implementations({"doubled": "fast"}, known):
        call()
        thread = threading.Thread(target=call)  # autograd recomputes layers on threads of its own
        thread.start()
        thread.join()
        assert len(reasons) == 2
        with set_default_implementations({}, known):
            call()
        assert len(reasons) == 2
        assert kernel(torch.ones(2).double(), implementation="reference").tolist() == [2, 2]
        call()
    assert len(reasons) == 3
    call()
    assert len(reasons) == 3


def test_defaults_of_one_run_do_not_reach_the_next() -> None:
    kernel = doubling_kernel()
    with pytest.raises(RuntimeError), set_default_implementations({"doubled": "fast"}, {"doubled": kernel}):
        raise RuntimeError
    assert kernel(torch.ones(2).double()).tolist() == [2, 2]


def test_unknown_names_are_refused() -> None:
    with (
        pytest.raises(ValueError, match="unknown operation 'flash'; expected one of: evoformer_attention"),
        set_default_implementations({"flash": "fast"}, KERNELS),
    ):
        pass
    with (
        pytest.raises(ValueError, match="no implementation 'cutlass'"),
        set_default_implementations({"evoformer_attention": "cutlass"}, KERNELS),
    ):
        pass


def test_each_choice_is_logged_once_per_operation_and_shape(caplog: pytest.LogCaptureFixture) -> None:
    kernel = doubling_kernel("doubled for the log")
    with caplog.at_level(logging.INFO, logger="ds4sci.kernels"):
        for x in (torch.ones(2), torch.ones(2), torch.ones(3), torch.ones(3).double()):
            kernel(x)
    assert [record.getMessage() for record in caplog.records] == [
        "doubled for the log (0 float32[2]): fast",
        "doubled for the log (0 float32[3]): fast",
        "doubled for the log (0 float64[3]): reference; refused: fast: it takes fp32",
    ]


def test_the_environment_variable_enables_the_log_after_import() -> None:
    script = (
        "import os, torch; from ds4sci import kernels; os.environ['DS4SCI_LOG'] = 'kernels'\n"
        "for _ in range(2): kernels.layer_norm(torch.ones(3, 8, dtype=torch.float64), torch.ones(8).double())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("layer_norm")]
    assert line.startswith("layer_norm (0 float64[3, 8], 1 float64[8]): tiled; refused: triton: ")
    assert "native: it takes float32, bfloat16 and float16, not float64" in line


def test_a_fallback_on_a_gpu_warns_once_per_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spec, "_on_gpu", lambda values: True)
    kernel = doubling_kernel("doubled on a GPU")
    with pytest.warns(RuntimeWarning, match="doubled on a GPU runs on the GPU as 'reference'.*fast: it takes fp32"):
        kernel(torch.ones(2).double())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernel(torch.ones(2).double())
        kernel(torch.ones(2))
        doubling_kernel("doubled by name")(torch.ones(2).double(), implementation="reference")


def test_a_fallback_on_a_cpu_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        doubling_kernel("doubled on a CPU")(torch.ones(2).double())
