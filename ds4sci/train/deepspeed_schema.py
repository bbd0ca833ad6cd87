"""Check of a DeepSpeed JSON against the keys that DeepSpeed's own code reads.

DeepSpeed rejects unknown keys in some sections and ignores them in others: ``gradient_cliping`` trains without
clipping. Here DeepSpeed's parser runs on a dict that records the keys it looks up. A key that is never looked up has no
effect, and is an error.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ds4sci.train.layerwise_optimizers import OPTIMIZERS

EXTRA_KEYS: dict[tuple[str, ...], tuple[str, ...]] = {
    (): ("sequence_parallel_size", "data_parallel_size", "vocabulary_size"),
    ("pipeline",): (
        "stages", "partition", "seed_layers", "activation_checkpoint_interval", "pipe_partitioned", "grad_partitioned",
        "use_reentrant",
    ),
}  # fmt: skip
"""Section → keys that DeepSpeed reads outside its parser."""

KEYS_FROM_CONSTANTS = {
    "data_efficiency": "deepspeed.runtime.data_pipeline.constants",
    "autotuning": "deepspeed.autotuning.constants",
}
"""Section → module whose string constants are the names of its keys, at any depth."""

FREE_FORM_SECTIONS = (
    ("datastates_ckpt",),
    ("autotuning", "arg_mappings"),
)
"""Sections with keys of the user's choice."""

INTEGER_KEYS = {
    "steps_per_print": 1, "train_batch_size": 1, "train_micro_batch_size_per_gpu": 1, "gradient_accumulation_steps": 1,
    "sequence_parallel_size": 1, "data_parallel_size": 1, "vocabulary_size": 1,
}  # fmt: skip
"""Integer keys of the top level; their default in DeepSpeed is None, which gives no type."""

NUMERIC_ARGUMENTS = {
    "lr", "eps", "weight_decay", "momentum", "muon_lr", "adam_lr", "min_coeff", "max_coeff",
    "trust_coefficient", "warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "total_num_steps",
}  # fmt: skip
"""Numeric arguments of optimizers and schedules."""

MONITORS = ("tensorboard", "wandb", "csv_monitor", "comet")
"""Sections that DeepSpeed validates together in one model."""


@dataclass
class _AccessLog:
    """Record of what DeepSpeed's parser looked up.

    keys      section → keys that were looked up
    defaults  key of the top level → default that was passed to ``get``
    whole     sections that were passed to a model that forbids unknown keys
    """

    keys: dict[tuple[str, ...], set[str]] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    whole: set[tuple[str, ...]] = field(default_factory=lambda: {(name,) for name in MONITORS})


class _RecordingDict(dict[str, Any]):
    """A dict that records the keys that are looked up in it and in the dicts that it contains."""

    def __init__(self, values: dict[str, Any], path: tuple[str, ...], log: _AccessLog) -> None:
        super().__init__(values)
        self.path, self.log = path, log

    def _record(self, key: Any) -> None:
        self.log.keys.setdefault(self.path, set()).add(key)

    def _wrapped(self, key: Any, value: Any) -> Any:
        plain = isinstance(value, dict) and not isinstance(value, _RecordingDict)
        return _RecordingDict(value, (*self.path, str(key)), self.log) if plain else value

    def __getitem__(self, key: Any) -> Any:
        self._record(key)
        return self._wrapped(key, super().__getitem__(key))

    def get(self, key: Any, default: Any = None) -> Any:
        self._record(key)
        if not self.path:
            self.log.defaults[key] = default
        return self._wrapped(key, super().get(key, default)) if key in self else default

    def __contains__(self, key: Any) -> bool:
        self._record(key)
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        yield from list(super().__iter__())

    def keys(self) -> Any:
        """Return a view that records membership tests."""
        return _RecordingKeys(self)

    def items(self) -> Any:
        """Return pairs. Iterating over them does not count as looking up a key."""
        return [(key, self._wrapped(key, super(_RecordingDict, self).__getitem__(key))) for key in self]

    def __copy__(self) -> _RecordingDict:
        return _RecordingDict(dict(super().items()), self.path, self.log)


class _RecordingKeys:
    """View of the keys of a ``_RecordingDict``."""

    def __init__(self, of: _RecordingDict) -> None:
        self.of = of

    def __contains__(self, key: Any) -> bool:
        return key in self.of

    def __iter__(self) -> Iterator[str]:
        self.of.log.whole.add(self.of.path)  # ``Model(**section)``
        return iter(self.of)

    def __len__(self) -> int:
        return len(self.of)


def check(config: dict[str, Any], path: Path) -> None:
    """Check ``config``, read from the file ``path``, against DeepSpeed's parser.

    Raises ValueError for the first key that DeepSpeed does not read, with the nearest valid one, and for a value that
    DeepSpeed rejects.
    """
    from deepspeed.runtime import config as parser

    log = _AccessLog()
    recording = _RecordingDict(config, (), log)
    own = object.__new__(parser.DeepSpeedConfig)
    own._param_dict = recording
    own.global_rank, own.world_size = 1, 1
    rejection: Exception | None = None
    with _logger_disabled():
        try:
            parser._reject_removed_config_keys(config)
            own._initialize_params(recording)
        except Exception as error:  # the parser raises many types
            rejection = error
    _check_values(config, log.defaults, path)
    if rejection is not None:
        raise ValueError(f"{path}: {_explain(rejection, config)}") from rejection
    _check_keys(config, (), log, path)
    for section, known in (("optimizer", _optimizer_arguments), ("scheduler", _scheduler_arguments)):
        entry = config.get(section)
        if isinstance(entry, dict) and entry.get("type") is not None:
            valid, params = known(str(entry["type"]), path), entry.get("params") or {}
            if not isinstance(params, dict):
                raise ValueError(f"{path}: {section}.params: expected an object, got {params!r}")
            for key in NUMERIC_ARGUMENTS & params.keys():
                if isinstance(params[key], str | bool):
                    raise ValueError(
                        f"{path}: {section}.params.{key}: expected a number, got {json.dumps(params[key])}"
                    )
            for key in params if valid else ():
                if key not in valid:
                    raise ValueError(
                        _unknown(path, (section, "params", key), valid, f"{entry['type']} has no such argument")
                    )


def _check_values(config: dict[str, Any], defaults: dict[str, Any], path: Path) -> None:
    """Raise ValueError for a value of the wrong type at the top level, or a ZeRO stage that is not a number.

    DeepSpeed's parser does not check these: a string in place of a number would fail during the first step.
    """
    for key, value in config.items():
        default = INTEGER_KEYS.get(key, defaults.get(key))
        if value is None or isinstance(value, dict | list) or default is None:
            continue
        if isinstance(default, bool):
            fits, expected = isinstance(value, bool), "true or false"
        elif isinstance(default, int):
            fits, expected = _is_number(value) and value == int(value), "a whole number"
        elif isinstance(default, float):
            fits, expected = _is_number(value), "a number"
        else:
            continue  # the parser itself validates strings
        if not fits:
            raise ValueError(f"{path}: {key}: expected {expected}, got {json.dumps(value)}")
    zero = config.get("zero_optimization")
    if isinstance(zero, dict) and "stage" in zero and not _is_number(zero["stage"]):
        raise ValueError(f"{path}: zero_optimization.stage: expected 0, 1, 2 or 3, got {json.dumps(zero['stage'])}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_keys(values: dict[str, Any], at: tuple[str, ...], log: _AccessLog, path: Path) -> None:
    if at in FREE_FORM_SECTIONS or at in log.whole or at in (("optimizer", "params"), ("scheduler", "params")):
        return
    names = _constants(KEYS_FROM_CONSTANTS[at[0]]) if at and at[0] in KEYS_FROM_CONSTANTS else set()
    if "schedule_config" in at or at[-1:] == ("curriculum_metrics",):
        return
    valid = log.keys.get(at, set()) | set(EXTRA_KEYS.get(at, ())) | names
    for key, value in values.items():
        if key not in valid:
            raise ValueError(
                _unknown(path, (*at, str(key)), valid, "DeepSpeed does not read this key, so it would have no effect")
            )
        if isinstance(value, dict):
            _check_keys(value, (*at, str(key)), log, path)


def _unknown(path: Path, keys: tuple[str, ...], valid: set[str], what: str) -> str:
    names = sorted(name for name in valid if isinstance(name, str))
    near = difflib.get_close_matches(keys[-1], names, 1, 0.6)
    elsewhere = f"; did you mean {'.'.join((*keys[:-1], near[0]))}?" if near else f"; valid: {', '.join(names)}"
    return f"{path}: unknown key {'.'.join(keys)}: {what}{elsewhere}"


def _constants(module: str) -> set[str]:
    from importlib import import_module

    return {value for value in vars(import_module(module)).values() if isinstance(value, str) and value.isidentifier()}


def _explain(error: Exception, config: dict[str, Any]) -> str:
    """Return DeepSpeed's error message with the key that it concerns."""
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return f"DeepSpeed rejects this configuration: {str(error) or type(error).__name__}"
    problems = error.errors(include_url=False)
    problem = min(problems, key=lambda p: p["type"] != "extra_forbidden")
    keys = tuple(str(part) for part in problem["loc"])
    model = next((one for one in _models() if one.__name__ == error.title), None)
    keys = (*_section_of(keys, config), *keys)
    if problem["type"] == "extra_forbidden":
        return _unknown(Path(), keys, _fields(model, problem["loc"][:-1]), "DeepSpeed has no such key").removeprefix(
            ".: "
        )
    return f"{'.'.join(keys)}: {problem['msg'].removeprefix('Value error, ')}, got {problem['input']!r}"


def _section_of(keys: tuple[str, ...], config: dict[str, Any]) -> tuple[str, ...]:
    """Return the section, or the section in a section, that holds ``keys``. Keys of a monitor include its name."""
    if not keys or keys[0] in config:
        return ()
    for name, section in config.items():
        if isinstance(section, dict):
            if keys[0] in section:
                return (name,)
            for inner, values in section.items():
                if isinstance(values, dict) and keys[0] in values:
                    return (name, inner)
    return ()


def _models() -> Iterator[Any]:
    from deepspeed.runtime.config_utils import DeepSpeedConfigModel

    waiting: list[Any] = [DeepSpeedConfigModel]
    while waiting:
        one = waiting.pop()
        waiting += one.__subclasses__()
        yield one


def _fields(model: Any, inside: tuple[Any, ...]) -> set[str]:
    """Return the field names of ``model``, or of the model nested in it at ``inside``."""
    for key in inside:
        if model is None:
            return set()
        found = next((f for n, f in model.model_fields.items() if key in (n, f.alias)), None)
        kinds = [] if found is None else [found.annotation, *getattr(found.annotation, "__args__", ())]
        model = next((kind for kind in kinds if hasattr(kind, "model_fields")), None)
    if model is None:
        return set()
    return {one.alias or name for name, one in model.model_fields.items()}


def _optimizer_arguments(name: str, path: Path) -> set[str]:
    """Return the valid keys of ``optimizer.params``; an empty set if they are not known."""
    import torch
    from deepspeed.ops.adam import DeepSpeedCPUAdam, FusedAdam
    from deepspeed.ops.lion import DeepSpeedCPULion, FusedLion
    from deepspeed.runtime import config as parser
    from deepspeed.runtime.engine import DeepSpeedEngine

    if name.lower() in OPTIMIZERS:
        return _arguments(OPTIMIZERS[name.lower()])
    adam = {"torch_adam", "adam_w_mode", "fp32_optimizer_states"}
    adam |= _arguments(torch.optim.Adam, torch.optim.AdamW, FusedAdam, DeepSpeedCPUAdam)
    if name.lower() not in parser.DEEPSPEED_OPTIMIZERS:
        kind = getattr(torch.optim, name, None)
        if not (inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)):
            known = [*parser.DEEPSPEED_OPTIMIZERS, *OPTIMIZERS, *(n for n in dir(torch.optim) if n[0].isupper())]
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
            raise ValueError(f"{path}: optimizer.type = {name!r}: neither DeepSpeed nor torch has this optimizer{hint}")
        return _arguments(kind)
    muon = {*DeepSpeedEngine._MUON_HALF_KEYS, *DeepSpeedEngine._ADAM_HALF_KEYS, "muon_lr", "adam_lr", "foreach"}
    return {
        "adam": adam,
        "adamw": adam,
        "adagrad": _arguments(torch.optim.Adagrad),
        "lion": _arguments(DeepSpeedCPULion, FusedLion),
        "muon": muon | {"torch_adam", "adam_w_mode", "fp32_optimizer_states"},
    }.get(name.lower(), set())


def _scheduler_arguments(name: str, path: Path) -> set[str]:
    """Return the valid keys of ``scheduler.params``."""
    import torch
    from deepspeed.runtime import lr_schedules

    kind = getattr(lr_schedules, name, None) or getattr(torch.optim.lr_scheduler, name, None)
    if not inspect.isclass(kind):
        known = [*lr_schedules.VALID_LR_SCHEDULES, *(n for n in dir(torch.optim.lr_scheduler) if n.endswith("LR"))]
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
        raise ValueError(f"{path}: scheduler.type = {name!r}: neither DeepSpeed nor torch has this schedule{hint}")
    return _arguments(kind)


def _arguments(*kinds: Any) -> set[str]:
    """Return the arguments of the constructors, without the model and the optimizer."""
    names = {name for kind in kinds for name in inspect.signature(kind).parameters}
    return names - {"self", "params", "model_params", "optimizer", "args", "kwargs"}


@contextlib.contextmanager
def _logger_disabled() -> Iterator[None]:
    """Disable DeepSpeed's logger: the parser runs again later and would log everything twice."""
    from deepspeed.utils import logger

    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
