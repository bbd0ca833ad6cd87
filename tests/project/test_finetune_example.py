"""The fine-tuning example on a small model: two steps from an OpenFold checkpoint, and the exported result."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ds4sci.data.structures.chain_set import ChainSet
from ds4sci.models.fold import FoldModel
from ds4sci.models.published_weights import read_weights, write_weights
from tests.support.small_fold import SMALL

ROOT = Path(__file__).resolve().parents[2]
FROZEN = "extra_msa_stack."


@pytest.mark.nightly
def test_the_example_runs_at_its_smallest(tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"heads": ("masked_msa", "experimentally_resolved")})
    torch.manual_seed(0)
    model = FoldModel(config)
    write_weights(tmp_path / "start.pt", dict(model.state_dict()), "openfold", "")
    chains = ChainSet.open(ROOT / "examples/fold/data/chains_valid.npz")
    shortest = sorted(range(len(chains)), key=lambda i: chains.lengths[i])[:4]
    for name in ("train", "valid"):
        chains.write_subset(tmp_path / name, shortest)
    overrides = [
        f"data.train={tmp_path / 'train'}", f"data.valid={tmp_path / 'valid'}", "data.workers=0",
        "data.features.msa_input=sequence", "data.features.masked_msa_probability=0", "data.plan.max_recycling=0",
        "data.plan.phases=[{from_progress = 0.0, crops = [32]}]", "deepspeed=configs/deepspeed/tiny_cpu.json",
        "train.steps=2", f"train.output={tmp_path}", "train.name=tuned", f'model.freeze=["{FROZEN}*"]',
    ]  # fmt: skip
    overrides += [f"model.{key}={getattr(config, key)}" for key in ("c_m", "c_z", "c_s", "c_plddt")]
    for section in ("evoformer", "extra_msa", "structure"):
        changed = getattr(config, section).model_dump(exclude_defaults=True)
        overrides += [f"model.{section}.{key}={value}" for key, value in changed.items()]
    script = ROOT / "examples/finetune_fold/finetune.py"
    command = [sys.executable, str(script), "--weights", str(tmp_path / "start.pt"), "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, *overrides], capture_output=True, text=True, timeout=900, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "untrained: lDDT-Cα" in done.stdout
    before, after = (read_weights(tmp_path / name).tensors for name in ("start.pt", "out/openfold.pt"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if name.startswith(FROZEN):
            assert torch.equal(tensor, after[name])
    assert sum(not torch.equal(tensor, after[name]) for name, tensor in before.items()) > 100
