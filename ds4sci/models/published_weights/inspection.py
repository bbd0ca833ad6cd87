"""Description of a file of parameters, and its conversion to another format, with all names and shapes checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ds4sci.models.fold import Config
from ds4sci.models.published_weights.key_map import TEMPLATES
from ds4sci.models.published_weights.model_weights import REASONS, describe_unknown
from ds4sci.models.published_weights.sizes import HEADS, Contents, differing_sizes, read_contents
from ds4sci.models.published_weights.translation import Names, has_joined_projections, is_multimer, parameters
from ds4sci.models.published_weights.weight_file import SUFFIXES, WeightFile, read_weights, write_weights
from ds4sci.models.weight_fit import fit_weights
from ds4sci.nn.name_patterns import matching


def check_parameters(file: WeightFile) -> Contents:
    """Return what the file holds. Raises ValueError unless it is the whole of a published model, of any size.

    All names and shapes are those of ``FoldModel`` with the sizes that the file has. Templates and auxiliary heads may
    be absent, each as a whole.
    """
    if file.unknown:
        raise ValueError(f"{file.path}: {describe_unknown(file)}")
    try:
        contents = read_contents(file.tensors)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from None
    fit_weights(
        contents.shapes(),
        file.shapes(),
        source=file.path,
        is_optional=lambda name: name.startswith(tuple(REASONS)),
        remedies=False,
    )
    names = file.origin.values()
    earlier = is_multimer(file.tensors) and file.names != "ds4sci" and not has_joined_projections(names)
    return replace(contents, is_earlier_multimer=earlier)


def describe(path: Path) -> list[str]:
    """Return lines about the file ``path``: format, size, the published model that it fits, and what does not fit.

    Raises ValueError if it cannot be read.
    """
    file = read_weights(path)
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in file.tensors.values())
    kinds = ", ".join(f"{dtype}" if len(dtypes) == 1 else f"{n:,} × {dtype}" for dtype, n in dtypes.items())
    stored = f"{file.stored:,} arrays, " if file.stored != len(file.tensors) else ""
    lines = [
        f"file        {path}",
        f"format      {file.title}",
        f"content     {stored}{len(file.tensors):,} tensors, {parameters(file.tensors):,} parameters, {kinds}",
    ]
    try:
        contents = check_parameters(file)
    except ValueError as error:
        lines.append(f"fits        no published model: {str(error).removeprefix(f'{path}: ')}")
        contents = None
    if contents is not None:
        sizes = differing_sizes(contents.config, Config())
        presets = ", ".join(contents.presets)
        lines.append(f"fits        {presets}" if presets else f"fits        AlphaFold 2 in other sizes: {sizes}")
        if contents.config.template.blocks:
            part = {name: tensor for name, tensor in file.tensors.items() if name.startswith(TEMPLATES)}
            lines.append(
                f"templates   {TEMPLATES}*: {len(part):,} tensors, {parameters(part):,} parameters: used by a model "
                f"with model.template.blocks={contents.config.template.blocks}"
            )
    if contents is not None and (absent := [name for name in HEADS if name not in contents.config.heads]):
        lines.append(f"without     heads {', '.join(absent)}")
    if file.notice:
        lines.append(f"license     {file.notice}")
    return lines


def convert(path: Path, out: Path, names: Names | None = None, *, skip: Sequence[str] = ()) -> WeightFile:
    """Write the parameters of ``path`` to the new file ``out``, and return what was written. No value changes.

    names  program whose names the file gets; by default AlphaFold's in ``.npz``, OpenFold's in ``.pt`` and those of
           this project in ``.safetensors``
    skip   patterns of tensors to leave out, as of file names; tensors have the names of ``FoldModel``

    Raises ValueError for a file that is not the whole of a published model, and if ``out`` exists.
    """
    default: dict[str, Names] = {"npz": "alphafold", "torch": "openfold", "safetensors": "ds4sci"}
    file = read_weights(path)
    left_out = set(matching(skip, file.tensors, "--skip", f"tensor of {path}"))
    kept = {name: tensor for name, tensor in file.tensors.items() if name not in left_out}
    file = replace(file, tensors=kept, unknown=tuple(name for name in file.unknown if name in kept))
    check_parameters(file)
    write_weights(out, file.tensors, names or default.get(SUFFIXES.get(out.suffix, ""), "ds4sci"), file.notice)
    return file
