"""The Triton kernels on Triton's CPU interpreter, in subprocesses, because it is chosen when kernels are imported.

Manually: ``TRITON_INTERPRET=1 pytest tests/kernels/interpreted/numerics.py``, or any other test with ``-k triton``.
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
TWO_TILES = "past"
"""The case whose last tile of queries and of keys has one element."""
LARGE = f"MSA or triangle or AF3 or template or {TWO_TILES}"
"""Cases of evoformer attention that take seconds each on the interpreter."""
FLOAT32 = "float32"
GRADIENTS = "cross or heads"
"""Cases that differ in the inputs that have a gradient, or in how a gradient is summed."""
SOME_ROWS = f"0-2 or 0-4 or {2**28}-1 or {2**28}-2 or {2**28}-3"
"""Scratch memory and number of rows of most of the cases of ``test_rows_that_share_a_bias``."""
INFINITE = "q-inf or k-inf or v-inf or pair_bias-inf or mask-inf"
BLOCK_LARGE = "several or MSA or ending or single or AF2 or incoming"
"""Cases of the other operations that take seconds each."""


def run(*arguments: str) -> None:
    """Run pytest with these arguments on the interpreter; fail with its report if it fails, skips or runs nothing."""
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
@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(("probes", "offsets"), marks=pytest.mark.nightly),
        ("interpreter", "pointwise", "pointwise_probes"),
    ],
    ids=str,
)
def test_on_the_interpreter(parts: tuple[str, ...]) -> None:
    run(*(f"tests/kernels/interpreted/{part}.py" for part in parts))


@pytest.mark.interp
def test_numerics() -> None:
    """With each number of rows that share a bias, and each kind of launch, but not all of both."""
    run("tests/kernels/interpreted/numerics.py", "-k", f"not (rows_that_share_a_bias and ({SOME_ROWS}))")


@pytest.mark.interp
@pytest.mark.nightly
def test_numerics_of_all_rows_that_share_a_bias() -> None:
    run("tests/kernels/interpreted/numerics.py", "-k", f"rows_that_share_a_bias and ({SOME_ROWS})")


@pytest.mark.interp
def test_evoformer_attention() -> None:
    """Accuracy on small cases: in float32, and one in bfloat16. lse, torch.compile, vmap, checkpointing, opcheck."""
    small = f"test_accuracy and not ({LARGE}) and ({FLOAT32} or cross-bfloat16)"
    run(EVOFORMER, "-k", f"triton and ({small} or not TestContract) and not ({INFINITE})")


@pytest.mark.interp
@pytest.mark.nightly
def test_evoformer_attention_with_infinite_inputs() -> None:
    run(EVOFORMER, "-k", f"triton and ({INFINITE})")


@pytest.mark.interp
@pytest.mark.nightly
def test_accuracy_of_evoformer_attention_in_16_bits() -> None:
    run(EVOFORMER, "-k", f"triton and test_accuracy and not ({LARGE} or {FLOAT32} or cross-bfloat16)")


@pytest.mark.interp
@pytest.mark.nightly
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_accuracy_of_evoformer_attention_on_large_cases(dtype: str) -> None:
    only = f"{dtype} and not bfloat16" if dtype == "float16" else dtype
    run(EVOFORMER, "-k", f"triton and test_accuracy and ({LARGE}) and {only}")


@pytest.mark.nightly
@pytest.mark.interp
def test_contract_of_evoformer_attention() -> None:
    """And the accuracy over two tiles. Not the test with several numbers of threads: the interpreter does not use those
    of torch."""
    two_tiles = f"test_accuracy and {TWO_TILES} and float32"
    contract = f"TestContract and ({GRADIENTS}) and not (test_accuracy or threads)"
    run(EVOFORMER, "-k", f"triton and ({two_tiles} or {contract})")


@pytest.mark.interp
@pytest.mark.nightly
def test_contract_of_evoformer_attention_on_every_small_case() -> None:
    run(EVOFORMER, "-k", f"TestContract and triton and not ({LARGE}) and not (test_accuracy or threads)")


@pytest.mark.nightly
@pytest.mark.interp
def test_accuracy_of_the_block_operations() -> None:
    """And what shared dropout promises besides its contract."""
    small = f"test_accuracy and not ({BLOCK_LARGE})"
    run(*BLOCK, "-k", f"triton and ({small} or test_shared_dropout and not TestContract)")


@pytest.mark.interp
@pytest.mark.nightly
@pytest.mark.parametrize("gated", ["gated", "not gated"])
def test_accuracy_of_the_block_operations_on_large_cases(gated: str) -> None:
    run(*BLOCK, "-k", f"triton and test_accuracy and ({BLOCK_LARGE}) and {gated}")


@pytest.mark.interp
@pytest.mark.nightly
def test_separate_gradients_of_the_block_operations() -> None:
    run(*BLOCK, "-k", f"triton and test_separate_gradients and not ({BLOCK_LARGE})")


@pytest.mark.interp
@pytest.mark.nightly
@pytest.mark.parametrize("family", ["keys", "queries"])
def test_errors_do_not_grow(family: str) -> None:
    run(EVOFORMER, "-k", f"test_errors_do_not_grow and {family}")
