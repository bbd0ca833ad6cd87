"""Anyone's DeepSpeed JSON is read as it is; what would fail late fails early, by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ds4sci.config import deepspeed_json

ADAM = {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}


def write(folder: Path, content: object) -> Path:
    file = folder / "ds.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"train_batch_size": 4,\n "optimizer": {"type": }', "ds.json:2: not valid JSON"),
        ("[1, 2]", "expected a JSON object"),
        ({"train_batch_size": 4}, "optimizer is missing; add one"),
        (ADAM, "the batch size is missing; add train_batch_size or train_micro_batch_size_per_gpu"),
        ({"train_batch_size": "auto"} | ADAM, 'train_batch_size is "auto"'),
        (
            {"train_batch_size": 4, "optimizer": {"type": "AdamW", "params": {"lr": "auto"}}},
            'optimizer.params.lr is "auto"',
        ),
        (
            '{"train_batch_size": 4, "train_batch_size": 8, "optimizer": {"type": "Adam"}}',
            "duplicate keys: train_batch_size",
        ),
    ],
)
def test_refusals_name_file_and_key(tmp_path: Path, content: object, expected: str) -> None:
    with pytest.raises(ValueError, match=r"ds\.json") as caught:
        deepspeed_json.read(write(tmp_path, content))
    assert expected in str(caught.value)


def test_comments_are_read_as_deepspeed_reads_them(tmp_path: Path) -> None:
    file = write(tmp_path, '{\n  // why\n  "train_batch_size": 4,\n  "optimizer": {"type": "AdamW"},\n}\n')
    assert deepspeed_json.read(file) == {"train_batch_size": 4, "optimizer": {"type": "AdamW"}}


@pytest.mark.parametrize(
    ("given", "ranks", "expected"),
    [
        ({"train_batch_size": 8}, 2, (8, 4, 1)),
        ({"train_batch_size": 8, "train_micro_batch_size_per_gpu": 1}, 2, (8, 1, 4)),
        ({"train_batch_size": 8, "gradient_accumulation_steps": 2}, 2, (8, 2, 2)),
        ({"train_micro_batch_size_per_gpu": 3}, 4, (12, 3, 1)),
        ({"train_micro_batch_size_per_gpu": 3, "gradient_accumulation_steps": 2}, 4, (24, 3, 2)),
    ],
)
def test_batch_sizes_follow_deepspeed(tmp_path: Path, given: dict, ranks: int, expected: tuple) -> None:
    assert deepspeed_json.batch_sizes(given, ranks, tmp_path) == expected


@pytest.mark.parametrize(
    ("given", "ranks"),
    [
        ({"train_batch_size": 5}, 2),
        ({"train_batch_size": 2, "train_micro_batch_size_per_gpu": 2}, 2),
        ({"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 3}, 2),
        ({"train_batch_size": 1}, 4),
    ],
)
def test_batch_sizes_that_do_not_fit_the_ranks_are_refused(tmp_path: Path, given: dict, ranks: int) -> None:
    with pytest.raises(ValueError, match=f"does not fit {ranks} ranks") as caught:
        deepspeed_json.batch_sizes(given, ranks, tmp_path / "x.json")
    assert f"train_batch_size = {given['train_batch_size']}" in str(caught.value)
    assert "x.json" in str(caught.value)


def test_a_fractional_batch_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train_batch_size must be a whole number above 0, got 2\.5"):
        deepspeed_json.batch_sizes({"train_batch_size": 2.5}, 1, tmp_path)


def test_offload_to_the_host() -> None:
    assert not deepspeed_json.offloads({})
    assert not deepspeed_json.offloads({"zero_optimization": {"stage": 3, "offload_param": {"device": "none"}}})
    assert deepspeed_json.offloads({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}})


@pytest.mark.parametrize("key", ["offload_optimizer", "offload_param"])
def test_offload_to_nvme_is_refused(key: str, tmp_path: Path) -> None:
    config = ADAM | {"train_batch_size": 4, "zero_optimization": {"stage": 3, key: {"device": "nvme"}}}
    with pytest.raises(ValueError, match=rf"ds\.json: zero_optimization\.{key}\.device is .*libaio-dev"):
        deepspeed_json.read(write(tmp_path, config))


@pytest.mark.parametrize(
    "file", sorted((Path(__file__).parents[2] / "configs" / "deepspeed").glob("*.json")), ids=lambda p: p.name
)
def test_the_jsons_that_we_ship_are_sound(file: Path) -> None:
    config = deepspeed_json.read(file)
    groups = 1 if file.name == "cpu_extend.json" else 2  # it uses two sequence-parallel ranks per row
    deepspeed_json.batch_sizes(config, groups, file)
