"""Unknown keys and wrong values of a DeepSpeed JSON are refused with the nearest valid key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ds4sci.config import deepspeed_json
from ds4sci.train.deepspeed_schema import check

ROOT = Path(__file__).resolve().parents[2]
PLAIN: dict[str, Any] = {"train_batch_size": 4, "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}
EVERYTHING: dict[str, Any] = json.loads((ROOT / "tests/fixtures/deepspeed_every_section.json").read_text())


def adam(**more: Any) -> dict[str, Any]:
    return {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3} | more}}


@pytest.mark.parametrize("file", sorted((ROOT / "configs/deepspeed").glob("*.json")), ids=lambda file: file.name)
def test_shipped_configurations_pass(file: Path) -> None:
    check(deepspeed_json.read(file), file)


def test_every_documented_section_passes() -> None:
    """Sections of DeepSpeed's documentation, with all keys."""
    file = ROOT / "tests/fixtures/deepspeed_every_section.json"
    check(deepspeed_json.read(file), file)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"gradient_cliping": 1.0}, "unknown key gradient_cliping: .* did you mean gradient_clipping?"),
        ({"zero_optimization": {"stag": 2}}, "unknown key zero_optimization.stag: .* mean zero_optimization.stage?"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"devise": "cpu"}}},
            "zero_optimization.offload_optimizer.devise: .* mean zero_optimization.offload_optimizer.device?",
        ),
        ({"zero_optimization": {"stage": 7}}, "zero_optimization.stage: Input should be 0, 1, 2, 3"),
        ({"fp16": {"enable": True}}, "did you mean fp16.enabled?"),
        ({"torch_autocast": {"enabled": True, "dtyp": "bfloat16"}}, "did you mean torch_autocast.dtype?"),
        ({"timers": {"thruput": {}}}, "did you mean timers.throughput?"),
        ({"pipeline": {"stage": 2}}, "did you mean pipeline.stages?"),
        ({"elasticity": {"enabled": True}}, "Elastic training has been removed"),
        ({"fp16": [1]}, "ds.json: DeepSpeed rejects this configuration"),
        ({"zero_optimization": "x"}, "ds.json: DeepSpeed rejects this configuration"),
        (adam(weigth_decay=0.1), "optimizer.params.weigth_decay: .* did you mean optimizer.params.weight_decay?"),
        ({"optimizer": {"type": "SGD", "params": {"momentom": 0.9}}}, "did you mean optimizer.params.momentum?"),
        ({"optimizer": {"type": "Muon", "params": {"mon_lr": 0.9}}}, "did you mean optimizer.params.muon_lr?"),
        ({"optimizer": {"type": "AdamX"}}, "optimizer.type = 'AdamX': neither DeepSpeed nor torch"),
        ({"optimizer": {"type": "AdamW", "parms": {}}}, "did you mean optimizer.params?"),
        ({"optimizer": {"type": "AdamW", "params": [1]}}, "optimizer"),
        ({"scheduler": {"type": "WarmupLR", "params": {"warmup_steps": 1}}}, "scheduler.params.warmup_num_steps?"),
        ({"scheduler": {"type": "WarmLR"}}, "scheduler.type = 'WarmLR': .* did you mean WarmupLR?"),
    ],
)
def test_keys_without_effect_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check(PLAIN | wrong, Path("ds.json"))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"gradient_clipping": "one"}, r'ds.json: gradient_clipping: expected a number, got "one"'),
        ({"gradient_clipping": "1.0"}, "gradient_clipping: expected a number"),
        ({"gradient_clipping": True}, "gradient_clipping: expected a number, got true"),
        ({"gradient_predivide_factor": "2"}, "gradient_predivide_factor: expected a number"),
        ({"prescale_gradients": "no"}, "prescale_gradients: expected true or false"),
        ({"zero_allow_untested_optimizer": 1}, "zero_allow_untested_optimizer: expected true or false, got 1"),
        ({"wall_clock_breakdown": "true"}, "wall_clock_breakdown: expected true or false"),
        ({"steps_per_print": "ten"}, "steps_per_print: expected a whole number"),
        ({"steps_per_print": 2.5}, "steps_per_print: expected a whole number, got 2.5"),
        ({"zero_optimization": {"stage": True}}, "zero_optimization.stage: expected 0, 1, 2 or 3, got true"),
        (adam(lr="1e-3"), r'optimizer.params.lr: expected a number, got "1e-3"'),
        (
            {"scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": "1e-3"}}},
            "scheduler.params.warmup_max_lr: expected a number",
        ),
        (adam(lr=True), "optimizer.params.lr: expected a number, got true"),
    ],
)
def test_values_of_another_type_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check(PLAIN | wrong, Path("ds.json"))


def test_numbers_of_either_type_and_null_pass() -> None:
    check(PLAIN | {"gradient_clipping": 1, "steps_per_print": 10.0, "train_micro_batch_size_per_gpu": None}, Path("j"))


def paths(tree: Any, at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in tree.items():
        found.append((*at, key))
        if isinstance(value, dict):
            found += paths(value, (*at, key))
    return found


FREE = (
    "host_cache_size", "vocabularyrarity", "arg_mappings", "schedule_config", "partition_config",
    "quantized_initialization", "post_init_quant",
)  # fmt: skip
TYPOS = [p for p in paths(EVERYTHING) if not set(p[:-1]) & set(FREE) and p[-1] not in FREE]


def test_a_typing_error_in_any_key_is_refused() -> None:
    """Two adjacent letters of each key are swapped, which gives hundreds of typing errors."""
    tried = 0
    for path in TYPOS:
        key = path[-1]
        slip = key[:-2] + key[-1] + key[-2]
        if slip == key:
            slip = key + "x"
        config = json.loads(json.dumps(EVERYTHING))
        section = config
        for name in path[:-1]:
            section = section[name]
        section[slip] = section.pop(key)
        with pytest.raises(ValueError, match=r"ds\.json") as caught:
            check(config, Path("ds.json"))
        assert slip in str(caught.value) or key in str(caught.value), path
        tried += 1
    assert tried > 200


def test_auto_is_refused_unless_deepspeed_supports_it(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_text(json.dumps(PLAIN | {"pipeline": {"stages": "auto"}}))
    deepspeed_json.read(file)
    file.write_text(json.dumps(PLAIN | {"fp16": {"enabled": "auto"}}))
    with pytest.raises(ValueError, match=r'fp16\.enabled is "auto", which only the Hugging Face Trainer'):
        deepspeed_json.read(file)


def test_invalid_utf8_and_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "ds.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(PLAIN).encode())
    assert deepspeed_json.read(file) == PLAIN
    file.write_bytes(b'{"train_batch_size": \xff}')
    with pytest.raises(ValueError, match=r"ds.json: byte 21 is not UTF-8"):
        deepspeed_json.read(file)
    file.write_text('{"a":' * 100_000)
    with pytest.raises(ValueError, match=r"ds.json"):
        deepspeed_json.read(file)
