"""Published parameters for a given structure model, and a trained structure model as an OpenFold checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from ds4sci.models.fold import FoldModel
from ds4sci.models.published_weights.key_map import TEMPLATES
from ds4sci.models.published_weights.sizes import HEADS, differing_sizes, read_contents
from ds4sci.models.published_weights.weight_file import WeightFile, read_weights, write_weights
from ds4sci.models.weight_fit import FittedWeights, fit_weights
from ds4sci.nn.low_rank import is_adapter, merged_state

REASONS = {
    TEMPLATES: "the model has no templates (model.template.blocks)",
    "heads.": "model.heads does not list this head",
}
"""Why a structure model lacks a tensor, by the beginning of its name; the first that fits."""


def why_unused(name: str) -> str:
    """Return why a structure model lacks the published tensor ``name``."""
    return next((why for start, why in REASONS.items() if name.startswith(start)), "it is no tensor of AlphaFold 2")


def is_auxiliary_head(name: str) -> bool:
    """Whether ``name`` belongs to a head that no other output depends on, so that a model works the same without it."""
    return name.startswith("heads.")


def describe_unknown(file: WeightFile) -> str:
    """Return the names of a file that no published model has."""
    more = f", … and {len(file.unknown) - 5:,} more" if len(file.unknown) > 5 else ""
    return f"{len(file.unknown):,} names that AlphaFold 2 does not have: {', '.join(file.unknown[:5])}{more}"


def read_for(model: FoldModel, file: Path, *, skip: Sequence[str] = (), new: Sequence[str] = ()) -> FittedWeights:
    """Return the parameters in ``file`` for ``model``; ``skip`` and ``new`` are those of ``fit_weights``.

    Low-rank adapters that the file lacks keep their initial values, with which the model is that of the file.
    Auxiliary heads that the model lacks are left out; templates only if ``skip`` matches them, as predictions depend on
    them. Raises ValueError for a file that cannot be read or does not fit, naming the tensors.
    """
    weights = read_weights(file)
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    fit = fit_weights(
        {name: shape for name, shape in own.items() if name in weights.tensors or not is_adapter(name)},
        weights.shapes(),
        source=file,
        skip=skip,
        new=new,
        is_optional=is_auxiliary_head,
        reason=why_unused,
        hint=_hint(model, weights),
    )
    return FittedWeights(weights.tensors, fit, weights.title, weights.notice)


def _hint(model: FoldModel, weights: WeightFile) -> str:
    """Return the sizes of the file, if they are others than those of the model, or why its names are unknown."""
    try:
        sizes = differing_sizes(read_contents(weights.tensors).config, model.config)
    except ValueError:
        return describe_unknown(weights) if weights.unknown else ""
    return f"A model of the sizes of the file: {sizes}" if sizes else ""


def export_openfold(model: FoldModel, path: Path) -> None:
    """Write the parameters of ``model`` as a state dict of OpenFold's model, which has templates if this one does.
    Low-rank adapters are merged.

    Warns about heads that only one of the two models has. Raises ValueError, naming the tensors, for a model with other
    parts that OpenFold lacks.
    """
    tensors = {name: tensor.cpu() for name, tensor in merged_state(model).items()}
    if own := [name for name in model.config.heads if name not in HEADS]:
        tensors = {
            name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(f"heads.{h}." for h in own))
        }
        warnings.warn(f"{path.name}: without the head {', '.join(own)}, which OpenFold does not have", stacklevel=2)
    # OpenFold has the head tm only in its presets model_N_ptm
    if missing := [name for name in HEADS if name not in (*model.config.heads, "tm")]:
        warnings.warn(
            f"{path.name}: OpenFold also has the head {', '.join(missing)}, which this model does not: load the file "
            "with strict=False",
            stacklevel=2,
        )
    write_weights(path, tensors, "openfold")
