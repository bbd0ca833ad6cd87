"""Miniatures of the tasks on images and fields for ``ds4sci selftest``: few channels, two levels, random data.

As in ``ds4sci.tasks.miniatures``, flags of architecture and loss stay those of the run. The data of the run need not
exist if the run file names what determines the number of channels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ds4sci.data.array_shards import ArrayShards, write_shard
from ds4sci.data.surrogate_variables import Variables
from ds4sci.tasks.miniatures import sections_of

EXAMPLES = {"train": 16, "valid": 3}
ROWS, COLUMNS = 7, 12
"""Size of the examples: an odd number of rows, as on a grid with poles."""


def segmentation_miniature(config: Any, folder: Path) -> dict[str, Any]:
    """Return the sections of a tiny segmentation; its random data, on two grids, go to ``folder``."""
    tree = sections_of(config)
    channels = len(config.data.channels) or len(ArrayShards.find(config.data.folder(), "train")[0][0])
    classes = len(config.data.classes)
    for split, count in EXAMPLES.items():
        rng = np.random.default_rng([0, count])
        inputs = rng.normal(size=(count, channels, ROWS, COLUMNS)).astype(np.float32)
        # every class occurs, with unequal frequencies
        labels = rng.integers(classes, size=(count, 2 * ROWS - 1, 2 * COLUMNS)) * rng.integers(2, size=(count, 1, 1))
        write_shard(folder, split, 0, inputs, labels.astype(np.uint8))
    return tree | {"model": _small_unet(tree["model"]), "data": _small_data(tree["data"], folder)}


def _small_unet(model: dict[str, Any]) -> dict[str, Any]:
    return model | {"channels": 4, "levels": min(2, model["levels"]), "growth": 2.0, "groups": 2}


def _small_data(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    return data | {"path": str(folder), "valid_examples": EXAMPLES["valid"]}


def denoising_miniature(config: Any, folder: Path) -> dict[str, Any]:
    """Return the sections of a tiny denoising; its random counts go to ``folder``."""
    tree = sections_of(config)
    for split, count in EXAMPLES.items():
        rng = np.random.default_rng([1, count])
        clean = 1 + 0.1 * rng.normal(size=(count, 1, COLUMNS, COLUMNS))
        write_shard(folder, split, 0, rng.poisson(50 * clean).astype(np.uint16), clean.astype(np.float32))
    data = _small_data(tree["data"], folder) | ({"crop": COLUMNS - 1} if config.data.crop else {})
    baseline = {"patch": 3, "distance": 2, "calibration_images": 2}
    return tree | {"model": _small_unet(tree["model"]), "data": data, "baseline": baseline}


def image_miniature(config: Any, folder: Path) -> dict[str, Any]:
    """Return the sections of a tiny vision transformer on random images of two by three patches, or 2 × 3 × 1.

    Number of axes, head and parity of the number of attention heads stay.
    """
    tree = sections_of(config)
    model = config.model
    axes = len(model.patch)
    patch, size = (4, 4, 2)[:axes], (8, 12, 2)[:axes]
    heads = 3 if int(model.config.get("num_attention_heads", 12)) % 2 else 2
    channels = 1 if not config.data.path.exists() else len(ArrayShards.find(config.data.folder(), "train")[0][0])
    classes = max(2, len(config.data.classes))
    for split, count in EXAMPLES.items():
        rng = np.random.default_rng([2, count])
        inputs = rng.normal(size=(count, channels, *size)).astype(np.float32)
        shape = (count, *size) if model.head == "segmentation" else (count,)
        write_shard(folder, split, 0, inputs, rng.integers(classes, size=shape).astype(np.uint8))
    sizes = {"hidden_size": 8 * heads, "num_hidden_layers": 2, "num_attention_heads": heads, "intermediate_size": 32}
    decoder = {"hidden_size": 8 * heads, "num_hidden_layers": 1, "num_attention_heads": heads}
    small = tree["model"] | {"patch": list(patch), "config": sizes, "decoder": decoder, "load_weights": False}
    small.pop("path", None)
    return tree | {"model": small, "data": _small_data(tree["data"], folder)}


def surrogate_miniature(config: Any, folder: Path) -> dict[str, Any]:
    """Return the sections of a tiny surrogate with three parameters, two scalars and a field of 3 × 4 cells; its random
    examples go to ``folder``."""
    tree = sections_of(config)
    source = config.data.source
    variables = Variables(
        ("a", "b", "c"),
        np.full(3, -1.0),
        np.full(3, 2.0),
        ("d", "e"),
        "f",
        (3, 4),
        tuple(dict.fromkeys(("base", source))),
    )
    variables.write(folder)
    for number, name in enumerate(variables.sources):
        (folder / name).mkdir()
        for split, count in EXAMPLES.items():
            rng = np.random.default_rng([2, number, count])
            inputs = rng.uniform(variables.low, variables.high, (count, 3)).astype(np.float32)
            targets = rng.normal(size=(count, variables.outputs)).astype(np.float32)
            write_shard(folder / name, split, 0, inputs, targets)
    hidden = [min(8, width) for width in tree["model"]["hidden"]]
    return tree | {"model": tree["model"] | {"hidden": hidden}, "data": _small_data(tree["data"], folder)}
