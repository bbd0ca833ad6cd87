"""Files of parameters: AlphaFold's ``.npz``, OpenFold's ``.pt``, and safetensors with the names of either project.

Nothing is unpickled: arrays are read with ``allow_pickle=False``, torch files with ``weights_only=True``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ds4sci.files.array_files import save_arrays
from ds4sci.files.atomic_files import replace_text, replacing
from ds4sci.models.published_weights.translation import (
    Names,
    Tensors,
    from_alphafold,
    from_openfold,
    is_multimer,
    to_alphafold,
    to_openfold,
)

RECORD = "initial_weights.json"
"""File of a run with what its weights started from, and its notice."""

NOTICE_KEY = "notice"
"""Entry of a safetensors file's metadata with the origin and the license of the parameters."""

CC_BY = (
    "The published {0} parameters are licensed under CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/): credit "
    "{1} in what you publish of them or of models that started from them, and state that they were changed."
)
NOTICES: Mapping[Names, str] = {
    "alphafold": CC_BY.format("AlphaFold", "Jumper et al. 2021 (https://doi.org/10.1038/s41586-021-03819-2)"),
    "openfold": CC_BY.format("OpenFold", "Ahdritz et al. 2024 (https://doi.org/10.1038/s41592-024-02272-z)"),
}
"""Terms of the published parameters, by the program whose names a file has."""

MULTIMER_NOTICE = CC_BY.format(
    "AlphaFold-Multimer", "Evans et al. 2021 (https://doi.org/10.1101/2021.10.04.463034) and Jumper et al. 2021"
)
"""Terms of the parameters of AlphaFold-Multimer in files of either program: OpenFold published none of its own."""

TITLES: Mapping[Names, str] = {"alphafold": "AlphaFold 2", "openfold": "OpenFold", "ds4sci": "ds4sci"}
SUFFIXES = {".npz": "npz", ".pt": "torch", ".pth": "torch", ".ckpt": "torch", ".safetensors": "safetensors"}


@dataclass(frozen=True)
class WeightFile:
    """Parameters of a file, under the names of ``ds4sci.models.fold.FoldModel``.

    path     of the file
    names    program whose names and axes the file has
    tensors  name here → tensor; tensors that are in no table keep the name of the file
    origin   name here → name in the file
    unknown  names of tensors that are in no table
    notice   origin and license of the parameters, or empty
    stored   number of tensors or arrays in the file
    """

    path: Path
    names: Names
    tensors: Tensors
    origin: Mapping[str, str]
    unknown: tuple[str, ...]
    notice: str
    stored: int

    @property
    def title(self) -> str:
        """Format of the file, such as ``OpenFold names, .pt``."""
        return f"{TITLES[self.names]} names, {self.path.suffix}"

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name → shape."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}


def read_weights(path: Path) -> WeightFile:
    """Read the parameters of ``path``; its ending gives the format, its names the program.

    A ``.pt`` file holds a state dict, or a training checkpoint of OpenFold, of which the averaged parameters
    ``["ema"]["params"]`` are read. Memory: the file; arrays are views of it where torch allows it.

    Raises ValueError, with the path, for a file that cannot be read safely, has no tensors or has some that are not
    floating-point numbers.
    """
    kind = SUFFIXES.get(path.suffix)
    if kind is None:
        raise ValueError(f"{path}: unknown ending {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    read = {"npz": _read_npz, "torch": _read_torch, "safetensors": _read_safetensors}[kind]
    stored, notice = read(path)
    notice = notice or read_notice(path)
    if not stored:
        raise ValueError(f"{path}: holds no tensors")
    if integers := [name for name, tensor in stored.items() if not tensor.is_floating_point()]:
        raise ValueError(
            f"{path}: {len(integers)} tensors are no floating-point numbers, such as {integers[0]} "
            f"({stored[integers[0]].dtype}); expected parameters only"
        )
    try:
        return _recognize(path, stored, notice, kind)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _recognize(path: Path, stored: Tensors, notice: str, kind: str) -> WeightFile:
    names: Names = "alphafold"
    if kind == "npz":
        tensors, origin, unknown = from_alphafold(stored)
    else:
        names = "openfold"
        tensors, origin, unknown = from_openfold(stored)
        of_here, not_of_here = to_openfold(stored)
        if len(of_here) > len(tensors):
            names, tensors, origin = "ds4sci", dict(stored), {name: name for name in stored}
            unknown = not_of_here
    tensors |= {name: stored[name] for name in unknown}
    origin |= {name: name for name in unknown}
    if not notice and names != "ds4sci":
        notice = MULTIMER_NOTICE if is_multimer(tensors) else NOTICES[names]
    return WeightFile(path, names, tensors, origin, tuple(unknown), notice, len(stored))


def _read_npz(path: Path) -> tuple[Tensors, str]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise ValueError("a single array; expected an archive of arrays")
            arrays = {}
            for name in file.files:
                try:
                    arrays[name] = torch.from_numpy(file[name])
                except (ValueError, TypeError) as error:
                    reason = "pickled Python objects, which are not read" if "pickle" in str(error) else str(error)
                    raise ValueError(f"the array {name} holds {reason}") from None
            return arrays, ""
    except Exception as error:  # zipfile, zlib and numpy raise errors of many types for a damaged file
        raise ValueError(f"{path}: not a readable .npz file of parameters: {error}") from error


def _read_torch(path: Path) -> tuple[Tensors, str]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the restricted unpickler raises errors of any type for a damaged file
        first = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{path}: not a readable torch file of tensors alone: {first}. Python objects are not unpickled: save the "
            'tensors with torch.save(model.state_dict(), "file.pt")'
        ) from error
    for keys in (("ema", "params"), ("state_dict",), ("module",)):
        inner: Any = content
        for key in keys:
            inner = inner.get(key) if isinstance(inner, Mapping) else None
        if isinstance(inner, Mapping):
            content = inner
            break
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected a state dict: name → tensor")
    if wrong := [str(name) for name, tensor in content.items() if not isinstance(tensor, Tensor)]:
        raise ValueError(f'{path}: expected a state dict or {{"ema": {{"params": …}}}}; {wrong[0]!r} is no tensor')
    return {str(name): tensor for name, tensor in content.items()}, ""


def _read_safetensors(path: Path) -> tuple[Tensors, str]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        return safetensors.torch.load_file(path), metadata.get(NOTICE_KEY, "")
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(f"{path}: not a readable safetensors file: {error}") from None


def write_weights(path: Path, tensors: Mapping[str, Tensor], names: Names, notice: str = "") -> None:
    """Write ``tensors``, which are named as here, to a new file with the names and axes of a program.

    The ending of ``path`` gives the format. The notice is written to the metadata of a safetensors file, and in
    ``PATH.notice.txt`` beside another one. Raises ValueError if the program lacks a tensor, or if the format cannot
    hold it.
    """
    kind = SUFFIXES.get(path.suffix)
    if kind is None:
        raise ValueError(f"{path}: unknown ending {path.suffix!r}; expected one of {', '.join(SUFFIXES)}")
    if (names == "alphafold") != (kind == "npz"):
        raise ValueError(f"{path}: only .npz files have AlphaFold's names, and no others; got names = {names!r}")
    if path.exists():
        raise ValueError(f"{path}: already exists; choose a new file")
    translated: Tensors = dict(tensors)
    unknown: list[str] = []
    if names != "ds4sci":
        translated, unknown = (to_alphafold if names == "alphafold" else to_openfold)(tensors)
    if unknown:
        raise ValueError(
            f"{path}: {TITLES[names]} has no place for {len(unknown)} tensors: {', '.join(unknown[:5])}"
            f"{', …' if len(unknown) > 5 else ''}"
        )
    content = {name: tensor.detach().contiguous() for name, tensor in translated.items()}
    if kind == "npz":
        _refuse_other_dtypes(path, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as handle:
        if kind == "npz":
            arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in content.items()}
            save_arrays(handle, arrays)
        elif kind == "torch":
            torch.save({name: tensor.clone() for name, tensor in content.items()}, handle)
        else:
            metadata = {"format": "pt"} | ({NOTICE_KEY: notice} if notice else {})
            handle.write(safetensors.torch.save(content, metadata))
    if notice and kind != "safetensors":
        replace_text(path.with_name(f"{path.name}.notice.txt"), notice + "\n")


def read_notice(path: Path) -> str:
    """Return the notice that other files have about the file ``path``; empty if there is none.

    These are ``PATH.notice.txt``, ``notice.txt`` of an exported folder, and the record of the run to which a checkpoint
    belongs.
    """
    for file in (path.with_name(f"{path.name}.notice.txt"), path.with_name("notice.txt")):
        if file.is_file():
            return file.read_text(encoding="utf-8").strip()
    parents = path.resolve().parents
    return str(read_record(parents[2]).get("notice", "")) if len(parents) > 2 else ""


def read_record(run: Path) -> dict[str, Any]:
    """Return what the weights of ``run`` started from; empty if they were random."""
    file = run / RECORD
    if not file.is_file():
        return {}
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return record


def _refuse_other_dtypes(path: Path, content: Tensors) -> None:
    for name, tensor in content.items():
        if tensor.dtype not in (torch.float16, torch.float32, torch.float64):
            raise ValueError(
                f"{path}: numpy has no {tensor.dtype}, the type of {name}; write a .pt or .safetensors file, or "
                "convert the tensors to float32 first"
            )
