"""Memory that saving, restoring and exporting a checkpoint add to a process, and detection of one flipped bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ds4sci import __version__
from ds4sci.config import run_version
from tests.support import checkpoint_memory, rank_processes

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="the system does not report the peak memory of a process"
)
LARGE = 4096
"""Width of a model of 100 million parameters."""


@pytest.mark.parametrize(
    ("stage", "width"),
    [
        (1, 1024),
        pytest.param(3, 1024, marks=pytest.mark.slow),
        pytest.param(1, LARGE, marks=pytest.mark.nightly),
        pytest.param(3, LARGE, marks=pytest.mark.nightly),
    ],
)
def test_two_ranks_save_and_restore_in_little_memory_and_find_every_flipped_bit(stage, width, tmp_path) -> None:
    arguments = [str(tmp_path), stage, width]
    rank_processes.call(2, checkpoint_memory.save_and_restore, arguments, tmp_path, seconds=600)
    numbers, found = json.loads((tmp_path / "out.json").read_text())
    print(numbers)
    assert found == ["step_000001", "step_000002"] * 2
    parameters_mb = checkpoint_memory.LAYERS * width**2 * 4 / 1e6
    for one in numbers:
        # Small models show that nothing grows with the model besides the buffers; 100 MB is promised for the large one.
        assert max(one.values()) < (100 if width == LARGE else 50), f"{parameters_mb:.0f} MB of parameters: {one}"


LLAMA = {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 128}


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6},
        pytest.param(
            {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 8}, marks=pytest.mark.nightly
        ),
    ],
    ids=["20 million", "109 million"],
)
def test_export_adds_little_memory_to_the_model(sizes, tmp_path, trained) -> None:
    """The weights are read into the model and written from it, one parameter after the other."""
    config = LLAMA | sizes
    (tmp_path / "train.fa").write_text(">chromosome\n" + "ACGT" * 500 + "\n")
    (tmp_path / "ds.json").write_text(
        json.dumps({"train_batch_size": 1, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}})
    )
    run = {
        run_version.KEY: __version__, "deepspeed": "ds.json", "task": {"name": "causal_lm"}, "train": {"steps": 1},
        "model": {"config": config},
        "data": {"path": str(tmp_path / "train.fa"), "alphabet": "dna", "phases": [{"length": 64}],
                 "tokenizer": {"kind": "nucleotide"}},
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(run))
    made = trained(tmp_path / "run.json")
    rank_processes.call(1, checkpoint_memory.export, [str(made), str(tmp_path / "out")], tmp_path, seconds=600)
    added = json.loads((tmp_path / "out.json").read_text())
    file = tmp_path / "out/model.safetensors"
    print(f"{file.stat().st_size / 1e6:.0f} MB of weights: {added:.0f} MB added")
    assert added < min(100, file.stat().st_size / 2e6)
    saved = safetensors.torch.load_file(made / "checkpoints/step_000001/model.safetensors")
    exported = safetensors.torch.load_file(file)
    assert len(exported) >= config["num_hidden_layers"] * 9
    assert all(any(torch.equal(value, own) for own in saved.values()) for value in list(exported.values())[:5])
