"""Version of ds4sci that wrote a run folder, and the check that this version can read it."""

from __future__ import annotations

import json
from pathlib import Path

from ds4sci import __version__

KEY = "ds4sci_version"
"""Key of ``config.json`` that holds the version. Version 0.1 did not write it."""

OLDEST_READABLE = (0, 2)
"""Oldest version whose run folders this version reads."""


def is_readable(version: object) -> bool:
    """Whether this version reads run folders of ``version``, the value of ``KEY`` (None if the key is missing)."""
    return isinstance(version, str) and _parse(version) >= OLDEST_READABLE


def check(config_file: Path, version: object) -> None:
    """Raise ValueError if this version cannot read the run whose ``config.json`` has ``version``.

    The message names the version and the commit that wrote the run, and what to do.
    """
    if is_readable(version):
        return
    writer = version if isinstance(version, str) else _recorded_version(config_file)
    commit_file = config_file.with_name("commit.txt")
    commit = commit_file.read_text(encoding="utf-8").strip() if commit_file.is_file() else ""
    origin = (writer or "of an unknown version") + (f" (commit {commit})" if commit else "")
    oldest = ".".join(map(str, OLDEST_READABLE))
    raise ValueError(
        f"{config_file}: written by ds4sci {origin}; ds4sci {__version__} reads runs of version {oldest} "
        "and later. Use the version that wrote the run to resume, evaluate or export it, or start a new run from its "
        "run file, with the keys renamed as docs/renamed.md lists"
    )


def _recorded_version(config_file: Path) -> str | None:
    """Return the version in the ``machine.json`` of the run folder or of the run that holds this checkpoint."""
    for folder in config_file.absolute().parents[:3]:
        try:
            machine = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
            return str(machine["versions"]["ds4sci"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _parse(version: str) -> tuple[int, ...]:
    """Return major and minor of a version such as ``0.2.0``; (0, 0) if it is malformed."""
    parts = version.split(".")[:2]
    return tuple(map(int, parts)) if len(parts) == 2 and all(part.isdigit() for part in parts) else (0, 0)
