"""The cache folder of ds4sci, and files cached next to their source."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def cache_root() -> Path:
    """``$DS4SCI_CACHE`` if set, else ``ds4sci`` in ``$XDG_CACHE_HOME`` or ``~/.cache``. Creates nothing."""
    if own := os.environ.get("DS4SCI_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ds4sci"


def derived_path(source: Path, suffix: str, *, kind: str) -> Path:
    """Path of a file derived from ``source``: ``source`` + ``suffix`` where its folder is writable, else in the cache.

    In the cache it is ``cache_root() / kind / (hash of the folder's path) / (name of source + suffix)``, in a folder
    that this function creates.
    """
    whole = source.resolve()
    if os.access(whole.parent, os.W_OK):
        return whole.with_name(whole.name + suffix)
    folder = cache_root() / kind / hashlib.sha256(str(whole.parent).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    return folder / (whole.name + suffix)
