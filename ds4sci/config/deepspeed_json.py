"""Reader of DeepSpeed JSON files, with early checks. Does not import deepspeed.

The file is never rewritten: DeepSpeed gets its bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

AUTO = ("pipeline.stages", "data_types.keep_in_fp32_modules", "zero_optimization.zenflow.", "expert_parallel.")
"""Prefixes of the keys for which DeepSpeed itself supports ``"auto"``."""


def read_text(path: Path) -> str:
    """Return the text of a configuration file without a byte order mark. Raises ValueError if it is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8 text") from None


def read(path: Path) -> dict[str, Any]:
    """Return the parsed, unchanged DeepSpeed JSON at ``path``.

    Comments and trailing commas are accepted if hjson, DeepSpeed's own parser, is installed.

    Raises ValueError with file and key for malformed JSON, a duplicate key, ``"auto"`` in the style of Hugging Face, no
    optimizer, no batch size and offload to NVMe.
    """
    config = _parse(path, read_text(path))
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected a JSON object with DeepSpeed's keys, got {type(config).__name__}")
    for key, value in _leaves(config):
        if value == "auto" and not key.startswith(AUTO):
            raise ValueError(
                f'{path}: {key} is "auto", which only the Hugging Face Trainer supports; set a value or remove the key'
            )
    optimizer = config.get("optimizer")
    if not isinstance(optimizer, dict) or not optimizer.get("type"):
        raise ValueError(
            f"{path}: optimizer is missing; add one, such as "
            '"optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": true}}'
        )
    if config.get("train_batch_size") is None and config.get("train_micro_batch_size_per_gpu") is None:
        raise ValueError(f"{path}: the batch size is missing; add train_batch_size or train_micro_batch_size_per_gpu")
    _refuse_nvme(config, path)
    return config


def batch_sizes(config: dict[str, Any], ranks: int, path: Path) -> tuple[int, int, int]:
    """Return (train_batch_size, micro batch per rank, accumulation steps).

    By DeepSpeed's rule the first is the product of the others and ``ranks``. Raises ValueError with the numbers if they
    do not fit ``ranks``.
    """
    total = config.get("train_batch_size")
    micro = config.get("train_micro_batch_size_per_gpu")
    steps = config.get("gradient_accumulation_steps")
    for key, value in (
        ("train_batch_size", total),
        ("train_micro_batch_size_per_gpu", micro),
        ("gradient_accumulation_steps", steps),
    ):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{path}: {key} must be a whole number above 0, got {value!r}")
    if total is None:
        assert micro is not None, "read() requires one of them"
        steps = steps or 1
        return micro * steps * ranks, micro, steps
    if micro is None:
        steps = steps or 1
        micro = total // (ranks * steps)
    elif steps is None:
        steps = total // (ranks * micro)
    if micro * steps * ranks != total:
        given = ", ".join(
            f"{key} = {config[key]}"
            for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
            if key in config
        )
        raise ValueError(
            f"{path}: {given} does not fit {ranks} rank{'s' if ranks > 1 else ''}: train_batch_size must be "
            f"micro batch × accumulation steps × ranks; change the JSON or the number of ranks"
        )
    return total, micro, steps


def zero_stage(config: dict[str, Any]) -> int:
    """Return the ZeRO stage of the JSON, by default 0. Raises ValueError if it is not an integer."""
    section = config.get("zero_optimization", {})
    stage = section.get("stage", 0) if isinstance(section, dict) else bool(section)
    try:
        return int(stage)
    except (TypeError, ValueError):
        raise ValueError(f"zero_optimization.stage: expected 0, 1, 2 or 3, got {stage!r}") from None


def zero_section(config: dict[str, Any]) -> dict[str, Any]:
    """Return the section ``zero_optimization``; empty if there is none, or a mere true or false."""
    section = config.get("zero_optimization")
    return section if isinstance(section, dict) else {}


def offloads(config: dict[str, Any]) -> bool:
    """Whether ZeRO offloads optimizer states or parameters to host memory."""
    return any(offloaded_parts(config))


def offloaded_parts(config: dict[str, Any]) -> tuple[bool, bool]:
    """Return whether ZeRO offloads optimizer states, and whether it offloads parameters, to host memory."""
    devices = _offload_devices(config)
    optimizer = bool(zero_section(config).get("cpu_offload")) or devices.get("offload_optimizer") == "cpu"
    return optimizer, devices.get("offload_param") == "cpu"


def _offload_devices(config: dict[str, Any]) -> dict[str, str]:
    """Return the devices in ``zero_optimization``, by key."""
    parts = {key: zero_section(config).get(key) or {} for key in ("offload_optimizer", "offload_param")}
    return {key: str(part.get("device", "none")) for key, part in parts.items() if isinstance(part, dict)}


def _refuse_nvme(config: dict[str, Any], path: Path) -> None:
    """Raise ValueError if ZeRO offloads to NVMe: neither checkpoints nor the average of the weights read such files."""
    for key, device in _offload_devices(config).items():
        if device == "nvme":
            raise ValueError(
                f'{path}: zero_optimization.{key}.device is "nvme"; expected "cpu" or "none". ds4sci does not offload '
                "to NVMe: DeepSpeed needs libaio-dev for it, and checkpoints and the EMA do not read the files that it "
                'keeps there. Set the device to "cpu"'
            )


def _parse(path: Path, text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"{path}: duplicate keys: {', '.join(twice)}")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply to be a configuration") from None
    except json.JSONDecodeError as error:
        strict = ValueError(f"{path}:{error.lineno}: not valid JSON: {error.msg} (column {error.colno})")
    try:
        import hjson
    except ImportError:
        raise strict from None
    try:
        return hjson.loads(text, object_pairs_hook=unique)
    except (hjson.HjsonDecodeError, RecursionError, OverflowError):
        raise strict from None


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from _leaves(value, f"{prefix}[{index}]")
    else:
        yield prefix, tree
