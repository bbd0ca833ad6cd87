"""Values as JSON has them."""

from __future__ import annotations

import math
from typing import Any


def to_plain(value: Any) -> Any:
    """Return ``value`` with tensors and NumPy scalars as Python values and non-finite floats as strings."""
    if isinstance(value, dict):
        return {str(key): to_plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(one) for one in value]
    if hasattr(value, "tolist"):
        return to_plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
