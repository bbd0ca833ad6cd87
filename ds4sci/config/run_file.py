"""The run file: load a TOML, apply dotted overrides, validate, save the resolved copy.

One owner per fact. The DeepSpeed JSON that the TOML names owns batch size, accumulation, precision, clipping,
optimizer, schedule, ZeRO, offload and monitor, and reaches ``deepspeed.initialize`` byte for byte. The TOML owns the
rest: ``seed``, ``[task]``, ``[train]``, ``[parallel]``, ``[kernels]``, and the sections that belong to the task (its
module's ``Config``: for the fold task ``[model]``, ``[data]`` and ``[loss]``).
"""

from __future__ import annotations

import importlib
import json
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ds4sci.config import deepspeed_json
from ds4sci.config.errors import locate, unknown_key
from ds4sci.machine import provenance


class TaskConfig(BaseModel):
    """``[task]``: which module trains."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """``fold`` is the module ``ds4sci.tasks.fold``; a dotted name (``my_lab.tasks.x``) is imported as given."""


class TrainConfig(BaseModel):
    """``[train]``: how long, how often to look and to save, and where."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(gt=0)
    """Optimizer steps of the whole run; ``progress`` is step / steps."""
    evaluate_every: int = Field(default=0, ge=0)
    """Steps between evaluations on held-out data with the EMA weights; 0 = only at the end."""
    save_every: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0 = only at the end, at a best evaluation, and when the run is stopped."""
    keep_last: int = Field(default=2, ge=1)
    """How many of the newest checkpoints stay; the best one stays besides."""
    ema_decay: float = Field(default=0.999, ge=0.0, lt=1.0)
    """Decay of the weights' running mean; it warms up as min(ema_decay, (1 + t) / (10 + t))."""
    max_nonfinite: int = Field(default=20, ge=0)
    """Skipped steps (loss or gradient not finite) that a run may have; one more stops it."""
    log_every: int = Field(default=20, gt=0)
    """Steps between lines of ``metrics.jsonl``; each holds the means since the line before."""
    weights: Path | None = None
    """Weights to begin with, for fine-tuning: a run folder (its best checkpoint) or a ``model.safetensors`` file."""
    output: Path = Path("runs")
    """Folder of the runs."""
    name: str | None = None
    """Folder of this run inside ``output``; without it the run file's name and the time."""


class ParallelConfig(BaseModel):
    """``[parallel]``: how many ranks work on one example."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sequence: int = Field(default=1, ge=1)
    """Ranks that share each row of tokens (Ulysses); the number of ranks must be a multiple."""


class _Owned(BaseModel):
    """The top-level keys that every run file has; the task owns the others."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    deepspeed: Path
    seed: int = Field(default=0, ge=0)
    task: TaskConfig
    train: TrainConfig
    parallel: ParallelConfig = ParallelConfig()
    kernels: dict[str, str] = {}


@dataclass(frozen=True)
class RunConfig:
    """A validated run file.

    source     the file it came from, for messages
    deepspeed  the DeepSpeed JSON, found and absolute
    seed       of weights, data order, dropout
    task       ``[task]``
    train      ``[train]``
    parallel   ``[parallel]``
    kernels    ``[kernels]``: op name → implementation name
    settings   the task module's ``Config``, with the task's own sections as attributes
    """

    source: Path
    deepspeed: Path
    seed: int
    task: TaskConfig
    train: TrainConfig
    parallel: ParallelConfig
    kernels: dict[str, str]
    settings: BaseModel

    @classmethod
    def load(
        cls, path: Path | str, overrides: list[str] | tuple[str, ...] = (), *, deepspeed: Path | str | None = None
    ) -> RunConfig:
        """Read the run file ``path`` (TOML, or the ``config.json`` that a run saved).

        overrides  ``["train.steps=10"]``: dotted key and a TOML value; a bare word is taken as a string
        deepspeed  a JSON that replaces the one the file names (``--deepspeed_config``)

        Raises ValueError, naming file, line and key: no such file, malformed TOML, an unknown key (with the nearest
        valid one), a key that the DeepSpeed JSON owns, a value of the wrong type, a malformed override, no such JSON.
        """
        file = find(Path(path), near=None, what="run file")
        text = deepspeed_json.read_text(file)
        tree = _parse(file, text)
        for override in overrides:
            _apply(tree, override)
        if deepspeed is not None:
            tree["deepspeed"] = str(deepspeed)
        source = _Source(file, text, tuple(overrides))

        task_name = tree.get("task", {}).get("name") if isinstance(tree.get("task"), dict) else None
        if not isinstance(task_name, str):
            raise ValueError(f'{file}: it needs the section [task] with name = "…", such as name = "fold"')
        settings_type = import_task(task_name).Config
        own = {key: value for key, value in tree.items() if key in _Owned.model_fields}
        rest = {key: value for key, value in tree.items() if key not in _Owned.model_fields}
        source.check_top_level(rest, settings_type)
        owned = source.validate(_Owned, own)
        settings = source.validate(settings_type, rest)
        json_file = find(Path(owned.deepspeed), near=file, what="DeepSpeed JSON", option="deepspeed")
        config = cls(file, json_file, owned.seed, owned.task, owned.train, owned.parallel, owned.kernels, settings)
        config.deepspeed_config()
        return config

    def deepspeed_config(self) -> dict[str, Any]:
        """The DeepSpeed JSON, parsed and unchanged. Raises ValueError (see ``ds4sci.config.deepspeed_json.read``)."""
        return deepspeed_json.read(self.deepspeed)

    def resolved(self) -> dict[str, Any]:
        """Every key with its value, defaults filled in, in the layout of the run file, as plain JSON values."""
        train = self.train.model_dump(mode="json", exclude_none=True)
        return {
            "deepspeed": str(self.deepspeed),
            "seed": self.seed,
            "task": self.task.model_dump(mode="json"),
            "train": train,
            "parallel": self.parallel.model_dump(mode="json"),
            "kernels": dict(self.kernels),
            **self.settings.model_dump(mode="json", exclude_none=True),
        }

    def save(self, folder: Path) -> RunConfig:
        """Write ``config.json`` (resolved), ``deepspeed.json`` (byte for byte) and ``commit.txt`` into ``folder``.

        Returns the config of that folder, which names the copy: ``RunConfig.load(folder / "config.json")`` gives it
        again, wherever the folder has been moved to.
        """
        content = self.deepspeed.read_bytes()
        (folder / "deepspeed.json").write_bytes(content)
        tree = self.resolved() | {"deepspeed": "deepspeed.json"}
        (folder / "config.json").write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
        (folder / "commit.txt").write_text(provenance.commit() + "\n", encoding="utf-8")
        return self.moved_to(folder)

    def moved_to(self, folder: Path) -> RunConfig:
        """This config as ``save`` wrote it into ``folder``."""
        return replace(self, source=folder / "config.json", deepspeed=folder / "deepspeed.json")


def import_task(name: str) -> ModuleType:
    """The module of the task ``name``: ``ds4sci.tasks.NAME``, or the module itself if the name has a dot."""
    module_name = name if "." in name else f"ds4sci.tasks.{name}"
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise ValueError(f"task.name = {name!r}: expected a name such as fold, or a dotted module name")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        folder = Path(__file__).parents[1] / "tasks"
        known = sorted(f.stem for f in folder.glob("*.py") if not f.stem.startswith("_"))
        raise ValueError(
            f"task.name = {name!r}: there is no module {module_name}; "
            f"tasks here: {', '.join(known) or 'none'}; a task of your own is a dotted module name, "
            "and its package must be installed or on PYTHONPATH"
        ) from None
    for attribute in ("Config", "build"):
        if not hasattr(module, attribute):
            raise ValueError(f"task.name = {name!r}: the module {module_name} has no {attribute}; see ds4sci.tasks")
    return module


def find(path: Path, *, near: Path | None, what: str, option: str = "") -> Path:
    """``path`` as an existing absolute file: from here, from the run file's folder, from the folder that holds
    ``configs/`` above the run file, or from the configs that ds4sci brings along."""
    roots = [Path.cwd()]
    if near is not None:
        # The config.json of a run names the copy beside it, whatever lies in the current folder.
        roots.insert(0 if near.suffix == ".json" else 1, near.parent)
        roots += [folder.parent for folder in near.absolute().parents if folder.name == "configs"]
    package = Path(__file__).parents[1]
    tried = [root / path for root in roots]
    if path.parts[:1] == ("configs",):
        tried += [package / "_configs" / Path(*path.parts[1:]), package.parent / path]
    for candidate in tried:
        try:
            if candidate.is_file():
                return candidate.absolute()
        except OSError as error:
            raise ValueError(f"{near or path}: {what} {str(path)[:80]!r}: {error.strerror}") from None
    looked = ", ".join(dict.fromkeys(str(candidate) for candidate in tried))
    named = f"{near}: {option} = {str(path)!r}: " if near is not None else ""
    raise ValueError(f"{named}no such {what}; looked for {looked}")


def _parse(file: Path, text: str) -> dict[str, Any]:
    try:
        tree = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{file}: not valid TOML: {error}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}:{error.lineno}: not valid JSON: {error.msg}") from None
    except RecursionError:
        raise ValueError(f"{file}: nested too deeply to be a run file") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{file}: expected a table of keys, got {type(tree).__name__}")
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    """Set one ``dotted.key=value`` in ``tree``."""
    key, equals, text = override.partition("=")
    key, text = key.strip(), text.strip()
    parts = key.split(".")
    if not equals or not text or not all(part and part.replace("_", "").replace("-", "").isalnum() for part in parts):
        raise ValueError(f"override {override!r}: expected dotted.key=value, such as train.steps=10")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        if not all(c.isalnum() or c in "._-/:@+" for c in text):
            raise ValueError(
                f"override {override!r}: {text!r} is neither a TOML value ({error}) nor a bare word; "
                "quote strings, such as 'train.name=\"my run\"'"
            ) from None
        value = text
    table = tree
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ValueError(f"override {override!r}: {part} is a value, not a section")
    table[parts[-1]] = value


@dataclass(frozen=True)
class _Source:
    """The text and the overrides that a tree came from, to say where a key stands."""

    file: Path
    text: str
    overrides: tuple[str, ...] = ()

    def place(self, keys: tuple[str, ...]) -> str:
        """``file:line`` of a key, or the override that set it."""
        for override in reversed(self.overrides):
            own = override.partition("=")[0].strip().split(".")
            if list(keys[: len(own)]) == own:
                return f"override {override!r}"
        return locate(self.file, self.text, keys)

    def check_top_level(self, rest: dict[str, Any], settings_type: type[BaseModel]) -> None:
        valid = [*_Owned.model_fields, *settings_type.model_fields]
        for key in rest:
            if key not in valid:
                raise ValueError(unknown_key(self.place((key,)), (key,), valid))

    def validate(self, model: type[BaseModel], tree: dict[str, Any]) -> Any:
        """``model`` of ``tree``; the first thing wrong becomes a ValueError with file, line, key and remedy."""
        try:
            return model.model_validate(tree)
        except ValidationError as error:
            problems = error.errors(include_url=False)
        problem = min(problems, key=lambda p: p["type"] != "extra_forbidden")
        keys = tuple(str(part) for part in problem["loc"])
        place = self.place(keys)
        if problem["type"] == "extra_forbidden":
            raise ValueError(unknown_key(place, keys, _fields(model, keys[:-1]))) from None
        dotted = ".".join(keys)
        if problem["type"] == "missing":
            raise ValueError(f"{place}: {dotted} is missing") from None
        message = problem["msg"].removeprefix("Value error, ")
        raise ValueError(f"{place}: {dotted}: {message}, got {problem['input']!r}") from None


def _fields(model: type[BaseModel], keys: tuple[str, ...]) -> list[str]:
    """Names that are valid at the section ``keys`` of ``model``."""
    for key in keys:
        field = model.model_fields.get(key)
        if field is None:
            continue  # a list index or the tag of a union: the section is the same
        inner = _model_in(field.annotation)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model in an annotation such as ``list[Phase]`` or ``Phase | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (model := _model_in(inner)) is not None:
            return model
    return None
