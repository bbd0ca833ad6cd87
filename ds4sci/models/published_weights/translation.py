"""Translation of parameters between the names and axes of AlphaFold, OpenFold and this project.

Functions return the translated tensors and the names that are in no table. No value changes: axes are permuted,
merged and split, blocks are stacked or taken apart, and the joined projections of AlphaFold-Multimer likewise.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from einops import EinopsError, rearrange
from torch import Tensor

from ds4sci.models.published_weights.key_map import ENTRIES, Entry
from ds4sci.models.published_weights.multimer_key_map import EARLIER_ENTRIES, JOINED, MULTIMER_ENTRIES

Names = Literal["ds4sci", "openfold", "alphafold"]
"""Program whose names and axes the tensors of a file have."""

Tensors = dict[str, Tensor]

BLOCK = re.compile(r"(?<=\bblocks\.)\d+(?=\.)")
"""Number of a block in the name of a tensor. Other numbers in names, such as ``layers.0``, are part of them."""

EARLIER_OPENFOLD_NAMES = (
    (r"^(module\.)?(model\.)?", ""),
    (r"\.core\.(msa_transition|outer_product_mean)\.", r".\1."),
    (r"\.core\.(tri_\w+|pair_transition)\.", r".pair_stack.\1."),
    (r"\.ipa\.linear_(q|kv)_points\.(weight|bias)$", r".ipa.linear_\1_points.linear.\2"),
    (r"^template_angle_embedder\.", "template_single_embedder."),
    (r"^template_(single_embedder|pair_embedder|pair_stack|pointwise_att)\.", r"template_embedder.template_\1."),
)
"""Names in OpenFold's published files, which are of version 1, and prefixes of its training checkpoints."""

FROM_OPENFOLD, FROM_ALPHAFOLD = (
    {getattr(entry, key): entry for entry in (*ENTRIES, *MULTIMER_ENTRIES, *EARLIER_ENTRIES)}
    for key in ("openfold", "alphafold")
)
"""All models: no name has two meanings."""

FROM_HERE, FROM_MULTIMER = ({entry.here: entry for entry in entries} for entries in (ENTRIES, MULTIMER_ENTRIES))


def has_joined_projections(names: Iterable[str]) -> bool:
    """Whether ``names``, AlphaFold's or OpenFold's, have joined projections: not in AlphaFold 2 and Multimer v1, v2."""
    return any("triangle_multiplication_outgoing/projection//" in name or ".linear_ab_p." in name for name in names)


def is_multimer(tensors: Mapping[str, Tensor]) -> bool:
    """Whether ``tensors``, which are named as here, are those of AlphaFold-Multimer: keys without values."""
    return "structure_module.ipa.linear_k.weight" in tensors


def _split_halves(tensors: Tensors, origin: dict[str, str], program: Names) -> tuple[Tensors, dict[str, str]]:
    """Return the tensors with the halves of those that AlphaFold-Multimer joins, and the names in the file."""
    halves = JOINED[program]
    made: Tensors = {}
    origins: dict[str, str] = {}
    for name, tensor in tensors.items():
        joined = next((part for part in halves if part in name), None)
        parts = {name: tensor}
        if joined is not None:
            if tensor.dim() == 0 or tensor.shape[0] % 2:
                raise ValueError(f"{origin[name]}: has the shape {list(tensor.shape)}, expected two joined projections")
            names = (name.replace(joined, half) for half in halves[joined])
            parts = dict(zip(names, tensor.chunk(2, 0), strict=True))
        made |= parts
        origins |= dict.fromkeys(parts, origin[name])
    return made, origins


def _join_halves(tensors: Mapping[str, Tensor], program: Names) -> Tensors:
    """Return the tensors of a multimer model, named as here, with joined projections; the inverse of the above.

    Raises ValueError if one half is missing.
    """
    made = dict(tensors)
    for joined, (left, right) in JOINED[program].items():
        for name in [name for name in made if left in name or right in name]:
            if name not in made:  # the other half of one before
                continue
            whole = name.replace(left, joined).replace(right, joined)
            halves = whole.replace(joined, left), whole.replace(joined, right)
            if missing := [half for half in halves if half not in made]:
                raise ValueError(f"{missing[0]} is missing; AlphaFold-Multimer joins it with another projection")
            made[whole] = torch.cat([made.pop(half) for half in halves])
    return made


def from_openfold(tensors: Mapping[str, Tensor]) -> tuple[Tensors, dict[str, str], list[str]]:
    """Return tensors by their names here, name here → name in the file, and the names that are unknown.

    Current and earlier names of OpenFold are known.
    """
    renamed, origin, unknown = _renamed(tensors, FROM_OPENFOLD, "here", EARLIER_OPENFOLD_NAMES)
    return *_split_halves(renamed, origin, "openfold"), unknown


def to_openfold(tensors: Mapping[str, Tensor]) -> tuple[Tensors, list[str]]:
    """Return tensors, which are named as here, by OpenFold's names, and the names that OpenFold does not have."""
    table = FROM_HERE
    if is_multimer(tensors):
        tensors, table = _join_halves(tensors, "openfold"), FROM_MULTIMER
    renamed, _, unknown = _renamed(tensors, table, "openfold")
    return renamed, unknown


def _renamed(
    tensors: Mapping[str, Tensor], table: Mapping[str, Entry], to: str, earlier: tuple[tuple[str, str], ...] = ()
) -> tuple[Tensors, dict[str, str], list[str]]:
    renamed: Tensors = {}
    origin: dict[str, str] = {}
    unknown = []
    for name, tensor in tensors.items():
        current = name
        for pattern, replacement in earlier:
            current = re.sub(pattern, replacement, current)
        number = BLOCK.search(current)
        entry = table.get(BLOCK.sub("{}", current))
        if entry is None:
            unknown.append(name)
            continue
        new = getattr(entry, to).replace("{}", number.group() if number else "")
        if new in renamed:
            raise ValueError(f"two tensors have the same meaning: {origin[new]} and {name}")
        renamed[new], origin[new] = tensor, name
    return renamed, origin, unknown


def from_alphafold(arrays: Mapping[str, Tensor]) -> tuple[Tensors, dict[str, str], list[str]]:
    """Return AlphaFold's arrays as tensors by their names here, name here → array, and the arrays that are unknown.

    The tensors are views where torch allows it. Raises ValueError for an array with another number of axes.
    """
    tensors: Tensors = {}
    origin: dict[str, str] = {}
    unknown = []
    for name, array in arrays.items():
        entry = FROM_ALPHAFOLD.get(name)
        if entry is None:
            unknown.append(name)
            continue
        before, after = entry.axes.split(" -> ")
        if entry.is_stacked:
            before, after = f"block {before}", f"block {after}"
        if array.dim() != len(before.split()):
            raise ValueError(f"{name}: has the shape {list(array.shape)}, expected the axes [{before}]")
        tensor = rearrange(array, f"{before} -> {after}")
        blocks = tensor if entry.is_stacked else [tensor]
        parts = {entry.here.format(number): part for number, part in enumerate(blocks)}
        if twice := parts.keys() & tensors.keys():
            raise ValueError(f"two tensors have the same meaning: {origin[twice.pop()]} and {name}")
        tensors |= parts
        origin |= dict.fromkeys(parts, name)
    return *_split_halves(tensors, origin, "alphafold"), unknown


def to_alphafold(tensors: Mapping[str, Tensor]) -> tuple[Tensors, list[str]]:
    """Return tensors, which are named as here, as AlphaFold's arrays, and the names that AlphaFold does not have.

    Raises ValueError if a block lacks a tensor that another block has, or if the shapes do not give the sizes of the
    axes that AlphaFold's arrays have.
    """
    table = FROM_HERE
    if is_multimer(tensors):
        tensors, table = _join_halves(tensors, "alphafold"), FROM_MULTIMER
    stacks: dict[Entry, dict[int, Tensor]] = defaultdict(dict)
    unknown = []
    for name, tensor in tensors.items():
        entry = table.get(BLOCK.sub("{}", name))
        if entry is None:
            unknown.append(name)
            continue
        number = BLOCK.search(name)
        stacks[entry][int(number.group()) if number else 0] = _split(name, tensor, entry, tensors)
    arrays: Tensors = {}
    for entry, blocks in stacks.items():
        if not entry.is_stacked:
            arrays[entry.alphafold] = blocks[0].contiguous()
            continue
        if max(blocks) != len(blocks) - 1:
            missing = next(number for number in range(len(blocks)) if number not in blocks)
            raise ValueError(f"{entry.here.format(missing)} is missing, but other blocks have this tensor")
        try:
            arrays[entry.alphafold] = torch.stack([blocks[i] for i in range(len(blocks))])
        except RuntimeError:
            shapes = {tuple(block.shape) for block in blocks.values()}
            raise ValueError(f"{entry.here}: its shape differs among blocks: {sorted(shapes)}") from None
    return arrays, unknown


def _split(name: str, tensor: Tensor, entry: Entry, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return ``tensor`` with AlphaFold's axes, without the axis of blocks."""
    before, after = entry.axes.split(" -> ")
    sizes = {}
    if entry.split:
        size = entry.split_by
        if isinstance(size, str):
            number = BLOCK.search(name)
            given_by = size.format(number.group() if number else "")
            if given_by not in tensors:
                raise ValueError(f"{given_by} is missing; it gives the number of heads or channels of {name}")
            size = tensors[given_by].shape[0]
        sizes[entry.split] = size
    try:
        return rearrange(tensor, f"{after} -> {before}", **sizes)
    except EinopsError:
        wanted = f"expected the axes [{after}]" + "".join(f", {axis} = {size}" for axis, size in sizes.items())
        raise ValueError(f"{name}: has the shape {list(tensor.shape)}, {wanted}") from None


def parameters(tensors: Mapping[str, Tensor]) -> int:
    """Return the number of elements of ``tensors``."""
    return sum(math.prod(tensor.shape) for tensor in tensors.values())
