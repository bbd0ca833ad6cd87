"""Import of task modules by ``task.name``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel


def _no_overrides(run: Path) -> list[str]:
    return []


def _no_units(config: Any) -> list[ParallelUnit]:
    return []


def _no_check(config: Any) -> None:
    return None


def _never(config: Any) -> bool:
    return False


@dataclass(frozen=True)
class ParallelUnit:
    """What ranks that share an example divide among themselves and cannot divide further, such as attention heads.

    name    of the units, plural
    count   of the model
    axis    key of ``[parallel]`` whose ranks share them: ``sequence`` or ``pipeline``
    shared  whether several ranks may hold the same unit, so that none is idle if there are fewer units than ranks
    """

    name: str
    count: int
    axis: str = "sequence"
    shared: bool = False

    def idle(self, ranks: int) -> float:
        """Fraction of the time of ``ranks`` ranks that is spent waiting for the rank with the most units."""
        return 0.0 if self.shared else 1.0 - self.count / (ranks * -(-self.count // ranks))


@dataclass(frozen=True)
class TaskModule:
    """What a task module exposes; see ``ds4sci.tasks``.

    name             dotted name of the module
    summary          first line of its docstring
    Config           pydantic model of the TOML sections that the task owns
    build            ``build(config, *, seed, steps)`` → ``ds4sci.tasks.Task``
    asset_overrides  run folder → overrides that load the run from its assets; none by default
    parallel_units   settings → what ``[parallel]`` divides among ranks, for ``ds4sci doctor``; none by default
    check_data       settings → ValueError for files that are absent or that the model does not take, found in
                     milliseconds, before processes start; checks nothing by default
    takes_complexes  settings → whether the model predicts complexes of several chains; never by default
    takes_templates  settings → whether the model predicts with templates; never by default
    miniature        (settings, folder) → sections of a tiny run file, for ``ds4sci selftest``; None: no such function
    """

    name: str
    summary: str
    Config: type[BaseModel]
    build: Callable[..., Any]
    asset_overrides: Callable[[Path], list[str]] = _no_overrides
    parallel_units: Callable[[Any], list[ParallelUnit]] = _no_units
    check_data: Callable[[Any], None] = _no_check
    takes_complexes: Callable[[Any], bool] = _never
    takes_templates: Callable[[Any], bool] = _never
    miniature: Callable[[Any, Path], dict[str, Any]] | None = None


def import_task(name: str) -> TaskModule:
    """Import the task ``name``: the module ``ds4sci.tasks.NAME``, or the module ``name`` itself if it has a dot.

    Raises ValueError for a malformed name, a module that does not exist, and a module that is no task.
    """
    module_name = name if "." in name else f"ds4sci.tasks.{name}"
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise ValueError(f"task.name = {name!r}: expected a name such as fold, or a dotted module name")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise
        raise ValueError(
            f"task.name = {name!r}: no module {module_name}; available tasks: {', '.join(task_names())}. A task "
            "outside ds4sci is a dotted module name, and its package must be installed or on PYTHONPATH"
        ) from None
    for attribute in ("Config", "build"):
        if not hasattr(module, attribute):
            raise ValueError(f"task.name = {name!r}: the module {module_name} has no {attribute}; see ds4sci.tasks")
    summary = (module.__doc__ or "").strip().split("\n")[0]
    names = ("asset_overrides", "parallel_units", "check_data", "takes_complexes", "takes_templates", "miniature")
    optional = {name: getattr(module, name) for name in names if hasattr(module, name)}
    return TaskModule(module_name, summary, module.Config, module.build, **optional)


def task_names() -> list[str]:
    """Return the names of the tasks in ``ds4sci.tasks``: the modules that define ``build``."""
    folder = Path(__file__).parents[1] / "tasks"
    return sorted(file.stem for file in folder.glob("*.py") if "\ndef build(" in file.read_text(encoding="utf-8"))
