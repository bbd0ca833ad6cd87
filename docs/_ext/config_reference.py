"""Reference of the run file's keys, generated from the pydantic models of every task."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from sphinx.application import Sphinx

from ds4sci.config import run_file, task_module

TASKS = (
    "fold", "masked_lm", "causal_lm", "token_classification", "neural_operator", "volume_regression", "surrogate",
)  # fmt: skip
OUT = "generated"


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models inside an annotation such as ``list[Phase] | None``."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_of(part)]


def type_name(annotation: Any) -> str:
    """An annotation as a user reads it: ``int``, ``list of float``, ``"mean" or "none"``."""
    if get_origin(annotation) in (list, tuple):
        return "list of " + " or ".join(dict.fromkeys(type_name(one) for one in get_args(annotation) if one is not ...))
    if inspect.isclass(annotation) and not get_args(annotation):
        return "section" if issubclass(annotation, BaseModel) else {"str": "string", "Path": "path"}.get(
            annotation.__name__, annotation.__name__
        )  # fmt: skip
    text = str(annotation)
    for module in ("typing.", "pathlib.", "ds4sci."):
        text = text.replace(module, "")
    if "Literal[" in text:
        values = [json.dumps(value) for part in (annotation, *get_args(annotation)) for value in _literals(part)]
        return " or ".join(dict.fromkeys(values)) + (" or none" if "None" in text else "")
    return text.replace("| None", "or none").replace("str", "string")


def _literals(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if str(annotation).startswith("typing.Literal") else ()


def default_of(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "**required**"
    if isinstance(value, BaseModel):
        return ""
    if isinstance(value, list | tuple) and any(isinstance(part, BaseModel) for part in value):
        return "see below"
    if isinstance(value, Path):
        value = str(value)
    return "none" if value is None else f"`{json.dumps(value, ensure_ascii=False, default=str)}`"


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """Field → docstring, of models that do not collect attribute docstrings themselves as well."""
    from pydantic._internal._docs_extraction import extract_docstrings_from_cls

    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if inspect.isclass(base) and issubclass(base, BaseModel) and base is not BaseModel:
            found |= extract_docstrings_from_cls(base)
    return found | {name: f.description for name, f in model.model_fields.items() if f.description}


def section(model: type[BaseModel], path: str, level: int) -> Iterator[str]:
    """Markdown of one section of the run file and of the sections in it."""
    name = f"[{path}]"
    yield f"{'#' * level} {f'`{name}`' if path else 'Sections'}\n"
    if model.__doc__ and not model.__doc__.startswith("!!!"):
        yield inspect.cleandoc(model.__doc__).replace("``", "`") + "\n"
    texts = descriptions(model)
    plain, nested = [], []
    for key, field in model.model_fields.items():
        inner = models_of(field.annotation)
        (nested if inner else plain).append((key, field, inner))
    if plain:
        yield "| key | type | default | meaning |\n|---|---|---|---|"
        for key, field, _ in plain:
            meaning = " ".join(inspect.cleandoc(texts.get(key, "")).split()).replace("``", "`").replace("|", "\\|")
            kind = type_name(field.annotation).replace("|", "or")
            yield f"| `{key}` | {kind} | {default_of(field).replace('|', chr(92) + '|')} | {meaning} |"
        yield ""
    for key, field, inner in nested:
        for one in inner:
            below = f"{path}.{key}" if path else key
            repeated = "list" in str(field.annotation) or "tuple" in str(field.annotation)
            yield from section(one, f"[{below}]" if repeated else below, min(level + 1, 5))


def page(title: str, intro: str, model: type[BaseModel]) -> str:
    return "\n".join([f"# {title}\n", intro + "\n", *section(model, "", 2)]) + "\n"


def pages() -> dict[str, str]:
    """File name → Markdown: one page for the keys of every run file, one for the keys of each task."""
    found = {
        "configuration_all.md": page(
            "Keys of every run file", "These keys are the same for all tasks.", run_file.CommonKeys
        )
    }
    for task in TASKS:
        module = task_module.import_task(task)
        intro = f'Sections that `task.name = "{task}"` adds. {module.summary}'
        found[f"configuration_{task}.md"] = page(f"Keys of the task {task}", intro, module.Config)
    return found


def write(app: Sphinx) -> None:
    folder = Path(app.srcdir) / OUT
    folder.mkdir(exist_ok=True)
    for name, text in pages().items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
