"""The Triton kernels on Triton's CPU interpreter, in processes of their own: it is chosen before kernels are imported.

By hand: ``TRITON_INTERPRET=1 pytest tests/kernels/interpreted/numerics.py``, or any other test that names ``triton``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed (it has wheels for Linux)")
ROOT = Path(__file__).resolve().parents[2]
EVOFORMER = "tests/kernels/test_evoformer_attention.py"
BLOCK = tuple(
    f"tests/kernels/test_{name}.py"
    for name in (
        "gated_self_attention",
        "layer_norm",
        "pair_bias",
        "shared_dropout",
        "transition",
        "triangle_multiplication",
    )
)
"""Tests of the block's operations with Triton kernels, except evoformer attention."""
LARGE = "MSA or triangle or AF3 or template or past"
"""Cases of evoformer attention that take the interpreter seconds each."""
BLOCK_LARGE = "several or MSA or ending or single or AF2 or incoming"
"""Cases of the block's other operations that take seconds."""


def run(*arguments: str) -> None:
    """pytest with these arguments on the interpreter; its report if it fails, or if it ran nothing."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rs",
            "-p",
            "no:cacheprovider",
            "-W",
            "ignore::RuntimeWarning",
            *arguments,
        ],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    report = done.stdout + done.stderr
    assert done.returncode == 0, report
    assert " passed" in report, report
    assert "skipped" not in report, report


@pytest.mark.interp
@pytest.mark.parametrize("part", ["interpreter", "numerics", "probes", "offsets", "pointwise", "pointwise_probes"])
def test_on_the_interpreter(part: str) -> None:
    run(f"tests/kernels/interpreted/{part}.py")


@pytest.mark.interp
def test_the_contract_of_kernels() -> None:
    run(EVOFORMER, "-k", f"triton and test_accuracy and not ({LARGE})")


@pytest.mark.interp
@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", ["float32", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("bfloat16", "float16"))]
)
def test_the_contract_on_large_cases(dtype: str) -> None:
    only = f"{dtype} and not bfloat16" if dtype == "float16" else dtype
    run(EVOFORMER, "-k", f"triton and test_accuracy and ({LARGE}) and {only}")


@pytest.mark.interp
@pytest.mark.slow
def test_the_contract_beyond_numbers() -> None:
    run(EVOFORMER, "-k", f"TestContract and triton and not test_accuracy and not ({LARGE})")


@pytest.mark.interp
def test_the_operators() -> None:
    """lse, torch.compile, vmap, checkpointing, opcheck: what every fused implementation keeps."""
    run(EVOFORMER, "-k", "triton and not TestContract")


@pytest.mark.interp
def test_the_contract_of_the_blocks_operations() -> None:
    run(*BLOCK, "-k", f"triton and test_accuracy and not ({BLOCK_LARGE})")


@pytest.mark.interp
@pytest.mark.nightly
@pytest.mark.parametrize("gated", ["gated", "not gated"])
def test_the_contract_of_the_blocks_operations_on_large_cases(gated: str) -> None:
    run(*BLOCK, "-k", f"triton and test_accuracy and ({BLOCK_LARGE}) and {gated}")


@pytest.mark.interp
@pytest.mark.nightly
def test_the_block_gives_the_gradients_that_are_asked_for() -> None:
    run(*BLOCK, "-k", f"triton and test_separate_gradients and not ({BLOCK_LARGE})")


@pytest.mark.interp
@pytest.mark.nightly
@pytest.mark.parametrize("family", ["keys", "queries"])
def test_errors_do_not_grow(family: str) -> None:
    run(EVOFORMER, "-k", f"test_errors_do_not_grow and {family}")


@pytest.mark.interp
def test_dropout() -> None:
    run("tests/kernels/test_shared_dropout.py", "-k", "triton and not TestContract")
