"""Shards of arrays: round trip, indexing over shards, and files that are not shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ds4sci.data.array_shards import ArrayShards, write_shard


def test_examples_are_indexed_over_shards(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    inputs, targets = rng.random((7, 2, 3), dtype=np.float32), np.arange(7)
    for number, rows in enumerate((slice(0, 3), slice(3, 4), slice(4, 7))):
        write_shard(tmp_path, "train", number, inputs[rows], targets[rows])
    shards = ArrayShards.find(tmp_path, "train")
    assert len(shards) == 7
    for index in (*range(7), -1):
        x, y = shards[index]
        np.testing.assert_array_equal(x, inputs[index])
        assert y == targets[index]
    assert len(shards[2:5]) == 3
    with pytest.raises(IndexError, match="example 7 of 7"):
        shards[7]


def test_wrong_files_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file valid-\*"):
        ArrayShards.find(tmp_path, "valid")
    with pytest.raises(ValueError, match="3 inputs, but 2 targets"):
        write_shard(tmp_path, "valid", 0, np.zeros(3), np.zeros(2))
    file = tmp_path / "valid-00000.safetensors"
    file.write_bytes(b"not a tensor file")
    with pytest.raises(ValueError, match=r"valid-00000\.safetensors: not a readable"):
        ArrayShards.find(tmp_path, "valid")
    save_file({"inputs": np.zeros(2)}, file)
    with pytest.raises(ValueError, match="no tensor targets"):
        ArrayShards.find(tmp_path, "valid")
    save_file({"inputs": np.zeros(2), "targets": np.zeros(3)}, file)
    with pytest.raises(ValueError, match="differ in length"):
        ArrayShards.find(tmp_path, "valid")
