"""Table of run-file keys, values and command-line values that were renamed, with the messages that name the new ones.

``python -m ds4sci.config.renamed`` prints the table as the documentation page ``docs/renamed.md``.
"""

from __future__ import annotations

from typing import NamedTuple


class Renamed(NamedTuple):
    """One renamed name. ``where`` says which run files have it."""

    old: str
    new: str
    where: str = "all"


KEYS = (
    Renamed("model.stem.alone_until", "model.stem.stem_only_fraction", "fold"),
    Renamed("model.structure.start", "model.structure.initial_frames", "fold"),
    Renamed("loss.unclamped", "loss.unclamped_fraction", "fold"),
    Renamed("loss.clamp_from", "loss.initial_clamp", "fold"),
    Renamed("loss.geometry_from", "loss.geometry_from_progress", "fold"),
    Renamed("loss.start_fape", "loss.initial_frames_fape", "fold"),
    Renamed("model.weights", "model.load_weights", "language models"),
    Renamed("model.recompute_above", "train.activation_budget", "language models"),
    Renamed("model.checkpoint_min_tokens", "train.activation_budget", "language models"),
    Renamed("model.tile", "model.tile_size", "language models"),
    Renamed("model.lora.targets", "model.lora.target_modules", "language models"),
    Renamed("data.mask_fraction", "data.mlm_probability", "masked_lm"),
    Renamed("data.bad", "data.on_bad_record", "masked_lm, causal_lm"),
    Renamed("data.soft_weight", "data.soft_masked_weight", "masked_lm, causal_lm"),
    Renamed("data.phases.row", "data.phases.row_length", "masked_lm, causal_lm"),
    Renamed("data.row", "data.row_length", "token_classification"),
    Renamed("model.waves", "model.num_harmonics", "neural_operator"),
    Renamed("model.fourier", "model.num_fourier_features", "neural_operator"),
    Renamed("data.boundary", "data.boundary_points", "neural_operator"),
    Renamed("data.functions", "data.train_functions", "neural_operator"),
    Renamed("data.valid", "data.valid_functions", "neural_operator"),
    Renamed("loss.exact", "loss.hard_constraints", "neural_operator"),
    Renamed("kernels.attention", "kernels.varlen_attention"),
)
"""Dotted keys, without the indices of lists."""

VALUES = {
    "task.name": (
        Renamed("residue_labels", "token_classification"),
        Renamed("operator", "neural_operator"),
    ),
    "--op": (Renamed("attention", "varlen_attention", "ds4sci bench kernels"),),
}
"""Key or command-line option → renamed values."""


def new_key(keys: tuple[str, ...]) -> str | None:
    """Return the new dotted name of the key ``keys``, or None if it was not renamed. List indices are ignored."""
    dotted = ".".join(key for key in keys if not key.isdigit())
    return next((entry.new for entry in KEYS if entry.old == dotted), None)


def new_value(key: str, value: str) -> str | None:
    """Return the new name of ``value`` of a key or option, or None if it was not renamed."""
    return next((entry.new for entry in VALUES.get(key, ()) if entry.old == value), None)


def key_message(old: str, new: str) -> str:
    """Return the message for a renamed key."""
    return f"{old} is now {new}; rename the key"


def value_message(key: str, old: str, new: str) -> str:
    """Return the message for a renamed value of a key or a command-line option."""
    given, expected = (
        (f"{key} {old}", f"{key} {new}") if key.startswith("-") else (f'{key} = "{old}"', f'{key} = "{new}"')
    )
    return f"{given} is now {expected}"


def as_markdown() -> str:
    """Return the table as the page ``docs/renamed.md``."""
    lines = [
        "# Renamed keys and values",
        "",
        "Version 0.2 renamed the following keys and values of run files and commands. An old name is refused with the",
        "new one. Run folders of version 0.1 are refused: use the version that wrote them, or start a new run.",
        "",
        "| old key | new key | tasks |",
        "|---|---|---|",
        *(f"| `{entry.old}` | `{entry.new}` | {entry.where} |" for entry in KEYS),
        "",
        "| key or option | old value | new value |",
        "|---|---|---|",
        *(f"| `{key}` | `{one.old}` | `{one.new}` |" for key, entries in VALUES.items() for one in entries),
        "",
        "<sub>Generated from `ds4sci/config/renamed.py` by `python -m ds4sci.config.renamed > docs/renamed.md`.</sub>",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")
