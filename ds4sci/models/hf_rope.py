"""Settings of rotary embeddings under their earlier names; transformers 5 has them all in ``rope_parameters``.

A base without its scaling, or a scaling without its base, would fall back to defaults without a word.
"""

from __future__ import annotations

from typing import Any

_INSIDE = {
    "rope_theta": "rope_theta",
    "rotary_emb_base": "rope_theta",
    "partial_rotary_factor": "partial_rotary_factor",
    "rotary_pct": "partial_rotary_factor",
}
"""Earlier keys of a config → keys of ``rope_parameters``."""


def renamed(config: Any, values: dict[str, Any]) -> dict[str, Any]:
    """``values`` with every setting of rotary embeddings in ``rope_parameters``; the base and the share of channels of
    ``config`` stay where they are not named.

    Raises ValueError where ``config`` has several sets of them, one for each type of layer.
    """
    rope = getattr(config, "rope_parameters", None)
    named = [key for key in values if key in _INSIDE or key in ("rope_scaling", "rope_parameters")]
    if not isinstance(rope, dict) or not named:
        return dict(values)
    if any(isinstance(one, dict) for one in rope.values()):
        old = [key for key in named if key != "rope_parameters"]
        if old:
            raise ValueError(
                f"{type(config).__name__} has no one {old[0]}: set rope_parameters, one for each type of layer, "
                f"now {rope}"
            )
        return dict(values)
    found = dict(rope)
    for key in named:  # in the order in which they were given: the later ones win
        if key in _INSIDE:
            found[_INSIDE[key]] = values[key]
            continue
        kept = {name: found[name] for name in ("rope_theta", "partial_rotary_factor") if name in found}
        scaling = {"rope_type" if name == "type" else name: one for name, one in (values[key] or {}).items()}
        found = kept | {"rope_type": "default"} | scaling
    return {key: value for key, value in values.items() if key not in named} | {"rope_parameters": found}
