"""The functions between matrix products, which the fused operations share; ``pointwise`` is internal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from ds4sci.kernels import native
from ds4sci.kernels.pointwise import BACKENDS

ROOT = Path(__file__).resolve().parents[2]
OTHER_ISAS = [
    one.name for one in native.ISAS if one.needs <= native._processor_flags() and one.name != native.isa().name
]
"""Instruction sets of this machine that the other tests do not use."""


def test_backends_have_the_same_functions() -> None:
    names = {x for x in dir(BACKENDS["tiled"]) if not x.startswith("_") and callable(getattr(BACKENDS["tiled"], x))}
    own = {x for x in names if getattr(BACKENDS["tiled"], x).__module__ == BACKENDS["tiled"].__name__}
    for name, backend in BACKENDS.items():
        assert own <= set(dir(backend)), name


@pytest.mark.parametrize("name", ["native", "tiled"])
def test_a_variance_of_columns_beyond_fp32_gives_nan(name: str) -> None:
    """``norm_columns`` of the triangular update: the channels are not adjacent in memory."""
    p = torch.tensor([[1e20, 1.0], [-2e20, 2.0], [3e20, 3.0], [-1e20, 5.0]])
    y, _, rstd = BACKENDS[name].norm_columns(p, torch.ones(4), None, 1e-5)
    assert y[0].isnan().all()
    assert rstd[0].isnan()
    torch.testing.assert_close(y[1], F.layer_norm(p[:, 1], (4,)))


@pytest.mark.nightly
@pytest.mark.parametrize("name", OTHER_ISAS)
def test_every_instruction_set_of_this_machine(name: str, tmp_path: Path) -> None:
    operations = ("gated_self_attention", "pair_bias", "triangle_multiplication", "transition", "layer_norm")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "native and test_accuracy",
         *(f"tests/kernels/test_{x}.py" for x in operations)],
        cwd=ROOT, env={**os.environ, "DS4SCI_ISA": name, "DS4SCI_CACHE": str(tmp_path)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
