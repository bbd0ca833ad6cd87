"""Tasks of run files: the ``[kernels]`` of one run do not reach another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ds4sci import kernels
from ds4sci.config.run_file import RunConfig
from ds4sci.tasks.build import build_task, default_kernels


def config(folder: Path, implementation: str) -> RunConfig:
    (folder / "ds.json").write_text(json.dumps({"train_batch_size": 1, "optimizer": {"type": "AdamW"}}))
    file = folder / f"{implementation}.toml"
    file.write_text(
        'deepspeed = "ds.json"\n[task]\nname = "tests.support.toy_task"\n[train]\nsteps = 7\n'
        f'[kernels]\nlayer_norm = "{implementation}"\n'
    )
    return RunConfig.load(file)


def runs_in_triton() -> bool:
    """Whether ``layer_norm`` is set to Triton, which refuses fp64."""
    try:
        kernels.layer_norm(torch.ones(2, 4).double(), torch.ones(4).double())
    except ValueError:
        return True
    return False


def test_kernels_of_a_run_apply_within_its_context_only(tmp_path: Path) -> None:
    triton, reference = config(tmp_path, "triton"), config(tmp_path, "reference")
    build_task(triton)
    assert not runs_in_triton()
    with default_kernels(triton):
        assert runs_in_triton()
        build_task(reference)
        assert runs_in_triton()
        with default_kernels(reference):
            assert not runs_in_triton()
        assert runs_in_triton()
    assert not runs_in_triton()


def test_unknown_kernels_are_errors_of_the_run_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cutlass\.toml: layer_norm has no implementation 'cutlass'"):
        build_task(config(tmp_path, "cutlass"))
