"""Registry of datasets: every module of this folder with a constant ``DATASET``.

A dotted name, such as ``my_lab.datasets.lung``, is imported as given. To add a dataset, add one module.
"""

from __future__ import annotations

import difflib
import importlib
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ds4sci.datasets.dataset import Dataset

FOLDER = Path(__file__).parent

Make = Callable[[Path, Mapping[str, Path]], None]
"""Function ``make(folder, sources)``: write the files into the empty ``folder``. ``sources`` has the archive of each
package, or the folder below which the installed package has the same files; ``archives.extract`` reads both."""


@dataclass(frozen=True)
class Entry:
    """A dataset, and the function that makes it; None for bundled files."""

    dataset: Dataset
    make: Make | None


def names() -> list[str]:
    """Names of the datasets, in alphabetical order. Read from the sources: nothing is imported."""
    pattern = re.compile(r"^DATASET\b[^=\n]*=", re.MULTILINE)
    return sorted(file.stem for file in FOLDER.glob("*.py") if pattern.search(file.read_text(encoding="utf-8")))


def find(name: str) -> Entry:
    """The dataset ``name``. Raises ValueError for an unknown name, with the nearest known one, and for a module that
    cannot be imported or does not define a dataset, with the cause."""
    if "." not in name and name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "the datasets are listed by: ds4sci data list"
        raise ValueError(f"unknown dataset {name!r}; {hint}")
    module_name = name if "." in name else f"{__package__}.{name}"
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise ValueError(f"unknown dataset {name!r}: there is no module {error.name}") from None
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise ValueError(
            f"dataset {name!r}: the module {module_name} cannot be imported: {type(error).__name__}: {error} "
            f"({last.filename}:{last.lineno})"
        ) from error
    dataset, make = getattr(module, "DATASET", None), getattr(module, "make", None)
    if not isinstance(dataset, Dataset):
        raise ValueError(f"dataset {name!r}: {module_name}.DATASET is {type(dataset).__name__}; expected a Dataset")
    if dataset.name != name.rpartition(".")[2]:
        raise ValueError(
            f"dataset {name!r}: {module_name}.DATASET.name is {dataset.name!r}; expected the module's name"
        )
    if make is None and not dataset.bundled:
        raise ValueError(f"dataset {name!r}: {module_name} has no function make(folder, sources)")
    return Entry(dataset, make)
