"""The run file: a TOML with dotted overrides, validated, and its resolved copy in the run folder.

Each setting has one owner. The DeepSpeed JSON that the TOML names owns the batch size, accumulation, precision,
clipping, optimizer, schedule, ZeRO, offload and monitor; ``deepspeed.initialize`` gets it byte for byte. The TOML owns
``seed``, ``[task]``, ``[train]``, ``[parallel]``, ``[kernels]``, ``[benchmark]`` and the sections of the task, which
are the fields of its module's ``Config``: for the fold task ``[model]``, ``[data]`` and ``[loss]``.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ds4sci import __version__
from ds4sci.config import deepspeed_json, renamed, run_version
from ds4sci.config.benchmark import BenchmarkConfig
from ds4sci.config.errors import locate, unknown_key
from ds4sci.config.task_module import import_task
from ds4sci.files import atomic_files
from ds4sci.machine import provenance


class TaskConfig(BaseModel):
    """``[task]``: the task to train."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    """``fold`` is the module ``ds4sci.tasks.fold``; a dotted name (``my_lab.tasks.x``) is imported as given."""


class TrainConfig(BaseModel):
    """``[train]``: length of the run, intervals of evaluation and checkpoints, output folder."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(gt=0)
    """Optimizer steps of the whole run; ``progress`` is step / steps."""
    evaluate_every: int = Field(default=0, ge=0)
    """Steps between evaluations on held-out data with the EMA weights; 0 = only at the end."""
    save_every: int = Field(default=0, ge=0)
    """Steps between checkpoints; 0 = only at the end, after a best evaluation, and when the run is stopped."""
    keep_last: int = Field(default=2, ge=1)
    """Number of newest checkpoints to keep, in addition to the best one."""
    ema_decay: float = Field(default=0.999, ge=0.0, lt=1.0)
    """Decay of the exponential moving average of the weights; warms up as min(ema_decay, (1 + t) / (10 + t))."""
    max_nonfinite: int = Field(default=20, ge=0)
    """Maximum number of steps skipped because of a non-finite loss or gradient; one more stops the run."""
    hang_seconds: float = Field(default=1800.0, ge=0.0)
    """Seconds without progress after which a rank records its stacks and ends; 0 = never. Progress is a micro-batch, a
    batch of an evaluation or a checkpoint. Before the first step the limit is at least two
    hours; the first step, in which kernels may compile, has the same limit as the others."""
    monitor_seconds: float = Field(default=1.0, ge=0.0)
    """Seconds between samples of CPU, memory, disk, network and GPU, which every rank writes with the stages of the run
    to ``RUN/monitor``; 0 = no monitor."""
    gradient_noise: bool = False
    """Measure the gradient noise scale, which suggests a batch size; ``metrics.jsonl`` and the report show it. Each
    step must have at least two micro-batches, over ranks and accumulation."""
    time_collectives: bool = False
    """Write the mean seconds per step that a rank spends in collective operations, waiting included, to
    ``metrics.jsonl`` as ``communication_seconds``. With NCCL, whose operations run beside the computation, this is the
    time of the calls and waits only."""
    log_every: int = Field(default=20, gt=0)
    """Steps between lines of ``metrics.jsonl``; each holds the means since the previous line."""
    activation_budget: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | Literal["unlimited"] | None = None
    """GB per rank that the layers of a model may keep for the backward pass. What does not fit is computed again, and
    the outputs of attention last, as they are small and costly; 0 keeps the inputs of layers only, ``"unlimited"`` all.
    The layer that is being computed again is not counted. By default language models and vision transformers recompute
    their layers above 8,192 tokens per rank and micro-batch, and structure models if ``model.checkpoint_blocks``."""
    weights: Path | None = None
    """Initial weights, for fine-tuning: a run folder (its best checkpoint) or a ``model.safetensors`` file. Structure
    models also read AlphaFold's ``.npz`` and OpenFold's ``.pt``. Each tensor of the file and of the model must have a
    counterpart; heads that no other output depends on may be in the file alone."""
    weights_skip: tuple[str, ...] = ()
    """Patterns, as of file names, of tensors of ``weights`` that are not loaded: ``["template_embedder.*"]``. Tensors
    have the names of the model."""
    weights_new: tuple[str, ...] = ()
    """Patterns of tensors of the model that keep their initial values, whether ``weights`` has them or not:
    ``["heads.secondary.*"]``."""
    stage_to: Path | None = None
    """Folder on storage of the node, such as a scratch disk: the ranks of a node copy the dataset there together,
    checksummed, before training, and read the copy. The copy stays for later runs; delete it by hand."""
    output: Path = Path("runs")
    """Folder of the runs."""
    name: str | None = None
    """Folder of this run inside ``output``; by default the name of the run file and the time."""


class ParallelConfig(BaseModel):
    """``[parallel]``: number of ranks that work on one example."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sequence: int = Field(default=1, ge=1)
    """Ranks that share each example; the number of ranks must be a multiple of this. Language models divide the tokens
    of a row (Ulysses), structure models the rows of the MSA and pair representations (axial parallelism)."""
    pipeline: int = Field(default=1, ge=1)
    """Pipeline stages: consecutive parts of the model, each on its own ranks, with ZeRO stage 1. The number of ranks
    must be a multiple of this. Use at least as many accumulation steps as stages, so that all stages have work."""

    @model_validator(mode="after")
    def _one_of_both(self) -> ParallelConfig:
        if self.sequence > 1 and self.pipeline > 1:
            raise ValueError(
                f"sequence = {self.sequence} and pipeline = {self.pipeline} cannot be combined; set one of them to 1"
            )
        return self


class CommonKeys(BaseModel):
    """Top-level keys of every run file; the task owns the others."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    deepspeed: Path
    seed: int = Field(default=0, ge=0)
    task: TaskConfig
    train: TrainConfig
    parallel: ParallelConfig = ParallelConfig()
    kernels: dict[str, str] = {}
    benchmark: BenchmarkConfig | None = None


@dataclass(frozen=True)
class RunConfig:
    """A validated run file.

    source     path of the run file, for messages
    deepspeed  absolute path of the DeepSpeed JSON
    seed       seed of weights, data order and dropout
    task       ``[task]``
    train      ``[train]``
    parallel   ``[parallel]``
    kernels    ``[kernels]``: kernel name → implementation name
    settings   the task module's ``Config``, with the sections of the task as attributes
    benchmark  ``[benchmark]``, or None
    """

    source: Path
    deepspeed: Path
    seed: int
    task: TaskConfig
    train: TrainConfig
    parallel: ParallelConfig
    kernels: dict[str, str]
    settings: BaseModel
    benchmark: BenchmarkConfig | None = None

    @classmethod
    def load(
        cls, path: Path | str, overrides: list[str] | tuple[str, ...] = (), *, deepspeed: Path | str | None = None
    ) -> RunConfig:
        """Read the run file ``path``: a TOML, or the ``config.json`` in a run folder.

        overrides  dotted keys with TOML values, such as ``["train.steps=10"]``; a bare word is a string
        deepspeed  DeepSpeed JSON that replaces the one that the file names (``--deepspeed_config``)

        Raises ValueError with file, line and key for a missing file, malformed TOML, an unknown key (with the nearest
        valid one), a renamed key (with its new name), a key that the DeepSpeed JSON owns, a value of the wrong type, a
        malformed override, a missing DeepSpeed JSON, and a ``config.json`` of a version that this one cannot read.
        """
        file = find_file(Path(path), near=None, what="run file")
        text = deepspeed_json.read_text(file)
        tree = _parse(file, text)
        if file.suffix == ".json":
            run_version.check(file, tree.pop(run_version.KEY, None))
        for override in overrides:
            _apply_override(tree, override)
        if deepspeed is not None:
            tree["deepspeed"] = str(deepspeed)
        source = _Source(file, text, tuple(overrides))

        task_name = tree.get("task", {}).get("name") if isinstance(tree.get("task"), dict) else None
        if not isinstance(task_name, str):
            raise ValueError(f'{file}: task.name is missing; add the section [task] with a name, such as name = "fold"')
        if (new_name := renamed.new_value("task.name", task_name)) is not None:
            raise ValueError(
                f"{source.location(('task', 'name'))}: {renamed.value_message('task.name', task_name, new_name)}"
            )
        settings_type = import_task(task_name).Config
        common_tree = {key: value for key, value in tree.items() if key in CommonKeys.model_fields}
        task_tree = {key: value for key, value in tree.items() if key not in CommonKeys.model_fields}
        source.check_top_level(task_tree, settings_type)
        common = source.validate(CommonKeys, common_tree)
        source.check_kernels(common.kernels)
        settings = source.validate(settings_type, task_tree)
        json_file = find_file(Path(common.deepspeed), near=file, what="DeepSpeed JSON", option="deepspeed")
        config = cls(
            file, json_file, common.seed, common.task, common.train, common.parallel, common.kernels, settings,
            common.benchmark,
        )  # fmt: skip
        _check_zero_stage(config)
        return config

    def deepspeed_config(self) -> dict[str, Any]:
        """The DeepSpeed JSON, parsed and unchanged. Raises ValueError (see ``ds4sci.config.deepspeed_json.read``)."""
        return deepspeed_json.read(self.deepspeed)

    def resolved(self) -> dict[str, Any]:
        """Every key with its value, defaults included, in the layout of the run file, as JSON values."""
        train = self.train.model_dump(mode="json", exclude_none=True)
        return {
            "deepspeed": str(self.deepspeed),
            "seed": self.seed,
            "task": self.task.model_dump(mode="json"),
            "train": train,
            "parallel": self.parallel.model_dump(mode="json"),
            "kernels": dict(self.kernels),
            **({"benchmark": self.benchmark.model_dump(mode="json", exclude_none=True)} if self.benchmark else {}),
            **self.settings.model_dump(mode="json", exclude_none=True),
        }

    def save(self, folder: Path) -> RunConfig:
        """Write ``config.json`` (resolved, with the version of ds4sci), ``deepspeed.json`` (byte for byte) and
        ``commit.txt`` into ``folder``.

        Returns the config of the written copy. ``RunConfig.load(folder / "config.json")`` reads it again, also after
        the folder has been moved.
        """
        with atomic_files.replacing(folder / "deepspeed.json") as handle:
            handle.write(self.deepspeed.read_bytes())
        atomic_files.replace_text(folder / "commit.txt", provenance.commit() + "\n")
        tree = {run_version.KEY: __version__} | self.resolved() | {"deepspeed": "deepspeed.json"}
        # Last: a folder with a config.json has the other files too.
        atomic_files.replace_text(folder / "config.json", json.dumps(tree, indent=2) + "\n")
        return self.moved_to(folder)

    def moved_to(self, folder: Path) -> RunConfig:
        """This config with the paths of the copy that ``save`` wrote into ``folder``."""
        return replace(self, source=folder / "config.json", deepspeed=folder / "deepspeed.json")


def read_benchmark(path: Path) -> BenchmarkConfig | None:
    """Return ``[benchmark]`` of the run file ``path``, or None if it has none. Nothing is imported.

    Raises ValueError, with file, line and key, for errors in the keys that every run file has.
    """
    text = deepspeed_json.read_text(path)
    tree = _parse(path, text)
    if "benchmark" not in tree:
        return None
    common = {key: value for key, value in tree.items() if key in CommonKeys.model_fields}
    benchmark: BenchmarkConfig | None = _Source(path, text).validate(CommonKeys, common).benchmark
    return benchmark


def _check_zero_stage(config: RunConfig) -> None:
    """Raise ValueError if the DeepSpeed JSON is malformed, or its ZeRO stage does not work with pipeline stages."""
    tree = config.deepspeed_config()
    if config.parallel.pipeline == 1 or (stage := deepspeed_json.zero_stage(tree)) == 1:
        return
    if stage == 0:
        reason = "without ZeRO, DeepSpeed clips every pipeline stage by its own gradient norm"
    else:
        reason = "DeepSpeed's pipeline engine keeps whole gradients until the end of a step"
    raise ValueError(
        f"{config.deepspeed}: zero_optimization.stage = {stage}: parallel.pipeline = {config.parallel.pipeline} in "
        f"{config.source} needs ZeRO stage 1, because {reason}; set it to 1, or remove parallel.pipeline"
    )


def find_file(path: Path, *, near: Path | None, what: str, option: str = "") -> Path:
    """Return ``path`` as the absolute path of an existing file.

    Searched in this order: the current folder, the folder of the run file ``near``, the parent of the ``configs/``
    folder that holds the run file, and the configs packaged with ds4sci. For a ``config.json`` its own folder comes
    first. ``what`` and ``option`` name the file in the message. Raises ValueError with every path tried.
    """
    roots = [Path.cwd()]
    if near is not None:
        # The config.json of a run names the copy in its own folder, not a file of that name in the current one.
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
    raise ValueError(f"{named}no such {what}; tried {looked}")


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


def _apply_override(tree: dict[str, Any], override: str) -> None:
    """Set the value of one ``dotted.key=value`` in ``tree``."""
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
    """Text and overrides of a run file, to locate its keys in messages."""

    file: Path
    text: str
    overrides: tuple[str, ...] = ()

    def location(self, keys: tuple[str, ...]) -> str:
        """Return ``file:line`` of a key, or the override that set it."""
        for override in reversed(self.overrides):
            own = override.partition("=")[0].strip().split(".")
            if list(keys[: len(own)]) == own:
                return f"override {override!r}"
        return locate(self.file, self.text, keys)

    def check_top_level(self, task_tree: dict[str, Any], settings_type: type[BaseModel]) -> None:
        """Raise ValueError for a top-level key that neither every run file nor the task has."""
        valid = [*CommonKeys.model_fields, *settings_type.model_fields]
        for key in task_tree:
            if key not in valid:
                raise ValueError(unknown_key(self.location((key,)), (key,), valid))

    def check_kernels(self, kernels: dict[str, str]) -> None:
        """Raise ValueError for a renamed kernel. Unknown ones are refused where kernels are imported."""
        for name in kernels:
            if (new := renamed.new_key(("kernels", name))) is not None:
                location = self.location(("kernels", name))
                raise ValueError(f"{location}: {renamed.key_message(f'kernels.{name}', new)}")

    def validate(self, model: type[BaseModel], tree: dict[str, Any]) -> Any:
        """Return ``tree`` as a ``model``. Raises ValueError with file, line, key and remedy of the first problem."""
        try:
            return model.model_validate(tree)
        except ValidationError as error:
            problems = error.errors(include_url=False)
        problem = min(problems, key=lambda p: p["type"] != "extra_forbidden")
        keys = tuple(str(part) for part in problem["loc"])
        location = self.location(keys)
        if problem["type"] == "extra_forbidden":
            raise ValueError(unknown_key(location, keys, _fields(model, keys[:-1]))) from None
        dotted = ".".join(keys)
        if problem["type"] == "missing":
            raise ValueError(f"{location}: {dotted} is missing") from None
        message = problem["msg"].removeprefix("Value error, ")
        raise ValueError(f"{location}: {dotted}: {message}, got {problem['input']!r}") from None


def _fields(model: type[BaseModel], keys: tuple[str, ...]) -> list[str]:
    """Return the names that are valid in the section ``keys`` of ``model``."""
    for key in keys:
        field = model.model_fields.get(key)
        if field is None:
            continue  # a list index or the tag of a union, which is no section
        inner = _model_in(field.annotation)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """Return the pydantic model in an annotation such as ``list[Phase]`` or ``Phase | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        if (model := _model_in(inner)) is not None:
            return model
    return None
